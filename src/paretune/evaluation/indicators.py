"""Single numbers for a set of operating points: volume, distance to a target front, extent, and worth over all weights.

Every objective is maximised and points are rows, as in `front.py`; scale the objectives to one unit first (`scaled`),
or one of them decides everything. No single number orders fronts as domination does: show several, and the picture.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.errors import InputError
from paretune.evaluation.front import hypervolume, pareto_front

Floats = NDArray[np.float64]

DRAWS = 20_000  # of a volume by Monte Carlo: an error of at most 0.0036 of the box that is sampled
GRID = 5_000  # weightings, at most, over which the reference-free score of three objectives and more is a mean


@dataclass(frozen=True)
class Volume:
    """A hypervolume and how it was found: `how` is "exact", "exact (moocore …)" or "Monte Carlo, … draws".

    `error` is the standard error of that finding alone: 0 where it is exact. It says nothing about seeds or prompts.
    """

    value: float
    error: float
    how: str


def volume(
    points: ArrayLike, reference: ArrayLike, *, top: ArrayLike | None = None, draws: int = DRAWS, seed: int = 0
) -> Volume:
    """The hypervolume of points over a reference point, for any number of objectives.

    Up to three objectives it is `hypervolume`. Beyond, moocore computes it exactly where it is installed (the extra
    `moo`), and Monte Carlo estimates it otherwise.

    Args:
        points: (n, m), larger is better.
        reference: (m,).
        top: (m,), see `sampled_volume`.

    Raises:
        InputError: arrays that are not finite or do not fit.
    """
    corner = np.asarray(reference, dtype=np.float64)
    if corner.size <= 3:
        return Volume(hypervolume(points, corner), 0.0, "exact")
    try:
        import moocore
    except ImportError:
        return sampled_volume(points, corner, top=top, draws=draws, seed=seed)
    values = _better(points, corner)
    exact = float(moocore.hypervolume(values, ref=corner, maximise=True)) if len(values) else 0.0
    return Volume(exact, 0.0, f"exact (moocore {version('moocore')})")


def sampled_volume(
    points: ArrayLike, reference: ArrayLike, *, top: ArrayLike | None = None, draws: int = DRAWS, seed: int = 0
) -> Volume:
    """The hypervolume by Monte Carlo: the share of uniform draws from a box that some point dominates, times the box.

    Args:
        points: (n, m), larger is better; a point that is not better than the reference everywhere adds nothing.
        reference: (m,), the box's lower corner.
        top: (m,), its upper corner, at least every point that counts; None: their maximum. Sets that are compared
            should have one top, so that one seed gives them the same draws and their difference has less noise.
        draws: at least 2.

    Returns:
        The estimate with its binomial standard error.

    Raises:
        InputError: arrays that are not finite or do not fit; a point above the top.
    """
    corner = np.asarray(reference, dtype=np.float64)
    how = f"Monte Carlo, {draws} draws"
    values = _better(points, corner)
    if not len(values):
        return Volume(0.0, 0.0, how)
    upper = values.max(0) if top is None else np.asarray(top, dtype=np.float64)
    if upper.shape != corner.shape or not (values <= upper).all():
        raise InputError("points above the top of the box", where="top", expected=str(values.max(0)), found=str(upper))
    values = values[pareto_front(values)]
    rng = np.random.default_rng(seed)
    inside = 0
    for start in range(0, draws, 4096):  # (draws, n) truth values of a part at a time
        drawn = corner + rng.random((min(4096, draws - start), corner.size)) * (upper - corner)
        covered = np.zeros(len(drawn), dtype=bool)
        for value in values:
            covered |= (drawn <= value).all(1)
        inside += int(covered.sum())
    share, box = inside / draws, float(np.prod(upper - corner))
    return Volume(share * box, box * math.sqrt(share * (1 - share) / (draws - 1)), how)


def additive_epsilon(points: ArrayLike, target: ArrayLike) -> float:
    """The least that must be added to every score of `points` so that they weakly dominate the target (Zitzler et al.
    2003, doi:10.1109/TEVC.2003.810758): max over target r, min over points p, max over objectives of r - p.

    Args:
        points: (n, m) and target: (k, m), at least one each.

    Returns:
        In the objectives' common unit; below 0 where the points are better than the target throughout.

    Raises:
        InputError: arrays that are not finite, empty, or of different numbers of objectives.
    """
    values, front = _pair(points, target)
    return float((front[:, None] - values[None]).max(2).min(1).max())


def igd_plus(points: ArrayLike, target: ArrayLike) -> float:
    """Mean distance from the target's points to the nearest of `points`, where being better counts as no distance
    (IGD+, Ishibuchi et al. 2015, doi:10.1007/978-3-319-15892-1_8).

    Args and errors: as `additive_epsilon`.
    """
    values, front = _pair(points, target)
    short = np.maximum(front[:, None] - values[None], 0.0)
    return float(np.sqrt((short**2).sum(2)).min(1).mean())


def extent(points: ArrayLike) -> float:
    """How far apart the front's ends lie: the diagonal of the box around the points that no other dominates, over √m.

    A front's extent, M3 of Zitzler, Deb and Thiele (2000, doi:10.1162/106365600568202), with squared ranges and divided
    by √m: 1 is a front from corner to corner of the unit box. It says nothing about the points between the ends.

    Args:
        points: (n, m), at least one.

    Raises:
        InputError: an array that is not finite, or empty.
    """
    values, _ = _pair(points, points)
    front = values[pareto_front(values)]
    return float(np.sqrt(((front.max(0) - front.min(0)) ** 2).mean()))


def reference_free(points: ArrayLike, *, grid: int = GRID) -> float:
    """What the points are worth to someone whose weights are not known: the mean over w of max over points of w·r.

    w is uniform on the simplex. It is the unary R2 indicator with linear utilities (Hansen & Jaszkiewicz 1998, IMM
    report 1998-7), called expected utility in multi-objective reinforcement learning. It needs no reference point, and
    a point that lies in a concave part of the front is worth nothing to it. Two objectives are integrated exactly; of
    more, it is the mean over an even grid of at most `grid` weightings (`simplex_centres`).

    Args:
        points: (n, m), at least one.

    Returns:
        In the objectives' common unit.

    Raises:
        InputError: an array that is not finite, or empty.
    """
    values, _ = _pair(points, points)
    values = values[pareto_front(values)]
    if values.shape[1] == 1:
        return float(values.max())
    if values.shape[1] == 2:
        return _mean_of_upper_envelope(values)
    return float((simplex_centres(values.shape[1], grid) @ values.T).max(1).mean())


def simplex_centres(m: int, most: int) -> Floats:
    """(n, m) evenly spread weightings, none on the simplex's border: (k + 1/m) / (h + 1) for all whole k >= 0, Σk = h.

    n is the largest of the possible numbers C(h + m - 1, m - 1) that is at most `most`, and at least 1. The mean of a
    linear function over them is its mean over the simplex; with two objectives it is the midpoint rule.
    """
    steps = 0
    while math.comb(steps + m, m - 1) <= most:
        steps += 1
    cuts = itertools.combinations(range(steps + m - 1), m - 1)
    marks = np.array([(-1, *cut, steps + m - 1) for cut in cuts], dtype=np.float64)
    return (np.diff(marks, axis=1) - 1 + 1 / m) / (steps + 1)


def scaled(points: ArrayLike, low: ArrayLike, high: ArrayLike) -> Floats:
    """Points in units of each objective's way from low (0) to high (1).

    Args:
        points: (…, m); low, high: (m,).

    Raises:
        InputError: an objective whose high is not above its low.
    """
    values, bottom, top = (np.asarray(x, dtype=np.float64) for x in (points, low, high))
    if not (top > bottom).all():
        raise InputError("a scale that does not rise", where="high", expected=f"above {bottom}", found=str(top))
    return (values - bottom) / (top - bottom)


def _mean_of_upper_envelope(values: Floats) -> float:
    """∫ over t in [0, 1] of max over points of (1 - t) x + t y, exactly: walks the lines that are on top."""
    start, slope = values[:, 0], values[:, 1] - values[:, 0]
    t, total = 0.0, 0.0
    on_top = max(range(len(values)), key=lambda i: (start[i], slope[i]))
    while t < 1.0:
        steeper = slope > slope[on_top]
        meet = np.full(len(values), np.inf)
        meet[steeper] = (start[on_top] - start[steeper]) / (slope[steeper] - slope[on_top])
        end = min(1.0, float(meet.min()))
        total += (end - t) * (start[on_top] + slope[on_top] * (t + end) / 2)
        if end >= 1.0:
            break
        at_end = np.flatnonzero(meet <= end)  # of lines that meet in one point, the steepest goes on
        on_top, t = int(at_end[slope[at_end].argmax()]), end
    return float(total)


def _better(points: ArrayLike, corner: Floats) -> Floats:
    """The points that are better than the corner in every objective."""
    if corner.ndim != 1 or not np.isfinite(corner).all():
        raise InputError("bad reference point", expected="finite numbers, one per objective", found=str(corner))
    if not np.size(points):
        return np.empty((0, corner.size))
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != corner.size or not np.isfinite(values).all():
        expected = f"finite numbers, (n, {corner.size})"
        raise InputError("points that do not fit the reference", expected=expected, found=f"shape {values.shape}")
    return values[(values > corner).all(1)]


def _pair(points: Any, target: Any) -> tuple[Floats, Floats]:
    values, front = np.asarray(points, dtype=np.float64), np.asarray(target, dtype=np.float64)
    for name, array in (("points", values), ("target", front)):
        if array.ndim != 2 or not len(array) or not np.isfinite(array).all():
            raise InputError("not a table of points", where=name, expected="finite, (n, m), n >= 1", found=array.shape)
    if values.shape[1] != front.shape[1]:
        raise InputError(
            "the two sets have different numbers of objectives", expected=str(values.shape[1]), found=front.shape[1]
        )
    return values, front
