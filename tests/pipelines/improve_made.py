"""Command lines of `paretune improve` that take seconds, and prompts for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.cli.made import text, write_jsonl

HELD_OUT = "{prompts: 0.3, sources: {fluent: {rule: repetition, n: 1}}}"
QUICK: dict[str, Any] = {
    **{"n": 3, "max_tokens": 6, "rounds": 2, "save_steps": 2, "logging_steps": 1, "max_steps": 3, "use_cpu": "true"},
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 5e-3},
    **{"sources": "{short: {rule: shorter}, right: {rule: rouge}}", "objectives": "{short: 0.5, right: 0.5}"},
    "held_out": HELD_OUT,
}


def prompts(n: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [{"prompt": f"{i} {text(rng)}?", "reference": text(rng)} for i in range(n)]


def words(folder: Path, start: Path, out: str, count: int = 10, /, **changes: Any) -> list[str]:
    """A command line; changes replace the quick settings, None leaves one out."""
    data = write_jsonl(folder / "prompts.jsonl", prompts(count))
    given = {"model": start, "prompts": data, "output_dir": folder / out, **QUICK, **changes}
    return ["improve", *(str(w) for name, value in given.items() if value is not None for w in (f"--{name}", value))]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
