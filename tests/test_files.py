"""Files are whole or not there, whatever ends the writer, and on a disk that is full at each of our writes."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from paretune import files
from paretune.comparisons.conditions import Prefix, write_prefix
from paretune.errors import InputError
from paretune.files import DiskFullError, said_if_full, whole_file, whole_files, write_text
from paretune.pipelines.front.run import _log
from paretune.pipelines.labelling import write_labelled
from paretune.pipelines.sampling import PromptRow, ResponseFile, SamplingSettings
from paretune.policy.reference_cache import write_part
from paretune.preferences.answers import AnswerStore
from paretune.training.manifest import flaw
from paretune.training.record import HistoryCallback, write_json
from tests.cli.made import paretune, read_run, records, save_model, saved_weights, write_jsonl

LONG = "x" * 200_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system of its own cannot be mounted here (it needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _sampled(folder: Path) -> None:
    file = ResponseFile(folder / "r.jsonl", SamplingSettings("model"))
    try:
        file.add([(PromptRow("p", {}, "key"), [LONG])])
    finally:
        file.close()


def _history(folder: Path) -> None:
    HistoryCallback(str(folder)).on_log(None, TrainerState(), TrainerControl(), {"loss": LONG})  # type: ignore[arg-type]


def _several(folder: Path) -> None:
    with whole_files(folder / "model") as aside:
        (aside / "config.json").write_text("{}")
        (aside / "weights").write_text(LONG)


def _asked(folder: Path) -> None:
    store = AnswerStore(folder / "answers.sqlite")
    store.keep({i.to_bytes(16, "big"): 0.5 for i in range(20_000)})


WRITERS: dict[str, Callable[[Path], Any]] = {
    "run.json": lambda folder: write_json(folder / "run.json", {"notices": LONG}),
    "history.jsonl": _history,
    "a model": _several,
    "attempts.jsonl": lambda folder: _log(folder, {"error": LONG}),
    "train.jsonl": lambda folder: write_labelled([{"prompt": LONG}], {}, folder / "train.jsonl"),
    "conditions.json": lambda folder: write_prefix(folder, Prefix("{values}"), note=LONG),
    "r.jsonl": _sampled,
    "part.safetensors": lambda folder: write_part(
        folder, torch.arange(20_000), torch.zeros(2, 20_000).double(), "part.safetensors"
    ),
    "answers.sqlite": _asked,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_at_each_write_and_harms_nothing(name: str, disk: Path) -> None:
    kept = disk / name
    if name not in ("a model", "answers.sqlite", "r.jsonl"):
        kept.write_text("before\n")
    with pytest.raises(DiskFullError, match=r"no room on the disk.*MB free in .*Make room") as error:
        WRITERS[name](disk)
    assert str(disk) in error.value.where
    if kept.is_file() and name not in ("answers.sqlite", "r.jsonl"):
        assert kept.read_text().startswith("before\n")
    assert not (disk / "model" / "config.json").exists(), "all files or none"
    assert not [path for path in disk.rglob("*") if path.suffix == ".part"]


def test_training_on_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, disk: Path, capsys: Any) -> None:
    model, rows = save_model(tmp_path / "model"), write_jsonl(tmp_path / "rows.jsonl", records("native"))
    out = disk / "run"
    common = ["--model", model, "--data", rows, "--objectives", "{helpful: 0.6, short: 0.4}", "--use_cpu", "true"]
    length = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--save_steps", "3"]
    command = ["train", *common, *length, "--max_steps", "6", "--learning_rate", "1e-2"]
    assert paretune(*command, "--output_dir", tmp_path / "whole") == 0
    size = sum(path.stat().st_size for path in (tmp_path / "whole" / "checkpoint-3").iterdir())

    def resize(room: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={room}", str(disk)], check=True)

    resize(int(1.6 * size))
    capsys.readouterr()
    assert paretune(*command, "--output_dir", out) == 2
    said = capsys.readouterr().err
    assert f"{out / 'checkpoint-6'}: no room on the disk" in said and "MB free" in said
    assert flaw(out / "checkpoint-3") is None and {path.name for path in out.glob(".*")} == set()
    record, history = read_run(out)
    assert record["status"] == "failed" and "no room" in record["final"]["error"] and history
    resize(8 * size)
    assert paretune(*command, "--output_dir", out, "--resume") == 0
    expected = saved_weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[key]) for key, value in saved_weights(out).items())


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "x.txt", "first")
    for error in (ValueError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)), whole_file(tmp_path / "a" / "x.txt") as neighbour:
            neighbour.write_text("half")
            raise error
    with pytest.raises(ValueError), whole_files(tmp_path / "a") as aside:
        (aside / "x.txt").write_text("half")
        raise ValueError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.txt"]
    assert (tmp_path / "a" / "x.txt").read_text() == "first"
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = platform.node().replace(".", "-")
    (tmp_path / "a" / f".{machine}.{dead.pid}.part").mkdir()  # as killed processes leave them
    (tmp_path / "a" / f".y.txt.{machine}.{dead.pid}.part").touch()
    others = {f".{machine}.{os.getppid()}.part", f".elsewhere.{dead.pid}.part"}
    for name in others:
        (tmp_path / "a" / name).touch()
    with whole_files(tmp_path / "a") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "y.txt").write_text("second")
    assert (tmp_path / "a" / "sub" / "y.txt").read_text() == "second" and (tmp_path / "a" / "x.txt").exists()
    assert {path.name for path in (tmp_path / "a").glob(".*")} == others, "what nobody writes any more is removed"


def test_the_neighbour_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    flush, replace = files.flush, Path.replace
    monkeypatch.setattr(files, "flush", lambda path: (seen.append(f"flush {path.name[:2]}"), flush(path))[1])
    monkeypatch.setattr(Path, "replace", lambda self, other: (seen.append("rename"), replace(self, other))[1])
    write_text(tmp_path / "x.txt", "content")
    assert seen == ["flush .x", "rename", f"flush {tmp_path.name[:2]}"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (InputError("No space left on device"), False),
    ],
)
def test_what_counts_as_a_full_disk(error: Exception, full: bool, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError if full else type(error)), said_if_full(tmp_path / "new" / "file"):
        raise error
