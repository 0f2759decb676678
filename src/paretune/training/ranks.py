"""What ranks have in common: the weights they start from, and decisions. With one process all of this is nothing.

There is no wrapper around the model. A step sums its m gradients over ranks once (`GradientStack.reduce`); what follows
from them is decided by rank 0 for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from paretune.errors import InputError
from paretune.objectives import Objective, as_dicts
from paretune.training.config import RACOConfig
from paretune.training.data import TokenizedData

_DECIDE = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "seed"),
    *("data_seed", "combiner", "combiner_options", "layout", "gradient_mode", "eval_strategy", "save_strategy"),
)


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
        there = tensor.data.to(device).contiguous()  # the plain numbers, of a quantized parameter too
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


def check_same_run(
    args: RACOConfig,
    objectives: Sequence[Objective],
    train: TokenizedData,
    evaluation: TokenizedData | Mapping[str, TokenizedData] | None,
) -> None:
    """Raises InputError, on every rank, where ranks were given another run: a machine with other files, say.

    They would take different rows for one step's, or wait for each other in different places.
    """
    sets = evaluation if isinstance(evaluation, Mapping) else {"": evaluation}
    facts = {
        "training data": (train.fingerprint, hashlib.sha256(train.labelled.tobytes()).hexdigest()),
        "evaluation data": {name: data and data.fingerprint for name, data in sets.items()},
        "objectives": as_dicts(list(objectives)),
        "settings": {name: getattr(args, name) for name in _DECIDE},
    }
    differ = differing(facts, args.device)
    if differ:
        fix = "Start every rank with the same command, and give every machine the same files."
        raise InputError(f"the ranks do not hold the same {', '.join(differ)}", fix=fix)


def differing(facts: Mapping[str, Any], device: torch.device) -> list[str]:
    """The names of facts that are not the same on all ranks; every rank gives the same names, and gets the same answer.

    Args:
        facts: told apart by their repr.
        device: that the process group works on.
    """
    if not several_ranks():
        return []
    digests = [hashlib.sha256(repr(fact).encode()).digest()[:7] for fact in facts.values()]
    least = torch.tensor([int.from_bytes(digest, "big") for digest in digests], device=device)
    most = least.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return [name for name, same in zip(facts, (least == most).tolist(), strict=True) if not same]
