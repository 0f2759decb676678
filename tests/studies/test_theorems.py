"""The study of the theorems: its problems' constants and slopes, its measures on known cases, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.theorems import figure, landscape, run
from studies.theorems.problems import FAMILIES

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_losses_and_within_the_stated_constants(name: str) -> None:
    problem = FAMILIES[name](2, seed=3)
    rows = torch.tensor([0, 1] * 20)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(rows), problem.start.shape[1], generator=generator, dtype=torch.float64)
    theta = problem.start[rows] + noise
    losses, gradients = problem.evaluate(theta, rows)
    assert bool((losses >= 0).all())
    step = 1e-6 * noise.flip(0)
    above, below = (problem.evaluate(theta + sign * step, rows)[0] for sign in (1, -1))
    expected = (gradients * step[:, None]).sum(-1)
    assert torch.allclose((above - below) / 2, expected, rtol=1e-4, atol=1e-12)
    other = problem.start[rows] + 0.9 * noise
    change = (problem.evaluate(other, rows)[1] - gradients).norm(dim=-1)
    ratio = change / (other - theta).norm(dim=-1, keepdim=True) / problem.constants[rows]
    assert float(ratio.max()) <= 1.0 + 1e-9
    assert float(ratio.max()) > 0.05  # a constant that is far too large would make every bound hold


def test_the_landscape_s_slopes_are_autograd_s() -> None:
    at = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    x, y = at.requires_grad_().unbind(-1)
    upper, lower = torch.tanh(y / 2).clamp(min=0), torch.tanh(-y / 2).clamp(min=0)
    bowls = [((x - side) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20 for side in (7, -7)]
    inner = [(-x - 7) / 2 + torch.tanh(y), (-x + 3) / 2 - torch.tanh(y) + 2]
    losses, slopes = landscape.losses_and_slopes(at.detach().numpy())
    for i in (0, 1):
        loss = upper * (inner[i].abs().clamp(min=5e-6).log() + 6) + lower * bowls[i]
        (slope,) = torch.autograd.grad(loss.sum(), at, retain_graph=True)
        np.testing.assert_allclose(losses[:, i], loss.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(slopes[:, i], slope.numpy(), rtol=1e-9, atol=1e-12)


def test_the_guarantee_is_the_same_for_all_corrections_at_the_largest_step_and_favours_alignment_below() -> None:
    rho = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(run.gamma(rho, 1.0), torch.full((3,), (1 - run.C**2) / 2, dtype=torch.float64))
    assert bool((run.gamma(rho, 0.5).diff() > 0).all())
    assert float(run.gamma(torch.tensor(0.345785), 0.3, 0.5)) == pytest.approx(0.933525, abs=1e-6)


def test_corrections_have_the_length_they_should() -> None:
    gradients = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = torch.tensor([[0.3, 0.7]] * 4, dtype=torch.float64)
    g0 = (w[:, None] @ gradients)[:, 0]
    for arm in run.CORRECTIONS[1:]:
        update, _ = run.updates(arm, gradients, w, torch.ones(4).bool(), torch.Generator().manual_seed(0), 0)
        assert torch.allclose((update - g0).norm(dim=-1), run.C * g0.norm(dim=-1), rtol=1e-9)


def test_the_command_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.json"
    assert run.main(["--quick", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {row["correction"] for row in found["descent"]["rows"]} == set(run.CORRECTIONS)
    assert "descent    holds" in capsys.readouterr().out


def test_the_theorems_hold_in_the_kept_results_and_the_page_quotes_them(results: dict[str, Any]) -> None:
    descent, clipping = results["descent"], results["clipping"]
    assert descent["holds"] is True and clipping["holds"] is True
    three = [row for row in clipping["random"] if row["objectives"] == 3][0]
    assert three["negative"] > 0
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    quoted = [
        descent["commit"][:7],
        f"{sum(row['steps'] for row in descent['rows']):,} steps",
        f"{three['negative']:,} of {three['clipping acts']:,}",
    ]
    assert [text for text in quoted if text not in page] == []


def test_the_figures_are_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = [figure.draw_bounds(results), figure.draw_landscape(results["landscape"])]
    assert len(drawn[0].axes) == 4
    assert {axes.get_title() for axes in drawn[1].axes} >= {"linear", "raco", "cagrad", "pcgrad", "mgda"}
    for one in drawn:
        figure.pyplot.close(one)
