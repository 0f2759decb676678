"""The m gradients by m backward passes: the plain meaning, for any module and loss, and `single_pass`'s oracle."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from paretune.gradients.shards import group_of, is_shard, local
from paretune.gradients.stack import GradientStack


def per_objective(losses: Tensor, stack: GradientStack) -> None:
    """Adds the gradient of each loss to the stack, by one backward pass each.

    Args:
        losses: (m,) scalars of one graph. A loss that is a function of response log-probabilities may be given by its
            slopes: sum_r slopes[i, r] * outputs[r] has the same gradient.
        stack: receives the m gradients.
    """
    parameters = list(stack.parameters.values())
    if any(is_shard(parameter) for parameter in parameters):
        return _by_hooks(losses, stack)
    for i, loss in enumerate(losses):
        last = i + 1 == len(losses)
        grads = torch.autograd.grad(loss, parameters, retain_graph=not last, allow_unused=True)
        for name, grad in zip(stack.parameters, grads, strict=True):
            if grad is not None:
                stack.add(name, i, grad)


def _by_hooks(losses: Tensor, stack: GradientStack) -> None:
    """The same for weights in shards: FSDP2's hooks put this rank's rows of the mean over ranks into `.grad`."""
    for i, loss in enumerate(losses):
        loss.backward(retain_graph=i + 1 < len(losses))
        for name, parameter in stack.parameters.items():
            if parameter.grad is not None:
                ranks = dist.get_world_size(group_of(parameter)) if is_shard(parameter) else 1
                stack.add(name, i, local(parameter.grad) * ranks)
                parameter.grad = None
