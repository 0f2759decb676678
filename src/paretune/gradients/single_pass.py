"""All m gradients from one backward pass. Suffixes: R rows, M objectives."""

from __future__ import annotations

from torch import Tensor

from paretune.gradients.row_layers import Receiver, RowLayers


def single_pass(
    outputs: Tensor, slopes: Tensor, stack: Receiver, layers: RowLayers, *, retain_graph: bool = False
) -> None:
    """Adds m gradients, g_i = sum_r slopes[i, r] d outputs[r] / d theta, to the stack by one backward pass.

    Exact, whatever m: rows do not interact, so the backward signal of a row is the same for every objective up to its
    slope, and each layer mixes its per-row weight gradients with the slopes (the chain rule for losses of one number
    per row; spec section "how one optimizer step runs", arXiv 2602.02495 Algorithm 1 line 1).

    Args:
        outputs: (R,) one number per row, such as a comparison's margin; row r must be entry r of every layer's input.
        slopes: (m, R) d L_i / d outputs[r], detached.
        stack: receives the m gradients: a `GradientStack`, or `LayerGrams` where only their Gram is wanted.
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
    layers.current.begin(slopes, stack)
    try:
        outputs.sum().backward(retain_graph=retain_graph)
    finally:
        layers.current.end(last=not retain_graph)
