"""A run that was killed goes on from its last complete checkpoint, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.made import OBJECTIVES, paretune, read_run, records, saved_weights, write_jsonl

LENGTH = [
    *["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--num_train_epochs", "4"],
    *["--learning_rate", "1e-2", "--logging_steps", "1", "--save_steps", "5", "--use_cpu", "true"],
    *["--eval_fraction", "0.2", "--eval_strategy", "steps", "--eval_steps", "7"],
]


def words(model: Path, rows: str, out: Path, *more: Any) -> list[str]:
    common = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", out, *LENGTH, *more]
    return [str(word) for word in common]


def same(one: Path, two: Path) -> bool:
    a, b = saved_weights(one), saved_weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_after(line: str, out: Path, command: list[str]) -> int:
    """Starts the command line, kills it (SIGKILL) once history.jsonl holds that step; returns the last step logged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paretune", "train", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    history = out / "history.jsonl"
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if history.exists() and line in history.read_text():
                break
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return max(json.loads(entry)["step"] for entry in history.read_text().splitlines() if entry.endswith("}"))


@pytest.mark.parametrize("adapter", [[], ["--lora", "{r: 4, lora_dropout: 0.1}"]], ids=["full", "lora with dropout"])
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(model: Path, tmp_path: Path, adapter: list[str]) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", records("native", 60))
    assert paretune("train", *words(model, rows, tmp_path / "whole", *adapter)) == 0
    out = tmp_path / "killed"
    reached = kill_after('"step": 17', out, words(model, rows, out, *adapter))
    record, expected = read_run(tmp_path / "whole")
    last = max(line["step"] for line in expected)
    assert 17 <= reached < last  # in mid-run
    assert not (out / "model.safetensors").exists() and read_run(out)[0]["status"] == "running"

    assert paretune("train", *words(model, rows, out, *adapter)) == 2  # checkpoints are there: not unasked
    assert paretune("train", *words(model, rows, out, *adapter, "--resume")) == 0
    assert same(tmp_path / "whole", out)
    resumed, history = read_run(out)
    assert resumed["status"] == "finished"
    steps = [line["step"] for line in history if "loss" in line]
    assert steps == sorted(set(steps)) == list(range(1, last + 1))
    for key in ("loss/helpful", "rewards/margins/short", "grad/cosine/helpful~short"):
        pairs = zip(history, expected, strict=True)
        assert [line.get(key) for line, _ in pairs] == [line.get(key) for line in expected]
    assert resumed["final"]["eval_loss"] == record["final"]["eval_loss"]


def test_a_half_written_checkpoint_is_passed_over(model: Path, tmp_path: Path, rows: str) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert paretune("train", *words(model, rows, whole)) == 0
    shutil.copytree(whole, out)
    (out / "checkpoint-15" / "trainer_state.json").write_text('{"global_st')  # killed while it was written
    (out / "checkpoint-16" / "optimizer.pt").unlink()
    (out / "model.safetensors").unlink()
    assert paretune("train", *words(model, rows, out, "--resume")) == 0
    assert same(whole, out)


def test_what_cannot_be_resumed_is_said(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paretune("train", *words(model, rows, tmp_path / "none", "--resume")) == 2
    assert "no checkpoint to go on from" in capsys.readouterr().err
    assert paretune("train", *words(model, rows, tmp_path / "none", "--resume", tmp_path)) == 2
    assert "not a checkpoint to go on from: it has no weights" in capsys.readouterr().err
    out = tmp_path / "run"
    assert paretune("train", *words(model, rows, out)) == 0
    other = write_jsonl(tmp_path / "other.jsonl", records("native", seed=1))
    capsys.readouterr()
    assert paretune("train", *words(model, other, out, "--resume")) == 2
    assert "the training data changed" in capsys.readouterr().err


def test_other_settings_on_resuming_are_said(model: Path, tmp_path: Path, rows: str) -> None:
    out = tmp_path / "run"
    assert paretune("train", *words(model, rows, out)) == 0
    changed = words(model, rows, out, "--weight_decay", "0.1", "--take", "20", "--resume")
    changed[changed.index(OBJECTIVES)] = "{helpful: 0.5, short: 0.5}"
    assert paretune("train", *changed) == 0
    said = [notice for notice in read_run(out)[0]["notices"] if notice.startswith("resumed with another")]
    assert [notice.split()[3].rstrip(":") for notice in said] == ["weight_decay", "objectives", "take"]


def test_ctrl_c_says_how_to_go_on(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.training.trainer import RACOTrainer

    def interrupt(self: RACOTrainer, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RACOTrainer, "training_step", interrupt)
    assert paretune("train", *words(model, rows, tmp_path / "run")) == 130
    assert "--resume" in capsys.readouterr().err
    assert read_run(tmp_path / "run")[0]["status"] == "failed"


def test_divergence_has_a_status_of_its_own(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ["--optim", "sgd", "--max_grad_norm", "0", "--lr_scheduler_type", "constant", "--max_skipped_steps", "2"]
    command = words(model, rows, tmp_path / "run", *hot)
    command[command.index("1e-2")] = "1e30"
    assert paretune("train", *command) == 3
    assert "not finite" in capsys.readouterr().err
