"""Adapters under autocast: their inputs are taken as they come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that hold PEFT adapters."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def inputs_uncast(layers: list[Any], *, active: bool) -> Iterator[None]:
    """PEFT widens an adapter's input to its float32 weights; under autocast that is undone at once, so here it is not.

    The numbers are the same (bfloat16 to float32 and back), without two copies of every layer's input, and the base
    layer and its adapter save one tensor for backward instead of one each. Gradient checkpointing recomputes layers in
    the backward pass, so that belongs inside as well.

    Args:
        layers: of `adapter_layers`.
        active: whether autocast is on; without it the widening is needed.
    """
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = layer.cast_input_dtype_enabled and not active
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = enabled
