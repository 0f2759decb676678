"""Figures behind the page: curves, cosines, angles, effective weights, gains at equal KL, volumes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluation.front import hypervolume
from paretune.evaluation.report.load import Point, Run, World
from paretune.evaluation.statistics import Interval, paired_interval

MOST_POINTS = 150  # of a drawn curve; longer ones are averaged in blocks


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """The runs of one method at one weighting: a point of the front, and what stands behind it."""

    method: str
    weights: dict[str, float]
    points: list[Point]

    def mean(self, objective: str) -> float:
        return float(np.mean([point.scores[objective] for point in self.points]))

    @property
    def kl(self) -> float | None:
        known = [point.kl for point in self.points if point.kl is not None]
        return float(np.mean(known)) if len(known) == len(self.points) else None


@dataclass(frozen=True)
class Conflict:
    """The cosine between two objectives' gradients: its mean, how often it was negative, its first and last tenth."""

    a: str
    b: str
    mean: float
    negative: float
    first: float
    last: float


@dataclass(frozen=True)
class Volumes:
    """Hypervolumes per method and seed, as shares of the box between `reference` and `best`."""

    reference: dict[str, float]
    best: dict[str, float]
    weightings: int
    shares: dict[str, dict[int | None, float]]
    left_out: list[str]


def train_curve(run: Run, key: str) -> Curve:
    """What training steps logged under a name; the closing line, a mean over the run, is not one."""
    return _curve([line for line in run.history if "train_runtime" not in line], key)


def curve(run: Run, key: str) -> Curve:
    """Everything logged under a name."""
    return _curve(run.history, key)


def _curve(lines: Sequence[dict[str, Any]], key: str) -> Curve:
    found = [(line.get("step", 0), line[key]) for line in lines if _number(line.get(key))]
    table = np.array(found, dtype=np.float64).reshape(-1, 2)
    return Curve(table[:, 0], table[:, 1])


def thinned(full: Curve, most: int = MOST_POINTS) -> Curve:
    """At most `most` points: means over neighbouring ones."""
    if len(full.steps) <= most:
        return full
    blocks = np.array_split(np.arange(len(full.steps)), most)
    return Curve(*(np.array([x[block].mean() for block in blocks]) for x in (full.steps, full.values)))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that every curve has; of curves without common steps, nothing."""
    full = [c for c in curves if len(c.steps)]
    if not full:
        return Curve(np.empty(0), np.empty(0))
    common = set(full[0].steps.tolist()).intersection(*(set(c.steps.tolist()) for c in full[1:]))
    steps = np.array(sorted(common))
    at = [dict(zip(c.steps.tolist(), c.values.tolist(), strict=True)) for c in full]
    return Curve(steps, np.array([np.mean([values[s] for values in at]) for s in steps.tolist()]))


def mean_of(runs: Sequence[Run], key: str) -> float | None:
    """The mean over runs of each run's mean over its training lines."""
    means = [float(c.values.mean()) for run in runs if len((c := train_curve(run, key)).values)]
    return float(np.mean(means)) if means else None


def pairs(objectives: Sequence[str]) -> list[tuple[str, str]]:
    """Each pair once, in the order in which the trainer names cosines."""
    return list(itertools.combinations(objectives, 2))


