"""Steps of several contestants in turns (A B C A B C ...), so that what else the machine does falls on all alike."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.contestants import Contestant, exists, make_contestant
from benchmarks.steps.models import Case, copy_of, make_model

ENOUGH = 3  # turns below which a group goes on although its time is over


def measure(
    names: Sequence[str],
    case: Case,
    *,
    rounds: int,
    warm_up: int,
    naive_rounds: int,
    deadline: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every contestant's turns; on a GPU also its peak memory, by the allocator's own counts.

    Args:
        rounds, naive_rounds: turns that are kept; the naive way is slow and gets fewer.
        warm_up: turns before them that are not.
        deadline: of `time.monotonic()`, after which no further round starts once a few are there.

    Returns:
        name -> {"turns": [[round, wall s, CPU s], ...], "memory": bytes or None}, or {"missing": why}.
    """
    found: dict[str, Any] = {name: {"missing": "not in this version"} for name in names if not exists(name)}
    with tempfile.TemporaryDirectory() as folder:
        running: list[Contestant] = []
        ledger = Ledger(case)
        try:
            for name in [name for name in names if name not in found]:
                contestant = ledger.made(name, Path(folder))
                if isinstance(contestant, Contestant):
                    running.append(contestant)
                else:
                    found[name] = {"missing": contestant}
                say(f"made {name}")
            for turn in range(warm_up + rounds):
                if time.monotonic() > deadline and turn - warm_up >= ENOUGH:
                    break
                for contestant in list(running):
                    naive = contestant.name.startswith("naive")
                    if naive and turn >= warm_up + naive_rounds or naive and 0 < turn < warm_up:
                        continue
                    failed = ledger.step(contestant, turn - warm_up if turn >= warm_up else None)
                    if failed:
                        found[contestant.name] = {"missing": failed}
                        running.remove(contestant)
                say(f"turn {turn + 1} of {warm_up + rounds}")
        finally:
            for contestant in running:
                contestant.finish()
        for contestant in running:
            found[contestant.name] = {"turns": contestant.turns, "memory": ledger.above(contestant.name)}
        del running, ledger
    empty()
    return found


class Ledger:
    """Makes contestants and keeps, on a GPU, what each holds and how high its steps reach.

    A step's peak above model and optimizer is what the allocator counted above the step's start, and what the
    contestant holds between steps beyond model and optimizer (m gradients, say). Others on the device lie below the
    start and cancel.
    """

    def __init__(self, case: Case):
        self.case, self.model = case, make_model(case)
        self.held: dict[str, int] = {}
        self.peaks: dict[str, int] = {}

    def made(self, name: str, folder: Path) -> Contestant | str:
        """The contestant, or why there is none."""
        before = allocated()
        try:
            model = copy_of(self.model, share=not self.case.full)
            contestant = make_contestant(name, self.case, folder, model)
        except torch.OutOfMemoryError:
            empty()
            return "out of memory"
        gc.collect()
        self.held[name] = allocated() - before
        return contestant

    def step(self, contestant: Contestant, round_: int | None) -> str | None:
        """One step; what failed, if something did."""
        before = allocated()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        try:
            contestant.step(round_)
        except torch.OutOfMemoryError:
            contestant.trainer = None  # type: ignore[assignment]
            empty()
            return "out of memory"
        name = contestant.name
        if not torch.cuda.is_initialized():
            return None
        if name not in self.peaks:  # the first step makes the optimizer's state and whatever else stays
            gc.collect()
            self.held[name] += allocated() - before - own_bytes(contestant.trainer, without=self.model)
            self.peaks[name] = 0
        else:
            self.peaks[name] = max(self.peaks[name], torch.cuda.max_memory_allocated() - before)
        return None

    def above(self, name: str) -> int | None:
        """Bytes that its steps need beyond model and optimizer; None where nothing counted them."""
        return self.peaks[name] + self.held[name] if self.peaks.get(name) else None


def own_bytes(trainer: Any, without: torch.nn.Module | None = None) -> int:
    """Bytes of model and optimizer, what lies in another model's storage left out."""
    others = {pointer(t) for t in tensors_of(without, None)} if without is not None else set()
    own = {pointer(t): t.untyped_storage().nbytes() for t in tensors_of(trainer.model, trainer.optimizer)}
    return sum(size for where, size in own.items() if where not in others)


def tensors_of(model: torch.nn.Module, optimizer: Any) -> list[torch.Tensor]:
    found = [*model.parameters(), *model.buffers()]
    for state in optimizer.state.values() if optimizer is not None else ():
        found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return found


def pointer(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def empty() -> None:
    """Gives freed memory back, so that the next contestants find it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def seconds(found: dict[str, Any]) -> float:
    """Median wall time of a contestant's turns."""
    return spread([wall for _, wall, _ in found["turns"]])[0]


def ratio(found: dict[str, Any], against: dict[str, Any], column: int = 1) -> dict[str, Any] | None:
    """The ratios of the turns that both took in one round: median, quartiles, how many. None where there are none.

    Args:
        column: 1 for wall time, 2 for CPU time.
    """
    ours = {turn[0]: turn[column] for turn in found.get("turns", ())}
    theirs = {turn[0]: turn[column] for turn in against.get("turns", ())}
    both = [ours[round_] / theirs[round_] for round_ in ours if round_ in theirs]
    if not both:
        return None
    middle, low, high = spread(both)
    return {"ratio": middle, "quartiles": [low, high], "pairs": len(both)}
