"""Asked to stop, a run ends at the next step boundary with a checkpoint: on SIGTERM, on ctrl-C, before its time is up.

All ranks stop after the same step: at each step's end they add up what each was asked, in one tiny reduction. What is
due at that step (a logged line, an evaluation) still happens, so that the run that goes on lacks nothing.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paretune.errors import InputError
from paretune.training.diagnostics import sum_over_ranks

logger = logging.getLogger(__name__)

MAX_HOURS = "max_hours"
_REASONS = ("SIGTERM", "SIGINT", MAX_HOURS)  # in this order where several come together
_AGAIN = 1.0  # seconds: a terminal's ctrl-C and torchrun's own are one
_SLOW_DISK = 100e6  # bytes per second that a first checkpoint is expected to be written at


@dataclass
class RunArguments(TrainingArguments):
    """Every field of `TrainingArguments` works, and those of any run of ours.

    Raises:
        InputError: a value out of range.
    """

    max_hours: float | None = field(
        default=None,
        metadata={"help": "Stop in time, with a checkpoint, so that the command ends within so many hours."},
    )

    def __post_init__(self) -> None:
        if self.max_hours is not None and not self.max_hours > 0:
            raise InputError("bad max_hours", expected="a number above 0, or null", found=self.max_hours)
        self.began = time.monotonic()  # what comes before training (reading, tokenizing, scoring) takes time too
        super().__post_init__()


class Interruption(TrainerCallback):
    """Listens while a run trains, and has it saved when it must stop; the trainer's last callback.

    A checkpoint that is due at an epoch's last step is put off to the epoch's end, behind the evaluation there: what
    goes on from it begins the next epoch, and would never evaluate this one.

    Attributes:
        reason: why the run stops, the same on all ranks; None: it goes on.
        saving: seconds that a checkpoint took at most; before the first one, what it may take.
    """

    def __init__(self, args: TrainingArguments):
        self.asked: str | None = None  # this rank, by a signal
        self.reason: str | None = None
        self.saving = 0.0
        self._guessed = True
        self._ends: float | None = None  # on the clock of `time.monotonic`
        if isinstance(args, RunArguments) and args.max_hours is not None:
            self._ends = args.began + 3600.0 * args.max_hours
        self._asked_at = self._step_began = self._longest = 0.0
        self._put_off = False

    # ---- signals ----

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the run to stop; a SIGINT after that ends it at once. Signals reach a process's main
        thread only: in another one they mean what they meant before."""
        self.asked = self.reason = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._asked_at = signal.Signals(number).name, now
            logger.warning("%s: the run stops after this step, with a checkpoint (ctrl-C: at once)", self.asked)
        elif number == signal.SIGINT and now - self._asked_at > _AGAIN:
            raise KeyboardInterrupt

    # ---- the run ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_began, self._longest, self._put_off = time.monotonic(), 0.0, False
        if self._guessed:
            self.saving = _checkpoint_bytes(kwargs["model"]) / _SLOW_DISK

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._step_began)
        self._step_began = now
        self.reason = self._agreed(args, now)
        control.should_save |= self.reason is not None
        if control.should_save and (float(state.epoch).is_integer() or state.global_step >= state.max_steps):
            control.should_save, self._put_off = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save |= self._put_off
        self._put_off = False

    def saved(self, seconds: float) -> None:
        """Notes how long a checkpoint took, which no step is blamed for."""
        self.saving = seconds if self._guessed else max(self.saving, seconds)
        self._guessed = False
        self._step_began += seconds

    def _agreed(self, args: TrainingArguments, now: float) -> str | None:
        # the next step may be the longest so far; the disk may be twice as slow, others write to it too
        late = self._ends is not None and now + self._longest + 2.0 * self.saving >= self._ends
        asked = [float(self.asked == reason) for reason in _REASONS[:2]] + [float(late)]
        if args.world_size > 1:
            asked = sum_over_ranks(torch.tensor(asked), args.device).tolist()
        return next((reason for reason, count in zip(_REASONS, asked, strict=True) if count), None)


def _checkpoint_bytes(model: torch.nn.Module) -> int:
    """Of a checkpoint: weights (of adapters, theirs), and two moments per trained parameter in float32."""
    trained = [p for p in model.parameters() if p.requires_grad]
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    return sum(p.numel() * p.element_size() for p in saved) + sum(8 * p.numel() for p in trained)
