"""Combination over the objectives that have a label in this step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paretune.combine.combination import Combination


def combine_labelled(
    combiner: Callable[..., Combination],
    gram: Tensor,
    weights: Tensor,
    present: Tensor,
    *,
    normalize: bool = False,
    **options: Any,
) -> Combination:
    """Combines the gradients of the objectives that are present, the others getting coefficient 0.

    An objective without a label has gradient 0. Left in the dual it would be the minimiser's vertex, and the correction
    would silently vanish for everyone. So the rest is solved with weights renormalised, and the coefficients are then
    multiplied by the rest's share of the weight.

    Args:
        combiner: of `COMBINERS`.
        gram: (m, m) float64.
        weights: (m,) on the simplex.
        present: (m,) bool, which objectives have a label.
        normalize: solve for gradients scaled to their weighted mean norm, and return coefficients of the unscaled ones.
        options: of the combiner.

    Returns:
        A Combination of all m; where nothing is present, or all present weights are 0, its coefficients are 0.
    """
    chosen = present.nonzero().flatten()
    share = float(weights[chosen].sum())
    zeros = torch.zeros(len(weights), dtype=torch.float64)
    if share == 0:
        return Combination(zeros, zeros, zeros, clip_active=False, info={})
    part, w = gram[chosen][:, chosen], weights[chosen].double() / share
    scale = torch.ones_like(w)
    if normalize:
        norms = part.diagonal().sqrt()
        scale = torch.where(norms > 0, (w * norms).sum() / norms, 1.0)
    solved = combiner(part * scale[:, None] * scale[None, :], w, **options)

    def spread(values: Tensor) -> Tensor:
        return zeros.index_copy(0, chosen, values)

    coefficients = spread(solved.coefficients * scale * share)
    return replace(solved, coefficients=coefficients, p=spread(solved.p), clipped=spread(solved.clipped))
