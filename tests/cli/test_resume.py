"""A run that was stopped, by a signal or its time limit, goes on and ends where it would have ended."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.training import interruption
from paretune.training.manifest import flaw, write_manifest
from paretune.training.trainer import RACOTrainer
from tests.cli.made import OBJECTIVES, paretune, read_run, records, saved_weights, write_jsonl

LENGTH = [
    *["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--num_train_epochs", "4"],
    *["--learning_rate", "1e-2", "--logging_steps", "1", "--save_steps", "5", "--use_cpu", "true"],
    *["--eval_fraction", "0.2", "--eval_strategy", "epoch"],
]
LAST = 16


def words(model: Path, rows: str, out: Path, *more: Any) -> list[str]:
    common = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", out, *LENGTH, *more]
    return [str(word) for word in common]


def same(one: Path, two: Path) -> bool:
    a, b = saved_weights(one), saved_weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl without what a clock decides and without the last mean, of a process's own steps."""
    _, history = read_run(folder)
    timed = ("time", "tokens/second", "runtime", "per_second")
    return [
        {key: value for key, value in line.items() if not any(word in key for word in timed)}
        for line in history
        if "train_loss" not in line
    ]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    os.environ["PARETUNE_CACHE"] = str(folder / "cache")
    rows = write_jsonl(folder / "rows.jsonl", records("native"))
    assert paretune("train", *words(model, rows, folder / "run", "--lora", "{r: 4, lora_dropout: 0.1}")) == 0
    return folder / "run"


