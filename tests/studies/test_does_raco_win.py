"""The exact tier of "Does RACO win?": its road in small, its arms, and its page against its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from paretune.sandbox.bandit_arms import corrected
from studies import exact
from studies.does_raco_win import run

STUDY = Path(run.__file__).parent


def test_the_road_in_small() -> None:
    rule = run.develop(run.QUICK, "sgd", "scaled")
    assert set(rule["step size"].values()) <= set(run.GRIDS["sgd scaled"])
    assert 0 < rule["mark"] <= 2 * run.QUICK.budget
    cells = {key: run.cell(run.QUICK, {"sgd scaled": rule}, key) for key in ("default/scaled/sgd/8",)}
    cell = cells["default/scaled/sgd/8"]
    assert cell["parameters in which c = 0 differs from linear"] == 0
    assert set(cell["arms"]) == {*run.FIRST, "linear-matched", "linear-scheduled", "linear-replayed"}
    for arm in cell["arms"].values():
        assert len(arm["front"]) == 2 and all(0 <= share < 1 for row in arm["front"] for share in row)
    found = run.conclude(cells)
    row = found["primary: raco - linear-matched, late"]["default/scaled/sgd"]
    fronts = [cell["arms"][name]["front"] for name in ("raco", "linear-matched")]
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(sum(a[-1] - b[-1] for a, b in zip(*fronts, strict=True)) / 2)


def test_matched_linear_has_racos_mean_weights_and_length() -> None:
    one = exact.setting("default", "equal", [8, 9])
    weights = exact.two_weights(3)
    trace = run._train(one, [run.arm(corrected(0.4), weights, 10.0)], 6, [0, 6], "sgd")
    arms = run.matched_arms(trace, slice(0, 3), 10.0, "sgd")
    a = trace.coefficients
    torch.testing.assert_close(arms["linear-matched"].weights, (a / a.sum(-1, keepdim=True)).mean(0))
    torch.testing.assert_close(arms["linear-matched"].lr, 10.0 * trace.stretch.double())
    # weights of a plain vertex stay where they are; the middle ones may move
    assert arms["linear-matched"].weights[:, 0].tolist() == [[0.0, 1.0]] * 2
    adam = run.matched_arms(trace, slice(0, 3), 10.0, "adam")
    assert adam["linear-matched"].lr.unique().tolist() == [10.0]


def test_the_page_quotes_the_kept_results() -> None:
    results = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    frozen = json.loads((STUDY / "frozen.json").read_text(encoding="utf-8"))
    assert all(
        frozen[name]["grid"] == list(grid) and not frozen[name]["at an edge"] for name, grid in run.GRIDS.items()
    )
    quoted = [results["commit"][:7]]
    for row in results["verdicts"]["primary: raco - linear-matched, late"].values():
        assert row["n"] == 30
        quoted.append(f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]")
    assert [text for text in quoted if text.replace("-", "−") not in page.replace("-", "−")] == []
    cells = exact.finished(STUDY / "cells.jsonl")
    assert len(cells) == 36
    again = exact.verdicts(run.differences(cells, "raco", "linear-matched", "front", len(run.SHARES) - 1))
    for name, row in results["verdicts"]["primary: raco - linear-matched, late"].items():
        assert again[name]["mean"] == pytest.approx(row["mean"]) and again[name]["verdict"] == row["verdict"]
