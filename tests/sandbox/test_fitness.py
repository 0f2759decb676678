"""Each world is fit for use, and the check would say so if it were not.

One trained base per world: the seeds vary prompts and responses. Other bases, trained as long as the demo's:
`studies/world_fitness`, whose kept figures `tests/studies/test_world_fitness.py` checks.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from paretune.sandbox import WORLDS
from paretune.sandbox.fitness import Fitness, simplex_grid, world_fitness
from tests.sandbox.bases_made import base_of


@cache
def _fitness(world: str) -> Fitness:
    return world_fitness(WORLDS[world], base_of(world), seeds=(0, 1, 2), n_prompts=24)


@pytest.mark.parametrize("world", WORLDS)
def test_the_world_is_fit(world: str) -> None:
    fitness = _fitness(world)
    assert fitness.problems() == []
    assert fitness.ended > 0.9
    # sampling seeds agree with one another far better than with the oracle
    assert (np.ptp(fitness.base, axis=0) < (fitness.oracle.max(0) - fitness.base.max(0)) / 2).all()
    assert fitness.world.corners and set(fitness.world.corners) < set(fitness.hacks)


@pytest.mark.parametrize("world", WORLDS)
def test_an_empty_response_gets_the_least(world: str) -> None:
    fitness = _fitness(world)
    least = [fitness.world.worst[name] for name in fitness.world.objectives]
    assert fitness.hacks["empty"].tolist() == pytest.approx(least)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: {"base": f.oracle.max(0, keepdims=True)}, "spreads above the base"),
        (lambda f: {"base": f.base + 0.8 * f.spread}, "on every objective"),
        (lambda f: {"distinct": 0.1}, "differ"),
        (lambda f: {"hacks": {**f.hacks, "repeat": f.oracle.max(0) + 1}}, "'repeat' is not inside"),
        (lambda f: {"world": dataclasses.replace(f.world, corners=())}, "'copy everything' is not inside"),
        (lambda f: {"world": dataclasses.replace(f.world, corners=("repeat", *f.world.corners))}, "'repeat' is decl"),
    ],
)
def test_an_unfit_world_is_told(change: object, words: str) -> None:
    fitness = _fitness("summaries")
    broken = dataclasses.replace(fitness, **change(fitness))  # type: ignore[operator]
    assert any(words in problem for problem in broken.problems()), broken.problems()


@pytest.mark.parametrize(("m", "count"), [(1, 1), (2, 9), (3, 45)])
def test_the_grid_of_weightings(m: int, count: int) -> None:
    grid = simplex_grid(m)
    assert grid.shape == (count, m)
    assert np.allclose(grid.sum(1), 1) and (grid >= 0).all()
    assert len(np.unique(grid, axis=0)) == count
