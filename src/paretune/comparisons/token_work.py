"""Who tokenizes: this process, or several of them where there are rows enough to pay for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from paretune.comparisons.progress import Progress
from paretune.errors import InputError

BATCH = 1_000  # rows per call of the tokenizer
PER_PROCESS = 5_000  # rows that a further process needs to pay: two seconds of work, against a tenth to start it

Work = Callable[[int, int], tuple[Any, Any]]  # (first row, end) -> record batch, counts


def processes(asked: int | None, rows: int) -> int:
    """How many processes tokenize; None takes as many as this machine's cores and the rows are worth."""
    if multiprocessing.current_process().daemon:  # a worker itself: it may not have any
        return 1
    if asked is not None:
        return max(1, min(asked, -(-rows // BATCH)))
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, rows // PER_PROCESS))


def work_through(rows: int, work: Work, workers: int) -> Iterator[tuple[Any, Any]]:
    """`work` of every stretch of `BATCH` rows, in their order; at most a few stretches per process are under way.

    Raises:
        InputError: what `work` raises, or a process that died.
    """
    progress = Progress("rows tokenized", rows)
    spans = [(start, min(start + BATCH, rows)) for start in range(0, rows, BATCH)]
    made = _alone(spans, work) if workers == 1 else _together(spans, work, workers)
    for (_, end), result in zip(spans, made, strict=True):
        yield result
        progress.at(end)
    progress.end(rows)


def _alone(spans: list[tuple[int, int]], work: Work) -> Iterator[tuple[Any, Any]]:
    for span in spans:
        yield work(*span)


def _together(spans: list[tuple[int, int]], work: Work, workers: int) -> Iterator[tuple[Any, Any]]:
    # Forked processes have rows and tokenizer without a copy, and do not run the user's script again as spawned ones
    # would. They only tokenize: no lock of torch or of a GPU that a thread may hold at the fork is ever asked for.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _begin, (work,))
    waiting: deque[Any] = deque()
    try:
        for span in spans:
            with _tokenizers_alone():
                waiting.append(pool.submit(_in_worker, *span))
            if len(waiting) > 3 * workers:
                yield _received(waiting.popleft().result())
        while waiting:
            yield _received(waiting.popleft().result())
    except BrokenProcessPool as error:
        raise InputError(
            "a process that tokenizes was killed",
            found="most often too little memory",
            fix="Use fewer: dataset_num_proc: 1.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _tokenizers_alone() -> Iterator[None]:
    """One thread for each process's tokenizer: said before the fork, since `tokenizers` looks, and warns, at it."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_work: Work | None = None


def _begin(work: Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C stops the parent, which stops these


def _in_worker(start: int, end: int) -> tuple[bytes, Any]:
    if _work is None:
        raise RuntimeError("this process has not begun")
    batch, counts = _work(start, end)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes(), counts


def _received(result: tuple[bytes, Any]) -> tuple[Any, Any]:
    return pa.ipc.open_stream(result[0]).read_next_batch(), result[1]
