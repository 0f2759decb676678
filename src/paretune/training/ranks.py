"""What ranks have in common: the weights they start from, and decisions. With one process all of this is nothing.

There is no wrapper around the model. A step sums its m gradients over ranks once (`GradientStack.reduce`); what follows
from them is decided by rank 0 for all.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def several_ranks() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share_weights(model: nn.Module, device: torch.device) -> None:
    """Gives every rank the parameters and buffers of rank 0, bit for bit; those in shards (DTensor) are left alone.

    Args:
        model: the same on every rank but for its numbers.
        device: that the process group works on; what lies elsewhere goes there and back, one tensor at a time.
    """
    if not several_ranks():
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, DTensor) or tensor.numel() == 0:
            continue
        there = tensor.detach().to(device).contiguous()
        dist.broadcast(there.view(-1).view(torch.uint8), src=0)  # as bytes: every backend and dtype
        if there.data_ptr() != tensor.data_ptr():
            tensor.data.copy_(there)


def from_first(values: Tensor, device: torch.device) -> Tensor:
    """The values of rank 0, on the CPU as they came: so ranks cannot differ, be it in a last digit.

    Args:
        values: of one shape and dtype on every rank, on the CPU.
        device: that the process group works on.
    """
    if not several_ranks():
        return values
    there = values.to(device, copy=True)
    dist.broadcast(there, src=0)
    return there.cpu()
