"""Killed at random moments and begun again, training ends as if nobody had: a few trials of `benchmarks/kills.py`.

`sample`, `label`, `front` and `improve` are killed in tests of their own, and so is the scoring of the reference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import made_inputs, trial, undisturbed


@pytest.mark.parametrize("name", ["train", "caching"])
def test_killed_while_files_change(name: str, tmp_path: Path) -> None:
    inputs = made_inputs(tmp_path / "inputs")
    whole = undisturbed(name, inputs, tmp_path / "trials" / "whole")
    assert whole.changes > 20 and whole.result["weights"]
    for seed in (1, 2):
        told = trial(name, inputs, whole, tmp_path / "trials" / str(seed), seed, kills=2)
        assert told["equal"] and told["kills"] > 0, told
