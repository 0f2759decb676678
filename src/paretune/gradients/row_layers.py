"""Trainable layers that form their weight gradient per row, so that one backward pass serves m objectives.

Suffixes: R rows, T positions of a row, I inputs and O outputs of a layer, M objectives.

A row is the smallest unit that shares no position with another: a comparison in the shared layout, a response in the
flat one. Rows do not interact in the network, so the backward signal of row r is the same for every objective up to the
scalar slope d L_i / d output_r. Each layer here forms the gradient of its weight per row (a batched product, the same
operations as one ordinary weight gradient), then mixes the rows with the slopes (M, R): exact for any m.

Two rules that are easy to break. Inputs are kept by `ctx.save_for_backward`: kept by module hooks they would defeat
gradient checkpointing, whose recomputation must replace them. And no Parameter enters an autograd Function: autograd
would then want its (batch-summed) gradient too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paretune.gradients.stack import GradientStack, trainable_parameters

# Bytes of per-row weight gradients that exist at once; more rows than fit are taken in turns.
_TRANSIENT = 1 << 28


class RowAxisLost(RuntimeError):  # noqa: N818 (says what happened to the axis)
    """A layer saw an input whose first axis is not the batch's rows (tokens regrouped by expert, say)."""


class Pass:
    """The backward pass under way: which rows, with which slopes, into which stack. None outside of one."""

    def __init__(self) -> None:
        self.slopes: Tensor | None = None
        self.stack: GradientStack | None = None

    def add(self, name: str, rows_RP: Callable[[slice], Tensor], rows: int, row_bytes: int) -> None:
        """Adds the rows' gradients of one parameter, as many rows at once as `_TRANSIENT` allows."""
        slopes, stack = self.active(rows)
        step = max(1, _TRANSIENT // max(1, row_bytes))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            stack.add_rows(name, slopes[:, part], rows_RP(part))

    def active(self, rows: int) -> tuple[Tensor, GradientStack]:
        """The slopes (m, R) and the stack.

        Raises:
            RuntimeError: a plain backward pass went through a layer that only `single_pass` may differentiate.
            RowAxisLost: the layer's input does not have one entry per row on its first axis.
        """
        if self.slopes is None or self.stack is None:
            raise RuntimeError(
                "backward() went through layers prepared for single_pass, which would lose their gradients; "
                "call single_pass, or RowLayers.restore() first"
            )
        if rows != self.slopes.shape[1]:
            raise RowAxisLost(f"a layer saw {rows} rows where the batch has {self.slopes.shape[1]}")
        return self.slopes, self.stack


class _Linear(torch.autograd.Function):
    """x W^T + b whose backward hands per-row weight gradients to the pass and returns only the gradient of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor | None, names: tuple, current: Pass
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.names, ctx.current = names, current
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        weight_name, bias_name, transposed = ctx.names
        rows = x.shape[0]
        x_RTI, grad_RTO = x.reshape(rows, -1, x.shape[-1]), grad.reshape(rows, -1, grad.shape[-1])
        left, right = (x_RTI, grad_RTO) if transposed else (grad_RTO, x_RTI)
        if weight_name:
            # buffers are float32: row gradients are mixed there, in the precision of the sum over rows
            size = weight.numel() * (4 + x.element_size())
            current: Pass = ctx.current
            current.add(weight_name, lambda r: torch.bmm(left[r].mT, right[r]).flatten(1), rows, size)
        if bias_name:
            ctx.current.add(
                bias_name,
                lambda r: grad_RTO[r].sum(1, dtype=torch.promote_types(grad.dtype, torch.float32)),
                rows,
                grad.shape[-1] * 4,
            )
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a table; per-row gradients are sparse, so each row's are summed straight into the m gradients."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, ids: Tensor, weight: Tensor, padding: int | None, name: str, current: Pass
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.name, ctx.current, ctx.padding, ctx.shape = name, current, padding, weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (ids,) = ctx.saved_tensors
        slopes, stack = ctx.current.active(ids.shape[0])
        tables = stack.buffer(ctx.name).view(-1, *ctx.shape)
        # never formed per row, which would be R tables: each objective's is summed from its scaled signal directly
        grad_RTD = grad.reshape(ids.shape[0], -1, grad.shape[-1]).to(tables.dtype)
        if ctx.padding is not None:
            grad_RTD = grad_RTD.masked_fill((ids.reshape(ids.shape[0], -1, 1) == ctx.padding), 0.0)
        for table, slope in zip(tables, slopes.to(tables), strict=True):
            mixed = (grad_RTD * slope[:, None, None]).flatten(0, 1)
            table.index_add_(0, ids.flatten(), mixed)
        return None, None, None, None, None, None


class _RowCopies(torch.autograd.Function):
    """A small parameter as R copies, one per row: autograd then sums each copy over its own row only."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, shape: tuple, name: str, current: Pass) -> Tensor:
        ctx.name, ctx.current = name, current
        return value.expand(shape).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        ctx.current.add(ctx.name, lambda r: grad[r].flatten(1), grad.shape[0], grad[0].numel() * 4)
        return None, None, None, None, None


class RowLayers:
    """A model's trainable layers, prepared so that `single_pass` can serve all objectives at once.

    Preparing replaces the `forward` of each covered layer on its instance; without gradients (generation, evaluation)
    the layer runs as before. Covered are linear layers (so LoRA, with dropout, biases and `modules_to_save`), GPT-2's
    transposed ones, embeddings (also tied) and norms. `uncovered` names the trainable parameters that are not; where it
    is not empty, use `per_objective`.
    """

    def __init__(self, model: nn.Module):
        self.current = Pass()
        self._patched: list[nn.Module] = []
        names = {id(p): name for name, p in trainable_parameters(model).items()}
        seen: set[str] = set()
        lost: set[str] = set()
        for module in model.modules():
            own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False) if id(p) in names}
            if not own:
                continue
            forward = _row_forward(module, own, self.current)
            if forward is None:
                lost.update(own.values())
            else:
                seen.update(own.values())
                module.forward = forward
                self._patched.append(module)
        self.uncovered = sorted(lost | (set(names.values()) - seen))

    def restore(self) -> None:
        """Gives every layer its own forward back."""
        for module in self._patched:
            module.__dict__.pop("forward", None)
        self._patched = []


