"""Runs the cells that are not finished, each after what it needs, and records those that crashed.

The folder of a front holds `cells/NAME-DIGEST/` with a run's files, `attempts.jsonl` (every start and how it ended) and
`cell.json`, which is written last: a cell is finished exactly where that file is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.files import said_if_full
from paretune.pipelines.front.cells import WEIGHT_FILES, has_model, run_cell
from paretune.pipelines.front.engine import Ended, Engine, Job
from paretune.pipelines.front.plan import Cell, Plan, finished
from paretune.pipelines.stopping import stops_between

_TURN = 1.0  # seconds between two looks at what runs, so that a display moves


@dataclass(frozen=True)
class Progress:
    """How far a front is: counts of cells, names of those that run, seconds left by the pace so far (None: unknown),
    and what has just happened, in words, or None."""

    total: int
    done: int
    failed: int
    running: tuple[str, ...]
    left: float | None
    news: str | None = None


Tell = Callable[[Progress], None]


@dataclass
class _State:
    """What is known of the cells of one command."""

    found: dict[str, dict[str, Any]] = field(default_factory=dict)  # finished ones, by name
    failed: dict[str, str] = field(default_factory=dict)  # and why
    tries: dict[str, int] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.perf_counter)
    done_here: int = 0


def run_front(
    folder: Path, plan: Plan, cells: Sequence[Cell], engine: Engine, *, retries: int, tell: Tell
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Runs what is not there.

    Args:
        cells: each behind those that it needs.
        retries: how often a cell that crashed is started again.
        tell: is given the progress, at least once a second.

    Returns:
        What finished cells left, and why others failed; both by the cell's name.

    Raises:
        KeyboardInterrupt: on ctrl-C or SIGTERM, within about a second; what was finished is booked.
    """
    state, by_name = _State(), {cell.name: cell for cell in cells}
    for cell in cells:
        if (content := finished(folder, cell)) is not None:
            state.found[cell.name] = content
    _forget_lost_models(folder, cells, state)
    for cell in cells:
        if cell.name not in state.found:
            _note_interrupted(folder / cell.folder)
    tell(_progress(cells, state, engine, None))
    with stops_between() as stop_if_asked:
        while len(state.found) + len(state.failed) < len(cells):
            _submit_ready(folder, plan, cells, by_name, state, engine)
            ended = engine.wait(_TURN)
            for end in ended:
                news = _take(folder, by_name[end.name], end, state, retries)
                tell(_progress(cells, state, engine, news))
            if not ended:
                tell(_progress(cells, state, engine, None))
            stop_if_asked()
    if not plan.keep_models:
        for cell in cells:
            _remove_models(folder / cell.folder)
    return state.found, state.failed


def _submit_ready(
    folder: Path, plan: Plan, cells: Sequence[Cell], by_name: dict[str, Cell], state: _State, engine: Engine
) -> None:
    for cell in cells:
        if cell.name in state.found or cell.name in state.failed or cell.name in state.submitted:
            continue
        lost = [name for name in cell.needs if name in state.failed]
        if lost:
            state.failed[cell.name] = f"it needs {lost[0]}, which failed"
        elif all(name in state.found for name in cell.needs):
            needs = {name: str(folder / by_name[name].folder) for name in cell.needs}
            _log(folder / cell.folder, {"event": "start"})
            engine.submit(Job(cell.name, run_cell, (plan, cell, needs, folder)))
            state.submitted.add(cell.name)


def _take(folder: Path, cell: Cell, end: Ended, state: _State, retries: int) -> str:
    """Books how a cell ended, and says it."""
    place, name = folder / cell.folder, cell.name
    state.submitted.discard(name)
    content = finished(folder, cell)
    if end.error is None and content is not None:
        _log(place, {"event": "end"})
        state.found[name], state.done_here = content, state.done_here + 1
        return f"{name}: {_figures(content)}"
    error = end.error or "it ended without a cell.json"
    _log(place, {"event": "error", "error": error})
    state.tries[name] = state.tries.get(name, 0) + 1
    first = error.splitlines()[0]
    if end.again and state.tries[name] <= retries:
        return f"{name} crashed and is started again ({state.tries[name]} of {retries}): {first}"
    state.failed[name] = error
    return f"{name} failed: {first}"


def _figures(content: dict[str, Any]) -> str:
    first = next(iter(content.get("temperatures", {}).values()), None)
    scores = "" if first is None else ", ".join(f"{k} {v:.3f}" for k, v in first["scores"].items()) + ", "
    return f"{scores}{content['seconds']:.0f} s"


def _progress(cells: Sequence[Cell], state: _State, engine: Engine, news: str | None) -> Progress:
    left = None
    to_do = len(cells) - len(state.found) - len(state.failed)
    if state.done_here:
        left = (time.perf_counter() - state.started) / state.done_here * to_do
    return Progress(len(cells), len(state.found), len(state.failed), tuple(engine.running()), left, news)


# ---- what a folder keeps ----


def _log(place: Path, event: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event}
    path = place / "attempts.jsonl"
    with said_if_full(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def attempts(place: Path) -> list[dict[str, Any]]:
    """Every start of a cell and how it ended."""
    path, found = place / "attempts.jsonl", []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # the line that was being written when the command was killed
            continue
        if isinstance(entry, dict) and "event" in entry:
            found.append(entry)
    return found


def _note_interrupted(place: Path) -> None:
    """A start without an end: the command itself was stopped or killed, which is the cell's fault no more than ours."""
    before = attempts(place)
    if before and before[-1]["event"] == "start":
        _log(place, {"event": "error", "error": "the command ended while the cell ran"})


def _forget_lost_models(folder: Path, cells: Sequence[Cell], state: _State) -> None:
    """A finished training whose weights were removed, and that an unfinished cell needs, is not finished."""
    by_name = {cell.name: cell for cell in cells}
    for cell in reversed(cells):  # what is trained again may need others trained again, which stand before it
        for name in cell.needs if cell.name not in state.found else ():
            needed = by_name[name]
            if name in state.found and needed.kind in ("train", "trunk") and not has_model(folder / needed.folder):
                del state.found[name]


def _remove_models(place: Path) -> None:
    for pattern in WEIGHT_FILES:
        for path in place.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other fronts out of the folder; the lock goes with the process, however it ends.

    Raises:
        InputError: another front is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "front.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            fix = "Wait for it, or choose another output_dir."
            raise InputError(
                "another front runs in this folder",
                where=f"output_dir {folder}",
                found=f"process {file.read()}",
                fix=fix,
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
