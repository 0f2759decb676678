"""RACO's combination of m gradients: CAGrad's dual around the weighted mean, clipped by the weights.

Source: "Reward-free Alignment for Conflicting Objectives" (arXiv 2602.02495), Algorithm 1; the closed form for two is
its Appendix B.1. With g_0 = sum_i w_i g_i, G_p = sum_i p_i g_i, H_ij = <g_i, g_j>, b = H w and s = c ||g_0||:

    line 3    p  = argmin over the simplex of  h(p) = <G_p, g_0> + s ||G_p|| = b'p + s sqrt(p'Hp)
    line 4    p~ = min(p, w), elementwise, not renormalised
    line 6    update = g_0 + s G_p~ / ||G_p~||     (g_0 alone where G_p~ vanishes)

The update is sum_i a_i g_i with a = w + s p~ / ||G_p~||, so H is all that is needed.

Where this differs from the authors' release, and why:
- any m, not 2 and 3 only;
- no absolute tolerance: theirs, 1e-12 on quantities of order ||g||^6, picks another p than the exact one in about one
  step of eight once gradients are shorter than 1e-2. Here H is first divided by a power of two near its trace;
- equal or nearly equal gradients leave p open, and clipping depends on it: p is then the minimiser nearest the weights;
- "vanishes" is relative to what was mixed, since two nearly opposed gradients give coefficients of 1e6 otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    times,
    trace,
)
from paretune.combine.simplex import Array, nearest_point, points_of
from paretune.errors import InputError


@dataclass(frozen=True)
class Minimum:
    """A minimiser of h, and `gap`: h(p) is certified to exceed the minimum by no more than that."""

    p: Vector
    h: float
    gap: float
    iterations: int = 0


def raco(gram: Tensor, weights: Tensor, c: float = 0.4, clip: bool = True, *, tau: float = 1e-5) -> Combination:
    """RACO (arXiv 2602.02495, Algorithm 1): the weighted mean plus a correction of length c ||g_0|| against conflict.

    Args:
        gram: (m, m), H_ij = <g_i, g_j>, symmetric positive semidefinite, any scale, any m >= 1.
        weights: (m,) on the simplex.
        c: radius of the correction relative to ||g_0||, in [0, 1); at 0 the coefficients are the weights' bits.
        clip: line 4 of the algorithm; False is CAGrad with weights.
        tau: relative noise of the gradients (1e-5 for float32). Minimisers that differ by less are one, and a mixture
            shorter than tau times its ingredients is 0, so |coefficients_i| <= weights_i + c / tau.

    Returns:
        A Combination with this info:
        gap, gap_relative: certificate of the minimiser of h, in the Gram's unit and relative to its trace;
        shift: largest |p_i - p*_i|, p* the certified minimiser and p the one nearest the weights (0: unique);
        h: h(p*) in the Gram's unit; iterations: quadratic programs solved (0: closed form);
        correction_zero: bool, no correction was made; why_zero: the reason or "";
        angle_to_linear, angle_to_unclipped: radians from the update to g_0, and to the update without line 4.

    Raises:
        InputError: c outside [0, 1), tau outside (0, 1), or what `checked` and `points_of` refuse.
    """
    if not 0.0 <= c < 1.0:
        fix = "From c = 1 on, a step may increase the weighted loss."
        raise InputError("bad c", expected="0 <= c < 1", found=c, fix=fix)
    if not 0.0 < tau < 1.0:
        raise InputError("bad tau", expected="0 < tau < 1", found=tau)
    H, w, unit = checked(gram, weights)
    g0 = norm(H, w)
    s = c * g0
    if s == 0.0:
        minimum = Minimum(w, 0.0, 0.0)
        p = clipped = coefficients = unclipped = w
        why_zero = "c is 0" if c == 0.0 else "g_0 is 0"
    else:
        minimum = minimise(H, w, s)
        p = nearest_to_weights(H, w, minimum.p, tau)
        clipped = [min(x, y) for x, y in zip(p, w, strict=True)] if clip else p
        coefficients = corrected(H, w, clipped, g0, c, tau)
        unclipped = coefficients if clipped == p else corrected(H, w, p, g0, c, tau)
        why_zero = "the mixture is 0" if coefficients is w else ""
    turned = 0.0 if unclipped is coefficients else gram_angle(H, coefficients, unclipped)
    info = {
        "gap": minimum.gap * unit,
        "gap_relative": minimum.gap / (trace(H) or 1.0),
        "shift": max(abs(x - y) for x, y in zip(p, minimum.p, strict=True)),
        "h": minimum.h * unit,
        "iterations": minimum.iterations,
        "correction_zero": coefficients is w,
        "why_zero": why_zero,
        "angle_to_linear": 0.0 if coefficients is w else gram_angle(H, coefficients, w),
        "angle_to_unclipped": turned,
    }
    return combination(coefficients, p, clipped, clip_active=turned > 1e-6, info=info)


def corrected(H: Matrix, w: Vector, p: Vector, g0: float, c: float, tau: float) -> Vector:
    """Line 6, with g0 = ||g_0||: w + c g0 p / ||G_p||, or w itself where G_p counts as zero.

    Zero is relative to what was mixed, ||G_p||^2 <= tau^2 sum_i p_i^2 ||g_i||^2. An objective shorter than g_0 counts
    there with ||g_0||: this bounds every coefficient by w_i + c / tau, and makes the limit of a fading objective what
    its end is, where its gradient is 0.
    """
    length = norm(H, p)
    if length <= tau * math.sqrt(sum(x * x * max(H[i][i], g0 * g0) for i, x in enumerate(p))):
        return w
    return [x + c * g0 / length * y for x, y in zip(w, p, strict=True)]


def minimise(H: Matrix, w: Vector, s: float) -> Minimum:
    """Line 3, exactly, for s > 0 and a Gram that `checked` has scaled."""
    if len(w) == 1:
        return Minimum([1.0], H[0][0] + s * norm(H, [1.0]), 0.0)
    return _minimise_two(H, w, s) if len(w) == 2 else _minimise_many(H, w, s)


def _minimise_two(H: Matrix, w: Vector, s: float) -> Minimum:
    """Closed form for two (Appendix B.1), p = (l, 1 - l), read as geometry.

    Along the line through g_1 and g_2 let delta / sqrt(q2) be the component of g_0, and n its point nearest 0. If s is
    not larger than that component, h falls along the whole line. Otherwise h has one minimum on it, where the slope
    s sin(angle between G_p and n) balances the component. h is convex, so clamping to the segment is exact. (The
    paper squares this equation; its quadratic has the mirror image as a second root and needs h to choose.)
    """
    (h11, h12), (_, h22) = H
    b = times(H, w)
    q2, delta = h11 + h22 - 2.0 * h12, b[0] - b[1]
    if s * s * q2 > delta * delta:
        area = math.sqrt(max(h11 * h22 - h12 * h12, 0.0))  # ||n|| sqrt(q2)
        best = (h22 - h12 - delta * area / math.sqrt(s * s * q2 - delta * delta)) / q2
        best = min(max(best, 0.0), 1.0)
    else:
        best = w[0] if delta == 0.0 else float(delta < 0.0)
    p = [best, 1.0 - best]
    length, slopes = norm(H, p), times(H, p)
    value = dot(b, p) + s * length
    # Any u with ||u|| <= s certifies. s G_p / ||G_p|| is the best one; where G_p vanishes, as at the vertex of a
    # gradient that is 0, it does not exist and u = 0 serves.
    bounds = [min(x + t * y for x, y in zip(b, slopes, strict=True)) for t in (0.0, s / (length or 1.0))]
    return Minimum(p, value, value - max(bounds))


def _minimise_many(H: Matrix, w: Vector, s: float) -> Minimum:
    """An active set over mu = ||G_p|| / s.

    At the minimum u = s G_p / ||G_p|| gives every objective of the support the same slope <g_i, g_0 + u>, and no other
    a lower one. Written with mu, this says that G_p is the point of the gradients' convex hull nearest to -mu g_0: for
    each mu a quadratic program, and one number to find. While the support stays, its solution moves on a line
    p = alpha + mu beta with <G_alpha, G_beta> = 0, so on the right support mu = ||G_alpha|| / sqrt(s^2 - ||G_beta||^2)
    is exact. ||G_p|| / mu falls as mu grows, which brackets mu where that is not yet the right support.
    """
    points, b = points_of(H), np.array(times(H, w))
    g0, lengths = points @ np.array(w), np.sqrt(np.square(points).sum(0))
    p: Array = np.zeros(len(w))
    p[int((b + s * lengths).argmin())] = 1.0  # the best vertex, which very often is the minimiser
    floor = 1e-8 * float(lengths.max()) / s  # no float64 Gram resolves a shorter G_p
    mu, below, above = max(float(lengths @ p) / s, floor), 0.0, math.inf
    best = Minimum(p.tolist(), math.inf, math.inf)
    for iterations in range(1, 101):
        p, (alpha, beta, nearest, along) = nearest_point(points, g0, mu, p)
        room = s * s - float(along @ along)
        exact = math.sqrt(float(nearest @ nearest) / room) if room > 0.0 else math.inf
        valid = room > 0.0 and (alpha + exact * beta).min() >= -1e-12
        mixture, at = (alpha + exact * beta, max(exact, floor)) if valid else (p, mu)
        mixture = np.where(mixture > 1e-12, mixture, 0.0)  # rounding must not outlive the clipping of the rest
        mixture /= mixture.sum()
        gap, value = _certificate(points, b, s, mixture, along + nearest / at)
        if gap < best.gap:
            best = Minimum(mixture.tolist(), value, gap, iterations)
        if best.gap <= 1e-14 or (valid and abs(at - mu) <= 1e-9 * mu):
            break  # certified, or solved at the very mu that the support asks for: as exact as float64 can be
        u = along + nearest / mu
        below, above = (mu, above) if u @ u > s * s else (below, mu)
        if above <= floor:
            break
        if below < exact < above:
            mu = max(exact, floor)
        else:
            mu = math.sqrt(max(below, floor) * above) if above < math.inf else 2.0 * mu
    return best


def _certificate(points: Array, b: Array, s: float, p: Array, u: Array) -> tuple[float, float]:
    """h(p) - min_i <g_i, g_0 + u>, and h(p). By weak duality no point has a lower h by more, for any ||u|| <= s."""
    mixture, length = points @ p, math.sqrt(u @ u)
    value = float(b @ p) + s * math.sqrt(mixture @ mixture)
    inside = min(1.0, s / length) if length > 0.0 else 1.0
    return value - float((b + inside * (u @ points)).min()), value


def nearest_to_weights(H: Matrix, w: Vector, best: Vector, tau: float) -> Vector:
    """Of all mixtures that are as good as `best` within the gradients' noise tau, the one nearest the weights.

    argmin over q in the simplex of ||q - w||^2 + ||G_q - G_best||^2 / (tau^2 tr H). This is continuous in H; tests of
    rank or equality are not, and noise of 1e-7 on two equal gradients would turn the clipped update by 14 degrees.
    Entries that it moves by no more than tau are not open and stay as they are, with their exact zeros. Where it does
    move, the certificate remains that of `best`: to be deaf to noise of 1e-7 is to give up 1e-7 of h.
    """
    noise = tau * tau * trace(H)
    if len(w) == 1 or noise == 0.0:
        return best
    if len(w) == 2:
        q2 = max(H[0][0] + H[1][1] - 2.0 * H[0][1], 0.0)
        first = (2.0 * noise * w[0] + q2 * best[0]) / (2.0 * noise + q2)
        q = [first, 1.0 - first]
    else:
        points = points_of(H)
        if float(np.linalg.norm(points, -2)) ** 2 >= 1.5 * noise / tau:
            return best  # strong convexity: it moves by at most sqrt(2) noise / (smallest eigenvalue of H) < tau
        pull = points / math.sqrt(noise)
        target = np.concatenate((w, pull @ np.array(best)))
        q = nearest_point(np.concatenate((np.eye(len(w)), pull)), -target, 1.0, np.array(w))[0].tolist()
    q = [y if abs(x - y) <= tau else x for x, y in zip(q, best, strict=True)]
    return best if q == best else [x / sum(q) for x in q]