def _row_forward(module: nn.Module, own: dict[str, str], current: Pass) -> Callable[..., Tensor] | None:
    """The layer's forward with per-row weight gradients, or None where this kind of layer is not covered."""
    if "forward" in module.__dict__:  # somebody else's replacement: its meaning is unknown
        return None
    original = module.forward
    kind = type(module)
    if kind.forward is nn.Linear.forward:
        rows = _linear(module, own, current, transposed=False)
    elif kind.__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        rows = _linear(module, own, current, transposed=True)
    elif isinstance(module, nn.Embedding) and module.max_norm is None and not module.sparse:
        rows = _embedding(module, own["weight"], current)
    elif "Norm" in kind.__name__ and all(p.ndim == 1 for p in module.parameters(recurse=False)):
        rows = _norm(module, own, current)
    else:
        return None

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return rows(x) if torch.is_grad_enabled() and not (args or kwargs) else original(x, *args, **kwargs)

    return forward


def _anchor(like: Tensor) -> Tensor:
    """Something that requires a gradient, so that a layer whose input needs none still gets its backward call."""
    return torch.zeros((), device=like.device, requires_grad=True)


def _cast(x: Tensor, *values: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast would take them; the Function itself runs without it (its backward would, too)."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return (x, *values)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if t is None else t.to(dtype) for t in (x, *values))


def _linear(module: Any, own: dict[str, str], current: Pass, *, transposed: bool) -> Callable[[Tensor], Tensor]:
    names = (own.get("weight"), own.get("bias"), transposed)

    def forward(x: Tensor) -> Tensor:
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        x, weight, bias = _cast(x, weight.mT if transposed else weight, bias)  # type: ignore[assignment]
        with torch.autocast(x.device.type, enabled=False):
            return _Linear.apply(x, _anchor(x), weight, bias, names, current)

    return forward


def _embedding(module: Any, name: str, current: Pass) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        weight = module.weight.detach()
        out = _Embedding.apply(_anchor(weight), ids, weight, module.padding_idx, name, current)
        scale = getattr(module, "embed_scale", None)  # Gemma's embeddings multiply by it in a forward of their own
        return out if scale is None else out * torch.as_tensor(scale).to(weight)

    return forward


def _norm(module: nn.Module, own: dict[str, str], current: Pass) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for key, parameter in module.named_parameters(recurse=False):
            value = parameter.detach()
            if key in own:
                shape = (x.shape[0], *(1,) * (x.ndim - 2), value.shape[0])
                value = _RowCopies.apply(_anchor(x), value, shape, own[key], current)
            values[key] = value
        if isinstance(module, nn.LayerNorm):  # its kernel takes no weight per row
            normed = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
            out = normed * values["weight"]
            return out + values["bias"] if "bias" in values else out
        # the class's own forward, on a shallow copy that holds the row copies in place of the parameters
        shadow = copy.copy(module)
        shadow._parameters = {}
        shadow.__dict__.update(values)
        return type(module).forward(shadow, x)

    return forward
