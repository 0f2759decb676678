"""Real processes: a script run once, or by several ranks that find each other on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEXT_RANK = "\n--- the next rank ---\n"


def run_ranks(script: str, arguments: Sequence[str], world: int, **variables: str) -> tuple[list[int], str]:
    """Runs `python -c script *arguments` as `world` ranks (1: as a process of its own).

    Args:
        script: sees RANK, LOCAL_RANK and WORLD_SIZE where there are several ranks.
        arguments: of every rank.
        world: how many.
        variables: of the environment, beside those of this process.

    Returns:
        Each rank's exit status, and what they wrote, with NEXT_RANK in between.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **variables}
    if world > 1:
        environment |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:  # one that waits for a rank that died would outlive the test
            process.kill()
            process.wait()
    return [process.returncode for process in ranks], NEXT_RANK.join(output[-3000:] for output in said)
