"""RACO's coefficients for two objectives, for many runs at once.

The closed form of `paretune.combine.raco` (arXiv 2602.02495, Appendix B.1) on tensors, since a study trains thousands
of runs side by side; a test holds it equal to the library's. `RULES` are what may stand in line 4's place.

... leading axes; the last ones are the two objectives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TAU = 1e-5


def mixture(gram: Tensor, weights: Tensor, c: Tensor | float) -> Tensor:
    """Line 3: p (..., 2), nearest to the weights where it is open. gram (..., 2, 2), weights (..., 2), c (...)."""
    h11, h12, h22 = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    b = (gram @ weights[..., None])[..., 0]
    square = (weights * b).sum(-1).clamp(min=0.0)
    q2, delta = h11 + h22 - 2.0 * h12, b[..., 0] - b[..., 1]
    room = c * c * square * q2 - delta * delta
    area = (h11 * h22 - h12 * h12).clamp(min=0.0).sqrt()
    inside = (h22 - h12 - delta * area / room.clamp(min=1e-300).sqrt()) / q2
    vertex = torch.where(delta == 0.0, weights[..., 0], (delta < 0.0).to(gram))
    best = torch.where(room > 0.0, inside.clamp(0.0, 1.0), vertex)
    noise = TAU * TAU * (h11 + h22)
    near = (2.0 * noise * weights[..., 0] + q2.clamp(min=0.0) * best) / (2.0 * noise + q2.clamp(min=0.0))
    first = torch.where(((near - best).abs() > TAU) & (noise > 0.0), near, best)
    return torch.stack((first, 1.0 - first), -1)


def coefficients(gram: Tensor, weights: Tensor, p: Tensor, c: Tensor | float) -> Tensor:
    """Line 6: (..., 2) coefficients of the update, given the mixture p (clipped or not); w alone where it vanishes."""
    c = torch.as_tensor(c, dtype=gram.dtype)
    g0 = _length(gram, weights)
    length = _length(gram, p)
    parts = p.square() * torch.maximum(gram.diagonal(dim1=-2, dim2=-1), g0.square()[..., None])
    zero = (length <= TAU * parts.sum(-1).clamp(min=0.0).sqrt()) | (c * g0 == 0.0)
    push = torch.where(zero, 0.0, c * g0 / torch.where(zero, 1.0, length))
    return weights + push[..., None] * p


def _length(gram: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("...i,...ij,...j->...", x, gram, x).clamp(min=0.0).sqrt()


# Line 4 and what may stand in its place: (p, w) -> p~, both (..., 2).
RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clip": torch.minimum,
    "none": lambda p, w: p,
    "soft": lambda p, w: p * w / (p + w).clamp(min=1e-300),  # half the harmonic mean: smooth, below both
    "mix": lambda p, w: 0.5 * (p + w),  # the correction turns half way to g_0 instead
    "root": lambda p, w: (p * w).sqrt(),
}
