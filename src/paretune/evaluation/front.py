"""What a set of operating points is worth: its Pareto front, its hypervolume, its share of dominated points.

Every objective is maximised. Points are scores of finished runs, one row each; nothing here knows where they come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.errors import InputError


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another when it is at least as good in every objective and better in one; equal points therefore
    stand or fall together.

    Args:
        points: (n, m), larger is better.

    Returns:
        (n,) bool.

    Raises:
        InputError: not a finite (n, m) array.
    """
    values = _checked(points, "points")
    # In descending lexicographic order every point stands behind all that dominate it, so one pass over the points
    # found so far decides.
    order = np.lexsort(-values.T[::-1])
    mask = np.zeros(len(values), dtype=bool)
    front = np.empty((0, values.shape[1]))
    for i in order:
        if not _dominates(front, values[i]).any():
            mask[i] = True
            front = np.vstack([front, values[i]])
    return mask


def dominated_share(points: ArrayLike, others: ArrayLike) -> float:
    """The share of `points` that at least one of `others` dominates.

    The coverage of Zitzler and Thiele (doi:10.1109/4235.797969), with domination in the strict sense of `pareto_front`,
    so that a set does not cover itself. It is not symmetric: report both directions.

    Args:
        points: (n, m), larger is better; n at least 1.
        others: (k, m); none dominate nothing.

    Returns:
        From 0 to 1.

    Raises:
        InputError: arrays that are not finite, or not of the same number of objectives; no points.
    """
    values, rivals = _checked(points, "points"), _checked(others, "others")
    if not len(values):
        raise InputError("a share of no points", where="points", expected="at least one point")
    if len(rivals) == 0:
        return 0.0
    if values.shape[1] != rivals.shape[1]:
        raise InputError(
            "the two sets have different numbers of objectives", expected=str(values.shape[1]), found=rivals.shape[1]
        )
    return float(np.mean([_dominates(rivals, value).any() for value in values]))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume between the points' front and a reference point, exactly, for up to three objectives.

    It is the measure of everything that is better than `reference` and not better than every point (Zitzler and Thiele,
    doi:10.1109/4235.797969). Two objectives take one sweep over the sorted front; three add up such areas between
    successive values of the third objective. It depends on the reference and on the objectives' units: state both.

    Args:
        points: (n, m), larger is better; a point that is not better than the reference everywhere adds nothing.
        reference: (m,).

    Returns:
        In the product of the objectives' units; 0 for no points.

    Raises:
        InputError: arrays that are not finite or do not fit; more than three objectives.
    """
    corner = np.asarray(reference, dtype=np.float64)
    values = _checked(points, "points") if np.size(points) else np.empty((0, corner.size))
    if corner.ndim != 1 or not np.isfinite(corner).all() or corner.size != values.shape[1]:
        expected = f"{values.shape[1]} finite numbers, one per objective"
        raise InputError("a reference point that does not fit the points", expected=expected, found=str(corner))
    if not 1 <= corner.size <= 3:
        raise InputError("hypervolume is exact for one to three objectives", where="points", found=corner.size)
    gains = values[(values > corner).all(axis=1)] - corner
    if not len(gains):
        return 0.0
    if corner.size == 1:
        return float(gains.max())
    if corner.size == 2:
        return _area(gains)
    # slabs from the top: between two successive heights, the area of all points that reach up to there
    heights = np.unique(gains[:, 2])
    floors = np.concatenate([[0.0], heights[:-1]])
    slabs = [_area(gains[gains[:, 2] >= top, :2]) * (top - low) for low, top in zip(floors, heights, strict=True)]
    return float(sum(slabs))


def _area(gains: NDArray[np.float64]) -> float:
    """Area of the union of the boxes [0, x] x [0, y] of (n, 2) positive points."""
    order = np.lexsort((-gains[:, 1], -gains[:, 0]))
    widths, reached = gains[order, 0], np.maximum.accumulate(gains[order, 1])
    below = np.concatenate([[0.0], reached[:-1]])
    return float(widths @ (reached - below))


def _dominates(candidates: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.bool_]:
    better: NDArray[np.bool_] = np.all(candidates >= point, axis=1) & np.any(candidates > point, axis=1)
    return better


def _checked(points: ArrayLike, where: str) -> NDArray[np.float64]:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim == 1 and values.size == 0:
        return values.reshape(0, 1)
    if values.ndim != 2:
        raise InputError("not a table of points", where=where, expected="shape (n, m)", found=str(values.shape))
    if not np.isfinite(values).all():
        raise InputError("a score that is not finite", where=where, fix="Leave such points out, and say so.")
    return values
