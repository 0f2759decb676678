"""Fuzzing with bounds: an input is taken, or refused with an `InputError`; it never hangs, nor takes all memory.

    .venv/bin/python -m pytest tests/hostile                   # few inputs, the same ones every time
    python benchmarks/hostile.py --inputs 20000                # many, new ones; its figures are kept

A target is a strategy and a function. The suite's inputs are derandomised; `PARETUNE_FUZZ=N` asks for N new ones of
each.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretune.errors import InputError

SECONDS = 60  # no input of a few kilobytes takes a second; on a busy machine a second is not enough
MEMORY = 1 << 30  # bytes that an input may add to the process


class Hang(AssertionError):
    """An input took longer than `SECONDS`."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        inputs: made by hypothesis.
        feed: takes an input and an empty folder of its own; anything but an InputError is a failure.
        few: inputs in the suite.
    """

    inputs: st.SearchStrategy[Any]
    feed: Callable[[Any, Path], object]
    few: int = 40


def bounded(feed: Callable[[], object]) -> str:
    """Runs it within the bounds and says what became of the input: "taken", or "refused" with a message.

    Raises:
        Hang, MemoryError: it went beyond them.
        AssertionError: a refusal without words.
    """
    with _limits():
        try:
            feed()
        except InputError as error:
            assert len(str(error)) > 10, "a refusal says why"
            str(error).encode("utf-8", "backslashreplace")
            return "refused"
    return "taken"


@contextmanager
def _limits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"longer than {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target: Target, folder: Path, inputs: int | None = None) -> dict[str, int]:
    """Feeds a target; counts of what became of its inputs.

    Args:
        folder: for what targets write.
        inputs: new ones; None: `PARETUNE_FUZZ` of them, or the suite's few.
    """
    asked = inputs or int(os.environ.get("PARETUNE_FUZZ", 0))
    counts = {"taken": 0, "refused": 0}

    @settings(
        max_examples=asked or target.few,
        derandomize=not asked,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(target.inputs)
    def run(value: Any) -> None:
        place = folder / str(sum(counts.values()))
        place.mkdir(parents=True, exist_ok=True)
        counts[bounded(lambda: target.feed(value, place))] += 1

    run()
    return counts
