"""Prompts with three responses, for tests of labels."""

from __future__ import annotations

from typing import Any

from paretune.preferences.candidates import Candidates


def candidates(n: int = 3, **columns: Any) -> list[Candidates]:
    return [Candidates(f"row {i}", f"p{i}", ("a", "bb bb", f"ccc {i}"), columns) for i in range(n)]
