"""Run directories and demo folders as they are read, whole or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.evaluation.report.load import Demo, Run, load, load_run, not_comparable, world_of_runs
from tests.evaluation.report.demo_made import LONG_UNIT, METHODS, made_run


def test_a_demo_brings_its_points_and_their_runs(demo: Path) -> None:
    found = load(demo)
    assert isinstance(found, Demo)
    summaries, safety = found.worlds
    assert safety.objectives == ("helpful", "harmless")
    assert {point.method for point in safety.points} == set(METHODS)
    assert all(point.run is not None and point.run.seed == point.seed for point in safety.points)
    assert summaries.units["conciseness"] == LONG_UNIT
    assert summaries.base is not None and summaries.base_n == 200
    assert found.facts["seeds"] == [0, 1] and "worlds" not in found.facts
    assert {name: [p.seed for p in own] for name, own in safety.ceilings.items()} == {
        "helpful": [0, 1], "harmless": [0, 1],
    }  # fmt: skip


def test_a_result_with_one_ceiling_each_is_read(demo: Path, tmp_path: Path) -> None:
    result = json.loads((demo / "result.json").read_text())
    for world in result["worlds"]:
        world["ceilings"] = {name: own[0] for name, own in world["ceilings"].items()}
    (tmp_path / "result.json").write_text(json.dumps(result))
    found = load(tmp_path)
    assert isinstance(found, Demo)
    assert [len(own) for world in found.worlds for own in world.ceilings.values()] == [1] * 5


def test_a_run_and_a_line_cut_short(tmp_path: Path) -> None:
    made_run(tmp_path / "run", ["x", "y"], (0.25, 0.75), "raco", 7, 5)
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run = load(tmp_path / "run")
    assert isinstance(run, Run)
    assert (run.objectives, run.weights, run.method, run.c, run.seed) == (
        ("x", "y"), {"x": 0.25, "y": 0.75}, "raco", 0.4, 7,
    )  # fmt: skip
    assert len(run.history) == 5 + 5 + 1


def test_runs_are_compared_only_where_they_can_be(tmp_path: Path) -> None:
    one, two, other = (
        load_run(made_run(tmp_path / name, names, (0.5, 0.5), "raco", 0, 4), name)
        for name, names in (("one", ["x", "y"]), ("two", ["x", "y"]), ("other", ["x", "z"]))
    )
    world = world_of_runs([one, two])
    assert world is not None and [p.run_name for p in world.points] == ["one", "two"]
    assert world.points[0].scores == {"x": pytest.approx(0.6), "y": pytest.approx(0.7)}
    assert "do not say which they held out: one, two." in world.description
    assert world_of_runs([one]) is None and not_comparable([one]) is None
    assert world_of_runs([one, other]) is None and "different objectives" in str(not_comparable([one, other]))
    silent = Run(**{**vars(two), "history": []})
    assert world_of_runs([one, silent]) is None and "one set of held-out rows (eval_fraction, eval_data): two" in str(
        not_comparable([one, silent])
    )


@pytest.mark.parametrize(
    ("records", "same"),
    [
        ([("aa", 10), ("aa", 10)], True),
        ([("aa", 10), ("bb", 10)], False),
        ([("aa", 10), ("aa", 9)], False),  # parts of one file, or rows too long for one run
        ([("aa", 10), None], True),  # not known: drawn, and said
        ([("aa", 10), None, ("bb", 10)], False),
    ],
)
def test_runs_that_held_out_other_rows_are_not_compared(
    tmp_path: Path, records: list[tuple[str, int] | None], same: bool
) -> None:
    runs = []
    for i, known in enumerate(records):
        run = load_run(made_run(tmp_path / str(i), ["x", "y"], (0.5, 0.5), "raco", i, 4), str(i))
        if known is not None:
            run.record["data"] = {"eval": {"rows": {"fingerprint": known[0]}, "tokens": {"kept": known[1]}}}
        runs.append(run)
    world, why = world_of_runs(runs), not_comparable(runs)
    assert (world is not None) == same == (why is None)
    assert same or "held out different rows" in str(why)
    if world is not None:
        assert ("do not say which they held out: 1." in world.description) == (None in records)
        assert ("All held out the same rows" in world.description) == (None not in records)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (None, "", "nothing to report on; expected run.json, result.json or front.json"),
        ("run.json", "{", "unreadable"),
        ("run.json", "[]", "not a JSON object"),
        ("run.json", "{}", "no objectives with names and weights"),
        ("run.json", '{"objectives": [{"name": "x", "weight": null}]}', "no objectives with names and weights"),
        ("result.json", '{"worlds": []}', "no worlds"),
        ("result.json", '{"worlds": [{"name": "w"}]}', "KeyError: 'objectives'"),
        ("result.json", '{"worlds": ["w"]}', "not a result as the demo writes it"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, file: str | None, content: str, words: str) -> None:
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_score_that_is_missing_is_said(demo: Path, tmp_path: Path) -> None:
    result = json.loads((demo / "result.json").read_text())
    del result["worlds"][0]["points"][0]["scores"]["coverage"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="KeyError: 'coverage'"):
        load(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        load(tmp_path / "nowhere")
