"""Aligns a language model with several objectives at once, by the weights a person gives them.

The names below are loaded on first use (PEP 562): `import paretune` itself imports neither torch nor transformers, so
the command line can answer `--help` and refuse a bad configuration at once.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Nobody is told that somebody uses this: read by huggingface_hub and others when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from paretune.comparisons.formats import load_comparisons
    from paretune.objectives import Objective
    from paretune.training.config import RACOConfig
    from paretune.training.trainer import RACOTrainer

__version__ = "0.1.0"
__all__ = ["Objective", "RACOConfig", "RACOTrainer", "__version__", "load_comparisons"]

_HOME = {
    "Objective": "paretune.objectives",
    "RACOConfig": "paretune.training.config",
    "RACOTrainer": "paretune.training.trainer",
    "load_comparisons": "paretune.comparisons.formats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
