"""gram: averaged. What is decided on are the gradients' exponential averages over steps, which have less noise.

A batch's Gram carries its rows' noise, which hides conflict and makes an objective with noisy labels seem to pull
harder than it does. Averages with decay d have (1 - d) / (1 + d) of that noise and lag by d / (1 - d) steps; their Gram
is positive semidefinite by itself. The update still mixes the batch's own gradients. docs/averaged.md says what it
is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState

from paretune.errors import InputError
from paretune.gradients import GradientStack
from paretune.training.config import RACOConfig

_KEY, _FILE = "averaged_gradients", "averaged_gradients.safetensors"


class AveragedGradients:
    """The averages of a run, and their place in its checkpoints: the same on all ranks, as the summed gradients are.

    Args:
        args: of the run. names: of the m objectives, in their order.
    """

    def __init__(self, args: RACOConfig, names: Sequence[str]):
        self.decay, self.names = args.gram_decay, list(names)
        self.stack: GradientStack | None = None
        self.mass = torch.zeros(len(names), dtype=torch.float64)  # of each average: 1 - decay^steps
        self._stored: Path | None = None  # of a checkpoint, not read yet

    def gram(self, stack: GradientStack, present: Tensor) -> Tensor:
        """(m, m) float64, of the averages with this step's gradients in them, free of their start at 0.

        An objective without a label in this step, `present` (m,) bool, keeps its average.
        """
        if self.stack is None:
            self.stack = stack.alike()
            if self._stored is not None:
                kept = load_file(self._stored)
                for name in self.stack.parameters:
                    self.stack.buffer(name).copy_(kept[name])
        keep = torch.where(present, self.decay, 1.0).double()
        self.stack.follow(stack, keep)
        self.mass = keep * self.mass + (1.0 - keep)
        scale = torch.where(self.mass > 0.0, 1.0 / self.mass.clamp_min(1e-300), 0.0)
        return self.stack.gram() * scale[:, None] * scale

    def begin(self, folder: str | None, state: TrainerState) -> None:
        """A new run begins without averages, a resumed one with those of its checkpoint in the run's own folder.

        Raises:
            InputError: the checkpoint has no averages, or those of other objectives.
        """
        self.stack, self._stored = None, None
        self.mass = torch.zeros_like(self.mass)
        if state.global_step == 0:
            return
        memories: Any = state.stateful_callbacks
        noted, path = memories.get(_KEY) or {}, _place(folder, state)
        if noted.get("objectives") != self.names or not path.exists():
            raise InputError(
                "the checkpoint has no averaged gradients of this run",
                where=str(path),
                expected=f"averages for {', '.join(self.names)}",
                found=str(noted.get("objectives") or "none"),
                fix="Resume in the run's own output_dir with the settings it was made with, or start a new run.",
            )
        self.mass, self._stored = torch.tensor(noted["mass"], dtype=torch.float64), path

    def note(self, state: TrainerState) -> None:
        """Puts what is small into the trainer's state, which each checkpoint keeps."""
        memories: Any = state.stateful_callbacks
        memories[_KEY] = {"objectives": self.names, "mass": self.mass.tolist()}

    def save(self, folder: Path) -> None:
        """Writes the averages into the folder of a checkpoint that is being made."""
        if self.stack is not None:
            kept = {name: self.stack.buffer(name).cpu().clone() for name in self.stack.parameters}
            save_file(kept, folder / _FILE)


def _place(folder: str | None, state: TrainerState) -> Path:
    return Path(folder or ".") / f"checkpoint-{state.global_step}" / _FILE
