"""Methods that go by the losses' values: Tchebycheff scalarisations, and FAMO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from paretune.combine.combination import (
    Combination,
    Vector,
    checked,
    combination,
    dot,
    gram_angle,
    scaled,
    times,
    trace,
)
from paretune.combine.normalized import inverse_losses
from paretune.errors import InputError


def tchebycheff(
    gram: Tensor,
    weights: Tensor,
    *,
    losses: Tensor,
    present: Tensor | None = None,
    ideal: float | Sequence[float] = 0.0,
) -> Combination:
    """The gradient of max_i w_i (L_i - z_i), z the ideal point (Miettinen 1999; Lin et al. 2024, arXiv 2402.19078).

    It is w_k g_k of the worst objective k, and can reach concave parts of a front. A large weight makes its objective
    the worst sooner, so it ends with a *lower* loss. Ties (to 1e-9) share equally, which is a subgradient too.

    Args:
        losses: (m,). present: (m,) bool, None for all; an absent objective is never the worst.
        ideal: z, one number for all or one per objective.
    """
    heights = _heights(losses, weights, ideal, present)
    top = max(heights)
    worst = [float(x >= top - 1e-9 * max(abs(top), 1e-300)) if x > -math.inf else 0.0 for x in heights]
    return _scalarised(gram, weights, worst)


def smooth_tchebycheff(
    gram: Tensor,
    weights: Tensor,
    *,
    losses: Tensor,
    present: Tensor | None = None,
    mu: float = 0.1,
    ideal: float | Sequence[float] = 0.0,
) -> Combination:
    """The gradient of mu log sum_i exp(w_i (L_i - z_i) / mu) (Lin et al. 2024, arXiv 2402.19078, equation 7).

    Args:
        losses, present, ideal: as `tchebycheff`, which it tends to as mu -> 0. mu: > 0, in the losses' unit.

    Raises:
        InputError: mu that is not positive.
    """
    if not mu > 0.0:
        raise InputError("bad mu", expected="a number > 0", found=mu)
    heights = _heights(losses, weights, ideal, present)
    top = max(heights)
    return _scalarised(gram, weights, [math.exp((x - top) / mu) if top > -math.inf else 0.0 for x in heights])


def _heights(losses: Tensor, weights: Tensor, ideal: float | Sequence[float], present: Tensor | None) -> Vector:
    """w_i (L_i - z_i), and minus infinity for an absent objective."""
    m = len(weights)
    z = [float(ideal)] * m if isinstance(ideal, int | float) else [float(x) for x in ideal]
    if len(z) != m:
        raise InputError("bad ideal", expected=f"one number, or {m}, one per objective", found=z)
    known = [True] * m if present is None else present.tolist()
    rows = zip(weights.tolist(), losses.tolist(), z, known, strict=True)
    return [w * (x - lowest) if there else -math.inf for w, x, lowest, there in rows]


def _scalarised(gram: Tensor, weights: Tensor, shares: Vector) -> Combination:
    """sum_i w_i s_i g_i with s = shares over their sum; nothing where all are 0."""
    h, w, _ = checked(gram, weights)
    total = sum(shares)
    p = [x / total for x in shares] if total > 0.0 else shares
    a = [x * y for x, y in zip(w, p, strict=True)]
    return combination(a, p, p, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def famo(
    gram: Tensor,
    weights: Tensor,
    *,
    losses: Tensor,
    state: dict[str, Any],
    rate: float = 0.025,
    decay: float = 1e-3,
) -> Combination:
    """FAMO (Liu et al. 2023, arXiv 2306.03792, Algorithm 2): all losses shall fall at the same relative rate.

    With z = softmax(logits) the coefficients are z_i / L_i over their sum; Adam then moves the logits against
    J_softmax' delta + decay logits, delta_i being how much log L_i falls in this step. It ignores the weights, as the
    method does. Differs from it: delta is not measured by a second forward pass but predicted to first order,
    delta_i = <g_i, d> / L_i with d the update, which the Gram gives; and since a combiner does not know the learning
    rate, delta is divided by the trace of the Gram of g_i / L_i (Adam is deaf to that scale, only decay is not).

    Args:
        losses: (m,), not negative.
        state: logits, and Adam's mean, square and steps.
        rate: Adam's step for the logits. decay: of the logits.

    Raises:
        InputError: a rate, decay or loss below 0.
    """
    if not (rate >= 0.0 and decay >= 0.0):
        raise InputError("bad rate or decay", expected="numbers >= 0", found=[rate, decay])
    h, w, _ = checked(gram, weights)
    m, by = len(w), inverse_losses(losses)
    logits, mean, square = ([x or 0.0 for x in state.get(key, [0.0] * m)] for key in ("logits", "mean", "square"))
    steps = int(state.get("steps", 0)) + 1
    z = softmax(logits)
    a = [x * y for x, y in zip(z, by, strict=True)]
    a = [x / sum(a) for x in a]
    relative = scaled(h, by)  # Gram of the log losses' gradients; the update is a multiple of their mixture by z
    size = trace(relative)
    delta = [x / size for x in times(relative, z)] if size > 0.0 else [0.0] * m
    average = dot(z, delta)
    slope = [x * (y - average) + decay * v for x, y, v in zip(z, delta, logits, strict=True)]
    mean = [0.9 * x + 0.1 * y for x, y in zip(mean, slope, strict=True)]
    square = [0.999 * x + 0.001 * y * y for x, y in zip(square, slope, strict=True)]
    first, second = 1.0 - 0.9**steps, 1.0 - 0.999**steps
    moves = [rate * x / first / (math.sqrt(y / second) + 1e-8) for x, y in zip(mean, square, strict=True)]
    logits = [x - y for x, y in zip(logits, moves, strict=True)]
    state.update(logits=logits, mean=mean, square=square, steps=steps)
    return combination(a, z, z, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})


def softmax(x: Vector) -> Vector:
    top = max(x)
    powers = [math.exp(y - top) for y in x]
    return [y / sum(powers) for y in powers]
