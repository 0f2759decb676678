"""Nash-MTL: the objectives bargain over the update, and a fair bargain does not depend on their scales."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, gram_angle
from paretune.combine.simplex import Array
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
        cosines = np.array(h)[np.ix_(bargains, bargains)] / own / own[:, None]
        share = power[bargains] / power[bargains].sum()
        a[bargains] = fair(cosines + tau * tau * np.eye(len(own)), share) / own * float(power @ lengths)
    coefficients = a.tolist()
    return combination(coefficients, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, coefficients, w)})


def fair(matrix: Array, w: Array) -> Array:
    """The u > 0 with matrix u = w / u, for a positive definite matrix (m, m): argmin of 1/2 u'Mu - sum_i w_i log u_i.

    Newton's method with steps shortened so that it converges from anywhere: with t the Newton decrement in units in
    which the function is self-concordant, 1 / (1 + t) of the step (Nesterov 1994).
    """
    u = np.sqrt(w / matrix.diagonal())
    unit = float(np.sqrt(w.min()))  # f / w_min is self-concordant, so its decrement is that of f over sqrt(w_min)
    for _ in range(500):
        slope = matrix @ u - w / u
        step = np.linalg.solve(matrix + np.diag(w / (u * u)), slope)
        t = float(np.sqrt(max(float(slope @ step), 0.0))) / unit
        u = u - step / (1.0 + t) if t > 0.25 else u - step
        if t < 1e-9:
            break
    return u
