"""Peak memory of one contestant's steps on a CPU, each in a process of its own.

What is reported is the peak of resident memory during steps, minus what model and optimizer take. A process's resident
memory follows its tensors only when the allocator gives freed blocks back at once: glibc is told to map every larger
block by itself and to keep one arena (`ALLOCATOR`, for all contestants alike). Processes are forked from one that has
imported everything and computed nothing, which saves the imports.

On a GPU the allocator's own counts are exact whoever else is there, and `timing` reads them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.contestants import exists, make_contestant
from benchmarks.steps.models import Case, make_model
from benchmarks.steps.timing import own_bytes, pointer, tensors_of

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WARM_UP, STEPS = 2, 2


def measure_memory(jobs: Sequence[tuple[Case, str]], command: Sequence[str]) -> Iterator[tuple[Case, str, Any]]:
    """(case, contestant, what `peak` returned or {"missing": why}), one after the other as they are measured.

    Args:
        command: of a process that calls `serve` with what follows as its argument.
    """
    wanted = [job for job in jobs if exists(job[1])]
    yield from ((case, name, {"missing": "not in this version"}) for case, name in jobs if (case, name) not in wanted)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    lines = json.dumps([[vars(case), name] for case, name in wanted])
    with subprocess.Popen(
        [*command, lines], stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR, **threads}
    ) as process:
        assert process.stdout is not None
        for case, name in wanted:
            line = process.stdout.readline()
            yield case, name, json.loads(line) if line else {"missing": "the measuring process ended"}


def serve(lines: str) -> None:
    """Measures each job in a forked process and prints one line of JSON for each."""
    import trl  # noqa: F401 (once, for all that are forked)

    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no result
    for case, name in json.loads(lines):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            result = json.dumps(peak(name, Case(**case)))
            os.write(write, result.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            result = pipe.read()
        os.waitpid(child, 0)
        os.write(output, ((result or '{"missing": "its process failed, perhaps for want of memory"}') + "\n").encode())


def peak(name: str, case: Case) -> dict[str, int]:
    """Bytes of a contestant's steps: resident before, peak, held between steps, and the peak above model and optimizer.

    What it holds between steps beyond model and optimizer (m gradients that are kept) counts as the steps' own.
    """
    with tempfile.TemporaryDirectory() as folder:
        contestant = make_contestant(name, case, Path(folder), make_model(case), batches=2)
        for _ in range(WARM_UP):
            contestant.step()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        resident, held = status("VmRSS"), held_bytes(contestant.trainer)
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
        for _ in range(STEPS):
            contestant.step()
        reached = status("VmHWM")
        own = own_bytes(contestant.trainer)
        contestant.finish()
    return {"resident": resident, "peak": reached, "held": held, "own": own, "above": reached - resident + held}


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def held_bytes(trainer: Any) -> int:
    """Bytes of all tensors that are alive and are neither model nor optimizer."""
    own = {pointer(t) for t in tensors_of(trainer.model, trainer.optimizer)}
    alive = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    sizes = {pointer(t): t.untyped_storage().nbytes() for t in alive if t.layout is torch.strided and not t.is_meta}
    return sum(size for where, size in sizes.items() if where not in own)


def worker_command(script: Path) -> list[str]:
    return [sys.executable, str(script), "--serve-memory"]
