"""Where the m gradients of a step are kept until they are combined: all of them, or none by passing twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn

from paretune.comparisons.batches import Layout
from paretune.errors import InputError
from paretune.gradients import GradientStack, RowBasis, trainable_parameters
from paretune.gradients.shards import local
from paretune.losses import share_a_signal
from paretune.objectives import Objective
from paretune.training.config import RACOConfig

# Share of the free memory that gradients may take without asking: activations need the rest.
_SHARE = 0.5
# Bytes that the usual optimizer keeps per trained parameter (AdamW: two moments).
_STATE = 8


@dataclass(frozen=True)
class Storage:
    """What was decided: `two_pass` keeps no gradient; a stack keeps them in this dtype, on this device (None: theirs).

    `notices` say what the user should hear of it.
    """

    two_pass: bool
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None
    notices: tuple[str, ...] = ()

    def stack(self, parameters: Mapping[str, nn.Parameter], kept: int) -> GradientStack:
        """An empty stack of so many gradients, kept in this way."""
        return GradientStack(parameters, kept, dtype=self.dtype, device=self.device)


def storage_bytes(trained: int, kept: int) -> dict[str, tuple[int, int]]:
    """Bytes on the device and on the host of every way to keep gradients, the combined one included.

    Args:
        trained: parameters.
        kept: gradients that a step keeps: objectives, or outputs of the step where these are fewer (`RowBasis`).
    """
    one = 4 * trained
    return {
        "stack": (kept * one, 0),  # the combined gradient takes the place of the first
        "stack, bfloat16": (kept * one // 2 + one, 0),
        "stack on the host": (one, kept * one),
        "stack on the host, bfloat16": (one, kept * one // 2),
        "two_pass": (one, 0),
    }


def two_pass_obstacle(args: RACOConfig, objectives: Sequence[Objective], layout: str, *, one_pass: bool) -> str | None:
    """Why two passes over one forward cannot make this run's steps, in words; None where they can."""
    if not one_pass:
        return "it needs single_pass, and here each objective takes a backward pass of its own"
    if args.gram == "averaged":
        return "gram: averaged keeps gradients from step to step"
    if args.gradient_accumulation_steps > 1:
        return f"a step must be one micro-batch, and gradient_accumulation_steps is {args.gradient_accumulation_steps}"
    if args.world_size > 1:
        return f"it is made for one process, and there are {args.world_size}"
    if layout == "shared" and not share_a_signal(objectives):
        return "these losses have no common margin and take two backward passes in the shared layout (flat: one)"
    return None


def choose_storage(args: RACOConfig, *, trained: int, kept: int, obstacle: str | None, free: int | None) -> Storage:
    """How this run keeps its gradients, as asked for or by memory.

    Args:
        args: of the run.
        trained, kept: as in `storage_bytes`.
        obstacle: of `two_pass_obstacle`.
        free: bytes free on the device now, before the optimizer has its state; None where nobody knows.

    Raises:
        InputError: two_pass asked for where it cannot be.
    """
    dtype = torch.bfloat16 if args.stack_dtype == "bfloat16" else torch.float32
    stack = Storage(False, dtype, torch.device("cpu") if args.stack_device == "cpu" else None)
    if args.gradient_storage == "two_pass":
        if obstacle is not None:
            fix = "Set gradient_storage: stack (stack_dtype: bfloat16 and stack_device: cpu make it smaller)."
            raise InputError(f"two_pass cannot make these steps: {obstacle}", where="gradient_storage", fix=fix)
        return Storage(True)
    on_host = stack.device is not None and args.device.type != "cpu"
    name = "stack" + (" on the host" if on_host else "") + (", bfloat16" if dtype == torch.bfloat16 else "")
    need = storage_bytes(trained, kept)[name][0]
    if args.gradient_storage == "stack" or free is None or need <= _SHARE * (free - _STATE * trained):
        return stack
    left = max(free - _STATE * trained, 0)
    words = f"{kept} gradients take {need / 1e9:.1f} GB of {left / 1e9:.1f} GB free beside the optimizer"
    if obstacle is None:
        return Storage(
            True, notices=(f"two backward passes per step, because {words} (gradient_storage: stack keeps them)",)
        )
    ways = "stack_dtype: bfloat16, stack_device: cpu, or LoRA make that smaller"
    return replace(stack, notices=(f"{words}, and two_pass is not possible: {obstacle}; {ways}",))


def decide_storage(
    args: RACOConfig, model: nn.Module, objectives: Sequence[Objective], layout: Layout, *, one_pass: bool
) -> Storage:
    """`choose_storage` for a model on its device, before its optimizer exists.

    Raises:
        InputError: as `choose_storage`.
    """
    rows = args.train_batch_size * args.gradient_accumulation_steps
    return choose_storage(
        args,
        trained=sum(local(p).numel() for p in trainable_parameters(model).values()),
        kept=kept_gradients(args, objectives, layout, rows, one_pass=one_pass),
        obstacle=two_pass_obstacle(args, objectives, layout, one_pass=one_pass),
        free=free_bytes(args.device),
    )


def step_basis(
    args: RACOConfig, objectives: Sequence[Objective], layout: Layout, comparisons: int, *, one_pass: bool
) -> RowBasis:
    """Which gradients a step of so many comparisons on this rank keeps; rows of another rank are not at hand."""
    m = len(objectives)
    if args.gram == "averaged":
        return RowBasis(m, m)  # averages are of the objectives' gradients: the next step's rows are others
    each = 1 if layout == "shared" and share_a_signal(objectives) else 2
    return RowBasis(m, each * comparisons if one_pass and args.world_size == 1 else m)


def kept_gradients(
    args: RACOConfig, objectives: Sequence[Objective], layout: Layout, comparisons: int, *, one_pass: bool
) -> int:
    """How many gradients are held at once: a step's, and the averages where the run takes them."""
    kept = step_basis(args, objectives, layout, comparisons, one_pass=one_pass).kept
    return 2 * kept if args.gram == "averaged" else kept


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors on the device could take now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None
