"""What reading keeps per row: digests, places, and texts in a file that goes with the process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.comparisons import collect, spool
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.spool import Digests, Places, own_folder

ROWS = [
    {"prompt": f"p{i}", "response_a": "one ü", "response_b": "two", "preferences": {"x": i % 2}, "group": f"g{i // 2}"}
    for i in range(2_500)
]


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))


def test_digests_number_what_a_dict_numbers() -> None:
    rng = np.random.default_rng(0)
    texts = [hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in rng.integers(0, 3_000, 9_000)]
    # the same low bits: all of these begin at one slot, and some differ in the high half alone
    texts += [bytes(8) + bytes([i % 7]) * 8 for i in range(40)] + [bytes([0] * 7 + [i]) + bytes(8) for i in range(40)]
    found, expected = Digests(), {}
    for text in texts:
        assert found.find(text) == expected.get(text, -1)
        assert found.add(text) == expected.setdefault(text, len(expected))
    assert len(found) == len(expected) and all(found.find(text) == number for text, number in expected.items())


def test_places_give_the_text_back() -> None:
    texts = ["a b.jsonl, line 7", "a b.jsonl, line 8", "data, row 1", "odd", "x 007", "x ٣", "x 0", f"x {10**20}", ""]
    places = Places()
    for text in texts:
        places.append(text)
    assert [places[i] for i in range(len(texts))] == texts
    assert len(places.heads) == len(texts) - 2 + 1  # "a b.jsonl, line" once, "x" beside the odd ones


@pytest.mark.parametrize("conversational", [False, True])
def test_rows_in_a_file_are_the_rows_in_memory(conversational: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # the last row joins the first, which has left memory by then
    data: list[Any] = [*ROWS, {**ROWS[0], "preferences": {"y": 1}, "id": "twice"}]
    held, first = read_comparisons(data, conversational=conversational)
    assert not held.cache_files
    monkeypatch.setattr(spool, "IN_MEMORY", 20_000)
    monkeypatch.setattr(collect, "_CHUNK", 10_000)
    mapped, second = read_comparisons(data, conversational=conversational)
    (file,) = {entry["filename"] for entry in mapped.cache_files}
    assert Path(file).is_relative_to(os.environ["PARETUNE_CACHE"])
    assert mapped.column_names == held.column_names and mapped.features == held.features
    assert list(mapped) == list(held) and mapped[0]["preferences"] == {"x": 0.0, "y": 1.0}
    assert first.to_dict() == second.to_dict() and first.groups == 1_250
    assert (
        mapped.map(lambda row: {"n": len(row["prompt"])}, num_proc=2)["n"][-1]
        == held.map(lambda row: {"n": len(row["prompt"])})["n"][-1]
    )  # `datasets` hands the file to its processes by name


def test_without_a_place_for_the_file_the_rows_stay_in_memory_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(spool, "IN_MEMORY", 10_000)
    rows, report = read_comparisons(ROWS)
    assert len(rows) == len(ROWS) and not rows.cache_files
    (warning,) = report.warnings
    assert "held in memory" in warning and str(tmp_path / "file") in warning


def test_the_file_goes_with_its_process_and_so_do_those_of_dead_ones(tmp_path: Path) -> None:
    folder = own_folder()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = folder.parent / folder.name.replace(f"={os.getpid()}=", f"={ended.pid}=")
    elsewhere = folder.parent / f"another-machine={ended.pid}=x"
    dead.mkdir()
    elsewhere.mkdir()
    script = "from paretune.comparisons.spool import own_folder; print(own_folder())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()).parent == folder.parent
    assert sorted(folder.parent.iterdir()) == sorted([folder, elsewhere])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for i in range(12_000):
            texts = {name: f"{name} {i} " + "word " * 1_000 for name in ("prompt", "response_a", "response_b")}
            file.write(json.dumps({**texts, "preferences": {"x": i % 2}}) + "\n")
    script = """
import datasets, sys
from paretune.comparisons.formats import read_comparisons
read_comparisons([{"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"x": 1}}])
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1000
before = peak()
rows, _ = read_comparisons(sys.argv[1])
print(len(rows), peak() - before)
"""
    told = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    rows, grown = map(int, told.stdout.split())
    assert rows == 12_000 and path.stat().st_size > 180e6
    assert grown < 110, f"{grown} MB"  # 32 held at most, a chunk as Python and as Arrow; 200 and more if rows were kept
