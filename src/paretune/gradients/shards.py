"""Parameters that lie in shards over ranks (DTensor, as FSDP2 makes them): each rank has rows of its own of each.

Suffixes: M objectives, P elements of a whole parameter, S of this rank's shard.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def is_shard(tensor: Tensor) -> bool:
    """Whether other ranks hold other parts of this tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like_shard(values: Tensor, tensor: Tensor) -> Tensor:
    """This rank's values as a tensor that is sharded as `tensor` is; as they are where it is not."""
    if not isinstance(tensor, DTensor):
        return values
    return DTensor.from_local(
        values, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def group_of(tensor: Tensor) -> Any:
    """The process group over which a tensor is sharded."""
    assert isinstance(tensor, DTensor)
    return tensor.device_mesh.get_group()


def scatter_sum(whole_MP: Tensor, parameter: Tensor) -> Tensor:
    """(M, S): m gradients of a whole parameter, summed over ranks, of which each rank keeps the rows of its shard.

    Every rank must call this for the same parameters in the same order.

    Args:
        whole_MP: this rank's part of the sums.
        parameter: sharded along its first axis.
    """
    group = group_of(parameter)
    world, rows, m = dist.get_world_size(group), parameter.shape[0], len(whole_MP)
    each = -(-rows // world)  # of torch.chunk: the last ranks may have fewer rows, or none
    padded = whole_MP.new_zeros(world, m, each, whole_MP.shape[1] // rows)
    for rank, part in enumerate(whole_MP.view(m, rows, -1).split(each, dim=1)):
        padded[rank, :, : part.shape[1]] = part
    mine = torch.empty_like(padded[0])
    # PyTorch 2.13 calls it by another name
    reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(mine.view(-1), padded.view(-1), group=group)
    return mine[:, : local(parameter).shape[0]].reshape(m, -1)
