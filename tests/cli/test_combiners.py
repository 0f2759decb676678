"""Combiners and their options from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.combine import COMBINERS
from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, write_jsonl

GIVEN = {"replay": ["--combiner_options", "{coefficients: [[1, 0], [0, 1], [1, 1]]}"]}


def words(model: Path, tmp_path: Path, combiner: str, *more: str) -> list[str]:
    rows = write_jsonl(tmp_path / "rows.jsonl", records("native"))
    common = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run"]
    return ["train", *(str(word) for word in common), *QUICK, "--combiner", combiner, *more]


def test_a_dry_run_with_every_combiner(model: Path, tmp_path: Path) -> None:
    for combiner in (*COMBINERS, "torchjd:AlignedMTL"):
        assert paretune(*words(model, tmp_path, combiner, *GIVEN.get(combiner, []), "--dry_run")) == 0, combiner


def test_options_reach_the_run_and_its_record(model: Path, tmp_path: Path) -> None:
    assert paretune(*words(model, tmp_path, "famo", "--combiner_options.rate", "0.05")) == 0
    assert read_run(tmp_path / "run")[0]["config"]["combiner_options"] == {"rate": 0.05}


@pytest.mark.parametrize(
    ("combiner", "options", "message"),
    [
        ("famo", "{rat: 1}", "Did you mean 'rate'"),
        ("gapo", "{p: 3}", "expected 1 or 2"),
        ("torchjd:AlignedMTL", "{scale_mode: big}", "scale_mode"),
    ],
)
def test_bad_options_end_a_dry_run(
    model: Path, tmp_path: Path, combiner: str, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paretune(*words(model, tmp_path, combiner, "--combiner_options", options, "--dry_run")) == 2
    assert message in capsys.readouterr().err


def test_data_takes_a_configuration_with_options(model: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", records("native"))
    config = tmp_path / "run.yaml"
    lines = [f"model: {model}", f"data: {rows}", f"objectives: {OBJECTIVES}", "combiner: famo"]
    config.write_text("\n".join([*lines, "combiner_options: {rate: 0.05}", ""]))
    assert paretune("data", str(config), "--model", str(model), "--rows", "8") == 0
