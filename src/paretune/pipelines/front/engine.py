"""Where cells run: something that takes jobs and says how they ended. Processes of this machine are one such place.

`run.py` knows only `Engine`; another one (several machines, say) needs the same four methods and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from paretune.errors import DivergedError, InputError
from paretune.pipelines.workers import quiet_worker


@dataclass(frozen=True)
class Job:
    """A call of a module's function with arguments that can be pickled, under a name."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Args:
        value: what it returned.
        error: in words; None where it returned.
        again: whether the same job may end otherwise when it is run again: not where its input was refused, or where
            training diverged, which a seed decides.
    """

    name: str
    value: Any = None
    error: str | None = None
    again: bool = False


class Engine(Protocol):
    """Runs jobs, several at once, in no particular order."""

    def submit(self, job: Job) -> None: ...

    def running(self) -> list[str]:
        """Names of the jobs that have begun and not ended."""

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that ended since it was last asked; returns when there is one, or after so many seconds."""

    def close(self) -> None:
        """Stops what runs."""


class Processes:
    """Long-lived processes of this machine, each with one job at a time.

    A worker that dies (killed, out of memory, a crash in compiled code) ends its own job and no other, and is replaced;
    `concurrent.futures` would give up all jobs of the pool, and not say which one was to blame. Where several GPUs are
    visible, each worker sees one of them.

    Args:
        workers: how many.
        prepare: what each does first, given its number.
    """

    def __init__(self, workers: int, prepare: Callable[[int], object] | None = None):
        self._prepare = prepare or _prepare
        self._context = multiprocessing.get_context("spawn")
        self._free: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}
        self._queue: deque[Job] = deque()
        self._limit = workers
        self._numbers = set(range(workers))

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._start()

    def running(self) -> list[str]:
        return list(self._busy)

    def wait(self, seconds: float) -> list[Ended]:
        ended = self._collect(seconds)
        self._start()
        return ended

    def close(self) -> None:
        self._queue.clear()
        for worker in self._free:  # it finds nobody on the line, and goes home in good order
            worker.link.close()
        for worker in self._busy.values():
            worker.process.terminate()
            worker.link.close()
        for worker in [*self._free, *self._busy.values()]:
            worker.process.join()
        self._free, self._busy = [], {}

    def _start(self) -> None:
        while self._queue and len(self._busy) < self._limit:
            job = self._queue.popleft()
            worker = self._free.pop() if self._free else self._new_worker()
            try:
                worker.link.send(job)
            except OSError:  # it died while it had nothing to do
                self._discard(worker)
                self._queue.appendleft(job)
                continue
            self._busy[job.name] = worker

    def _collect(self, seconds: float) -> list[Ended]:
        watched: dict[Any, str] = {worker.link: name for name, worker in self._busy.items()}
        watched |= {worker.process.sentinel: name for name, worker in self._busy.items()}
        if not watched:
            return []
        ended = []
        for name in dict.fromkeys(watched[one] for one in wait(list(watched), seconds)):
            worker = self._busy.pop(name)
            try:
                ended.append(worker.link.recv())
                self._free.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                ended.append(Ended(name, error=_death(worker.process.exitcode), again=True))
                self._discard(worker)
        return ended

    def _new_worker(self) -> _Worker:
        number = self._numbers.pop()
        ours, theirs = self._context.Pipe()
        # not daemonic: such a process could not tokenize in processes of its own
        process = self._context.Process(target=_serve, args=(theirs, number, self._prepare), daemon=False)
        process.start()
        theirs.close()
        return _Worker(process, ours, number)

    def _discard(self, worker: _Worker) -> None:
        worker.process.join()
        worker.link.close()
        self._numbers.add(worker.number)


@dataclass(frozen=True)
class _Worker:
    process: Any
    link: Connection
    number: int


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        why = " (out of memory?)" if code == -9 else ""
        return f"its process was ended by signal {-code}{why}"
    return f"its process ended with status {code}"


def _serve(link: Connection, number: int, prepare: Callable[[int], object]) -> None:
    """A worker's life: jobs come in, their ends go out, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the command's, which then ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(number)
    while True:
        try:
            job: Job = link.recv()
            link.send(run_job(job))
        except (EOFError, OSError, KeyboardInterrupt):  # the command is gone, or has asked the work to stop
            return


def run_job(job: Job) -> Ended:
    """Runs a job here; an exception becomes its end."""
    try:
        return Ended(job.name, value=job.function(*job.arguments))
    except (InputError, DivergedError) as error:
        return Ended(job.name, error=str(error))
    except Exception as error:
        lines = traceback.format_exc(limit=-3).strip().splitlines()
        return Ended(job.name, error=f"{type(error).__name__}: {error}\n" + "\n".join(lines[:-1]), again=True)


def _end_with_parent() -> None:
    """A worker whose command was killed would go on writing into folders that the next command works in."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare(number: int) -> None:
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own = seen[number % count] if len(seen) == count else str(number % count)
        os.environ["CUDA_VISIBLE_DEVICES"] = own
    quiet_worker()
