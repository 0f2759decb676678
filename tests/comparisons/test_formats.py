"""Reading as a whole: recognition, objectives, several files, duplicates, bad rows, and the report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from paretune.comparisons import collect
from paretune.comparisons.formats import load_comparisons, read_comparisons
from paretune.errors import InputError
from paretune.objectives import Objective


def pair(i: int = 0, **labels: Any) -> dict[str, Any]:
    return {"prompt": f"p{i}", "response_a": "one", "response_b": "two", "preferences": labels}


def dpo(prompt: str, **extra: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"good {prompt}", "rejected": f"bad {prompt}", **extra}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(data: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_comparisons(data, **options)
    return str(caught.value)


def test_the_row_of_the_contract() -> None:
    rows, report = read_comparisons([pair(0, x=1, y=None), pair(1, x=0.5), pair(2, y=0)])
    assert rows.column_names == ["prompt", "response_a", "response_b", "preferences"]
    assert rows["preferences"][:] == [{"x": 1.0, "y": None}, {"x": 0.5, "y": None}, {"x": None, "y": 0.0}]
    assert report.labels == {"x": 2, "y": 1} and report.ties == {"x": 1, "y": 0} and not report.has_groups
    assert (report.read, report.made, report.kept, report.skipped) == (3, 3, 3, 0) and not report.warnings
    assert json.loads(json.dumps(report.to_dict()))["fingerprint"] == report.fingerprint


def test_read_rows_can_be_read_again() -> None:
    sides = {"chosen": "p a", "rejected": "p b"}
    rows, report = read_comparisons([{**sides, "raco_s_x": 0, "raco_s_y": 1, "group": "g"}], ties="release")
    again, second = read_comparisons(rows)
    assert again[0] == rows[0] and second.fingerprint == report.fingerprint
    assert report.count_only == {"x": 1, "y": 0} and not report.warnings


def test_more_rows_than_a_chunk_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_CHUNK", 10_000)
    rows, _ = read_comparisons([pair(i, x=i % 2) for i in range(2_345)])
    assert rows["prompt"][:] == [f"p{i}" for i in range(2_345)]
    assert [labels["x"] for labels in rows["preferences"]] == [float(i % 2) for i in range(2_345)]


def test_only_the_objectives_asked_for_are_kept_in_their_order() -> None:
    rows, report = read_comparisons([pair(x=1, y=0, z=1)], objectives=[Objective("z"), Objective("x")])
    assert rows[0]["preferences"] == {"z": 1.0, "x": 1.0} and report.objectives == ["z", "x"]
    assert report.objectives_found == ["x", "y", "z"]


def test_an_absent_objective_names_those_found() -> None:
    message = said([pair(helpful=1, concise=0)], objectives=[Objective("helpful"), Objective("concize")])
    assert "objective 'concize' has no label" in message and "helpful, concise" in message
    assert "Did you mean 'concise'" in message


def test_an_objective_without_any_label() -> None:
    data = [pair(0, x=1, y=None), pair(1, x=0, y=None)]
    assert "objective 'y' has no label in any row" in said(data, objectives=[Objective("x"), Objective("y")])
    assert read_comparisons(data)[1].warnings == ["Objective 'y' has no label in any row."]
    assert "has no label" in said([pair(y=None)], objectives=[Objective("y")])


def test_two_objectives_cannot_share_a_files_only_label_by_accident() -> None:
    message = said([dpo("p")], objectives=[Objective("x"), Objective("y")])
    assert "objective 'x' has no label" in message and "labels for chosen" in message and "labels: NAME" in message


def test_rules_need_no_labels() -> None:
    rows, _ = read_comparisons([{**pair(), "preferences": None}], objectives=[Objective("short", rule="shorter")])
    assert rows[0]["preferences"] == {"short": 0.5}
    assert "unknown rule" in said([pair(x=1)], objectives=[Objective("short", rule="shortest")])


def test_several_files_one_per_objective(tmp_path: Path) -> None:
    first = write(tmp_path / "helpful.jsonl", [dpo(f"p{i}") for i in range(3)])
    second = write(tmp_path / "harmless.jsonl", [pair(i, safe=0) for i in range(2)])
    data = [
        {"path": first, "format": "trl", "objectives": "helpful"},
        {"path": second, "objectives": {"harmless": "safe"}},
    ]  # fmt: skip
    rows, report = read_comparisons(data)
    assert [source["format"] for source in report.sources] == ["trl", "native"]
    assert [source["read"] for source in report.sources] == [3, 2] and report.read == 5
    assert rows["preferences"][:] == [{"helpful": 1.0, "harmless": None}] * 3 + [{"helpful": None, "harmless": 0.0}] * 2
    objectives = [Objective("harmless"), Objective("helpful"), Objective("short", rule="shorter")]
    rows, report = read_comparisons(data, objectives=objectives)
    assert report.labels == {"harmless": 2, "helpful": 3, "short": 5}
    message = said([{"path": first, "objectives": "helpfull"}], objectives=objectives)
    assert "unknown objective" in message and "Did you mean 'helpful'" in message


def test_the_same_pair_labelled_for_different_objectives_becomes_one_row(tmp_path: Path) -> None:
    swapped = {"prompt": "p0", "response_a": "two", "response_b": "one", "preferences": {"y": 0.8}}
    rows, report = read_comparisons([pair(x=1), swapped])
    assert len(rows) == 1 and rows[0]["preferences"] == {"x": 1.0, "y": pytest.approx(0.2)}
    assert report.merged == 1 and report.duplicates == 0
    both = [dpo("p"), dpo("q")]
    data = [
        {"path": write(tmp_path / f"{name}.jsonl", both), "objectives": name} for name in ("helpful", "harmless")
    ]  # fmt: skip
    rows, report = read_comparisons(data, objectives=[Objective("helpful"), Objective("harmless")])
    assert rows["preferences"][:] == [{"helpful": 1.0, "harmless": 1.0}] * 2


def test_duplicates_are_bad_rows_in_either_order() -> None:
    swapped = {"prompt": "p0", "response_a": "two", "response_b": "one", "preferences": {"x": 0}}
    data = [pair(x=1), pair(x=1), swapped, {**swapped, "preferences": {"x": 1}}, pair(1, x=1)]
    message = said(data)
    assert message.startswith("data, row 2: duplicated row") and "the pair of data, row 1 again" in message
    assert "2 more bad rows" in message
    rows, report = read_comparisons(data, on_bad_row="skip")
    assert len(rows) == 2 and report.duplicates == report.skipped == 3
    assert report.skips["duplicated row"]["count"] == 2
    assert report.skips["duplicated row with another label"]["first"]["where"] == "data, row 4"


def test_a_rules_own_label_does_not_hide_or_make_a_duplicate() -> None:
    objectives = [Objective("x"), Objective("y"), Objective("short", rule="shorter")]
    rows, report = read_comparisons([pair(x=1), pair(y=1)], objectives=objectives)
    assert rows[0]["preferences"] == {"x": 1.0, "y": 1.0, "short": 0.5} and report.merged == 1
    assert "duplicated row" in said([pair(x=1), pair(x=1)], objectives=[objectives[0], objectives[2]])


def test_rows_without_information_are_left_out_and_said() -> None:
    same = {**pair(1, x=1), "response_b": "one"}
    rows, report = read_comparisons([pair(x=1), same, pair(2, x=None)])
    assert len(rows) == 1 and report.skipped == 2
    assert {reason: entry["count"] for reason, entry in report.skips.items()} == {
        "identical responses": 1, "no label for any objective": 1,
    }  # fmt: skip
    assert len(report.warnings) == 2 and "row 2" in report.warnings[0]
    assert "no usable row" in said([same]) and "1 x identical responses" in said([same])


def test_bad_rows_stop_or_are_counted() -> None:
    data = [pair(0, x=1), pair(1, x=-1), {**pair(2, x=1), "response_a": ""}, pair(3, x=3)]
    message = said(data)
    assert "data, row 2: label out of range (field 'preferences.x')" in message and "found -1" in message
    assert "2 more bad rows" in message and "on_bad_row: skip" in message
    rows, report = read_comparisons(data, on_bad_row="skip")
    assert len(rows) == 1 and report.skipped == 3 and report.kept == 1
    example = report.skips["empty response"]["first"]
    assert example == {"where": "data, row 3", "field": "response_a", "expected": "some text", "found": "''"}
    assert "no usable row" in said(data[1:], on_bad_row="skip")


def test_plain_and_conversational_rows_do_not_mix_unless_made_alike() -> None:
    talk = {**pair(1, x=1), "prompt": [{"role": "user", "content": "p"}]}
    message = said([pair(0, x=1), talk])
    assert "mixed" in message and "conversational" in message
    rows, report = read_comparisons([pair(0, x=1), talk], conversational=True)
    assert len(rows) == 2 and report.conversational
    assert rows[0]["prompt"] == [{"role": "user", "content": "p0"}]


def test_fraction_keeps_whole_groups_and_is_the_same_every_time(tmp_path: Path) -> None:
    made = [{**pair(i, x=1), "group": f"g{i // 3}"} for i in range(600)]
    entry = {"path": write(tmp_path / "a.jsonl", made), "fraction": 0.5}
    rows, report = read_comparisons([entry])
    assert 240 < len(rows) < 360 and all(list(rows["group"]).count(group) == 3 for group in set(rows["group"]))
    assert report.sources[0]["left_out"] == 600 - len(rows) and "left out by fraction" in report.warnings[-1]
    assert read_comparisons([entry])[1].fingerprint == report.fingerprint
    assert read_comparisons([entry], seed=1)[1].fingerprint != report.fingerprint


def test_take_bounds_each_source(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.jsonl", [pair(10 * i + j, x=1) for j in range(5)]) for i in range(2)]
    rows, _ = read_comparisons(files, take=2)
    assert rows["prompt"][:] == ["p0", "p1", "p10", "p11"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "scoers"}, "Did you mean 'scores'"),
        ({"ties": "mising"}, "Did you mean 'missing'"),
        ({"pairs": "best_worst"}, "Did you mean 'best-worst'"),
        ({"on_bad_row": "ignore"}, "expected one of error, skip"),
        ({"take": 0}, "bad take"),
        ({"max_pairs": 1.5}, "bad max_pairs"),
    ],
)
def test_bad_options(options: dict[str, Any], expected: str) -> None:
    assert expected in said([pair(x=1)], **options)


def test_an_unknown_layout_says_what_was_found_and_what_is_known() -> None:
    message = said([{"question": "q", "best": "a"}])
    assert "layout is not recognised" in message and "fields best, question" in message and "trl:" in message


@pytest.mark.parametrize("missing", ["prompt", "response_a", "response_b", "preferences"])
def test_a_missing_field_is_named(missing: str) -> None:
    row = pair(x=1)
    del row[missing]
    assert f"missing field (field '{missing}')" in said([row, pair(1, x=1)])


def test_load_comparisons_logs_the_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = load_comparisons([pair(x=1), pair(1, x=None)])
    assert len(rows) == 1 and "no label for any objective" in caplog.text
