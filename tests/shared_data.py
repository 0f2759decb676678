"""Real data and models that are used where they are present and never copied into the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The folder of that name ("stories260K", "truthfulqa"), or a skipped test that says where it was looked for.

    Looked for in `$PARETUNE_SHARED/data`, then in `shared/data` beside the repository.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    place = Path(os.environ.get("PARETUNE_SHARED") or beside) / "data" / name
    if not place.exists():
        pytest.skip(f"{place} is not there (PARETUNE_SHARED names another folder)")
    return place
