"""The study of more objectives: its worlds and measures on known cases, its command in small, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.sandbox.bandit_arms import Step
from studies.many_objectives import figure, run, worlds

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_weightings_lie_on_the_simplex_and_are_the_same_each_time(m: int) -> None:
    grid = worlds.weightings(m)
    assert grid.shape == (10, m) and torch.equal(grid, worlds.weightings(m))
    assert torch.allclose(grid.sum(-1), torch.ones(10, dtype=torch.float64)) and bool((grid >= 0).all())
    assert grid[1:].amax(-1).min() < 0.61 and grid[1, 0] == 0.6
    assert len(torch.unique(grid, dim=0)) == 10


def test_in_the_world_apart_every_objective_has_a_knob_of_its_own() -> None:
    world, plain = worlds.apart(5, 3), worlds.make_bandit(objectives=5, knob=0.0, seed=3)
    knobs = world.rewards - plain.rewards
    assert torch.allclose(knobs, knobs[:, :1].expand_as(knobs), atol=1e-12)  # a property of the response alone
    cosines = torch.corrcoef(knobs[:, 0])
    others = cosines[~torch.eye(5).bool()]
    assert float(others.mean()) == pytest.approx(-0.25, abs=0.02)
    opposed = worlds.apart(2, 3).rewards - worlds.make_bandit(objectives=2, knob=0.0, seed=3).rewards
    assert torch.allclose(opposed[0], -opposed[1], atol=1e-12)


def test_a_front_that_is_the_ceiling_is_worth_all_of_it_and_the_reference_nothing() -> None:
    world = worlds.apart(3, 1)
    target = worlds.target_of(world, 0.5)
    best = worlds.ceiling(world, worlds.target_weightings(3), 0.5)
    assert all(value == pytest.approx(1.0) for value in worlds.worth(best, target).values())
    assert worlds.worth(target.base[None], target)["reference-free"] == pytest.approx(0.0, abs=1e-12)


def test_a_rule_run_by_run_gives_each_run_its_own_coefficients() -> None:
    gradients = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    nothing = Step(*(torch.zeros(1) for _ in Step._fields))
    gram = gradients @ gradients.mT
    made = run.run_by_run("mgda")(0, nothing, gradients, gram, weights)
    assert torch.allclose(made.update, (made.coefficients[..., None, :] @ gradients)[..., 0, :])
    lengths = made.update.norm(dim=-1)
    assert bool((lengths < gradients.norm(dim=-1).amin(-1)).all())  # shorter than every gradient
    inner = (gradients * made.update[..., None, :]).sum(-1)
    assert bool((inner >= lengths[..., None].square() * (1 - 1e-9)).all())  # and against none of them


def test_the_command_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["quick", "--objectives", "2", "3"]) == 0
    shown = capsys.readouterr().out
    assert "raco - linear-matched, m = 3" in shown and "verdict" in shown


def test_the_page_quotes_the_kept_results(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    claims = [claim for family in results["confirm"]["claims"].values() for claim in family.values()]
    assert len(claims) == 6 and all(claim["n"] == 30 for claim in claims)
    quoted = [f"{claim['mean']:+.3f}" for claim in claims] + [claim["verdict"] for claim in claims]
    assert [text for text in quoted if text.replace("-", "−") not in page and text not in page] == []


def test_the_figure_is_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = figure.draw(results)
    assert len(drawn.axes) == 4
    figure.pyplot.close(drawn)
