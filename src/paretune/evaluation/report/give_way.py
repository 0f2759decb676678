"""Which objective gave way, and how far a method's points lie above what linear weighting reaches at the same KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from paretune.evaluation.report.facts import groups, seeds_of, train_curve, weighting
from paretune.evaluation.report.load import Point, Run, World


@dataclass(frozen=True)
class Change:
    """What an objective gained; `unit` says in what. `lost` is whether it ended worse than it began."""

    objective: str
    gain: float
    lost: bool


def run_changes(run: Run) -> list[Change]:
    """How far each objective's loss fell, from the first to the last tenth of what the run logged; held-out losses
    where there are several. Objectives without two values are left out."""
    found = []
    for name in run.objectives:
        ends = _ends(run, f"eval_loss/{name}") or _ends(run, f"loss/{name}")
        if ends is not None:
            found.append(Change(name, ends[0] - ends[1], ends[1] > ends[0]))
    return found


def _ends(run: Run, key: str) -> tuple[float, float] | None:
    values = train_curve(run, key).values
    if len(values) < 2:
        return None
    tenth = max(1, len(values) // 10)
    return float(values[:tenth].mean()), float(values[-tenth:].mean())


def world_changes(world: World, method: str) -> list[Change]:
    """What a method's most even weighting gained over the base, in units of base (0) to trained alone (1)."""
    scale = scales(world)
    mine = [group for group in groups(world) if group.method == method]
    if scale is None or not mine:
        return []
    even = max(mine, key=lambda group: min(group.weights.values(), default=0.0))
    start, unit = scale
    gains = (np.array([even.mean(name) for name in world.objectives]) - start) / unit
    return [Change(name, float(gain), gain < 0) for name, gain in zip(world.objectives, gains, strict=True)]


def scales(world: World) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The base's scores, and the gain of training on each objective alone; None where unknown, or no gain."""
    if world.base is None or not set(world.objectives) <= set(world.ceilings):
        return None
    start = np.array([world.base.scores[name] for name in world.objectives])
    alone = [np.mean([point.scores[name] for point in world.ceilings[name]]) for name in world.objectives]
    unit = np.array(alone) - start
    return (start, unit) if (unit > 0).all() else None


def above_linear(world: World, method: str) -> dict[int | None, float] | None:
    """How far a method's points lie above linear weighting's front at equal KL, by seed, in units of base to alone.

    Linear's front at a KL is everything that mixtures of its points reach without a larger mean KL: its weightings, the
    runs on one objective alone, and the base at KL 0. A point lies t above it when all its scores would have to fall by
    t for it to be reached (additive epsilon); below 0 it is beaten by -t. Mean over the method's weightings.

    Returns:
        None where the base, end points or a KL are not known.
    """
    scale = scales(world)
    every = [*world.points, *world.every_ceiling]
    if scale is None or any(point.kl is None for point in every):
        return None
    found: dict[int | None, float] = {}
    for seed in seeds_of(world.points):
        linear = [p for p in every if p.seed == seed and p.method in ("linear", "single")]
        mine = [p for p in world.points if p.seed == seed and p.method == method]
        if mine and len({weighting(world, p.weights) for p in linear}) > 1:
            start, unit = scale
            table = np.array([[point.scores[name] for name in world.objectives] for point in linear])
            reached = np.vstack([np.zeros(len(unit)), (table - start) / unit])
            distances = np.array([0.0, *(point.kl or 0.0 for point in linear)])
            ours = [(_scaled(point, world.objectives, start, unit), point.kl or 0.0) for point in mine]
            found[seed] = float(np.mean([epsilon_above(scores, kl, reached, distances) for scores, kl in ours]))
    return found or None


def _scaled(
    point: Point, objectives: Sequence[str], start: NDArray[np.float64], unit: NDArray[np.float64]
) -> NDArray[np.float64]:
    return (np.array([point.scores[name] for name in objectives]) - start) / unit


def epsilon_above(
    scores: NDArray[np.float64], kl: float, reached: NDArray[np.float64], distances: NDArray[np.float64]
) -> float:
    """-max t such that some mixture of `reached` is at least scores + t in every objective, within the mean KL.

    Args:
        scores: (m,) of a point, at `kl`. reached: (n, m), at `distances` (n,), one of which is 0.
    """
    n, m = reached.shape
    rows = np.hstack([-reached.T, np.ones((m, 1))])
    limit = np.append(distances, 0.0)[None, :]
    answer = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.vstack([rows, limit]),
        b_ub=np.append(-scores, kl),
        A_eq=np.append(np.ones(n), 0.0)[None, :],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
    )
    return float(answer.fun)
