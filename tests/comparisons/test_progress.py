"""Long passes say how far they are and how fast; short ones say nothing."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from paretune.comparisons import progress
from paretune.comparisons.formats import read_comparisons


def test_a_long_reading_says_its_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"response_a": "one", "response_b": "two", "preferences": {"x": 1}}
    path.write_text("".join(json.dumps({**row, "prompt": f"p{i}"}) + "\n" for i in range(9_000)))
    with caplog.at_level(logging.INFO, "paretune"):
        monkeypatch.setattr(progress, "SILENT", 3600.0)  # a crowded machine takes long even for a little
        monkeypatch.setattr(progress, "SECONDS", 3600.0)
        read_comparisons(path)
        assert not caplog.messages
        monkeypatch.setattr(progress, "SECONDS", 0.0)
        monkeypatch.setattr(progress, "SILENT", 0.0)
        read_comparisons(path)
    said = [message.rpartition(", ")[0] for message in caplog.messages]
    assert said[:2] == [f"{path}: rows read and checked: 4,096", f"{path}: rows read and checked: 8,192"]
    assert len(said) == 3 and re.fullmatch(r".*: rows read and checked: 9,000 in \d+ s", said[2])  # however slow
    assert all(message.endswith(" rows/s") for message in caplog.messages)


def test_a_known_total_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "paretune"):
        progress.Progress("rows tokenized", 5_000).at(1_000)
    assert caplog.messages[0].startswith("rows tokenized: 1,000 of 5,000, ")
