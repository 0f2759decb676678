"""A trainer whose checkpoints are whole or not there, which stops when asked to and goes on as if it had not.

A checkpoint is written aside, flushed, listed with checksums (`manifest.py`), then given its name. Weights are read
from safetensors only; optimizer, scheduler and random state as tensors and plain values (`weights_only`);
`training_args.bin`, a pickle, is neither kept nor read.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from paretune.errors import InputError, StoppedError
from paretune.files import DiskFullError, disk_full, flush, is_full, whole_file, whole_files
from paretune.training.diagnostics import sum_over_ranks
from paretune.training.interruption import Interruption
from paretune.training.manifest import flaw, write_manifest
from paretune.training.rundir import UNFINISHED, check_checkpoint, find_checkpoint

logger = logging.getLogger(__name__)


class WholeTrainer(Trainer):
    """`transformers.Trainer` as every run of ours needs it.

    Callbacks with a method `write_beside(folder, state)` add files of their own to every checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.interruption = Interruption(self.args)
        self.add_callback(self.interruption)
        self._run = Path(str(self.args.output_dir))
        self._saved: Path | None = None  # the last checkpoint of this process
        self._aside: Path | None = None  # where a checkpoint is being written
        self._failed: Exception | None = None  # while it is, on this rank

    # ---- running ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, and listens meanwhile; True goes on from the newest checkpoint that verifies.

        Raises:
            StoppedError: it was asked to stop, and did, with a checkpoint.
            InputError: a checkpoint that nothing can go on from, a full disk.
        """
        if resume_from_checkpoint is True:
            check_checkpoint(str(self._run), True)
            found = find_checkpoint(self.args, True)
            logger.warning("; ".join(found.notices))
            resume_from_checkpoint = found.path
        elif resume_from_checkpoint:
            wrong = flaw(Path(resume_from_checkpoint), contents=False)
            if wrong is not None:
                raise InputError(f"nothing can go on from this checkpoint: {wrong}", where=str(resume_from_checkpoint))
        if self.args.should_save:
            shutil.rmtree(self._run / UNFINISHED, ignore_errors=True)  # of a process that was killed
        with self.interruption.listening():
            return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # it was stopped between its last step and its end: transformers would make one step more
            self.control.should_training_stop = True

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        due, reason = self.control.should_save, self.interruption.reason
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if due and reason is not None:
            place = self._run / f"checkpoint-{self.state.global_step}"
            if self._saved != place:  # save_strategy: best, and this one is not
                self._save_checkpoint(self.model, None)
            self.is_in_train = False
            raise StoppedError(reason, self.state.global_step, str(place))

    # ---- reading ----

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _plain_values(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _plain_values(checkpoint):
            super()._load_rng_state(checkpoint)

    # ---- writing ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers', each file whole or not at all."""
        if _internal_call:  # into a checkpoint's folder
            with self._kept_for_later():
                super().save_model(output_dir, _internal_call=True)
        elif self.args.should_save:
            with whole_files(output_dir or self._run) as aside:
                super().save_model(str(aside), _internal_call=True)
        else:
            super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            (Path(output_dir or self._run) / "training_args.bin").unlink(missing_ok=True)

    def save_state(self) -> None:
        """As transformers', whole or not at all."""
        if self.args.should_save:
            with whole_file(self._run / "trainer_state.json") as path:
                self.state.save_to_json(str(path))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint aside, has every rank's part in it and its manifest, and gives it its name.

        Raises:
            DiskFullError: there is no room, on any rank; what was written is removed, earlier checkpoints are whole.
        """
        began, writes, args = time.monotonic(), self.args.should_save, self.args
        limit, pushes = args.save_total_limit, args.push_to_hub
        aside, name = self._run / UNFINISHED, f"checkpoint-{self.state.global_step}"
        if writes:
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        self._together(name)
        # when it has its name, older ones go and a hub gets it
        args.save_total_limit, args.push_to_hub, self._aside = None, False, aside
        try:
            with self._kept_for_later():
                super()._save_checkpoint(model, trial)
            self._together(name)
            if self.state.best_model_checkpoint == str(aside / name):
                self.state.best_model_checkpoint = str(self._run / name)
            if writes:
                with self._kept_for_later():
                    self._complete(aside / name)
            self._together(name)
        finally:
            args.save_total_limit, args.push_to_hub, self._aside, self._failed = limit, pushes, None, None
            if writes:
                shutil.rmtree(aside, ignore_errors=True)
        if writes:
            rotate_checkpoints(str(self._run), limit, self.state.best_model_checkpoint, use_mtime=True)
        if pushes:
            self._push_from_checkpoint(str(self._run / name))
        self._saved = self._run / name
        self.interruption.saved(time.monotonic() - began)

    def _complete(self, written: Path) -> None:
        """What transformers does not write, the manifest, and the name."""
        self.state.save_to_json(str(written / "trainer_state.json"))  # it took this folder for the best one's
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "write_beside"):
                callback.write_beside(written, self.state)
        write_manifest(written, self.state.global_step)
        history = self._run / "history.jsonl"
        if history.exists():
            flush(history)
        place = self._run / written.name
        if place.exists():  # what a run did not go on from, or wrote before it knew this step's evaluation
            place.replace(written.parent / "before")
        written.replace(place)
        flush(self._run)

    @contextmanager
    def _kept_for_later(self) -> Iterator[None]:
        """Keeps a full disk's error: other ranks wait in reductions that this one has to take part in."""
        try:
            yield
        except Exception as error:
            if not (isinstance(error, DiskFullError) or is_full(error)):
                raise
            self._failed = self._failed or error

    def _together(self, name: str) -> None:
        """Waits for all ranks; where one had no room, it ends them all."""
        error = self._failed
        failed = sum_over_ranks(torch.tensor([float(error is not None)]), self.args.device)
        if error is not None:
            shutil.rmtree(self._run / UNFINISHED, ignore_errors=True)  # before the room is measured
            raise disk_full(error, self._run / name) from error
        if bool(failed):
            raise DiskFullError("another rank has no room on its disk to write it", where=str(self._run / name))


@contextmanager
def _plain_values(checkpoint: str | None) -> Iterator[None]:
    """What `weights_only` does not read is an error for people."""
    try:
        yield
    except pickle.UnpicklingError as error:
        fix = "Take a checkpoint that paretune wrote."
        problem = "its optimizer, scheduler or random state holds more than tensors and plain values, and is not read"
        raise InputError(problem, where=str(checkpoint), fix=fix) from error
