"""A checkpoint's manifest: its last file, with size and SHA-256 of every other. What verifies by it is gone on from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from paretune.files import flush_tree, write_text

MANIFEST = "manifest.json"
_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"
_NEEDED = ("optimizer.pt", "scheduler.pt", _STATE)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def write_manifest(folder: Path, step: int) -> None:
    """Flushes a checkpoint's files and lists them, the last file that is written into it."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    flush_tree(folder)
    listed = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()}
    write_text(folder / MANIFEST, json.dumps({"step": step, "files": listed}, indent=1) + "\n")


def flaw(folder: Path, *, contents: bool = True) -> str | None:
    """Why nothing goes on from this checkpoint, in words; None where it verifies.

    Args:
        folder: a checkpoint's.
        contents: compare the files' digests too, which reads all of them; else their sizes.
    """
    if not folder.is_dir():
        return "it is not there"
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    if not there.keys() & set(_WEIGHTS):
        pickled = sorted(name for name in there if name.endswith(".bin") and name != _ARGUMENTS)
        return f"its weights are in {pickled[0]}; only safetensors are read" if pickled else "it has no weights"
    if MANIFEST not in there:
        return f"it has no {MANIFEST}, which is written last"
    try:
        listed = json.loads(there[MANIFEST].read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    for name in (*_NEEDED, *expected):  # only names that are there are opened: a manifest leads nowhere else
        if name not in there or name not in expected:
            return f"{name} is missing"
    for name, (size, digest) in expected.items():
        if there[name].stat().st_size != size:
            return f"{name} has {there[name].stat().st_size} bytes, not {size}"
        if contents and _digest(there[name]) != digest:
            return f"the bytes of {name} have changed"
    return _flaw_of_state(there[_STATE])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flaw_of_state(path: Path) -> str | None:
    from transformers import TrainerState

    try:
        state = TrainerState.load_from_json(str(path))
        good = isinstance(state.global_step, int) and isinstance(state.log_history, list)
    except (OSError, ValueError, TypeError, RecursionError):
        good = False
    return None if good else f"{_STATE} is not a trainer's state"
