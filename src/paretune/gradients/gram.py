"""The Gram matrix of m gradients, float32 within blocks and float64 across them, and gradients mixed from rows.

Suffixes: M objectives, P elements, B blocks, K columns of a block, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Columns of a block of the Gram: float32 within it (the matrix kernels' own sums), float64 across. A kernel adds a
# block's products one after the other, so its error grows with it: 7e-6 of the norms at 2^18 columns, 2e-8 at 2^12.
_BLOCK = 1 << 12

# A Gram whose smallest eigenvalue is below this share of its trace is taken in float64: ties between objectives are
# told at 1e-10 of the trace (`combine.raco`, tau squared), far below what float32 products leave.
_DEPENDENT = 1e-5

# Bytes of weight gradients that exist at once outside of the m that are kept.
TRANSIENT = 1 << 28


def block_gram(buffer_MP: Tensor, *, exact: bool = False) -> Tensor:
    """(m, m) float64 on the buffer's device: float32 products within blocks of columns, summed in float64.

    Args:
        buffer_MP: m gradients; columns may be any stretch of a wider buffer.
        exact: float64 throughout.
    """
    m, columns = buffer_MP.shape
    sums = torch.zeros(m, m, dtype=torch.float64, device=buffer_MP.device)
    side = blocks_per_tile(m, buffer_MP.device)
    at_once = 64 if buffer_MP.device.type == "cpu" else 1024 // side  # what stays in the cache; what fills the device
    whole = columns // (_BLOCK * side) * _BLOCK * side
    blocks_BSMK = buffer_MP[:, :whole].unflatten(1, (-1, side, _BLOCK)).permute(1, 2, 0, 3)
    rest = buffer_MP[None, None, :, whole:]
    with _full_float32(buffer_MP.device):
        for blocks in (*blocks_BSMK.split(at_once), *(part for part in rest.split(_BLOCK, dim=3))):
            blocks = blocks.double() if exact else blocks.to(torch.promote_types(blocks.dtype, torch.float32))
            rows = blocks.flatten(1, 2)
            products = (rows @ rows.mT).unflatten(2, (-1, m)).unflatten(1, (-1, m))
            sums += products.diagonal(dim1=1, dim2=3).sum((0, 3), dtype=torch.float64)
    return sums


def blocks_per_tile(m: int, device: torch.device) -> int:
    """How many blocks of m rows are multiplied as one matrix, of whose products only those within a block count.

    A GPU multiplies tiles of 32 rows or more, filled or not. A CPU would compute the rest for nothing.
    """
    return 1 if device.type == "cpu" else max(1, 32 // m)


def needs_float64(gram: Tensor) -> bool:
    """Whether gradients nearly depend on one another, so that float32 products do not tell how they differ."""
    return bool(gram.isfinite().all()) and bool(torch.linalg.eigvalsh(gram)[0] < _DEPENDENT * gram.trace())


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
    buffer_MP: Tensor, slopes_MR: Tensor, left_RTO: Tensor, right_RTI: Tensor, *, fresh: bool, bytes_at_once: int
) -> None:
    """Adds the gradient of a matrix, sum_rt slopes[i, r] left[r, t] (x) right[r, t], by one product per objective.

    Costs the product m times, but forms no row's gradient: the better way where m is small or rows are short.

    Args:
        buffer_MP: m gradients of an (O, I) matrix.
        slopes_MR: float32 at least.
        left_RTO, right_RTI: the two factors.
        fresh: what the buffer holds does not count.
        bytes_at_once: bound on what is formed outside of the buffer, by slices of O.
    """
    m, wide = len(slopes_MR), torch.promote_types(left_RTO.dtype, torch.float32)
    outputs, inputs = left_RTO.shape[-1], right_RTI.shape[-1]
    right_MNI = right_RTI.flatten(0, 1).expand(m, -1, -1)
    slopes_MN = slopes_MR.repeat_interleave(right_RTI.shape[1], dim=1)
    matrices_MOI = buffer_MP.view(m, outputs, inputs)
    step = max(1, bytes_at_once // (4 * m * inputs))
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


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """No TensorFloat-32 in here, whatever the run allows: it carries three digits, and the Gram decides on ten."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    if device.type != "cuda" or not allowed:
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