def conflicts(runs: Sequence[Run], objectives: Sequence[str]) -> list[Conflict]:
    """How each pair of objectives stood over all steps of the runs; pairs without a logged cosine are left out."""
    found = []
    for a, b in pairs(objectives):
        curves = [c.values for run in runs if len((c := train_curve(run, f"grad/cosine/{a}~{b}")).values)]
        if not curves:
            continue
        ends = [max(1, len(values) // 10) for values in curves]
        first = [values[:end].mean() for values, end in zip(curves, ends, strict=True)]
        last = [values[-end:].mean() for values, end in zip(curves, ends, strict=True)]
        means, negative = [values.mean() for values in curves], [(values < 0).mean() for values in curves]
        found.append(Conflict(a, b, *(float(np.mean(x)) for x in (means, negative, first, last))))
    return found


def effective_weights(run: Run) -> dict[str, float] | None:
    """Mean coefficient shares over the run; None where an objective has none logged."""
    found = {name: mean_of([run], f"combine/effective_weight/{name}") for name in run.objectives}
    known = {name: value for name, value in found.items() if value is not None}
    return known if len(known) == len(found) else None


def weight_shift(runs: Sequence[Run]) -> float | None:
    """The largest distance of a mean effective weight from its nominal one."""
    shifts = [
        abs(effective[name] - run.weights[name])
        for run in runs
        if (effective := effective_weights(run)) is not None
        for name in run.objectives
    ]
    return max(shifts) if shifts else None


def norm_ratio(runs: Sequence[Run], objectives: Sequence[str]) -> tuple[float, str, str] | None:
    """(ratio, objective with the longest mean gradient, with the shortest)."""
    norms = {name: value for name in objectives if (value := mean_of(runs, f"grad/norm/{name}"))}
    if len(norms) < 2:
        return None
    large, small = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    return norms[large] / norms[small], large, small


def groups(world: World) -> list[Group]:
    """The world's points by method and weighting; methods in order of appearance, weightings by their first weights."""
    found: dict[tuple[str, tuple[float, ...]], list[Point]] = {}
    for point in world.points:
        found.setdefault((point.method, weighting(world, point.weights)), []).append(point)
    order = list(dict.fromkeys(point.method for point in world.points))
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [Group(key[0], found[key][0].weights, found[key]) for key in keys]


def weighting(world: World, weights: dict[str, float]) -> tuple[float, ...]:
    """Weights in the objectives' order, rounded so that the same weighting of two methods is equal."""
    return tuple(round(weights.get(name, 0.0), 6) for name in world.objectives)


def seeds_of(points: Iterable[Point] | Iterable[Run]) -> list[int | None]:
    """Distinct seeds in order of appearance."""
    return list(dict.fromkeys(point.seed for point in points))


def equal_kl(world: World) -> tuple[float, dict[str, dict[str, tuple[float, Group]]], dict[str, int]] | None:
    """What each method gained over the base on each objective without leaving the reference further than one KL.

    The budget is the median KL over all points of the front, or the least at which every method has one. For each
    method and objective, the best mean gain among its points within the budget: nothing is interpolated.

    Returns:
        (budget in nats, method -> objective -> (gain, its point), method -> points within the budget); None without a
        base or KLs.
    """
    found = [(group, group.kl) for group in groups(world)]
    known = [(group, kl) for group, kl in found if kl is not None]
    if world.base is None or not known or len(known) < len(found):
        return None
    methods = list(dict.fromkeys(group.method for group, _ in known))
    least = max(min(kl for group, kl in known if group.method == method) for method in methods)
    budget = max(least, float(np.median([kl for _, kl in known])))
    gains: dict[str, dict[str, tuple[float, Group]]] = {}
    counts: dict[str, int] = {}
    for method in methods:
        within = [group for group, kl in known if group.method == method and kl <= budget]
        counts[method] = len(within)
        gains[method] = {}
        for name in world.objectives:
            best = max(within, key=lambda group: group.mean(name))
            gains[method][name] = (best.mean(name) - world.base.scores[name], best)
    return budget, gains, counts


def volumes(world: World) -> Volumes | None:
    """Hypervolume of each method's points, seed by seed, over the weightings that all methods share.

    A method with a single weighting, such as MGDA, which takes no weights, is no front and is left out beside others.

    The reference lies a tenth of the range below the worst score that the base or any point has, so that end points
    count; the best is the best score of any point, ceiling or oracle. None for one or more than three objectives.
    """
    by_method: dict[str, set[tuple[float, ...]]] = {}
    for point in world.points:
        by_method.setdefault(point.method, set()).add(weighting(world, point.weights))
    most = max(map(len, by_method.values()), default=0)
    methods = [method for method, has in by_method.items() if len(has) > 1 or most == 1]
    common = set.intersection(*(by_method[method] for method in methods)) if methods else set()
    if not 2 <= len(world.objectives) <= 3 or not common:
        return None
    shown = [*world.points, *([world.base] if world.base else [])]
    best_of = [*shown, *world.oracle, *world.every_ceiling]
    reference, best = {}, {}
    for name in world.objectives:
        best[name] = max(point.scores[name] for point in best_of)
        worst = min(point.scores[name] for point in shown)
        reference[name] = worst - 0.1 * (best[name] - worst)
    box = math.prod(best[name] - reference[name] for name in world.objectives)
    if box <= 0:
        return None
    shares: dict[str, dict[int | None, float]] = {}
    corner = [reference[name] for name in world.objectives]
    for method in methods:
        own = [p for p in world.points if p.method == method and weighting(world, p.weights) in common]
        shares[method] = {}
        for seed in seeds_of(own):
            mine = [p for p in own if p.seed == seed]
            if {weighting(world, p.weights) for p in mine} == common:  # a seed with runs missing is not comparable
                table = [[p.scores[name] for name in world.objectives] for p in mine]
                shares[method][seed] = hypervolume(table, corner) / box
    return Volumes(reference, best, len(common), shares, [m for m in by_method if m not in methods])


def paired_difference(ours: dict[int | None, float], theirs: dict[int | None, float]) -> Interval | None:
    """ours - theirs over their common seeds, with its 95 % t interval; None below two seeds."""
    common = [seed for seed in ours if seed in theirs]
    return paired_interval([ours[seed] - theirs[seed] for seed in common]) if len(common) > 1 else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
