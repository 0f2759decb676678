"""`paretune train --method NAME`: what it expands to, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.pipelines.methods import contract
from tests.cli.made import OBJECTIVES, QUICK, paretune, records, save_model, write_jsonl


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("given")
    data = write_jsonl(folder / "train.jsonl", records("native"))
    model = save_model(folder / "base")
    return ["train", "--model", str(model), "--data", data, "--objectives", OBJECTIVES, *QUICK]


def run(command: list[str], folder: Path, *words: str) -> int:
    return paretune(*command, "--output_dir", str(folder), *words)


def test_dry_run_says_what_a_name_expands_to(command: list[str], tmp_path: Path, capsys: Any) -> None:
    assert run(command, tmp_path / "r", "--method", "modpo", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "method modpo: DPO on one objective" in said
    assert "short: a training on it alone" in said
    assert run(command, tmp_path / "r", "--method", "agree-only", "--dry_run") == 0
    assert "train data: the method makes" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


def test_a_killed_method_goes_on_with_what_is_missing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, finish, calls = tmp_path / "r", contract.finish, []

    def killed_at_the_second(trainer: Any, checkpoint: str | None) -> None:
        calls.append(Path(trainer.args.output_dir).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish(trainer, checkpoint)

    monkeypatch.setattr(contract, "finish", killed_at_the_second)
    words = ["--method", "modpo", "--method_options", "{objective: helpful}"]
    assert run(command, folder, *words) == 130
    assert calls == ["single-short", "r"]
    assert run(command, folder, *words) == 2, "neither --resume nor --overwrite"
    assert "unfinished run" in capsys.readouterr().err
    assert run(command, folder, *words, "--resume") == 0
    assert calls == ["single-short", "r", "r"], "a finished part was trained again"
    there = json.loads((folder / "run.json").read_text())
    assert there["status"] == "finished"
    assert there["settings"]["method"] == "modpo"
    assert "helpful" in capsys.readouterr().out  # the summary


@pytest.mark.parametrize("name", ["single", "dpo-lw", "pareto-pairs", "amopo-static", "upgrad"])
def test_methods_of_one_training_run_from_the_command_line(name: str, command: list[str], tmp_path: Path) -> None:
    assert run(command, tmp_path / "r", "--method", name) == 0
    there = json.loads((tmp_path / "r" / "run.json").read_text())
    assert there["method"]["name"] == name
    assert there["status"] == "finished"
