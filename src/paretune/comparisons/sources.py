"""Opening data: whatever the user names becomes a stream of (where, record), or (where, what is wrong with it).

JSON lines are read by us, line by line, so that a finding names its file and line; tables, hub ids and data sets in
memory go through `datasets` and name a row number.
"""

from __future__ import annotations

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paretune.comparisons.rows import BadRow, Words
from paretune.errors import InputError

Item = tuple[str, dict[str, Any] | BadRow]

_TABLES = {".parquet": "parquet", ".csv": "csv"}
_LINES = {".jsonl", ".ndjson", ".json"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Bounds against files that are none of text: a gigabyte of zeros is a megabyte of gzip.
LONGEST_LINE = 256 << 20  # bytes; a row of 100,000 tokens has half a megabyte
LARGEST_ARRAY = 4 << 30  # bytes of a JSON array, which is parsed as a whole
TRUTHFULQA_FILES = ("finetune_truth.jsonl", "finetune_info.jsonl", "TruthfulQA.csv")


@dataclass(frozen=True)
class Source:
    """One file, hub data set or object in memory, and how to read it.

    Args:
        path: file, directory or hub id; None when `rows` holds the data.
        format: a layout's name or "auto".
        objectives: objectives this source labels; for a layout with one label, the name that label gets. A mapping
            names the field that holds each: {objective: field}. None: whatever it holds.
        fraction: share of its groups (prompts) to use, in (0, 1].
        split: split of a hub data set; None takes the call's.
        name: configuration of a hub data set.
        data_dir: folder inside a hub data set (`helpful-base` of Anthropic/hh-rlhf).
        rows: the data itself: a list of dictionaries or a `datasets` object.
    """

    path: str | None = None
    format: str = "auto"
    objectives: Any = None
    fraction: float = 1.0
    split: str | None = None
    name: str | None = None
    data_dir: str | None = None
    rows: Any = None

    @property
    def label(self) -> str:
        return self.path if self.path is not None else "data"


def list_sources(data: Any, format: str) -> list[Source]:
    """The sources behind `data`: a path or id, a list of them or of {path, format, ...}, a list of rows, a data set.

    Raises:
        InputError: nothing given, an unknown key in an entry, or a type that cannot be read.
    """
    if isinstance(data, str | Path):
        return _expand(Source(path=str(data), format=format))
    if isinstance(data, Mapping) and "path" in data:
        return _expand(_from_entry(data, format))
    if isinstance(data, list | tuple):
        if not data:
            raise InputError("no data", expected="a path, a hub id, a list of sources or rows", found=data)
        if all(isinstance(entry, str | Path) for entry in data):
            return [source for entry in data for source in _expand(Source(path=str(entry), format=format))]
        if all(isinstance(entry, Mapping) and "path" in entry for entry in data):
            return [source for entry in data for source in _expand(_from_entry(entry, format))]
        return [Source(rows=data, format=format)]
    if hasattr(data, "__iter__") and not isinstance(data, bytes):
        return [Source(rows=data, format=format)]
    raise InputError("data cannot be read", expected="a path, a hub id, a list of sources or rows", found=data)


def _from_entry(entry: Mapping[str, Any], format: str) -> Source:
    known = [field.name for field in fields(Source) if field.name != "rows"]
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise InputError(f"unknown key {key!r}", where=f"data entry {entry['path']!r}", fix=hint)
    fraction = entry.get("fraction", 1.0)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 < fraction <= 1.0:
        where = f"data entry {entry['path']!r}"
        raise InputError("bad fraction", where=where, expected="a number in (0, 1]", found=fraction)
    return Source(**{"format": format, **entry, "path": str(entry["path"])})


def _expand(source: Source) -> list[Source]:
    """A directory in the TruthfulQA layout stands for its files."""
    folder = Path(source.path or "")
    if source.format not in ("auto", "truthfulqa") or not (folder / TRUTHFULQA_FILES[0]).is_file():
        return [source]
    options = {field.name: getattr(source, field.name) for field in fields(Source)}
    present = [folder / name for name in TRUTHFULQA_FILES if (folder / name).is_file()]
    return [Source(**{**options, "path": str(path), "format": "truthfulqa"}) for path in present]


def open_source(source: Source, *, split: str, streaming: bool) -> Iterator[Item]:
    """Its records in order, each a dictionary, or the finding that it is none.

    Raises:
        InputError: the path does not exist, is not readable, or the hub has no such data set.
    """
    if source.path is None:
        return _numbered(_pick_split(source.rows, source.split or split, "data"), "data")
    path = Path(source.path).expanduser()
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        if _looks_local(source.path, suffix):
            raise InputError("no such file", where=source.path, fix="Paths are relative to the working folder.")
        return _numbered(_hub(source, split, streaming), source.path)
    if path.is_dir():
        return _numbered(_folder(path, source.split or split), source.path)
    if path.stat().st_size == 0:
        raise InputError("the file is empty", where=source.path, expected="at least one row")
    if suffix in _LINES:
        return _json_records(path)
    if suffix in _TABLES and path.suffix != ".gz":
        return _numbered(_table(path, _TABLES[suffix]), source.path)
    expected = ", ".join(sorted(_LINES | set(_TABLES)))
    raise InputError("unknown kind of file", where=source.path, expected=f"one of {expected}", found=path.name)


def _looks_local(path: str, suffix: str) -> bool:
    return suffix in _LINES | set(_TABLES) or path.startswith(("/", "./", "../", "~")) or not _HUB_ID.fullmatch(path)


def _json_records(path: Path) -> Iterator[Item]:
    """JSON lines, or one JSON array (as a `.json` export often is); `.gz` either way."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            name, first = str(path), stream.readline(LONGEST_LINE + 1)
            if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                yield from _json_array(first + _rest(stream, name), name)
                return
            line, number = first.removeprefix(b"\xef\xbb\xbf"), 1
            while line:
                if len(line) > LONGEST_LINE:
                    where = f"{name}, line {number}"
                    raise InputError("the line is too long", where=where, expected=_bytes(LONGEST_LINE))
                yield from _json_line(line, f"{name}, line {number}")
                line, number = stream.readline(LONGEST_LINE + 1), number + 1
    except (OSError, EOFError, zlib.error) as error:  # the last two: a truncated or damaged gzip file
        raise InputError("the file cannot be read", where=str(path), found=str(error)) from error


def _rest(stream: Any, where: str) -> bytes:
    content = bytearray()
    while piece := stream.read(1 << 20):  # in pieces: asked for many bytes at once, a stream makes room for all of them
        content += piece
        if len(content) > LARGEST_ARRAY:
            fix = "Give JSON lines, which are read one by one."
            raise InputError("the array is too large", where=where, expected=_bytes(LARGEST_ARRAY), fix=fix)
    return bytes(content)


def _bytes(limit: int) -> str:
    return f"at most {limit >> 20} MiB"


_TOO_MUCH = "brackets nested a thousand deep, or a number of thousands of digits"


def _json_line(line: bytes, where: str) -> Iterator[Item]:
    if not line.strip():
        return
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at position {error.start + 1} of the line"
        yield where, BadRow("not valid UTF-8", expected="UTF-8 text", found=Words(found), fix="Save the file as UTF-8.")
    except json.JSONDecodeError as error:
        found = f"{error.msg.removesuffix(' at')} at column {error.colno} of {len(line.rstrip())} characters"
        yield where, BadRow("not valid JSON", expected="one JSON object per line", found=Words(found))
    except (RecursionError, ValueError):
        yield where, BadRow("JSON that is not read", expected="one row per line", found=Words(_TOO_MUCH))
    else:
        yield where, _as_record(value)


def _json_array(content: bytes, path: str) -> Iterator[Item]:
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError("not valid UTF-8", where=path, found=f"byte 0x{content[error.start]:02x}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            "not valid JSON", where=f"{path}, line {error.lineno}", found=error.msg.removesuffix(" at")
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError("JSON that is not read", where=path, expected="a list of rows", found=_TOO_MUCH) from error
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", _as_record(value)


def _numbered(rows: Iterable[Any], label: str) -> Iterator[Item]:
    for number, value in enumerate(rows, start=1):
        yield f"{label}, row {number}", _as_record(value)


def _as_record(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    return BadRow("not a row", expected="an object with named fields", found=value)


def _pick_split(rows: Any, split: str, where: str) -> Iterable[Any]:
    if isinstance(rows, Mapping):  # a DatasetDict: one data set per split
        if split not in rows:
            raise InputError(f"no split {split!r}", where=where, expected=f"one of {', '.join(map(str, rows))}")
        return rows[split]
    return rows


def _table(path: Path, kind: str) -> Iterable[Any]:
    import datasets

    # streaming: rows come straight from the file, without a second copy of it in the user's cache
    return _reading(lambda: datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True), str(path))


def _folder(path: Path, split: str) -> Iterable[Any]:
    import datasets

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _reading(lambda: _pick_split(datasets.load_from_disk(str(path)), split, str(path)), str(path))
    return _reading(lambda: datasets.load_dataset(str(path), split=split, streaming=True), str(path))


def _hub(source: Source, split: str, streaming: bool) -> Iterable[Any]:
    import datasets

    try:
        rows = datasets.load_dataset(
            str(source.path), source.name, data_dir=source.data_dir, split=source.split or split, streaming=streaming
        )
    except Exception as error:  # the hub client raises anything from OSError to its own HTTP errors
        raise InputError(
            "neither a file here nor a data set on the hub",
            where=str(source.path),
            found=_first_line(error),
            fix="Check the path or id, its split and configuration name, and the network.",
        ) from error
    return _reading(lambda: rows, str(source.path))


def _reading(open_rows: Callable[[], Iterable[Any]], where: str) -> Iterator[Any]:
    try:
        yield from _undecoded(open_rows())
    except InputError:
        raise
    except Exception as error:  # a broken table surfaces when opened or read, as whatever pyarrow or pandas raises
        raise InputError("the rows cannot be read", where=where, found=Words(_first_line(error))) from error


def _undecoded(rows: Any) -> Iterable[Any]:
    """Pictures and sounds as they are stored: to decode one would open whatever file or address the data names."""
    if isinstance(rows, Mapping) or getattr(rows, "features", None) is None:
        return rows
    streamed = rows.to_iterable_dataset() if hasattr(rows, "to_iterable_dataset") else rows
    return streamed.decode(False) if hasattr(streamed, "decode") else rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
