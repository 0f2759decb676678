"""RACO's nearest rivals, in its signature: linear weighting, CAGrad in three forms, PCGrad."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from paretune.combine.combination import Combination, Vector, checked, combination, dot, gram_angle
from paretune.combine.raco import raco
from paretune.errors import InputError


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


def cagrad_uniform(gram: Tensor, weights: Tensor, c: float = 0.4, *, tau: float = 1e-5) -> Combination:
    """CAGrad as published (arXiv 2110.14048, Algorithm 1): around the uniform mean; ignores the weights, as it does.

    Differs from the authors' code as `cagrad` does, the weights aside.
    """
    _, w, _ = checked(gram, weights)
    return _seen_from(raco(gram, torch.full_like(weights, 1.0 / len(w)), c, clip=False, tau=tau), gram, w)


def cagrad_fast(
    gram: Tensor, weights: Tensor, c: float = 0.4, *, n: int = 4, tau: float = 1e-5, seed: int = 0
) -> Combination:
    """CAGrad's variant for many objectives (its authors' code for reinforcement learning), with weights.

    n - 1 objectives, drawn anew each step, keep a gradient of their own, the others share one, and the dual has n
    unknowns. Here the others' gradient is their weighted mean, and it has their weight together; at equal weights 1/m
    these are the authors' 1/m each and 1 - (n-1)/m. Differs from their code: that leaves one of the others out of the
    mean while it divides by their number (off by one), and divides the update by 1 + c.

    Args:
        c, tau: as `raco`. n: gradients in the dual, at least 2; with m <= n objectives it is `cagrad`.
        seed: of the draw.

    Raises:
        InputError: n below 2, or what `raco` refuses.
    """
    if n < 2:
        raise InputError("bad n", expected="at least 2", found=n)
    _, w, _ = checked(gram, weights)
    m = len(w)
    if m <= n:
        return cagrad(gram, weights, c, tau=tau)
    kept = random.Random(seed).sample(range(m), n - 1)
    rest = torch.ones(m, dtype=torch.bool).index_fill(0, torch.tensor(kept), False)
    share = float(weights[rest].sum())
    mixing = torch.zeros(n, m, dtype=torch.float64)
    mixing[torch.arange(n - 1), torch.tensor(kept)] = 1.0
    mixing[-1, rest] = weights[rest].double() / share if share > 0.0 else 1.0 / float(rest.sum())
    anchor = torch.cat((weights[torch.tensor(kept)].double(), torch.tensor([share], dtype=torch.float64)))
    solved = raco(mixing @ gram.double() @ mixing.T, anchor / anchor.sum(), c, clip=False, tau=tau)
    spread = replace(solved, coefficients=solved.coefficients @ mixing, p=solved.p @ mixing, clipped=solved.p @ mixing)
    return _seen_from(spread, gram, w)


def _seen_from(solved: Combination, gram: Tensor, w: Vector) -> Combination:
    """The same, its angle_to_linear taken to the user's weighted mean."""
    to_linear = gram_angle(gram.tolist(), solved.coefficients.tolist(), w)
    return replace(solved, info={**solved.info, "angle_to_linear": to_linear})


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
