"""A run's directory: what is there, what may be written, where a run goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.training.manifest import flaw

if TYPE_CHECKING:
    from transformers import TrainingArguments

UNFINISHED = ".unfinished"  # the checkpoint that is being written

# Keys that do not change what is trained.
MAY_CHANGE = {
    *("resume", "overwrite", "dry_run", "disable_tqdm", "output_dir", "logging_dir", "report_to", "run_name"),
    *("dataloader_num_workers", "dataset_num_proc", "save_total_limit", "max_hours"),
}
# What a run leaves, and what starting over removes: an adapter's file beside a full model would change what is loaded.
LEFT = (
    *("run.json", "history.jsonl", "trainer_state.json", "adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
)


@dataclass(frozen=True)
class Found:
    """Where a run goes on from: a checkpoint's path or None; in words, which one, and what was passed over and why."""

    path: str | None
    notices: tuple[str, ...] = ()


def check_checkpoint(output_dir: str, resume: bool | str) -> None:
    """Raises InputError where there is nothing to go on from; a look at sizes, before anything is loaded."""
    if resume and not isinstance(resume, str):
        flaws = {path.name: flaw(path, contents=False) for path in checkpoints(output_dir)}
        if not any(wrong is None for wrong in flaws.values()):
            raise _nothing(output_dir, flaws)
    elif resume:
        _check_named(str(resume), flaw(Path(str(resume)).expanduser(), contents=False))


def find_checkpoint(args: TrainingArguments, resume: bool | str) -> Found:
    """The checkpoint to go on from: the one named, or the newest of output_dir that verifies, the same on all ranks.

    None where `resume` is False, or True and there is no checkpoint at all. The first rank reads every byte of it.

    Raises:
        InputError: the named one does not verify, or none of those that are there.
    """
    import torch

    from paretune.training.diagnostics import sum_over_ranks

    if not resume:
        return Found(None)
    named = Path(resume).expanduser() if isinstance(resume, str) else None
    there = [named] if named is not None else checkpoints(str(args.output_dir))[::-1]
    flaws: dict[str, str | None] = {}
    place = len(there)
    for i, path in enumerate(there if args.process_index == 0 else ()):
        flaws[path.name] = flaw(path)
        if flaws[path.name] is None:
            place = i
            break
    place = int(sum_over_ranks(torch.tensor([place if args.process_index == 0 else 0]), args.device))
    if place < len(there):
        over = [f"{name} was passed over: {wrong}" for name, wrong in flaws.items() if wrong is not None]
        return Found(str(there[place]), (*over, f"goes on from {there[place].name}"))
    if named is not None:
        _check_named(str(resume), flaws.get(named.name, "its files are not what its manifest says"))
    if there:
        raise _nothing(str(args.output_dir), flaws)
    return Found(None)


def _check_named(path: str, wrong: str | None) -> None:
    if wrong is not None:
        expected = "a checkpoint-N directory of a run"
        raise InputError(f"not a checkpoint to go on from: {wrong}", where=f"resume {path}", expected=expected)


def _nothing(output_dir: str, flaws: Mapping[str, str | None]) -> InputError:
    said = "; ".join(f"{name}: {wrong}" for name, wrong in flaws.items())
    fix = "Start over with --overwrite, or remove these folders." if flaws else "Start without --resume."
    return InputError("no checkpoint to go on from", where=f"output_dir {output_dir}", found=said or None, fix=fix)


def checkpoints(output_dir: str) -> list[Path]:
    """The checkpoint-N directories in order of N, complete or not."""
    found = [path for path in Path(output_dir).expanduser().glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def parts_of(output_dir: str) -> list[Path]:
    """The run directories of a method's several trainings, finished or not."""
    return sorted(path for path in (Path(output_dir).expanduser() / "parts").glob("*") if path.is_dir())


def check_free(output_dir: str, overwrite: bool) -> None:
    """Raises InputError where the directory holds a run already, unless it may be overwritten."""
    path = Path(output_dir).expanduser()
    if overwrite or not path.is_dir():
        return
    status = run_record(path).get("status")
    if status == "finished":
        fix = "Choose another output_dir, or start over with --overwrite."
        raise InputError("a finished run is there", where=f"output_dir {output_dir}", fix=fix)
    if checkpoints(output_dir) or parts_of(output_dir):
        fix = "Go on with --resume, or start over with --overwrite."
        raise InputError("checkpoints of an unfinished run are there", where=f"output_dir {output_dir}", fix=fix)


def run_record(path: Path) -> dict[str, Any]:
    """The run.json of a directory; empty where there is none that can be read."""
    try:
        content = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    mappings = ("settings", "config", "data", "method", "decided", "final")
    whole = isinstance(content, dict) and all(isinstance(content.get(key, {}), dict) for key in mappings)
    return content if whole else {}


def check_same_data(record: dict[str, Any], output_dir: str) -> None:
    """Raises InputError where the training data is not what the run began with: its steps would be other ones."""

    def fingerprint(content: dict[str, Any]) -> Any:
        found: Any = content.get("data")
        for key in ("train", "rows", "fingerprint"):
            found = found.get(key) if isinstance(found, dict) else None
        return found

    before = fingerprint(run_record(Path(output_dir)))
    if before is not None and before != fingerprint(record):
        fix = "Give the data that the run began with, or start over with --overwrite."
        raise InputError("the training data changed since the run began", where="resume", fix=fix)


def changed_settings(record: dict[str, Any], output_dir: str, config: dict[str, Any]) -> list[str]:
    """What a resumed run is told to do otherwise than before, a sentence each.

    Args:
        record: content of the new run.json, with its `settings`.
        output_dir: holds the run.json from before.
        config: the new configuration's fields, as plain values.
    """
    before = run_record(Path(output_dir))
    parts = [
        (before.get("config", {}), config),
        (_settings(before), _settings(record)),
    ]
    return [
        f"resumed with another {key}: {now[key]}, before {old[key]}"
        for old, now in parts
        for key in sorted(old.keys() & now.keys() - MAY_CHANGE)
        if old[key] != now[key]
    ]


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """The command's own keys, and the objectives as they were resolved, however they were written."""
    return {**record.get("settings", {}), "objectives": record.get("objectives")}


def clear(output_dir: str) -> None:
    """Removes what an earlier run left there, and nothing else."""
    path = Path(output_dir).expanduser()
    for name in LEFT:
        (path / name).unlink(missing_ok=True)
    for pattern in ("model-*-of-*.safetensors",):
        for part in path.glob(pattern):
            part.unlink()
    for old in [*checkpoints(output_dir), path / UNFINISHED]:
        shutil.rmtree(old, ignore_errors=not old.exists())
