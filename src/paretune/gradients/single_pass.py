"""All m gradients from one backward pass (and the choice of what one pass can carry).

Suffixes: R rows, M objectives, N comparisons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paretune.gradients.row_layers import RowLayers
from paretune.gradients.stack import GradientStack


def single_pass(
    outputs: Tensor, slopes: Tensor, stack: GradientStack, layers: RowLayers, *, retain_graph: bool = False
) -> None:
    """Adds m gradients, g_i = sum_r slopes[i, r] d outputs[r] / d theta, to the stack by one backward pass.

    Exact, whatever m: rows do not interact, so the backward signal of a row is the same for every objective up to its
    slope, and each layer mixes its per-row weight gradients with the slopes (the chain rule for losses of one number
    per row; spec section "how one optimizer step runs", arXiv 2602.02495 Algorithm 1 line 1).

    Args:
        outputs: (R,) one number per row, such as a comparison's margin; row r must be entry r of every layer's input.
        slopes: (m, R) d L_i / d outputs[r], detached.
        stack: receives the m gradients.
        layers: the model's prepared layers (`RowLayers(model)`, made before the forward pass).
        retain_graph: keep the graph for a second pass over other outputs of the same forward.

    Raises:
        ValueError: shapes that do not fit.
        RowAxisLost: a layer lost the row axis.
    """
    if outputs.ndim != 1 or slopes.shape != (stack.objectives, outputs.shape[0]):
        raise ValueError(
            f"expected outputs (R,) and slopes ({stack.objectives}, R), "
            f"got {tuple(outputs.shape)} and {tuple(slopes.shape)}"
        )
    layers.current.slopes, layers.current.stack = slopes.to(outputs.device), stack
    try:
        outputs.sum().backward(retain_graph=retain_graph)
    finally:
        layers.current.slopes = layers.current.stack = None


def common_signal(slopes_a: Tensor, slopes_b: Tensor) -> Tensor | None:
    """The factors k (N,) with slopes_b = k * slopes_a for every objective, or None where there is no such k.

    Where it exists, logp_a + k logp_b is one number per comparison on which all M losses depend, and one backward pass
    carries them all: -1 for losses of the same margin, -n_a/n_b for length-normalised ones. An anchored loss, or a mix
    of summed and length-normalised margins, has none, and takes two passes over the same forward.

    Args:
        slopes_a: (M, N) float64, d L_i / d log pi(a_n).
        slopes_b: (M, N) the same for b.
    """
    strongest = slopes_a.abs().argmax(dim=0, keepdim=True)
    lead_a, lead_b = slopes_a.gather(0, strongest)[0], slopes_b.gather(0, strongest)[0]
    k = torch.where(lead_a == 0, -torch.ones_like(lead_a), lead_b / lead_a)
    scale = slopes_a.abs().amax(0) + slopes_b.abs().amax(0)
    # 1e-12: the slopes are float64 quotients, equal up to rounding where the losses share a signal
    return k if bool(((slopes_b - k * slopes_a).abs() <= 1e-12 * scale).all()) else None
