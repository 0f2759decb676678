"""Every target of the fuzzing, with few inputs, the same ones every time: taken or refused, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.hostile.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_taken_or_refused_with_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path))  # targets set it too, and this puts it back
    counts = fuzz(TARGETS[name], tmp_path)
    assert sum(counts.values()) >= min(TARGETS[name].few, 3)
