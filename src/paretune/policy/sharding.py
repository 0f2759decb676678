"""Models whose weights lie in shards over ranks: FSDP2, as transformers loads them.

`from_pretrained(…, distributed_config=DistributedConfig(fsdp_size=N))` gives every rank a part of each weight; a module
has whole weights only while its own forward or backward runs, for which its hooks gather them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

T = TypeVar("T")
_NAME = "paretune_within_forward"


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights lie in shards over ranks."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def within_forward(base: nn.Module, function: Callable[[], T]) -> T:
    """What the function returns, called within a forward pass of the model, so that it may call the model's parts.

    Of a sharded model, a part that is called by itself would take itself for the whole. For other models this is the
    function's own call.

    Args:
        base: the whole model, not a wrapper around it.
        function: returns tensors, or structures of them, so that their backward pass is seen to begin.
    """
    if not isinstance(base, FSDPModule):
        return function()
    model: Any = base
    if not hasattr(model, _NAME):
        setattr(model, _NAME, MethodType(lambda self, call: call(), model))
        register_fsdp_forward_method(model, _NAME)
    found = getattr(model, _NAME)(function)
    put_back(base)
    return found


def put_back(base: nn.Module) -> None:
    """Leaves no weight whole after a forward pass without gradients, where FSDP2 keeps some for a backward pass.

    Until then the model's parameters are not those that its optimizer holds.
    """
    if not torch.is_grad_enabled():
        for module in base.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@contextmanager
def several_passes(model: nn.Module) -> Iterator[None]:
    """In here a graph of the model may be differentiated several times; for one that is not sharded this is nothing.

    A head that shares the embedding's weights has no hooks of its own to gather them: they stay whole from the forward
    pass on, and a first backward pass would give them away.
    """
    whole = {id(m): m for m in _ends(model) if isinstance(m, FSDPModule)}.values()
    for module in whole:
        module.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for module in whole:
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()


def _ends(model: Any) -> list[nn.Module]:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()] if is_sharded(model) else []
    return [module for module in ends if module is not None]
