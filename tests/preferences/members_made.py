"""Two reward functions that disagree, for tests of ensembles."""

from __future__ import annotations

from typing import Any


def count_a(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def count_b(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("b")) for text in completions]
