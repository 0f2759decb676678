"""The shortest mixture of gradients that were first brought to one scale: MGDA and its relatives.

Each normalises by another measure of scale: the gradient's own length (GAPO), the loss (MGDA-Decoupled).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from paretune.combine.combination import (
    Combination,
    Matrix,
    Vector,
    checked,
    combination,
    dot,
    gram_angle,
    norm,
    scaled,
    trace,
)
from paretune.combine.raco import nearest_to_weights
from paretune.combine.simplex import nearest_point, points_of
from paretune.errors import InputError


def shortest_mixture(h: Matrix) -> Vector:
    """argmin over p in the simplex of ||sum_i p_i g_i||, exactly, for gradients with this Gram."""
    points = points_of(h)
    start = np.zeros(len(h))
    start[int(np.square(points).sum(0).argmin())] = 1.0
    p: Vector = nearest_point(points, np.zeros(len(h)), 0.0, start)[0].tolist()
    return p


def mgda(gram: Tensor, weights: Tensor) -> Combination:
    """The shortest mixture of the gradients (Desideri 2012; Sener & Koltun 2018, arXiv 1810.04650).

    It ignores the weights, as the method does: they only give m. Exact, where the usual Frank-Wolfe stops after a set
    number of steps. info: length, the mixture's relative to sqrt(tr H), and angle_to_linear.
    """
    h, w, _ = checked(gram, weights)
    p = shortest_mixture(h)
    length = norm(h, p) / ((trace(h) or 1.0) ** 0.5)
    return combination(p, p, p, clip_active=False, info={"length": length, "angle_to_linear": gram_angle(h, p, w)})


def gapo(gram: Tensor, weights: Tensor, *, p: int = 1) -> Combination:
    """GAPO's direction (arXiv 2507.01915): the shortest mixture of g_i / ||g_i||^p; ignores the weights, as it does.

    p = 1 makes all lengths one; p = 2 makes each length its inverse, so that a long gradient counts less than a short
    one. Differs from the paper: whole gradients and not the last layer's, preference losses and not PPO's, and the
    update is multiplied by the weighted mean of ||g_i||^p, a common factor without which its length would have
    nothing to do with the gradients'. A gradient of 0 is the shortest mixture itself: the update is then 0.

    Raises:
        InputError: p is neither 1 nor 2.
    """
    if p not in (1, 2):
        raise InputError("bad p", expected="1 or 2", found=p)
    h, w, _ = checked(gram, weights)
    by = inverse_lengths(h, w, p)
    q = shortest_mixture(scaled(h, by))
    a = [x * y for x, y in zip(q, by, strict=True)]
    return combination(a, q, q, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def p_gapo(gram: Tensor, weights: Tensor) -> Combination:
    """P-GAPO's direction (arXiv 2507.01915): sum_i w_i g_i / ||g_i||, the user's weights on gradients of one length.

    Multiplied by the weighted mean norm, as `gapo`, and different from the paper in the same ways.
    """
    h, w, _ = checked(gram, weights)
    a = [x * y for x, y in zip(w, inverse_lengths(h, w, 1), strict=True)]
    return combination(a, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def mgda_decoupled(gram: Tensor, weights: Tensor, *, losses: Tensor) -> Combination:
    """MGDA-Decoupled (arXiv 2604.20685): the shortest mixture of g_i / L_i, its coefficients applied to the raw g_i.

    It ignores the weights, as the method does (it aims at fairness, not at a preference). Where several mixtures are
    equally short, to 1e-5 of the gradients, the raw gradients mix differently; then the one nearest the uniform.

    Args:
        losses: (m,), not negative.

    Raises:
        InputError: a loss below 0.
    """
    h, w, _ = checked(gram, weights)
    relative = scaled(h, inverse_losses(losses))
    p = nearest_to_weights(relative, [1.0 / len(w)] * len(w), shortest_mixture(relative), tau=1e-5)
    return combination(p, p, p, clip_active=False, info={"angle_to_linear": gram_angle(h, p, w)})


def inverse_lengths(h: Matrix, w: Vector, p: int) -> Vector:
    """(sum_j w_j ||g_j||^p) / ||g_i||^p, and 0 for a gradient of 0."""
    lengths = [max(row[i], 0.0) ** (p / 2) for i, row in enumerate(h)]
    mean = dot(w, lengths)
    return [mean / x if x > 0.0 else 0.0 for x in lengths]


def inverse_losses(losses: Tensor) -> Vector:
    """Proportional to 1 / L_i, the largest 1; a loss below 1e-8 of the largest counts as that. All 0: all equal.

    Raises:
        InputError: a loss below 0 or not finite.
    """
    values: Vector = losses.double().tolist()
    largest = max(values)
    if not (min(values) >= 0.0 and largest < float("inf")):
        fix = "This combiner divides by the losses: choose losses that are positive (sigmoid, ipo)."
        raise InputError("losses below 0", expected="finite numbers >= 0", found=values, fix=fix)
    raised = [max(x, 1e-8 * largest) for x in values] if largest > 0.0 else [1.0] * len(values)
    return [min(raised) / x for x in raised]
