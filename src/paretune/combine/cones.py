"""Updates that no objective opposes: gradients projected onto their dual cone (UPGrad, DualProj).

The dual cone is {d: <g_i, d> >= 0 for all i}. The projection of sum_i u_i g_i onto it is sum_i v_i g_i, where v >= u
makes the latter shortest (Quinton & Rey, arXiv 2406.16232, Proposition 1): with v = u + y, a least squares problem over
y >= 0. It is solved on points whose Gram is the gradients', by scipy's active-set method, exactly. torchjd has both
methods too, but with 1e-4 added to the Gram's diagonal, and through a solver that it does not bring along.

Two nearly opposed gradients leave the cone a sliver whose direction is their difference, so the projection jumps with
noise that no Gram resolves. ||tau y||^2 is therefore added, y in lengths of the gradients and tau their relative noise:
opposition up to tau of the projected length remains.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, gram_angle
from paretune.combine.simplex import Array, points_of

TAU = 1e-5


def upgrad(gram: Tensor, weights: Tensor) -> Combination:
    """UPGrad (Quinton & Rey, arXiv 2406.16232): every w_i g_i is projected onto the dual cone, then they are summed.

    The weights are the paper's, which are 1/m there; without conflict the result is `linear`.
    """
    h, w, _ = checked(gram, weights)
    units, lengths = _unit_points(points_of(h))
    total = np.zeros(len(w))
    for i, x in enumerate(w):
        alone = np.zeros(len(w))
        alone[i] = x
        total += _projected(units, lengths, alone)
    a = total.tolist()
    return combination(a, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def dualproj(gram: Tensor, weights: Tensor) -> Combination:
    """The weighted mean projected onto the dual cone (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, equation 11).

    The form that torchjd calls DualProj: there the projected gradient is the new task's, here g_0.
    """
    h, w, _ = checked(gram, weights)
    a = _projected(*_unit_points(points_of(h)), np.array(w)).tolist()
    return combination(a, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def _unit_points(points: Array) -> tuple[Array, Array]:
    """Points (d, m) of length 1 and the lengths (m,): objectives of different scale are then solved equally well."""
    lengths = np.sqrt(np.square(points).sum(0))
    return points / np.where(lengths > 0.0, lengths, 1.0), lengths


def _projected(units: Array, lengths: Array, u: Array) -> Array:
    """(m,) v with sum_i v_i g_i the projection of sum_i u_i g_i."""
    target = -(units @ (u * lengths))
    size = math.sqrt(float(target @ target))
    if size == 0.0 or not (lengths > 0.0).any():
        return u
    m = len(u)
    damped = np.concatenate((units, TAU * np.eye(m)))
    # scipy's tolerance is absolute, so the right side has length 1
    y = nnls(damped, np.concatenate((target / size, np.zeros(m))))[0] * size
    return np.asarray(u + np.where(lengths > 0.0, y / np.where(lengths > 0.0, lengths, 1.0), 0.0))
