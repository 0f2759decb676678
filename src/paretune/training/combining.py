"""The run's combiner, and what it takes from step to step: losses of the step, a seed, a memory kept in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paretune.combine import Combination, find_combiner
from paretune.combine.contract import needs, try_combiner
from paretune.combine.labelled import combine_labelled
from paretune.errors import InputError
from paretune.gradients import GradientStack
from paretune.losses import BatchLosses
from paretune.objectives import Objective
from paretune.training.averages import AveragedGradients
from paretune.training.config import RACOConfig
from paretune.training.diagnostics import sum_over_ranks

# Where a checkpoint's trainer_state.json keeps the memory: written with the rest of it, so never half there.
_KEY = "combiner_state"


class StepCombiner(TrainerCallback):
    """Combines the gradients of each step; as a callback it puts its memory into checkpoints and takes it from there.

    Args:
        args: of the run.
        objectives: m of them, weights normalised.

    Raises:
        InputError: options that the combiner refuses.
    """

    def __init__(self, args: RACOConfig, objectives: Sequence[Objective]):
        self.args = args
        self.combiner, self.options = find_combiner(args.combiner), args.options_of_combiner()
        self.names = [o.name for o in objectives]
        self.weights = torch.tensor([o.weight for o in objectives], dtype=torch.float64)
        self.needs = needs(self.combiner)
        self.state: dict[str, Any] = {}
        self.averages = AveragedGradients(args, self.names) if args.gram == "averaged" else None
        self.sums: Tensor | None = None  # (m,) float64 on the device: this rank's losses in the step so far
        try_combiner(args.combiner, self.combiner, self.weights, self.options)

    def add(self, losses: BatchLosses) -> None:
        """Adds a micro-batch's losses, where the combiner takes losses. Waits for no device."""
        if "losses" in self.needs:
            sums = losses.values.detach().sum(1, dtype=torch.float64)
            self.sums = sums if self.sums is None else self.sums + sums

    def step_losses(self, counts: Tensor) -> Tensor | None:
        """(m,) means of the step's losses over its labels `counts` (m,), over all ranks, NaN without one; then forgets.

        None where the combiner takes none.
        """
        if "losses" not in self.needs:
            return None
        sums, self.sums = self.sums, None
        if sums is None:  # this rank's micro-batches held no row
            sums = torch.zeros(len(counts), dtype=torch.float64)
        return sum_over_ranks(sums, self.args.device) / torch.where(counts > 0, counts, torch.nan)

    def __call__(
        self, gram: Tensor, present: Tensor, losses: Tensor | None, step: int, stack: GradientStack | None = None
    ) -> Combination:
        """The combination of the m gradients with this Gram (m, m), given which objectives are present (m,).

        `stack` holds those gradients; a run with gram: averaged decides on its averages' Gram instead.
        """
        if self.averages is not None and stack is not None:
            gram = self.averages.gram(stack, present)
        return combine_labelled(
            self.combiner, gram, self.weights, present,
            normalize=self.args.normalize_gradients, losses=losses, seed=step, state=self.state, **self.options,
        )  # fmt: skip

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A new run begins without memory, a resumed one with that of its checkpoint.

        Raises:
            InputError: the checkpoint holds the memory of another combiner or of other objectives, or none.
        """
        self.state, self.sums = {}, None
        if self.averages is not None:
            self.averages.begin(args.output_dir, state)
        if "state" not in self.needs or state.global_step == 0:
            return
        memories: Any = state.stateful_callbacks
        stored = memories.get(_KEY) or {}
        expected = {"combiner": self.args.combiner, "objectives": self.names}
        found = {key: stored.get(key) for key in expected}
        if found != expected:
            fix = "Resume with the settings that the checkpoint was made with, or start a new run."
            raise InputError(
                "the checkpoint's memory is not this combiner's", expected=str(expected), found=found, fix=fix
            )
        self.state = stored["state"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "state" in self.needs:
            stored = {"combiner": self.args.combiner, "objectives": self.names, "state": self.state}
            memories: Any = state.stateful_callbacks
            memories[_KEY] = stored
        if self.averages is not None:
            self.averages.note(state)

    def write_beside(self, folder: Path, state: TrainerState) -> None:
        """Adds what it remembers to a checkpoint (`WholeTrainer`)."""
        if self.averages is not None:
            self.averages.save(folder)
