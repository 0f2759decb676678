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

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paretune.gradients.mixing import TRANSIENT, add_mixed, add_scaled, add_scattered, product_in
from paretune.gradients.stack import trainable_parameters

# Forming a matrix's gradient per row and mixing the rows writes and reads R numbers of 4 bytes per weight, for any m;
# scaling the signal with each objective's slopes takes m - 1 products more, of 2 R T operations per weight. The latter
# is faster where (m - 1) T is below four times what the device computes per byte it moves: 90 GFLOP/s a core against
# 10 GB/s; on a GPU 60 TFLOP/s in float32, 700 in half precision, against 4 TB/s.
_SCALED = {"cpu": 40, "float32": 60, "half": 600}
# Adapters' matrices are so thin that rows cost nothing.
_THIN = 128


class RowAxisLost(RuntimeError):  # noqa: N818 (says what happened to the axis)
    """A layer saw an input whose first axis is not the batch's rows (tokens regrouped by expert, say)."""


class Receiver(Protocol):
    """What takes the rows' gradients: a `GradientStack`, which keeps them, or `LayerGrams`, which does not."""

    objectives: int

    def receive(self, name: str, write: Callable[[Tensor, bool], None]) -> None:
        """Calls `write(buffer, fresh)` with the parameter's m gradients (m, P), to which it adds.

        Where `fresh` is True the buffer holds nothing that counts, and is overwritten.
        """


