"""The one quadratic program behind the combiners: the point of a convex hull nearest to a given point, exactly.

Objectives are points here, the columns of a matrix whose Gram is theirs. Working on points instead of on the Gram
doubles the digits: a float64 Gram resolves the length of a mixture only to 5e-9 of its ingredients.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from paretune.combine.combination import ROUNDING, Matrix
from paretune.errors import InputError

Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def points_of(gram: Matrix) -> Array:
    """(m, m) matrix whose columns v_i have <v_i, v_j> = gram_ij.

    The eigenvectors are taken of the matrix of cosines: objectives of very different scales then each keep their own
    relative precision. Eigenvalues below rounding become 0 (exact dependencies stay exact).

    Raises:
        InputError: an eigenvalue is negative by more than rounding.
    """
    h = np.array(gram)
    lengths = np.sqrt(h.diagonal())
    unit = np.where(lengths > 0.0, lengths, 1.0)
    values, vectors = np.linalg.eigh(h / unit / unit[:, None])
    if values[0] < -ROUNDING * len(h):
        found = f"an eigenvalue of {values[0]:.3g} times the diagonal"
        raise InputError("not a Gram matrix", expected="no negative eigenvalue", found=found)
    values[values < 4e-16 * len(h)] = 0.0
    return (vectors * np.sqrt(values)).T * lengths


class Line(NamedTuple):
    """How the nearest point of one face moves with mu: p = alpha + mu beta, each (m,).

    nearest (d,) = points @ alpha is the point of the face's affine hull nearest to 0, -along (d,) = -points @ beta the
    part of the direction within the face: the two are orthogonal.
    """

    alpha: Array
    beta: Array
    nearest: Array
    along: Array


def nearest_point(points: Array, direction: Array, mu: float, start: Array) -> tuple[Array, Line]:
    """argmin over p in the simplex of ||points p + mu direction||, and how p moves with mu.

    A primal active-set method (Wolfe 1976, "Finding the nearest point in a polytope"): go to the best point of the
    affine hull of the current face, dropping the objectives that would turn negative on the way; when there, add the
    objective whose point lies furthest to the near side; stop when none does. The distance falls at every face, so
    none comes back.

    Args:
        points: (d, m), one column per objective. direction: (d,). mu: >= 0. start: (m,), any point of the simplex.
    """
    m = points.shape[1]
    p = start.copy()
    face: list[int] = np.flatnonzero(p > 0.0).tolist()
    longest = math.sqrt(np.square(points).sum(0).max())
    added = -1
    for _ in range(10 * m + 10):
        line = face_line(points, direction, face)
        target = line.alpha + mu * line.beta
        if target.min() >= 0.0:
            p = target
            across = mu * (line.along + direction)
            slopes = (line.nearest + across) @ points
            added = int(slopes.argmin())
            slack = 1e-14 * longest * (math.sqrt(line.nearest @ line.nearest) + math.sqrt(across @ across))
            if added in face or slopes[added] >= p @ slopes - slack:
                break
            face.insert(0, added)
        else:
            share = np.where(target < 0.0, p / np.maximum(p - target, 1e-300), np.inf)
            first = int(share.argmin())
            face.remove(first)
            if first == added and share[first] == 0.0:  # it leaves at once: what it promised was rounding
                line = face_line(points, direction, face)
                break
            p = np.maximum(p + share[first] * (target - p), 0.0)
            p[first] = 0.0
            p /= p.sum()
    return p, line


def face_line(points: Array, direction: Array, face: list[int]) -> Line:
    """The Line of one face."""
    line = np.zeros((2, points.shape[1]))
    base, rest = face[0], face[1:]
    line[0, base] = 1.0
    if not rest:
        return Line(line[0], line[1], points[:, base], np.zeros_like(direction))
    edges = points[:, rest] - points[:, [base]]
    line[:, rest] = np.linalg.lstsq(edges, -np.stack((points[:, base], direction), 1), rcond=1e-14)[0].T
    line[:, base] -= line[:, rest].sum(1)
    nearest, along = line @ points.T
    if nearest @ nearest < 1e-4 * np.square(points).sum(0).max():
        # Short, so mostly cancelled: a second projection makes it orthogonal to the face to its own precision.
        nearest = nearest - edges @ np.linalg.lstsq(edges, nearest, rcond=1e-14)[0]
    return Line(line[0], line[1], nearest, along)
