"""The study of micro-batches: its road in small, the statement on paper, and its page against its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from studies import exact
from studies.micro_batches import run

STUDY = Path(run.__file__).parent


def test_single_rows_are_scaled_by_their_agreement() -> None:
    one = exact.setting("default", "equal", [8])
    _, trace, single = run.trained(one, "sgd", 4)
    off = torch.as_tensor(single.off)
    assert off[1:-1].max() < 1e-4
    # at an end the other objective has no weight: where it is the shorter one, clipping leaves no correction
    assert off[[0, -1]].min() > 0.01
    rows = trace.turned.view(4, 5, 13)
    assert (rows[:, 2:] > 1e-3).any() and rows[:, 0].abs().max() == 0


def test_the_road_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick"]) == 0
    assert "8 rows" in capsys.readouterr().out


def test_the_page_quotes_the_kept_results() -> None:
    results = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    page = (STUDY / "README.md").read_text(encoding="utf-8").replace("−", "-")
    quoted = [results["commit"][:7]]
    for row in results["verdicts"]["primary: micro-batches - whole, late"].values():
        assert row["n"] == 30
        quoted.append(f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]")
    assert [text for text in quoted if text not in page] == []
    assert results["one row against paper, largest relative difference"]["inner weights"] < 1e-3
    cells = exact.finished(STUDY / "cells.jsonl")
    assert len(cells) == 18
    again = run.conclude(cells)["verdicts"]["primary: micro-batches - whole, late"]
    for name, row in results["verdicts"]["primary: micro-batches - whole, late"].items():
        assert again[name]["mean"] == pytest.approx(row["mean"]) and again[name]["verdict"] == row["verdict"]