def signalled(monkeypatch: pytest.MonkeyPatch, at: int, *numbers: int) -> None:
    """Each training begun from now on sends itself these signals in its `at`-th micro-batch."""
    plain, seen = RACOTrainer.training_step, [0]

    def step(self: RACOTrainer, *args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        for number in numbers if seen[0] == at else ():
            os.kill(os.getpid(), number)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(RACOTrainer, "training_step", step)


def test_stopped_at_any_step_it_ends_as_if_it_had_not(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "run", str(whole.parent / "rows.jsonl")
    command = words(model, rows, out, "--lora", "{r: 4, lora_dropout: 0.1}")
    assert paretune("train", *command, "--max_hours", "1e-9") == 75
    record, _ = read_run(out)
    assert record["status"] == "interrupted"
    assert record["final"] == {"reason": "max_hours", "step": 1, "checkpoint": str(out / "checkpoint-1")}
    assert "stopped by max_hours after step 1" in capsys.readouterr().err
    assert not (out / "adapter_model.safetensors").exists() and flaw(out / "checkpoint-1") is None
    assert paretune("train", *command) == 2, "checkpoints are there: not unasked"
    # micro-batches of this process: the 1st is step 2, the 5th in the middle of step 4, which is an epoch's last
    for at, number, step in ((1, signal.SIGTERM, 2), (4, signal.SIGINT, 4), (3, signal.SIGTERM, 6), (20, 15, LAST)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            signalled(monkeypatch, at, number)
            assert paretune("train", *command, "--resume") == 75
        assert read_run(out)[0]["final"]["step"] == step
        assert f"stopped by {signal.Signals(number).name} after step {step}" in capsys.readouterr().err
    assert paretune("train", *command, "--resume", "--max_hours", "100") == 0
    assert same(whole, out) and figures(out) == figures(whole)
    done, expected = read_run(out)[0], read_run(whole)[0]
    assert done["status"] == "finished" and done["final"]["eval_loss"] == expected["final"]["eval_loss"]
    assert not list(out.rglob("training_args.bin")) and not list(out.rglob(".*"))


def test_a_second_ctrl_c_ends_at_once(
    model: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interruption, "_AGAIN", -1.0)  # however close to the first
    signalled(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    assert paretune("train", *words(model, rows, tmp_path / "run")) == 130
    assert "--resume" in capsys.readouterr().err
    record, history = read_run(tmp_path / "run")
    assert record["status"] == "interrupted" and len(history) == 1
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_newest_checkpoint_that_verifies_is_taken(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "run", str(whole.parent / "rows.jsonl")
    shutil.copytree(whole, out)
    command = words(model, rows, out, "--lora", "{r: 4, lora_dropout: 0.1}", "--resume")
    state = (out / "checkpoint-16" / "trainer_state.json").read_text()
    (out / "checkpoint-16" / "trainer_state.json").write_text(state.replace('"global_step": 16', '"global_step": 15'))
    (out / "checkpoint-15" / "scheduler.pt").unlink()
    (out / "adapter_model.safetensors").unlink()
    assert paretune("train", *command) == 0
    assert same(whole, out)
    said = read_run(out)[0]["notices"]
    assert "checkpoint-16 was passed over: the bytes of trainer_state.json have changed" in said
    assert "checkpoint-15 was passed over: scheduler.pt is missing" in said and "goes on from checkpoint-10" in said

    folder = out / "checkpoint-16"  # nothing but tensors and plain values is read, whatever the manifest says
    torch.save(_Payload(tmp_path / "ran"), folder / "optimizer.pt")
    (folder / "manifest.json").unlink()
    write_manifest(folder, 16)
    assert paretune("train", *command) == 2
    assert "more than tensors and plain values" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    for path in out.glob("checkpoint-*"):
        (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    assert paretune("train", *command) == 2
    assert "its weights are in adapter_model.bin; only safetensors are read" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_said(
    model: Path, whole: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paretune("train", *words(model, rows, tmp_path / "none", "--resume")) == 2
    assert "no checkpoint to go on from" in capsys.readouterr().err
    assert paretune("train", *words(model, rows, tmp_path / "none", "--resume", tmp_path)) == 2
    assert "not a checkpoint to go on from: it has no weights" in capsys.readouterr().err
    other = write_jsonl(tmp_path / "other.jsonl", records("native", seed=1))
    shutil.copytree(whole, tmp_path / "run")
    assert paretune("train", *words(model, other, tmp_path / "run", "--lora", "{r: 4}", "--resume")) == 2
    assert "the training data changed" in capsys.readouterr().err


def test_other_settings_on_resuming_are_said(model: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed = words(model, str(whole.parent / "rows.jsonl"), out, "--lora", "{r: 4, lora_dropout: 0.1}")
    changed += ["--weight_decay", "0.1", "--take", "20", "--resume"]
    changed[changed.index(OBJECTIVES)] = "{helpful: 0.5, short: 0.5}"
    assert paretune("train", *changed) == 0
    said = [notice for notice in read_run(out)[0]["notices"] if notice.startswith("resumed with another")]
    assert [notice.split()[3].rstrip(":") for notice in said] == ["weight_decay", "objectives", "take"]


STOPPING = """
import os, pathlib, signal
FIRST = pathlib.Path(__file__).with_name("asked")
def score(prompts, completions, **columns):
    if not FIRST.exists():
        FIRST.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return [float(len(completion)) for completion in completions]
"""


def test_other_commands_stop_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    monkeypatch.chdir(tmp_path)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "responses": ["a", "bb"]}])
    command = ["label", data, "--sources", "{long: {function: 'stopping:score'}}", "--out", tmp_path / "out.jsonl"]
    assert paretune(*command) == 75
    assert "The same command goes on" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
    assert paretune(*command) == 0


def test_divergence_has_a_status_of_its_own(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ["--optim", "sgd", "--max_grad_norm", "0", "--lr_scheduler_type", "constant", "--max_skipped_steps", "2"]
    command = words(model, rows, tmp_path / "run", *hot)
    command[command.index("1e-2")] = "1e30"
    assert paretune("train", *command) == 3
    assert "not finite" in capsys.readouterr().err


def test_a_record_is_enough_to_repeat_the_run(model: Path, whole: Path, tmp_path: Path) -> None:
    import json

    assert paretune("train", "--from", whole / "run.json", "--output_dir", tmp_path / "again") == 0
    assert same(whole, tmp_path / "again") and figures(tmp_path / "again") == figures(whole)
    record = json.loads((whole / "run.json").read_text())
    assert not [notice for notice in read_run(tmp_path / "again")[0]["notices"] if "the run had" in notice]

    record["versions"]["torch"] = "1.0"
    record["config"]["of_old"] = 3
    record["data"]["train"]["rows"]["fingerprint"] = "another"
    (tmp_path / "run.json").write_text(json.dumps(record))
    more = ["--output_dir", tmp_path / "other", "--max_steps", "1", "--gradient_accumulation_steps", "1"]
    assert paretune("train", f"--from={tmp_path}", *more) == 0
    other, history = read_run(tmp_path / "other")
    assert other["config"]["max_steps"] == 1 == len([line for line in history if "loss" in line])
    assert other["settings"]["lora"] == {"r": 4, "lora_dropout": 0.1} and other["config"]["learning_rate"] == 1e-2
    said = " | ".join(other["notices"])
    assert "no setting of_old in this version, the run had 3" in said
    assert f"another version of torch: {torch.__version__}, the run had 1.0" in said
    assert "other train data: fingerprint" in said and "decided otherwise: steps_hold 2, the run had 4" in said


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        ("{", ["--output_dir", "out"], "cannot read a run's record"),
        ('{"status": "preparing"}', ["--output_dir", "out"], "not a run's record"),
        ('{"config": {}, "settings": {"model": "m", "data": "d"}}', [], "output_dir is missing"),
        (
            '{"config": {}, "settings": {"model": "m", "data": null}, "in_memory": {"data": "list of 3 rows"}}',
            ["--output_dir", "out"],
            "the run's data was no file",
        ),
    ],
)
def test_records_that_repeat_nothing(
    content: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert paretune("train", "--from", tmp_path / "run.json", *more) == 2
    assert said in capsys.readouterr().err
