"""Jobs on Ray: tasks of a cluster of machines, any of which may be lost while it works.

    engine = RayTasks(address="auto", folder=Path("fronts/first"))

A task makes its process look like the command's (`Home`): its working folder, where it finds modules, its cache. A cell
writes into the front's folder, so this must be one folder on all machines: each task first reads a word there that the
command left. What a task runs is what a process of this machine would run, so results do not depend on where it ran.

No environment is sent (`runtime_env`): Ray writes it into its logs, and keys stand there. Machines have their own.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import socket
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune import __version__
from paretune.errors import InputError
from paretune.pipelines.front.engine import Ended, Job, run_job
from paretune.pipelines.workers import quiet_environment, quiet_worker

_PATIENCE = 300.0  # seconds for a machine to say that it is ready; the first look may load everything over a network
_STORE = 100 * 2**20  # bytes of a cluster for one command: what tasks pass on is small; Ray asks for 75 MiB at least


@dataclass(frozen=True)
class Home:
    """What a task finds again of its command, on whatever machine.

    Args:
        working: the folder that the command was started in.
        paths: where it looks for modules.
        cache: `PARETUNE_CACHE`, where it is set.
        version: of paretune.
        token: a file of the shared folder, and what it says; None where no folder needs to be shared.
    """

    working: str
    paths: tuple[str, ...]
    cache: str | None
    version: str
    token: tuple[str, str] | None


class RayTasks:
    """An `Engine` whose jobs are tasks of a Ray cluster.

    A task whose machine or process is lost ends with an error, "again": its caller decides. Ray itself repeats nothing.
    With GPUs each task has a process of its own, so that their memory is free afterwards.

    Args:
        address: of a running cluster, "auto" or HOST:PORT, of which this machine is part; None starts one of this
            machine alone, which ends with the engine. A program that is connected to Ray stays where it is.
        folder: that jobs write into; it is there, and every machine must see it.
        limit: how many tasks are handed out at once; None: as many as the machines have room for at the time.
        cpus, gpus: that a task takes. gpus None: 1 where the cluster has any.

    Raises:
        InputError: no Ray, no cluster, no room for a task; a machine that cannot see the folder or has another version.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        folder: Path | None = None,
        limit: int | None = None,
        cpus: float = 1.0,
        gpus: float | None = None,
    ):
        self._queue: deque[Job] = deque()
        self._names: dict[Any, str] = {}  # of tasks that were handed out
        self._limit = limit
        self._token: Path | None = None
        self._ray, self._own = _connected(address, None if limit is None else math.ceil(limit * cpus))
        try:
            self._cpus, self._gpus = cpus, self._any_gpu() if gpus is None else gpus
            self._task = self._ray.remote(
                num_cpus=cpus, num_gpus=self._gpus, max_calls=1 if self._gpus else 0, max_retries=0
            )(_serve)
            if not self.slots():
                expected = f"a machine with {cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
                raise InputError("no room for a task in the Ray cluster", expected=expected, found=self._machines())
            self._home = self._make_home(folder)
            self._look()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._start()

    def running(self) -> list[str]:
        return list(self._names.values())

    def wait(self, seconds: float) -> list[Ended]:
        ended = []
        if self._names:
            ready, _ = self._ray.wait(list(self._names), num_returns=1, timeout=seconds)
            ended = [self._end(task) for task in ready]
        self._start()
        return ended

    def close(self) -> None:
        self._queue.clear()
        tasks, self._names = list(self._names), {}
        for task in tasks:
            self._ray.cancel(task, force=True)
        if tasks:  # what still ran would go on writing where the next command writes
            self._ray.wait(tasks, num_returns=len(tasks), timeout=30)
        if self._token is not None:
            self._token.unlink(missing_ok=True)
        if self._own:
            self._ray.shutdown()

    def slots(self) -> int:
        """How many tasks the machines that are there now have room for, whoever else uses them."""
        found = 0
        for node in self._alive():
            room = [node["Resources"].get("CPU", 0) / self._cpus]
            if self._gpus:
                room.append(node["Resources"].get("GPU", 0) / self._gpus)
            found += int(min(room) + 1e-9)
        return found

    def _start(self) -> None:
        while self._queue and len(self._names) < (self._limit or max(1, self.slots())):
            job = self._queue.popleft()
            self._names[self._task.remote(self._home, job.name, pickle.dumps(job))] = job.name

    def _end(self, task: Any) -> Ended:
        name = self._names.pop(task)
        try:
            ended: Ended = self._ray.get(task)
            return ended
        except self._ray.exceptions.RayError as error:
            return Ended(name, error=_in_words(error), again=True)

    def _alive(self) -> list[Mapping[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _machines(self) -> str:
        sizes = [{what: node["Resources"].get(what, 0) for what in ("CPU", "GPU")} for node in self._alive()]
        return ", ".join(f"{size['CPU']:g} CPUs and {size['GPU']:g} GPUs" for size in sizes) or "no machine"

    def _any_gpu(self) -> float:
        return 1.0 if any(node["Resources"].get("GPU", 0) for node in self._alive()) else 0.0

    def _make_home(self, folder: Path | None) -> Home:
        token = None
        if folder is not None:
            word = uuid.uuid4().hex
            self._token = folder.resolve() / "ray.token"
            self._token.write_text(word, encoding="utf-8")
            token = (str(self._token), word)
        return Home(os.getcwd(), tuple(sys.path), os.environ.get("PARETUNE_CACHE"), __version__, token)

    def _look(self) -> None:
        """Asks every machine that is there whether it can work; those that come later are asked by their tasks."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(num_cpus=0, max_retries=0)(_settled)
        asked = {}
        for node in self._alive():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=there).remote(self._home)] = node["NodeManagerAddress"]
        ready, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
        for task in ready:
            try:
                problem = self._ray.get(task)
            except self._ray.exceptions.NodeDiedError:
                continue
            except self._ray.exceptions.RayError as error:
                fix = "Install the same paretune there."
                found = str(error).strip().splitlines()[-1]
                raise InputError("a machine cannot run tasks", where=asked[task], found=found, fix=fix) from error
            if problem is not None:
                raise InputError(problem)
        if late:
            raise InputError(f"no answer within {_PATIENCE:g} s", where=f"machine {asked[late[0]]}")


def _connected(address: str | None, cpus: int | None) -> tuple[Any, bool]:
    """Ray, connected, and whether the connection is ours to end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # of a cluster that is started here: nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        raise InputError("engine ray needs the package ray", fix="pip install 'paretune[ray]'.") from error
    if ray.is_initialized():
        return ray, False
    if address is not None and "://" in address:
        fix = "Start the command on a machine of the cluster: it then works in the shared folder, too."
        raise InputError("bad ray_address", expected="auto or HOST:PORT", found=address, fix=fix)
    where = f"ray_address {address}" if address else "a Ray cluster of this machine"
    fix = "`ray status` shows whether one runs on this machine; `ray start` starts or joins one."
    local: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
    with _own_signals():
        try:
            if address not in (None, "auto"):
                _knock(address)  # Ray would wait for minutes
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
        except (OSError, RuntimeError, ValueError) as error:
            found = " ".join(str(error).split())
            raise InputError("cannot connect to Ray", where=where, found=found, fix=fix) from error
    return ray, True


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, ValueError for what is no HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps SIGTERM the command's: Ray takes it when it connects."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _in_words(error: Exception) -> str:
    """A loss that Ray reports, shortly: which kind, then Ray's own first sentences."""
    kinds = {"NodeDiedError": "its machine was lost", "WorkerCrashedError": "its process died"}
    kinds["OutOfMemoryError"] = "its machine ran out of memory"
    kind = kinds.get(type(error).__name__, type(error).__name__)
    return f"{kind}: {' '.join(str(error).split())[:300]}"


# ---- in a task ----


def _serve(home: Home, name: str, packed: bytes) -> Ended:
    """A task: one job. What it computes with is loaded after the process is set up."""

    def run() -> Any:
        settle(home)
        quiet_environment()
        job: Job = pickle.loads(packed)
        if "torch" in sys.modules:  # shards of a function of somebody's do without
            quiet_worker()
        return job.function(*job.arguments)

    return run_job(Job(name, run))


def _settled(home: Home) -> str | None:
    """What keeps this machine from working, in words."""
    try:
        settle(home)
    except InputError as error:
        return str(error)
    return None


def settle(home: Home) -> None:
    """Makes this process look like the command's.

    Raises:
        InputError: the version is another, or a folder is not the command's.
    """
    where = f"machine {socket.gethostname()}"
    fix = "All machines must see the folder of the command and the one it is started in, under the same paths."
    if home.version != __version__:
        fix = "Install the same paretune on all machines."
        raise InputError("another paretune", where=where, expected=home.version, found=__version__, fix=fix)
    if home.token is not None:
        path, word = home.token
        try:
            found = Path(path).read_text(encoding="utf-8")
        except OSError:
            found = "no such file"
        if found != word:
            expected = f"the word in {path} that the command wrote"
            raise InputError("the folder is not shared", where=where, expected=expected, found=found, fix=fix)
    try:
        os.chdir(home.working)
    except OSError as error:
        raise InputError(f"no folder {home.working}", where=where, found=str(error), fix=fix) from error
    sys.path.extend(path for path in home.paths if path not in sys.path)
    if home.cache is not None:
        os.environ["PARETUNE_CACHE"] = home.cache
