"""What a run leaves to be read later: `run.json` and `history.jsonl`."""

from __future__ import annotations

import json
import logging
import math
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from paretune.errors import StoppedError
from paretune.files import said_if_full, write_text
from paretune.objectives import Objective, as_dicts
from paretune.training.given import given_settings
from paretune.training.rerun import differences

logger = logging.getLogger(__name__)

_PACKAGES = ("paretune", "torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions of what the result depends on, with the interpreter, the machine's kind, its device and threads."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {**found, "device": gpu, "threads": str(torch.get_num_threads())}


def commit() -> str | None:
    """The git commit that this code runs from, with "+" where files differ from it; None where git does not hold it.

    A package that was installed inside someone's repository lies in it without being of it: its commit is not ours.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is always whole."""
    write_text(path, json.dumps(plain(content), indent=2, sort_keys=False) + "\n")


def plain(value: Any) -> Any:
    """The value in JSON's own types; numbers that JSON lacks (NaN, infinities) become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "size", None) in (1, None):
        return plain(value.item())
    return str(value)


class HistoryCallback(TrainerCallback):
    """Appends every logged line to `history.jsonl`; a resumed run drops those that its checkpoint does not know."""

    def __init__(self, output_dir: str):
        self.path = Path(output_dir) / "history.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        kept = []
        if state.global_step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    json.loads(line)
                except json.JSONDecodeError:  # the line that was being written when the run was killed
                    continue
                kept.append(line)
        # the trainer's own log has a line for each of these, up to the checkpoint
        write_text(self.path, "".join(line + "\n" for line in kept[: len(state.log_history)]))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            with said_if_full(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain({"step": state.global_step, "time": time.time(), **logs})) + "\n")


class StepClock(TrainerCallback):
    """Seconds of whole optimizer steps, from the first micro-batch to after the update, and how many there were.

    It also asks for a line after the last step, which a run shorter than `logging_steps` would not have at all.
    """

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        self.steps = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self.started
        self.steps += 1
        control.should_log |= state.global_step >= state.max_steps


class ConflictBar(ProgressCallback):
    """The progress bar, with the loss and the strongest conflict (least cosine between two objectives) in it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        shown = {name: f"{logs[key]:.4g}" for name, key in (("loss", "loss"), ("eval", "eval_loss")) if key in logs}
        cosines = [value for key, value in logs.items() if key.startswith("grad/cosine/")]
        if cosines:
            shown["conflict"] = f"cos {min(cosines):+.2f}"
        if shown:
            self.training_bar.set_postfix(shown)


class RunRecord:
    """`run.json`: the resolved configuration, versions, data, objectives, what had to be said, and how it ended."""

    def __init__(self, args: TrainingArguments, given: list[Objective], objectives: list[Objective]):
        self.path = Path(str(args.output_dir)) / "run.json"
        self.content: dict[str, Any] = {
            "status": "preparing",
            "versions": versions(),
            "commit": commit(),
            "objectives": as_dicts(objectives),
            "seed": args.seed,
            "data": {},
            "notices": [],
        }
        self.unsaved = False  # whether the model is yet to be saved when its training has ended
        self.before: dict[str, Any] = {}  # the record of the run that this one repeats, or goes on with
        total = sum(o.weight for o in given)
        if given and abs(total - 1) > 1e-6:
            self.content["objectives_given"] = as_dicts(given)
            self.say(f"the weights sum to {total:g}, not 1, and were normalised to {_weights(objectives)}")

    def say(self, *notices: str) -> None:
        """Logs each notice once, and keeps it in the record."""
        for notice in notices:
            if notice not in self.content["notices"]:
                self.content["notices"].append(notice)
                logger.warning(notice)

    def given(self, *arguments: Any) -> None:
        """Keeps what the trainer was given: `settings` and `in_memory` of `given_settings`."""
        self.content["settings"], self.content["in_memory"] = given_settings(*arguments)

    def data(self, name: str, report: dict[str, Any], tokens: dict[str, Any]) -> None:
        """Keeps what reading and tokenizing one data set found."""
        self.content["data"][name] = {"rows": report, "tokens": tokens}

    def begin(self, args: TrainingArguments, decided: dict[str, Any]) -> None:
        """Writes the file as the run starts: its configuration, and what was decided by looking at the model."""
        self.content |= {"status": "running", "started": _now(), "decided": decided, "config": _config(args)}
        self.say(*differences(self.before, plain(self.content)))
        self._write(args)

    def end(self, args: TrainingArguments, status: str, final: dict[str, Any]) -> None:
        """Writes how the run ended; a training whose model is not saved yet is "trained", not "finished"."""
        status = "trained" if status == "finished" and self.unsaved else status
        self.content |= {"status": status, "ended": _now(), "final": final}
        self._write(args)

    def failed(self, args: TrainingArguments, error: BaseException) -> None:
        """Writes that it ended by an error, or was interrupted; says nothing more where this cannot be written."""
        final: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
        if isinstance(error, KeyboardInterrupt):
            final = {"reason": "at once, without a checkpoint of the last steps"}
        if isinstance(error, StoppedError):
            final = {"reason": error.reason, "step": error.step, "checkpoint": error.checkpoint}
        try:
            self.end(args, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", final)
        except Exception as other:  # a full disk: the first error is what has to be told
            logger.warning("run.json does not say how the run ended: %s", other)

    @contextmanager
    def watched(self, args: TrainingArguments) -> Iterator[None]:
        """Around a run's training and what is saved and evaluated behind it: an end by an error is written."""
        try:
            yield
        except BaseException as error:
            self.failed(args, error)
            raise

    def _write(self, args: TrainingArguments) -> None:
        if args.process_index == 0:
            write_json(self.path, self.content)


def _weights(objectives: list[Objective]) -> str:
    return ", ".join(f"{o.name} {o.weight:.4g}" for o in objectives)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _config(args: TrainingArguments) -> dict[str, Any]:
    hidden = ("hub_token", "push_to_hub_token")
    return {key: value for key, value in args.to_dict().items() if key not in hidden}
