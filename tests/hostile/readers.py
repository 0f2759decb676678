"""What is fed to the readers of rows: every layout, every kind of file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts import LAYOUTS
from tests.hostile.fuzz import Target
from tests.hostile.inputs import anything, bytes_like, deep, encoded, spoilt

EXAMPLE = re.compile(r"```json file=\S+ layout=(\S+) rows=\d+\n(.*?)```", re.DOTALL)
DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
TRUTHFUL = [
    {"prompt": f"Q: Is it {word}?\nA: {answer}\n{tail}:", "completion": " yes" if answer == "Yes." else " no"}
    for word in ("so", "not")
    for answer in ("Yes.", "No.")
    for tail in ("True", "Helpful")
]
RECORDS: dict[str, list[Any]] = {"truthfulqa": TRUTHFUL}
for layout, lines in EXAMPLE.findall(DOCS):
    RECORDS.setdefault(layout, []).extend(json.loads(line) for line in lines.splitlines())
GOODS = [(layout, records) for layout, records in RECORDS.items()]


def jsonl(records: list[Any]) -> bytes:
    return b"".join(encoded(record) + b"\n" for record in records)


def feed_records(case: tuple[str, str, list[Any]], folder: Path) -> None:
    """Records of one layout, read as it or recognised, stopping at bad rows or leaving them out."""
    name, kind, records = case
    file = folder / f"rows.{kind}"
    file.write_bytes(encoded(records) if kind == "json" else jsonl(records))
    given = {"format": name, "on_bad_row": "skip", "ties": "equal"}
    read_comparisons(str(file), **given, conversational=len(records) % 2 == 0, max_pairs=3)


def feed_list(records: list[Any], folder: Path) -> None:
    """Rows in memory. A list of texts names files and is left out: `..` would be a folder to read."""
    if not all(isinstance(record, str) for record in records):
        read_comparisons(records, on_bad_row="skip")


def feed_file(case: tuple[str, bytes], folder: Path) -> None:
    file = folder / f"rows{case[0]}"
    file.write_bytes(case[1])
    read_comparisons(str(file), on_bad_row="skip")


def feed_deep(case: tuple[str, int, str], folder: Path) -> None:
    """One value so deep, or a number so long, that a parser gives up."""
    kind, depth, field = case
    value = "[" * depth + "]" * depth if kind != "digits" else "1" * depth
    if kind == "objects":
        value = '{"a":' * depth + "1" + "}" * depth
    record = json.dumps(RECORDS["native"][0])
    text = record[:-1] + f', "{field}": {value}}}' if field else value
    (folder / "rows.jsonl").write_text(f"{record}\n{text}\n", encoding="utf-8")
    (folder / "rows.json").write_text(f"[{record}, {text}]", encoding="utf-8")
    as_text = {**RECORDS["native"][0], "preferences": value}
    (folder / "text.jsonl").write_text(f"{record}\n{json.dumps(as_text)}\n", encoding="utf-8")
    read_comparisons(str(folder / "rows.jsonl"), on_bad_row="skip")
    read_comparisons(str(folder / "text.jsonl"), on_bad_row="skip")
    read_comparisons(str(folder / "rows.json"), on_bad_row="skip")


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


FLAT = [
    {"prompt": f"p{i} é", "response_a": "a", "response_b": 'b,\n"', "preferences.x": i % 2, "id": str(i)}
    for i in range(5)
]
LINES = [jsonl(records) for records in RECORDS.values()]
FILES = {
    ".jsonl": LINES,
    ".json": [encoded(records) for records in RECORDS.values()],
    ".jsonl.gz": [gzip.compress(lines, mtime=0) for lines in LINES],
    ".csv": [as_csv(FLAT)],
    ".parquet": [
        parquet(FLAT),
        parquet(RECORDS["scores"]),
        parquet(RECORDS["native"][:1]),
        parquet(RECORDS["ultrafeedback"]),
    ],
}
layouts = st.sampled_from([*RECORDS, *LAYOUTS, "auto"])
cases = st.one_of(
    *(st.tuples(st.just(name), st.sampled_from(["jsonl", "json"]), spoilt([good])) for name, good in GOODS)
)
cases = cases.filter(lambda case: isinstance(case[2], list))
TARGETS = {
    "rows of each layout": Target(cases, feed_records, few=150),
    "rows of another layout": Target(
        st.tuples(layouts, st.just("jsonl"), st.sampled_from([records for _, records in GOODS])), feed_records, few=60
    ),
    "rows of any shape": Target(
        st.one_of(st.lists(anything, max_size=4), spoilt([[dict(record)] for record in RECORDS["native"]])).filter(
            lambda value: isinstance(value, list)
        ),
        feed_list,
        few=60,
    ),
    "files with other bytes": Target(
        st.one_of(*(st.tuples(st.just(end), bytes_like(goods)) for end, goods in FILES.items())), feed_file, few=80
    ),
    "deep and long values": Target(
        st.tuples(
            st.sampled_from(["lists", "objects", "digits"]),
            deep,
            st.sampled_from(["", "id", "preferences", "ratings", "prompt", "scores", "extra"]),
        ),
        feed_deep,
        few=25,
    ),
}
