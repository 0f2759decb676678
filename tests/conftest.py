"""For every test: no network, one thread per worker, the same random numbers whatever ran before."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path

# Before torch, transformers or datasets are imported, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tokens that another version of the code kept must not answer a test. Only trained bases, whose key has their sources,
# are shared with other runs: `tests/sandbox/bases_made.py` finds them by this name.
os.environ.setdefault("PARETUNE_TEST_BASES", os.environ.get("PARETUNE_CACHE") or str(Path.home() / ".cache/paretune"))
os.environ["PARETUNE_CACHE"] = tempfile.mkdtemp(prefix="paretune-tests-")

import numpy as np
import pytest
import torch

atexit.register(shutil.rmtree, os.environ["PARETUNE_CACHE"], ignore_errors=True)
# Workers that each take every core slow one another down; sums in one thread are also the same on every machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another kept."""
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "paretune-cache"))
