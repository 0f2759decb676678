"""The combiners that RACO is compared with, in RACO's signature: (gram (m, m), weights (m,), **options)."""

from __future__ import annotations

import random

import numpy as np
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, dot, gram_angle, norm, trace
from paretune.combine.raco import raco
from paretune.combine.simplex import nearest_point, points_of


def linear(gram: Tensor, weights: Tensor) -> Combination:
    """The weighted mean, sum_i w_i g_i: the gradient of the weighted loss. The coefficients are the weights' bits."""
    _, w, _ = checked(gram, weights)
    return combination(w, w, w, clip_active=False, info={"angle_to_linear": 0.0})


def cagrad(gram: Tensor, weights: Tensor, c: float = 0.4, *, tau: float = 1e-5) -> Combination:
    """CAGrad (Liu et al. 2021, arXiv 2110.14048) around the weighted mean: RACO without line 4.

    Differs from the authors' code: g_0 is weighted instead of uniform, the dual is solved exactly instead of by SLSQP
    or 20 gradient steps, lengths carry no absolute 1e-8, and the update is not divided by 1 + c^2.
    """
    return raco(gram, weights, c, clip=False, tau=tau)


def mgda(gram: Tensor, weights: Tensor) -> Combination:
    """The shortest mixture of the gradients (Desideri 2012; Sener & Koltun 2018, arXiv 1810.04650).

    It ignores the weights, as the method does: they only give m. Exact, where the usual Frank-Wolfe stops after a set
    number of steps. info: length, the mixture's relative to sqrt(tr H), and angle_to_linear.
    """
    h, w, _ = checked(gram, weights)
    points = points_of(h)
    start = np.zeros(len(w))
    start[int(np.square(points).sum(0).argmin())] = 1.0
    p = nearest_point(points, np.zeros(len(w)), 0.0, start)[0].tolist()
    length = norm(h, p) / ((trace(h) or 1.0) ** 0.5)
    return combination(p, p, p, clip_active=False, info={"length": length, "angle_to_linear": gram_angle(h, p, w)})


def pcgrad(gram: Tensor, weights: Tensor, *, seed: int = 0) -> Combination:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, Algorithm 1): each gradient loses what opposes any other one.

    The weights scale the gradients first, v_i = w_i g_i, and the projected ones are summed, so that without conflict
    the result is `linear`. Every projection is a linear combination of the v_j, so the Gram is enough.

    Args:
        seed: of the random order of the others; pass the step's number for a new order in each step that is the same
            on all ranks and after a resumption.
    """
    h, w, _ = checked(gram, weights)
    m, order = len(w), random.Random(seed)
    scaled = [[h[i][j] * w[i] * w[j] for j in range(m)] for i in range(m)]
    total = [0.0] * m
    for i in range(m):
        v = [float(j == i) for j in range(m)]
        for j in order.sample(range(m), m):
            overlap = dot(scaled[j], v)
            if j != i and overlap < 0.0 and scaled[j][j] > 0.0:
                v[j] -= overlap / scaled[j][j]
        total = [x + y for x, y in zip(total, v, strict=True)]
    coefficients = [x * y for x, y in zip(w, total, strict=True)]
    return combination(coefficients, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, coefficients, w)})
