"""The m gradients of m objectives: accumulated over micro-batches, summed over ranks, reduced to a Gram matrix.

Suffixes: M objectives, P elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paretune.gradients.gram import block_gram, needs_float64
from paretune.gradients.shards import group_of, is_shard, like_shard, local, scatter_sum

# Where gradients lie, their dtype, and whether they are of shards: one long buffer each.
Kind = tuple[torch.device, torch.dtype, bool]

# Elements between the starts of parameters are a multiple of this, so that each starts on a cache line.
_ALIGN = 16
# Columns that are combined at once into the update.
_CHUNK = 1 << 22


class GradientStack:
    """m gradients of each trainable parameter, (m, P) by its name, all of one dtype in one long buffer.

    One buffer makes zeroing, the Gram, the reduction over ranks and the update a few large operations, however many
    adapters there are. Gradients that nearly cancel are summed here, so it is float32 (float64 for float64 parameters)
    whatever the parameters' dtype, unless asked otherwise. It is made when first written and kept; `zero_` only notes
    that what it holds is stale.

    Args:
        parameters: name -> trainable parameter. A tied parameter appears once.
        objectives: m.
        dtype: bfloat16 halves the memory, for gradients that carry three digits.
        device: where the m gradients are kept; None is where each parameter is.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        objectives: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ):
        self.parameters = dict(parameters)
        self.objectives = objectives
        self._dtype, self._device = dtype, device
        self._kinds: dict[str, Kind] = {}
        self._starts: dict[str, int] = {}
        self._sizes: dict[Kind, int] = {}
        for name, parameter in self.parameters.items():
            wide = dtype if parameter.dtype != torch.float64 else torch.float64
            kind = self._kinds[name] = (device or parameter.device, wide, is_shard(parameter))
            self._starts[name] = self._sizes.get(kind, 0)
            self._sizes[kind] = self._starts[name] + -(-local(parameter).numel() // _ALIGN) * _ALIGN
        self._whole: dict[Kind, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        self._written: set[str] = set()

    def _view(self, name: str) -> Tensor:
        if name in self._views:
            return self._views[name]
        kind, start = self._kinds[name], self._starts[name]
        if kind not in self._whole:
            on_host = kind[0].type == "cpu" and self.parameters[name].device.type == "cuda"
            self._whole[kind] = torch.zeros(
                self.objectives, self._sizes[kind], device=kind[0], dtype=kind[1], pin_memory=on_host
            )
        self._views[name] = self._whole[kind][:, start : start + local(self.parameters[name]).numel()]
        return self._views[name]

    def buffer(self, name: str) -> Tensor:
        """The (m, P) view of one parameter's m gradients, zeros where nothing was added yet."""
        view = self._view(name)
        if name not in self._written:
            view.zero_()
            self._written.add(name)
        return view

    def receive(self, name: str, write: Callable[[Tensor, bool], None]) -> None:
        """Lets a layer write its contribution to one parameter's m gradients; see `row_layers.Receiver`."""
        if self._kinds[name][2]:
            self._receive_shard(name, write)
        else:
            write(self._view(name), name not in self._written)
        self._written.add(name)

    def _receive_shard(self, name: str, write: Callable[[Tensor, bool], None]) -> None:
        """Sums a layer's contribution over ranks at once: what a rank keeps of it is its shard."""
        parameter, view = self.parameters[name], self._view(name)
        whole = torch.empty(self.objectives, parameter.numel(), device=parameter.device, dtype=self._kinds[name][1])
        write(whole, True)
        mine = scatter_sum(whole, parameter).to(view.device)
        view.add_(mine) if name in self._written else view.copy_(mine)

    def add(self, name: str, objective: int, gradient: Tensor) -> None:
        """Adds one objective's gradient of one parameter; of a sharded one, this rank's part of the sum over ranks."""
        buffer = self.buffer(name)
        buffer[objective] += gradient.reshape(-1).to(buffer.device)

    def zero_(self) -> None:
        """Starts a new optimizer step."""
        self._written.clear()

    def reduce(self) -> None:
        """Sums the stack over ranks, in one reduction; without a process group this is the identity.

        Gradients of sharded parameters are sums over ranks already.

        Losses are already divided by *global* label counts, so the sum is the global mean's gradient. The Gram must be
        taken after this: a sum of the ranks' Grams is not the Gram of the sum.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for name in self.parameters:  # also what this rank did not reach: every rank must take part with all of it
                self.buffer(name)
            for kind, whole in self._whole.items():
                if not kind[2]:
                    _all_reduce(whole, next(iter(self.parameters.values())).device)

    def alike(self) -> GradientStack:
        """A stack of nothing yet, of the same parameters and objectives, kept in the same way."""
        return GradientStack(self.parameters, self.objectives, dtype=self._dtype, device=self._device)

    def follow(self, other: GradientStack, keep: Tensor) -> None:
        """Makes each gradient i keep[i] times itself plus 1 - keep[i] times `other`'s: a step of exponential averages.

        Args:
            other: a stack `alike`, which is left as it is.
            keep: (m,) in [0, 1].
        """
        for name in self.parameters:
            self.buffer(name)  # zeros where nothing is yet
        other._settle()
        for kind, theirs in other._whole.items():
            share = (1.0 - keep).to(theirs)[:, None]
            for mine, part in zip(self._whole[kind].split(_CHUNK, dim=1), theirs.split(_CHUNK, dim=1), strict=True):
                mine.lerp_(part, share)

    def _settle(self) -> dict[Kind, Tensor]:
        """The long buffers, with zeros where nothing was added since `zero_`; none where that is all of it."""
        if not self._written:
            return {}
        for name in self.parameters.keys() - self._written:
            self._view(name).zero_()
        return self._whole

    def gram(self, *, exact: bool = False) -> Tensor:
        """The Gram matrix (m, m) float64 on the CPU: <g_i, g_j>, float32 within blocks and float64 across them.

        Where gradients nearly depend on one another (equal or opposed objectives), how they differ is told by the last
        digits of the Gram, which float32 products do not have: then it is taken once more in float64. Reading it waits
        for the device, the only time in a step.

        Args:
            exact: float64 throughout, the oracle of the former; several times slower on a CPU.
        """
        if any(kind[0].type == "cpu" for kind in self._whole) and torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to the host under way
        total = torch.zeros(self.objectives, self.objectives, dtype=torch.float64)
        shards = torch.zeros_like(total)
        for kind, whole in self._settle().items():
            products = block_gram(whole, exact=exact).cpu()
            (shards if kind[2] else total).add_(products)
        total += self._over_shards(shards)
        total = (total + total.T) / 2
        return self.gram(exact=True) if not exact and needs_float64(total) else total

    def _over_shards(self, products: Tensor) -> Tensor:
        """The sum over ranks of what each has of the Gram of sharded parameters; nothing where there are none."""
        sharded = next((p for name, p in self.parameters.items() if self._kinds[name][2]), None)
        if sharded is None:
            return products
        there = products.to(sharded.device)
        dist.all_reduce(there, group=group_of(sharded))
        return there.cpu()

    def write_grad(self, coefficients: Tensor) -> None:
        """Makes sum_i coefficients[i] g_i every parameter's `.grad`; parameters no objective reached get None.

        The first of the m gradients is overwritten by the sum, which `.grad` then is, so the update needs no memory of
        its own: call `zero_` next.
        """
        for whole in self._settle().values():
            wide = torch.promote_types(whole.dtype, torch.float32)
            mix = coefficients.to(device=whole.device, dtype=wide, non_blocking=True)
            for part in whole.split(_CHUNK, dim=1):
                part[0] = mix @ part.to(mix.dtype)
        for name, parameter in self.parameters.items():
            if name in self._written:
                own = local(parameter)
                parameter.grad = like_shard(self._view(name)[0].view_as(own).to(own), parameter)
            else:
                parameter.grad = None


def _all_reduce(whole: Tensor, device: torch.device) -> None:
    """Sums over ranks in place; what is kept on the host goes over the device that the process group works on."""
    if whole.device == device:
        dist.all_reduce(whole)
        return
    for part in whole.split(_CHUNK, dim=1):
        there = part.to(device)
        dist.all_reduce(there)
        part.copy_(there)


def joined(stacks: list[GradientStack]) -> GradientStack:
    """One stack of all the stacks' gradients, in their order, which are handed over."""
    first = stacks[0]
    whole = GradientStack(first.parameters, sum(stack.objectives for stack in stacks))
    whole._written = set().union(*(stack._written for stack in stacks))
    for stack in stacks:
        for name in stack.parameters:
            stack.buffer(name)
    whole._whole = {kind: torch.cat([stack._whole[kind] for stack in stacks]) for kind in first._sizes}
    return whole


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for those that require gradients; a tied one once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
