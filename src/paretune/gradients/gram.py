"""The Gram matrix of m gradients, float32 within blocks and float64 across them.

Suffixes: M objectives, P elements, B blocks, S blocks side by side, K columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Columns of a block of the Gram: float32 within it (the matrix kernels' own sums), float64 across. A kernel adds a
# block's products one after the other, so its error grows with it: 7e-6 of the norms at 2^18 columns, 2e-8 at 2^12.
_BLOCK = 1 << 12

# A Gram whose smallest eigenvalue is below this share of its trace is taken in float64: ties between objectives are
# told at 1e-10 of the trace (`combine.raco`, tau squared), far below what float32 products leave.
_DEPENDENT = 1e-5


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
