"""One made demo and its page for all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.evaluation.report import write_report
from tests.evaluation.report.demo_made import made_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_demo(tmp_path_factory.mktemp("demo"), seeds=(0, 1), steps=12)


@pytest.fixture(scope="session")
def demo_page(demo: Path) -> Path:
    return write_report([demo], demo / "report.html")
