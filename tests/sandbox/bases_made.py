"""One trained base per world for all tests of a run, and for later runs while nothing that decides it changes."""

from __future__ import annotations

import fcntl
import os
from functools import cache
from pathlib import Path

from paretune.sandbox import WORLDS
from paretune.sandbox.language import train_base

STEPS = 150  # half of the demo's, and already fit for use (test_fitness.py): a new machine trains it once


@cache
def base_of(world: str) -> Path:
    """The world's base, as the demo trains it but shorter. One process trains; others wait for it."""
    root = Path(os.environ["PARETUNE_TEST_BASES"]) / "sandbox"  # of tests/conftest.py
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{world}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return train_base(WORLDS[world], steps=STEPS, cache_dir=root)
