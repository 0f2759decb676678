"""What a checkpoint's manifest shows, and which checkpoint a run goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.training.manifest import flaw, write_manifest
from paretune.training.rundir import check_checkpoint, find_checkpoint
from tests.runs_made import small_config


def made(folder: Path, step: int) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (place / name).write_bytes(name.encode())
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    write_manifest(place, step)
    return place


def _manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content["files"])
    (folder / "manifest.json").write_text(json.dumps(content))


def _state(folder: Path, text: str) -> None:
    (folder / "trainer_state.json").write_text(text)
    (folder / "manifest.json").unlink()
    write_manifest(folder, 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "optimizer.pt").write_bytes(b"Optimizer.pt"), "the bytes of optimizer.pt have changed"),
        (lambda f: (f / "rng_state.pth").write_bytes(b""), "rng_state.pth has 0 bytes, not 13"),
        (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda f: (f / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("["), "its manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "its manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"files": {"a": 1}}'), "its manifest.json cannot be read"),
        (lambda f: _manifest(f, lambda files: files.pop("optimizer.pt")), "optimizer.pt is missing"),
        (lambda f: _manifest(f, lambda files: files.update({"../x": files["optimizer.pt"]})), "../x is missing"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "only safetensors are read"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "it has no weights"),
        (lambda f: _state(f, '{"global_step": "one"}'), "trainer_state.json is not a trainer's state"),
        (lambda f: _state(f, '{"other": 1}'), "trainer_state.json is not a trainer's state"),
    ],
)
def test_flaws_are_found_and_an_older_checkpoint_is_taken(harm: Any, said: str, tmp_path: Path) -> None:
    args = small_config(tmp_path)
    run = Path(str(args.output_dir))
    older, newer = made(run, 9), made(run, 10)
    assert flaw(newer) is None and find_checkpoint(args, True).path == str(newer)
    harm(newer)
    assert said in str(flaw(newer))
    found = find_checkpoint(args, True)
    assert found.path == str(older)
    assert len(found.notices) == 2 and said in found.notices[0] and found.notices[1] == "goes on from checkpoint-9"
    with pytest.raises(InputError, match="not a checkpoint to go on from"):
        find_checkpoint(args, str(newer))
    (older / "optimizer.pt").unlink()
    for call in (lambda: find_checkpoint(args, True), lambda: check_checkpoint(str(run), True)):
        if "bytes of" not in said:  # a look at sizes does not see it
            with pytest.raises(InputError, match="checkpoint-9: optimizer.pt is missing"):
                call()


def test_without_a_checkpoint_a_run_starts_where_nobody_asked_it_not_to(tmp_path: Path) -> None:
    args = small_config(tmp_path)
    assert find_checkpoint(args, False).path is None and find_checkpoint(args, True).path is None
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        check_checkpoint(str(args.output_dir), True)
