"""Nash-MTL: the objectives bargain over the update, and a fair bargain does not depend on their scales."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, gram_angle
from paretune.combine.simplex import Array, points_of
from paretune.errors import InputError


def nash_mtl(gram: Tensor, weights: Tensor, *, tau: float = 1e-5) -> Combination:
    """Nash-MTL (Navon et al. 2022, arXiv 2202.01017, Claim 3.1): H a = 1 / a, a > 0; with weights, H a = w / a.

    w are the powers of the asymmetric bargain, whose product prod_i <g_i, d>^{w_i} the update maximises among all of
    its length; at w = 1/m this is the paper's direction. Scaling a gradient scales its coefficient inversely and
    leaves the update as it was. Differs from the paper and its code: the convex problem
    1/2 a'Ha - sum_i w_i log a_i is solved itself, by Newton's method, instead of 20 linearised programs; there is no
    memory of former steps; the update's length, which is the same at every step there, is the gradients' weighted
    mean length; and tau^2 is added to the diagonal of the cosines, so that where no update serves all (the problem
    has no solution there) the update fades out. An objective with gradient 0 leaves the bargain, and one with weight
    0 has no say in it.

    Args:
        tau: relative noise of the gradients, in (0, 1).

    Raises:
        InputError: tau outside (0, 1), or what `checked` refuses.
    """
    if not 0.0 < tau < 1.0:
        raise InputError("bad tau", expected="0 < tau < 1", found=tau)
    h, w, _ = checked(gram, weights)
    power, lengths = np.array(w), np.sqrt(np.array(h).diagonal())
    bargains = np.flatnonzero((lengths > 0.0) & (power > 0.0))
    a = np.zeros(len(w))
    if len(bargains):
        own = lengths[bargains]
        directions = points_of((np.array(h)[np.ix_(bargains, bargains)] / own / own[:, None]).tolist())
        share = power[bargains] / power[bargains].sum()
        damped = np.concatenate((directions, tau * np.eye(len(own))))
        a[bargains] = fair(damped, share) / own * float(power @ lengths)
    coefficients = a.tolist()
    return combination(coefficients, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, coefficients, w)})


def fair(points: Array, w: Array) -> Array:
    """The u > 0 with M u = w / u, M = points' points positive definite: argmin of 1/2 u'Mu - sum_i w_i log u_i.

    Newton's method; a step is cut before it would leave u > 0, and halved until the function falls.

    Args:
        points: (d, m). Where mixtures nearly vanish, M itself would lose all digits of u'Mu.
        w: (m,), positive.
    """

    def value(u: Array) -> float:
        return 0.5 * float(np.square(points @ u).sum()) - float(w @ np.log(u))

    matrix = points.T @ points
    u = np.sqrt(w / matrix.diagonal())
    here = value(u)
    for _ in range(100):
        slope = points.T @ (points @ u) - w / u
        step = np.linalg.solve(matrix + np.diag(w / (u * u)), slope)
        fall, share = float(slope @ step), min(1.0, 0.95 / max(float((step / u).max()), 1e-300))
        if fall <= 1e-17:
            break
        if fall < 1e-10:  # full steps converge now, and differences of the function are rounding
            u = u - share * step
            continue
        while share > 1e-8 and not (there := value(u - share * step)) <= here - 0.25 * share * fall:
            share *= 0.5
        if share <= 1e-8:
            break  # as low as float64 can tell
        u, here = u - share * step, there
    return u
