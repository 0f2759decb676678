"""What every combiner takes and returns: a Gram matrix and weights in, one coefficient per objective out.

The m gradients g_i enter only through H_ij = <g_i, g_j>. All functions here work on plain lists of floats: for the
m = 2 .. 16 of practice they are several times faster than arrays, and they are double precision by definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Any

import torch
from torch import Tensor

from paretune.errors import InputError

Vector = list[float]
Matrix = list[list[float]]

# Relative size of what we take for rounding in a Gram: sums of millions of float32 products are good to about 1e-6.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Combination:
    """How the m gradients of one step are combined. All tensors are float64 on the CPU.

    Attributes:
        coefficients: (m,), the update is sum_i coefficients[i] * g_i.
        p: (m,), the mixture a combiner chose on the simplex; the weights where it chooses none.
        clipped: (m,), min(p, weights) for RACO, otherwise p.
        clip_active: clipping turned the update by more than 1e-6 rad.
        info: plain numbers for the log; each combiner's docstring names its own.
    """

    coefficients: Tensor
    p: Tensor
    clipped: Tensor
    clip_active: bool = False
    info: dict[str, Any] = field(default_factory=dict)


def combination(a: Vector, p: Vector, clipped: Vector, *, clip_active: bool, info: dict[str, Any]) -> Combination:
    """A Combination from lists."""
    a_, p_, clipped_ = torch.tensor([a, p, clipped], dtype=torch.float64).unbind()
    return Combination(a_, p_, clipped_, clip_active, info)


def angle(gram: Tensor, u: Tensor, v: Tensor) -> float:
    """Angle in radians between the updates sum_i u_i g_i and sum_i v_i g_i; 0 where one of them vanishes.

    Args:
        gram: (m, m). u, v: (m,) coefficients.
    """
    return gram_angle(gram.tolist(), u.tolist(), v.tolist())


def gram_angle(gram: Matrix, u: Vector, v: Vector) -> float:
    """`angle` on lists. Kahan's form 2 atan2(|a - b|, |a + b|) of unit a, b: an arc cosine cannot see below 1e-8."""
    norm_u, norm_v = norm(gram, u), norm(gram, v)
    if norm_u == 0.0 or norm_v == 0.0:
        return 0.0
    difference = norm(gram, [x / norm_u - y / norm_v for x, y in zip(u, v, strict=True)])
    total = norm(gram, [x / norm_u + y / norm_v for x, y in zip(u, v, strict=True)])
    return 2.0 * math.atan2(difference, total)


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(map(mul, x, y))


def times(matrix: Matrix, x: Vector) -> Vector:
    return [dot(row, x) for row in matrix]


def norm(gram: Matrix, x: Vector) -> float:
    """||sum_i x_i g_i||; rounding can leave a square slightly negative, which is 0."""
    return math.sqrt(max(dot(x, times(gram, x)), 0.0))


def scaled(gram: Matrix, by: Vector) -> Matrix:
    """The Gram of by_i g_i."""
    return [[x * s * t for x, t in zip(row, by, strict=True)] for row, s in zip(gram, by, strict=True)]


def trace(gram: Matrix) -> float:
    return sum(row[i] for i, row in enumerate(gram))


def checked(gram: Tensor, weights: Tensor) -> tuple[Matrix, Vector, float]:
    """The Gram divided by a power of two near its trace, the weights, and that power.

    The division is exact, so no result depends on the scale of the losses, not even in its last bit where that
    scale is a power of two. A zero Gram is returned as it is.

    Raises:
        InputError: shapes that do not fit, a Gram that is not finite, symmetric and Cauchy-Schwarz within rounding,
            weights that are negative or do not sum to 1 within 1e-6.
    """
    m = weights.numel()
    if m == 0 or weights.shape != (m,) or gram.shape != (m, m):
        found = f"{tuple(gram.shape)} and {tuple(weights.shape)}"
        raise InputError("the Gram and the weights do not fit", expected="shapes (m, m) and (m,)", found=found)
    w: Vector = weights.double().tolist()
    if not (min(w) >= 0.0 and abs(sum(w) - 1.0) <= 1e-6):
        raise InputError("bad weights", expected="numbers >= 0 that sum to 1", found=w, fix="Divide them by their sum.")
    rows: Matrix = gram.double().tolist()
    if not all(math.isfinite(sum(row)) for row in rows):
        fix = "A loss or a gradient is NaN or infinite: skip this step."
        raise InputError("the Gram is not finite", expected="finite numbers", found=rows, fix=fix)
    diagonal = [rows[i][i] for i in range(m)]
    if min(diagonal) < 0.0:
        raise InputError("not a Gram matrix", expected="a diagonal >= 0", found=diagonal)
    scale = 2.0 ** math.frexp(sum(diagonal))[1] if any(diagonal) else 1.0
    rows = [[value / scale for value in row] for row in rows]
    for i in range(m):
        for j in range(i):
            largest = math.sqrt(rows[i][i]) * math.sqrt(rows[j][j])
            if abs(rows[i][j] - rows[j][i]) > ROUNDING * largest:
                raise InputError("the Gram is not symmetric", where=f"entries ({i}, {j})", found=gram.tolist())
            if abs(rows[i][j]) > (1.0 + ROUNDING) * largest:
                raise InputError("not a Gram matrix", where=f"entries ({i}, {j})", expected="|H_ij| <= sqrt(H_ii H_jj)")
            rows[i][j] = rows[j][i] = 0.5 * (rows[i][j] + rows[j][i])
    return rows, w, scale
