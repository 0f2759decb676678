"""Who gave way, and how far above linear's front: against cases that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paretune.evaluation.report import words
from paretune.evaluation.report.give_way import (
    Change,
    above_linear,
    epsilon_above,
    run_changes,
    world_changes,
)
from paretune.evaluation.report.load import Demo, World, load
from tests.evaluation.report.demo_made import made_demo
from tests.evaluation.report.test_facts import made_run


def loaded(folder: Path, name: str = "safety", seeds: tuple[int, ...] = (0, 1, 2)) -> World:
    demo = load(made_demo(folder, seeds=seeds))
    assert isinstance(demo, Demo)
    return next(world for world in demo.worlds if world.name == name)


def test_epsilon_by_hand() -> None:
    reached, distances = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 2.0, 2.0])
    # at full KL the front is the line x + y = 1; at half of it, x + y = 1/2
    assert epsilon_above(np.array([0.5, 0.5]), 2.0, reached, distances) == pytest.approx(0.0, abs=1e-9)
    assert epsilon_above(np.array([0.6, 0.6]), 2.0, reached, distances) == pytest.approx(0.1)
    assert epsilon_above(np.array([0.2, 0.2]), 2.0, reached, distances) == pytest.approx(-0.3)
    assert epsilon_above(np.array([0.25, 0.25]), 1.0, reached, distances) == pytest.approx(0.0, abs=1e-9)
    assert epsilon_above(np.array([0.25, 0.25]), 0.5, reached, distances) == pytest.approx(0.125)


def test_runs_say_whose_loss_rose() -> None:
    lines = [{"step": s, "loss/x": 0.7 - 0.01 * s, "loss/y": 0.6 + 0.005 * s} for s in range(20)]
    x, y = run_changes(made_run(lines))
    assert x.gain == pytest.approx(0.18) and not x.lost
    assert y.gain == pytest.approx(-0.09) and y.lost
    (said,) = words.give_way_words([x, y], None)
    assert said.startswith("y gave way: the loss rose")
    (said,) = words.give_way_words([x, Change("y", 0.1, False)], None)
    assert said.startswith("No objective gave way")
    assert run_changes(made_run(lines[:1])) == []


@pytest.mark.parametrize(
    ("gains", "said"),
    [((0.5, -0.1), "y gave way."), ((0.5, 0.1), "y gave way the most"), ((0.5, 0.4), "No objective gave way")],
)
def test_worlds_say_who_gained_least(gains: tuple[float, float], said: str) -> None:
    (line,) = words.give_way_words([Change(n, g, g < 0) for n, g in zip("xy", gains, strict=True)], "RACO")
    assert said in line


def test_a_copy_of_linears_points_is_not_above_and_a_better_one_is(tmp_path: Path) -> None:
    world = loaded(tmp_path)
    changes = world_changes(world, "linear")
    assert [c.objective for c in changes] == list(world.objectives)
    linear = [p for p in world.points if p.method == "linear"]

    def moved(by: float) -> World:
        points = [p for p in world.points if p.method != "raco"]
        for p in linear:
            scores = {name: value + by for name, value in p.scores.items()}
            points.append(type(p)(**{**vars(p), "method": "raco", "scores": scores}))
        return type(world)(**{**vars(world), "points": points})

    same, better = above_linear(moved(0.0), "raco"), above_linear(moved(0.5), "raco")
    assert same is not None and better is not None and set(same) == {0, 1, 2}
    assert max(same.values()) <= 1e-9
    assert all(better[seed] > same[seed] + 0.5 for seed in better)
    (line,) = words.above_linear_words(moved(0.5))
    assert "above linear weighting's front at equal KL" in line and "95 % interval over 3 seeds" in line


def test_one_seed_is_called_chance(tmp_path: Path) -> None:
    (line,) = words.above_linear_words(loaded(tmp_path, seeds=(0,)))
    assert "one seed, so this may be chance" in line
