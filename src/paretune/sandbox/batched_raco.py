"""RACO for many Grams at once, in closed form: what `paretune.combine.raco` computes, for runs side by side.

`paretune.combine.raco` is the meaning, checks its input and certifies its result; here a study's thousands of Grams are
one tensor, tens to hundreds of times faster. `tests/sandbox/test_batched_raco.py` holds the two equal. Grams are
float64, taken as they are; all leading dimensions are runs.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from paretune.combine import raco


def raco_two(gram: Tensor, weights: Tensor, c: float, clip: bool, tau: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """`paretune.combine.raco` for Grams (..., 2, 2) and weights (..., 2) at once, with its tolerances.

    Returns:
        coefficients (..., 2); the angle (...,) that clipping turned the update by, in radians (0 with `clip` false);
        interior (...,), 1.0 where the mixture before clipping is no vertex.
    """
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    h = gram / torch.where(total > 0, total, 1.0)[..., None, None]
    b = (h @ weights[..., None])[..., 0]
    g0 = (weights * b).sum(-1).clamp(min=0.0).sqrt()
    s = c * g0
    h11, h12, h22 = h[..., 0, 0], h[..., 0, 1], h[..., 1, 1]
    q2, delta = (h11 + h22 - 2 * h12).clamp(min=0.0), b[..., 0] - b[..., 1]
    room = s * s * q2 - delta * delta
    inside = room > 0
    area = (h11 * h22 - h12 * h12).clamp(min=0.0).sqrt()
    best = (h22 - h12 - delta * area / torch.where(inside, room, 1.0).sqrt()) / torch.where(inside, q2, 1.0)
    end = torch.where(delta == 0, weights[..., 0], (delta < 0).double())
    best = torch.where(inside, best.clamp(0.0, 1.0), end)
    noise = tau * tau
    near = (2 * noise * weights[..., 0] + q2 * best) / (2 * noise + q2)
    best = torch.where((near - best).abs() <= tau, best, near)
    p = torch.stack((best, 1 - best), -1)
    unclipped = _correct(h, weights, p, g0, c, tau)
    interior = ((best > 0) & (best < 1)).double()
    if not clip:
        return unclipped, torch.zeros_like(g0), interior
    coefficients = _correct(h, weights, torch.minimum(p, weights), g0, c, tau)
    return coefficients, gram_angles(h, coefficients, unclipped), interior


def raco_many(gram: Tensor, weights: Tensor, c: float, clip: bool, tau: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """`raco_two` for any number of objectives M, by trying all 2^M - 1 supports of the mixture for all Grams at once.

    On the right support u = s G_p / ||G_p|| gives its objectives one slope nu = <g_i, g_0 + u>: p is in proportion to
    H^-1 (nu 1 - b), where A nu^2 - 2 B nu + C = s^2 with A = 1'H^-1 1, B = 1'H^-1 b, C = b'H^-1 b, all within the
    support. Of the mixtures so found that lie on the simplex, the one with the least h is the minimiser. Grams too near
    singular for that (`paretune.combine.raco` says where) are left to it, one by one.
    """
    m = gram.shape[-1]
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    h = (gram / torch.where(total > 0, total, 1.0)[..., None, None]).flatten(0, -3)
    w = weights.flatten(0, -2)
    b = (h @ w[..., None])[..., 0]
    g0 = (w * b).sum(-1).clamp(min=0.0).sqrt()
    s = c * g0
    lengths = h.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    vertices = b + s[:, None] * lengths
    value, at = vertices.min(-1)
    p = torch.eye(m, dtype=h.dtype)[at]
    for support in (list(one) for k in range(2, m + 1) for one in combinations(range(m), k)):
        inner, ends = h[:, support][:, :, support], b[:, support]
        solved = torch.linalg.solve_ex(inner, torch.stack((torch.ones_like(ends), ends), -1))[0]
        ones, slopes = solved.unbind(-1)
        big, middle, rest = ones.sum(-1), slopes.sum(-1), (slopes * ends).sum(-1)
        nu = (middle + (middle * middle - big * (rest - s * s)).clamp(min=0.0).sqrt()) / big
        ray = nu[:, None] * ones - slopes
        size = ray.sum(-1)
        mixed = ray / torch.where(size > 0, size, 1.0)[:, None]
        whole = torch.zeros_like(p).index_copy(1, torch.tensor(support), mixed)
        own = (b * whole).sum(-1) + s * _norm(h, whole)
        better = (mixed >= 0).all(-1) & (size > 0) & own.isfinite() & (own < value)
        value, p = torch.where(better, own, value), torch.where(better[:, None], whole, p)
    unclipped = _correct(h, w, p, g0, c, tau)
    coefficients = _correct(h, w, torch.minimum(p, w), g0, c, tau) if clip else unclipped
    turned = gram_angles(h, coefficients, unclipped)
    interior = ((p > 0).sum(-1) > 1).double()
    least = torch.linalg.eigvalsh(h)[:, 0]
    for i in torch.nonzero((least < 1.5 * tau) & (g0 > 0)).flatten().tolist():
        one = raco(h[i], w[i], c=c, clip=clip, tau=tau)
        coefficients[i], turned[i] = one.coefficients, one.info["angle_to_unclipped"]
        interior[i] = float((one.p > 0).sum() > 1)
    shape = weights.shape[:-1]
    return coefficients.view_as(weights), turned.view(shape), interior.view(shape)


def _correct(h: Tensor, weights: Tensor, p: Tensor, g0: Tensor, c: float, tau: float) -> Tensor:
    """Line 6 of Algorithm 1; see `paretune.combine.raco.corrected` for what counts as zero."""
    length = _norm(h, p)
    longest = torch.maximum(h.diagonal(dim1=-2, dim2=-1), g0[..., None].square())
    zero = (length <= tau * (p.square() * longest).sum(-1).sqrt()) | (g0 == 0)
    return weights + torch.where(zero, 0.0, c * g0 / torch.where(zero, 1.0, length))[..., None] * p


def _norm(h: Tensor, u: Tensor) -> Tensor:
    return (u * (h @ u[..., None])[..., 0]).sum(-1).clamp(min=0.0).sqrt()


def gram_angles(h: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(...,) radians between sum_i u_i g_i and sum_i v_i g_i, for Grams (..., M, M); 0 where one vanishes."""
    size_u, size_v = _norm(h, u), _norm(h, v)
    there = (size_u > 0) & (size_v > 0)
    u, v = (x / torch.where(there, size, 1.0)[..., None] for x, size in ((u, size_u), (v, size_v)))
    return torch.where(there, 2 * torch.atan2(_norm(h, u - v), _norm(h, u + v)), 0.0)
