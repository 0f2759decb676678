"""Real processes: a script run once, or by several ranks that find each other on a free port."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEXT_RANK = "\n--- the next rank ---\n"

# Imports what every rank needs, which takes longer than most scripts, and forks the ranks.
FORKS = """
import json, os, sys
import tests.runs_made
folder, world, script, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
ranks = []
for rank in range(world):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        said = os.open(f"{folder}/{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1), os.dup2(said, 2)
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        exec(compile(script, "rank", "exec"), {"__name__": "__main__"})
        sys.exit(0)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]))
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one, below those that systems hand out unasked: else a connection of
    some other process might be given one before it is used."""
    found: list[int] = []
    with ExitStack() as sockets:
        while len(found) < count:
            port, free = random.SystemRandom().randrange(20000, 32000), sockets.enter_context(socket.socket())
            with suppress(OSError):
                free.bind(("127.0.0.1", port))
                found.append(port)
    return found


def run_ranks(
    script: str, arguments: Sequence[str], world: int, *, timeout: float = 240.0, **variables: str
) -> tuple[list[int], str]:
    """Runs a script with `arguments` in sys.argv[1:] as `world` ranks (1: as a process of its own).

    Args:
        script: sees RANK, LOCAL_RANK and WORLD_SIZE where there are several ranks.
        arguments: of every rank.
        world: how many.
        timeout: seconds.
        variables: of the environment, beside those of this process.

    Returns:
        Each rank's exit status, and what they wrote, with NEXT_RANK in between.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **variables}
    if world > 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        environment |= {"WORLD_SIZE": str(world), **meeting}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FORKS, folder, str(world), script, *arguments]
        forks = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            statuses = json.loads(forks.communicate(timeout=timeout)[0].splitlines()[-1])
        finally:
            with suppress(ProcessLookupError):  # one that waits for a rank that died would outlive the test
                os.killpg(forks.pid, signal.SIGKILL)
            forks.wait()
        said = [path.read_text(errors="replace")[-3000:] for path in sorted(Path(folder).iterdir())]
    return statuses, NEXT_RANK.join(said)
