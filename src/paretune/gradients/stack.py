"""The m gradients of m objectives: accumulated over micro-batches, summed over ranks, reduced to a Gram matrix.

Suffixes: M objectives, P elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Columns of a block of the Gram: float32 within it (the matrix kernels' own sums), float64 across. A kernel adds a
# block's products one after the other, so its error grows with it: 7e-6 of the norms at 2^18 columns, 2e-8 at 2^12.
_BLOCK = 1 << 12

# A Gram whose smallest eigenvalue is below this share of its trace is taken in float64: ties between objectives are
# told at 1e-10 of the trace (`combine.raco`, tau squared), far below what float32 products leave.
_DEPENDENT = 1e-5


class GradientStack:
    """One buffer (m, *shape) per trainable parameter, keyed by its name.

    Buffers are float32 (float64 for float64 parameters) whatever the parameter's dtype: m gradients that nearly cancel
    are summed in here. They are made when first written and kept, so memory is steady from the second step on.

    Args:
        parameters: name -> trainable parameter. A tied parameter appears once.
        objectives: m.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], objectives: int):
        self.parameters = dict(parameters)
        self.objectives = objectives
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str) -> Tensor:
        """The (m, P) view of one parameter's m gradients."""
        if name not in self.buffers:
            parameter = self.parameters[name]
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self.buffers[name] = torch.zeros(self.objectives, parameter.numel(), dtype=dtype, device=parameter.device)
        return self.buffers[name]

    def add_rows(self, name: str, slopes_MR: Tensor, rows_RP: Tensor) -> None:
        """Adds each row's gradient (R, P) to every objective, mixed with its slopes (m, R)."""
        buffer = self.buffer(name)
        buffer.addmm_(slopes_MR.to(buffer), rows_RP.to(buffer.dtype))

    def add(self, name: str, objective: int, gradient: Tensor) -> None:
        """Adds one objective's gradient of one parameter."""
        self.buffer(name)[objective] += gradient.reshape(-1)

    def zero_(self) -> None:
        """Starts a new optimizer step."""
        for buffer in self.buffers.values():
            buffer.zero_()

    def reduce(self) -> None:
        """Sums the stack over ranks; without a process group this is the identity.

        Losses are already divided by *global* label counts, so the sum is the global mean's gradient. The Gram must be
        taken after this: a sum of the ranks' Grams is not the Gram of the sum.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for name in self.parameters:  # the same order on every rank, also where one rank wrote nothing
                dist.all_reduce(self.buffer(name))

    def gram(self, *, exact: bool = False) -> Tensor:
        """The Gram matrix (m, m) float64 on the CPU: <g_i, g_j>, float32 within blocks and float64 across them.

        Where gradients nearly depend on one another (equal or opposed objectives), how they differ is told by the last
        digits of the Gram, which float32 products do not have: then it is taken once more in float64.

        Args:
            exact: float64 throughout, the oracle of the former; several times slower on a CPU.
        """
        total = torch.zeros(self.objectives, self.objectives, dtype=torch.float64)
        for buffer in self.buffers.values():
            sums = torch.zeros(self.objectives, self.objectives, dtype=torch.float64, device=buffer.device)
            whole = buffer.shape[1] // _BLOCK * _BLOCK
            blocks_BMK = buffer[:, :whole].unflatten(1, (-1, _BLOCK)).transpose(0, 1)
            for blocks in (*blocks_BMK.split(64), buffer[None, :, whole:]):
                blocks = blocks.double() if exact else blocks
                sums += (blocks @ blocks.mT).sum(0, dtype=torch.float64)
            total += sums.cpu()
        total = (total + total.T) / 2
        if not exact and bool(total.isfinite().all()):
            smallest = torch.linalg.eigvalsh(total)[0]
            if smallest < _DEPENDENT * total.trace():
                return self.gram(exact=True)
        return total

    def write_grad(self, coefficients: Tensor) -> None:
        """Writes sum_i coefficients[i] g_i into every parameter's `.grad`; parameters no objective reached get None."""
        for name, parameter in self.parameters.items():
            if name in self.buffers:
                buffer = self.buffers[name]
                update = coefficients.to(buffer) @ buffer
                parameter.grad = update.view_as(parameter).to(parameter.dtype)
            else:
                parameter.grad = None


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for those that require gradients; a tied one once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
