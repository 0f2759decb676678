"""Where files of ours that may be lost are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$PARETUNE_CACHE`, else `~/.cache/paretune`: what is under it can be deleted at any time and is made again."""
    return Path(os.environ.get("PARETUNE_CACHE", Path.home() / ".cache" / "paretune"))
