"""The study of groups: its social-choice rules where the answer is known, its command in small, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studies.groups import figure, run

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


def shared_out(weights: Tensor, scale: Tensor) -> Tensor:
    """A resource x on the simplex, gains scale_g sqrt(x_g): the weighted sum is largest at x_g ~ (w_g scale_g)^2."""
    x = (weights * scale).square()
    return scale * (x / x.sum(-1, keepdim=True)).sqrt()


def test_the_nash_rule_shares_by_size_whatever_the_units() -> None:
    for scale in (torch.ones(5, dtype=torch.float64), torch.tensor([1.0, 0.3, 0.5, 0.9, 0.4], dtype=torch.float64)):
        weights = run.SIZES.clone()
        for round_ in range(1, 60):
            weights = run.nash(weights, shared_out(weights, scale), round_)
        x = (shared_out(weights, scale) / scale).square()
        assert torch.allclose(x, run.SIZES, atol=1e-6)  # the maximum of sum_g size_g log gain_g


def test_the_egalitarian_rule_makes_gains_equal() -> None:
    scale = torch.tensor([1.0, 0.8, 0.9, 0.7, 1.0], dtype=torch.float64)
    weights = torch.full((5,), 0.2, dtype=torch.float64)
    before = shared_out(weights, scale)
    for round_ in range(1, 200):
        weights = run.egalitarian(weights, shared_out(weights, scale), round_)
    after = shared_out(weights, scale)
    assert float(after.max() - after.min()) < 1e-3 < float(before.max() - before.min())
    assert float(after.min()) > float(before.min())


def test_welfare_of_known_gains() -> None:
    gains = torch.tensor([[0.5] * 5, [0.8, 0.8, 0.2, 0.2, 0.2]], dtype=torch.float64)
    found = run.welfare(gains)
    assert found["utilitarian"].tolist() == pytest.approx([0.5, 0.65 * 0.8 + 0.35 * 0.2])
    assert found["nash"].tolist() == pytest.approx([0.5, 0.8**0.65 * 0.2**0.35])
    assert found["egalitarian"].tolist() == pytest.approx([0.5, 0.2])


def test_a_rule_sees_the_training_prompts_only() -> None:
    world = run.worlds_of(run.Plan(seeds=(0,)))[0]
    seen = run.on_training_prompts(world)
    assert len(seen.features) == world.n_train and seen.n_train == 0
    assert torch.equal(seen.rewards, world.rewards[:, : world.n_train])


def test_the_command_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick"]) == 0
    assert "raco - linear, nash rule, its own aim" in capsys.readouterr().out


def test_the_page_quotes_the_kept_results(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    quoted = [f"{claim['mean']:+.3f}" for claim in results["claims"].values()]
    quoted += [claim["verdict"] for claim in results["claims"].values()]
    quoted += [f"{value:.3f}" for value in results["spread"]["mean"]]
    assert [text for text in quoted if text.replace("-", "−") not in page and text not in page] == []


def test_the_figure_is_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = figure.draw(results)
    assert [axes.get_title() for axes in drawn.axes] == [f"{rule} rule" for rule in run.RULES]
    figure.pyplot.close(drawn)
