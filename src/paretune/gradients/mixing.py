"""How a layer's gradient is mixed into the m gradients, from its rows or from its signal.

Suffixes: M objectives, P elements of a parameter, R rows, T positions of a row, N all positions, O outputs and I inputs
of a matrix, V entries and D width of a table. Every function adds to the buffer, or overwrites it where it is fresh.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Bytes of weight gradients that exist at once outside of the m that are kept.
TRANSIENT = 1 << 28


def add_mixed(buffer_MP: Tensor, parts: Iterable[tuple[Tensor, Tensor]], *, fresh: bool) -> None:
    """Adds row gradients, mixed with their slopes, to m gradients; a fresh buffer is overwritten instead.

    Args:
        buffer_MP: float32 or float64 m gradients; or bfloat16 ones, or ones on the host, which are mixed outside.
        parts: (slopes (m, R), rows (R, P)) in one dtype, float32 at least.
        fresh: what the buffer holds does not count; not reading it saves a third of the traffic.
    """
    for slopes, rows in parts:
        if (buffer_MP.dtype, buffer_MP.device) == (rows.dtype, rows.device):
            buffer_MP.addmm_(slopes, rows, beta=0.0 if fresh else 1.0)
        elif fresh:
            buffer_MP.copy_(slopes @ rows, non_blocking=True)
        else:
            buffer_MP.add_((slopes @ rows).to(buffer_MP.device))
        fresh = False


def add_scaled(
    buffer_MP: Tensor, slopes_MR: Tensor, left_RTO: Tensor, right_RTI: Tensor, *, fresh: bool, at_once: int = TRANSIENT
) -> None:
    """Adds the gradient of a matrix, sum_rt slopes[i, r] left[r, t] (x) right[r, t], by one product per objective.

    Costs the product m times, but forms no row's gradient: the better way where m is small or rows are short.

    Args:
        buffer_MP: m gradients of an (O, I) matrix.
        slopes_MR: float32 at least.
        left_RTO, right_RTI: the two factors.
        fresh: what the buffer holds does not count.
        at_once: bytes formed outside of the buffer at most, by slices of O.
    """
    m, wide = len(slopes_MR), torch.promote_types(left_RTO.dtype, torch.float32)
    outputs, inputs = left_RTO.shape[-1], right_RTI.shape[-1]
    right_MNI = right_RTI.flatten(0, 1).expand(m, -1, -1)
    slopes_MN = slopes_MR.repeat_interleave(right_RTI.shape[1], dim=1)
    matrices_MOI = buffer_MP.view(m, outputs, inputs)
    step = max(1, at_once // (4 * m * inputs))
    for start in range(0, outputs, step):
        left_NO = left_RTO[..., start : start + step].flatten(0, 1)
        scaled_MNO = left_NO.new_empty(m, *left_NO.shape)
        torch.mul(slopes_MN[:, :, None], left_NO, out=scaled_MNO)  # slopes of float32, rounded with the product only
        target = matrices_MOI[:, start : start + step]
        if (target.dtype, target.device) == (scaled_MNO.dtype, scaled_MNO.device):
            target.baddbmm_(scaled_MNO.mT, right_MNI, beta=0.0 if fresh else 1.0)
        elif fresh:
            target.copy_(product_in(scaled_MNO.mT, right_MNI, wide), non_blocking=True)
        else:
            target.add_(product_in(scaled_MNO.mT, right_MNI, wide).to(target.device))


def product_in(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ y in a wider dtype than theirs where a GPU's units sum in it anyway: no rounding, and no second kernel."""
    if x.dtype == dtype:
        return x @ y
    if x.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):  # PyTorch 2.8
        return (torch.bmm if x.ndim == 3 else torch.mm)(x, y, out_dtype=dtype)
    return (x @ y).to(dtype)


def add_scattered(buffer_MP: Tensor, slopes_MR: Tensor, ids_RT: Tensor, grad_RTD: Tensor, *, fresh: bool) -> None:
    """Adds an embedding's gradient: each position's signal to the entry of its token, mixed with its row's slope.

    A row's gradient is zero but for its own tokens, so the table is never formed per row.

    Args:
        buffer_MP: m gradients of a (V, D) table.
        slopes_MR: in the dtype of grad_RTD.
        ids_RT: the tokens.
        grad_RTD: the signal at every position.
        fresh: what the buffer holds does not count.
    """
    if fresh:
        buffer_MP.zero_()
    m, width = len(slopes_MR), grad_RTD.shape[-1]
    tables_MVD = buffer_MP.view(m, -1, width)
    for slopes, ids, grad in zip(slopes_MR.split(4, dim=1), ids_RT.split(4), grad_RTD.split(4), strict=True):
        mixed = slopes[:, :, None, None] * grad  # m copies, but of four rows of one layer's signal
        tables_MVD.index_add_(1, ids.flatten().to(buffer_MP.device), mixed.flatten(1, 2).to(tables_MVD))
