"""A saved model for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.made import records, save_model, write_jsonl


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "qwen3")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "rows.jsonl", records("native"))