class Pass:
    """The backward pass under way: which rows, with which slopes, for whom. Between passes there is no receiver.

    `calls` counts how often the forward passes of the graph at hand used each parameter, recomputation by gradient
    checkpointing not counted: as many contributions will come.
    """

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.calls: Counter[str] = Counter()
        self._slopes: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._first = torch.zeros(0)
        self._anchors: dict[torch.device, Tensor] = {}

    def begin(self, slopes_MR: Tensor, receiver: Receiver) -> None:
        """Opens a pass."""
        self._first, self._slopes, self.receiver = slopes_MR, {}, receiver

    def end(self, *, last: bool) -> None:
        """Closes it; `last` where the graph is gone with it."""
        self._slopes, self.receiver = {}, None
        if last:
            self.forget()

    def forget(self) -> None:
        """The graph at hand will not be differentiated further."""
        self.calls.clear()

    def anchor(self, device: torch.device) -> Tensor:
        """Something that requires a gradient, so that a layer whose input needs none still gets its backward call."""
        if device not in self._anchors:
            self._anchors[device] = torch.zeros((), device=device, requires_grad=True)
        return self._anchors[device]

    def slopes(self, like: Tensor) -> Tensor:
        """The slopes (m, R) on the tensor's device and in its dtype, float32 at least, converted once a pass."""
        kind = (like.device, torch.promote_types(like.dtype, torch.float32))
        if kind not in self._slopes:
            self._slopes[kind] = self._first.to(*kind)
        return self._slopes[kind]

    def add(self, name: str, rows_RP: Callable[[slice], Tensor], rows: int, row_bytes: int) -> None:
        """Hands over the rows' gradients of one parameter, as many rows at once as `TRANSIENT` allows."""
        step = max(1, TRANSIENT // max(1, row_bytes))
        parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
        formed = ((part, rows_RP(part)) for part in parts)
        mixed = ((self.slopes(grads)[:, part], grads) for part, grads in formed)
        self.active(rows).receive(name, lambda buffer, fresh: add_mixed(buffer, mixed, fresh=fresh))

    def active(self, rows: int) -> Receiver:
        """The receiver.

        Raises:
            RuntimeError: a plain backward pass went through a layer that only `single_pass` may differentiate.
            RowAxisLost: the layer's input does not have one entry per row on its first axis.
        """
        if self.receiver is None:
            raise RuntimeError(
                "backward() went through layers prepared for single_pass, which would lose their gradients; "
                "call single_pass, or RowLayers.restore() first"
            )
        if rows != self._first.shape[1]:
            raise RowAxisLost(f"a layer saw {rows} rows where the batch has {self._first.shape[1]}")
        return self.receiver


def _better_scaled(objectives: int, left_RTO: Tensor, right_RTI: Tensor) -> bool:
    """Whether scaling the signal per objective beats forming gradients per row; see `_SCALED`."""
    if min(left_RTO.shape[-1], right_RTI.shape[-1]) < _THIN:
        return False
    half = left_RTO.dtype in (torch.bfloat16, torch.float16)
    kind = "cpu" if left_RTO.device.type == "cpu" else "half" if half else "float32"
    return (objectives - 1) * left_RTO.shape[1] <= _SCALED[kind]


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
        current: Pass = ctx.current
        receiver = current.active(rows)
        if weight_name and _better_scaled(receiver.objectives, left, right):
            slopes = current.slopes(left)
            receiver.receive(weight_name, lambda buffer, fresh: add_scaled(buffer, slopes, left, right, fresh=fresh))
        elif weight_name:
            wide = torch.promote_types(x.dtype, torch.float32)  # rows are mixed in the precision of their sum
            size = weight.numel() * (4 + x.element_size())
            current.add(weight_name, lambda r: product_in(left[r].mT, right[r], wide).flatten(1), rows, size)
        if bias_name:
            current.add(
                bias_name,
                lambda r: grad_RTO[r].sum(1, dtype=torch.promote_types(grad.dtype, torch.float32)),
                rows,
                grad.shape[-1] * 4,
            )
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None, None, None


class _Embedding(torch.autograd.Function):
    """Entries of a table; a row's gradient is sparse and never formed: its signal goes straight to the receiver."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, ids: Tensor, weight: Tensor, padding: int | None, name: str, current: Pass
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.name, ctx.current, ctx.padding = name, current, padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (ids,) = ctx.saved_tensors
        rows = ids.shape[0]
        grad_RTD = grad.reshape(rows, -1, grad.shape[-1]).to(torch.promote_types(grad.dtype, torch.float32))
        if ctx.padding is not None:
            grad_RTD = grad_RTD.masked_fill((ids.reshape(rows, -1, 1) == ctx.padding), 0.0)
        slopes, ids_RT = ctx.current.slopes(grad_RTD), ids.reshape(rows, -1)
        ctx.current.active(rows).receive(
            ctx.name, lambda buffer, fresh: add_scattered(buffer, slopes, ids_RT, grad_RTD, fresh=fresh)
        )
        return None, None, None, None, None, None


class _RowCopies(torch.autograd.Function):
    """A small parameter as R copies, one per row: autograd then sums each copy over its own row only."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, shape: tuple, name: str, current: Pass) -> Tensor:
        ctx.name, ctx.current = name, current
        return value.expand(shape).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        wide = grad.flatten(1).to(torch.promote_types(grad.dtype, torch.float32))
        ctx.current.add(ctx.name, lambda r: wide[r], len(wide), wide.shape[1] * 4)
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
        if not torch.is_grad_enabled() or args or kwargs:
            return original(x, *args, **kwargs)
        if current.receiver is None:  # else gradient checkpointing recomputes what was counted
            current.calls.update(own.values())
        return rows(x)

    return forward


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
            return _Linear.apply(x, current.anchor(x.device), weight, bias, names, current)

    return forward


def _embedding(module: Any, name: str, current: Pass) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        weight = module.weight.detach()
        out = _Embedding.apply(current.anchor(weight.device), ids, weight, module.padding_idx, name, current)
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
                value = _RowCopies.apply(current.anchor(x.device), value, shape, own[key], current)
            values[key] = value
        if isinstance(module, nn.LayerNorm):  # its kernel takes no weight per row
            normed = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
            out = normed * values["weight"]
            return out + values["bias"] if "bias" in values else out
        # the class's own forward, on a shallow copy that holds the row copies in place of the parameters
        shadow = object.__new__(type(module))  # copy.copy would construct a sharded module anew
        shadow.__dict__.update({**module.__dict__, "_parameters": {}, **values})
        return type(module).forward(shadow, x)

    return forward
