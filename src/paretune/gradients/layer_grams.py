"""The Gram matrix of m gradients of which none is kept: the first pass of two.

For full fine-tuning m gradients may not fit. Then a first backward pass takes each layer's products as its gradients
come by, and a second one over the same graph, so with the same slopes and the same dropout, computes the one weighted
gradient that the products decided on. Suffixes: M objectives, P elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from paretune.gradients.gram import block_gram


class LayerGrams:
    """Takes rows' gradients as a `GradientStack` does; keeps the products of one parameter after the other.

    A parameter that is used several times in a forward pass (a tied embedding, a head taken in pieces) has its
    gradient kept until the last contribution has come.

    Args:
        parameters: name -> trainable parameter.
        objectives: m.
        calls: how often the forward pass used each (`RowLayers.current.calls`); the others are kept to the end.

    Raises:
        RuntimeError: on a contribution after the last one that was announced.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], objectives: int, calls: Mapping[str, int]):
        self.parameters, self.objectives = parameters, objectives
        self._coming = Counter(calls)
        self._open: dict[str, Tensor] = {}
        self._closed: set[str] = set()
        self._sums: dict[torch.device, Tensor] = {}

    def receive(self, name: str, write: Callable[[Tensor, bool], None]) -> None:
        """Lets a layer write its contribution to one parameter's m gradients; see `row_layers.Receiver`."""
        if name in self._closed:
            raise RuntimeError(f"{name} was used more often than its forward pass said")
        fresh = name not in self._open
        if fresh:
            parameter = self.parameters[name]
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self._open[name] = torch.empty(self.objectives, parameter.numel(), dtype=wide, device=parameter.device)
        write(self._open[name], fresh)
        self._came(name)

    def _came(self, name: str) -> None:
        self._coming[name] -= 1
        if self._coming[name] == 0:
            self._close(name)

    def _close(self, name: str) -> None:
        buffer = self._open.pop(name)
        self._closed.add(name)
        products = block_gram(buffer, exact=True)  # there is no second look, should gradients nearly depend on another
        if buffer.device in self._sums:
            self._sums[buffer.device] += products
        else:
            self._sums[buffer.device] = products

    def gram(self) -> Tensor:
        """(m, m) float64 on the CPU."""
        for name in list(self._open):
            self._close(name)
        total = torch.zeros(self.objectives, self.objectives, dtype=torch.float64)
        for products in self._sums.values():
            total += products.cpu()
        return (total + total.T) / 2
