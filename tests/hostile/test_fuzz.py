"""Every target of the fuzzing, with few inputs, the same ones every time: taken or refused, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import readers
from tests.hostile.fuzz import fuzz

TARGETS = {**readers.TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_taken_or_refused_with_words(name: str, tmp_path: Path) -> None:
    counts = fuzz(TARGETS[name], tmp_path)
    assert counts["refused"], "the inputs are bad enough to be refused at all"
