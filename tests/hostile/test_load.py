"""Many rows, long rows, many cells, many runs: memory grows far less than the data. Full size: benchmarks/load.py."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import (
    NoWork,
    finish_cells,
    front_plan,
    make_long_rows,
    make_rows,
    make_run,
    train,
    word_tokenizer,
)
from paretune.comparisons import spool
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.evaluation.report import write_report
from paretune.pipelines.front.plan import make_cells, superseded
from paretune.pipelines.front.run import run_front


def test_rows_take_bytes_and_not_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 1 << 18)
    monkeypatch.setattr("paretune.comparisons.collect._CHUNK", 1 << 18)
    files = {n: tmp_path / f"{n}.jsonl" for n in (2_000, 10_000)}
    kept = {}
    for n, file in files.items():
        make_rows(file, n)
        tracemalloc.start()
        data, report = read_comparisons(str(file))
        kept[n] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(data) == n and report.kept == n
        del data
    of_a_row = (kept[10_000] - kept[2_000]) / 8_000
    # a table whose slots have just doubled may take twice as much; the texts alone have 150 bytes
    assert of_a_row < 120, f"{of_a_row:.0f} bytes a row stay in Python's memory"


def test_a_row_of_many_tokens_is_read_and_trained_on(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    make_long_rows(tmp_path / "long.jsonl", 1, 20_000)
    data, report = read_comparisons(str(tmp_path / "long.jsonl"))
    tracemalloc.start()
    tokens, told = tokenize_comparisons(data, tokenizer, report.objectives, max_length=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.longest > 14_000 and len(tokens[0]["prefix_ids"]) > 9_000
    assert peak < 60 * (tmp_path / "long.jsonl").stat().st_size
    make_long_rows(tmp_path / "short.jsonl", 1, 2_000)
    train(str(tmp_path / "short.jsonl"), tokenizer, tmp_path, 1, 1, 4_000)
    assert (tmp_path / "run" / "history.jsonl").exists()


def test_a_thousand_finished_cells_are_found_and_none_is_run_again(tmp_path: Path) -> None:
    plan = front_plan(1_000, tmp_path)
    cells = make_cells(plan)
    assert len(cells) >= 1_000 and len({cell.digest for cell in cells}) == len(cells)
    finish_cells(tmp_path, plan, cells)
    again = make_cells(plan)
    assert superseded(tmp_path, again) == []
    found, failed = run_front(tmp_path, plan, again, NoWork(), retries=0, tell=lambda progress: None)
    assert len(found) == len(cells) and not failed


def test_a_page_grows_little_with_its_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), i, steps=3) for i in range(40)]
    sizes = [write_report(runs[:n], tmp_path / f"{n}.html").stat().st_size for n in (10, 40)]
    assert np.diff(sizes)[0] / 30 < 8_000, "bytes of a further run"
