"""Opening data: every kind of file, what is said about what cannot be read, hub ids and streams."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from paretune.comparisons.formats import read_comparisons
from paretune.errors import InputError

LABELS = [{"x": 0, "y": 0.5}, *({"x": i % 2, "y": None} for i in range(1, 5))]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i}", "response_a": f"a{i} é", "response_b": f"b{i}", "preferences": labels}
    for i, labels in enumerate(LABELS)
]
LINES = [json.dumps(row) for row in ROWS]


def fingerprint(data: Any, **options: Any) -> str:
    return read_comparisons(data, **options)[1].fingerprint


def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path) -> None:
    text = "\n".join(LINES) + "\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + text.replace("\n", "\r\n\r\n"), encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(text)
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(str(tmp_path / "a.parquet"))
    flat = [{**row, "preferences": json.dumps(row["preferences"])} for row in ROWS]
    datasets.Dataset.from_list(flat).to_csv(str(tmp_path / "a.csv"))
    made.save_to_disk(str(tmp_path / "saved"))
    names = ["a.jsonl", "bom.jsonl", "array.json", "a.jsonl.gz", "a.parquet", "a.csv", "saved"]
    forms: list[Any] = [ROWS, made, made.to_iterable_dataset(), datasets.DatasetDict(train=made)]
    forms += [tmp_path / name for name in names]
    assert len({fingerprint(form) for form in forms}) == 1
    assert fingerprint(ROWS[:-1]) != fingerprint(ROWS)
    assert fingerprint([{**ROWS[0], "preferences": {"x": 1}}, *ROWS[1:]]) != fingerprint(ROWS)


def test_a_table_may_spell_preferences_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,response_a,response_b,preferences.x,preferences.y\np,a,b,1,\nq,a,b,,0.5\n")
    rows, _ = read_comparisons(path)
    assert rows["preferences"][:] == [{"x": 1.0, "y": None}, {"x": None, "y": 0.5}]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b'{"prompt": "caf\xe9", "response_a": "a"}', ["not valid UTF-8", "byte 0xe9 at position 16"]),
        (LINES[1][:40].encode(), ["not valid JSON", "of 40 characters"]),
        (b"[1, 2]", ["not a row", "[1, 2]"]),
        (b'"text"', ["not a row"]),
    ],
)
def test_a_broken_line_names_file_and_line(tmp_path: Path, broken: bytes, said: list[str]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes("\n".join(LINES[:2]).encode() + b"\n\n" + broken + b"\n" + LINES[2].encode())
    with pytest.raises(InputError) as caught:
        read_comparisons(path)
    message = str(caught.value)
    assert f"{path}, line 4" in message and all(part in message for part in said), message
    rows, report = read_comparisons(path, on_bad_row="skip")
    assert len(rows) == 3 and report.skipped == 1 and report.read == 4
    (entry,) = report.skips.values()
    assert entry["count"] == 1 and entry["first"]["where"] == f"{path}, line 4"


def test_a_bad_row_of_a_table_names_its_row_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([*ROWS, {**ROWS[0], "prompt": "q", "response_a": ""}]).to_parquet(str(path))
    with pytest.raises(InputError, match=r"a\.parquet, row 6: empty response \(field 'response_a'\)"):
        read_comparisons(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(LINES).encode())[:80])
    (tmp_path / "cut.json").write_text(json.dumps(ROWS)[:50])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no table")
    for name, said in {
        "empty.jsonl": "the file is empty", "blank.jsonl": "no usable row", "rows.txt": "unknown kind of file",
        "cut.jsonl.gz": "cannot be read", "cut.json": "not valid JSON", "bad.parquet": "cannot be read",
        "absent.jsonl": "no such file", "sub/absent": "no such file",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=said) as caught:
            read_comparisons(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("path", ["data/train.jsonl", "./data", "a/b/c", "rows.parquet", "~/rows"])
def test_what_looks_like_a_path_is_not_looked_up_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="no such file"):
        read_comparisons(path)


def test_a_hub_id_that_cannot_be_had_says_both_readings() -> None:
    with pytest.raises(InputError, match="neither a file here nor a data set on the hub"):
        read_comparisons("someone/comparisons")  # the tests run offline


def test_hub_ids_are_read_with_their_options_and_streams_stop_at_take(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    drawn: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        for i in range(10**9):
            drawn.append(i)
            yield {**ROWS[0], "prompt": f"p{i}"}

    def hub(path: str, name: str | None, **options: Any) -> datasets.IterableDataset:
        calls.append((path, name, options))
        return datasets.IterableDataset.from_generator(endless)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    entry = {"path": "someone/comparisons", "name": "small", "data_dir": "d", "split": "test"}
    rows, report = read_comparisons([entry], streaming=True, take=7)
    assert calls == [("someone/comparisons", "small", {"data_dir": "d", "split": "test", "streaming": True})]
    assert len(rows) == report.kept == 7 and len(drawn) < 20


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"path": "a.jsonl", "fromat": "trl"}], "Did you mean 'format'"),
        ([{"path": "a.jsonl", "fraction": 0}], "bad fraction"),
        ([{"path": "a.jsonl", "fraction": True}], "bad fraction"),
        ([], "no data"),
        (5, "data cannot be read"),
        (datasets.DatasetDict(), "no split 'train'"),
        ([["not", "a", "row"]], "not a row"),
    ],
)
def test_bad_data_arguments(data: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_comparisons(data)
