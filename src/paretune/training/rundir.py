"""A run's directory: what is there, what may be written, where a run goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from paretune.errors import InputError

# Keys that do not change what is trained.
MAY_CHANGE = {
    *("resume", "overwrite", "dry_run", "disable_tqdm", "output_dir", "logging_dir", "report_to", "run_name"),
    *("dataloader_num_workers", "dataset_num_proc", "save_total_limit"),
}
# What a run leaves, and what starting over removes: an adapter's file beside a full model would change what is loaded.
LEFT = (
    *("run.json", "history.jsonl", "trainer_state.json", "adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
)


def find_checkpoint(output_dir: str, resume: bool | str) -> str | None:
    """The checkpoint to go on from; None to start anew.

    A checkpoint is complete when its trainer_state.json, which is written last, is whole: a run killed while it saved
    goes on from the one before.

    Raises:
        InputError: asked to resume where there is nothing to resume from.
    """
    if resume is False or resume == "":
        return None
    if isinstance(resume, str):
        if not _complete(Path(resume).expanduser()):
            raise InputError("not a complete checkpoint", where=f"resume {resume}", expected="a checkpoint-N directory")
        return str(Path(resume).expanduser())
    found = checkpoint_of(output_dir, resume)
    if found is None:
        raise InputError("no checkpoint to go on from", where=f"output_dir {output_dir}", fix="Start without --resume.")
    return found


def checkpoint_of(output_dir: str, resume: bool | str) -> str | None:
    """The same, but True starts anew where there is nothing to resume from."""
    if isinstance(resume, str) or not resume:
        return find_checkpoint(output_dir, resume)
    found = [path for path in checkpoints(output_dir) if _complete(path)]
    return str(found[-1]) if found else None


def checkpoints(output_dir: str) -> list[Path]:
    """The checkpoint-N directories in order of N, complete or not."""
    found = [path for path in Path(output_dir).expanduser().glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def parts_of(output_dir: str) -> list[Path]:
    """The run directories of a method's several trainings, finished or not."""
    return sorted(path for path in (Path(output_dir).expanduser() / "parts").glob("*") if path.is_dir())


def _complete(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (path / "optimizer.pt").exists()


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
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_same_data(record: dict[str, Any], output_dir: str) -> None:
    """Raises InputError where the training data is not what the run began with: its steps would be other ones."""

    def fingerprint(content: dict[str, Any]) -> Any:
        return content.get("data", {}).get("train", {}).get("rows", {}).get("fingerprint")

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
    for old in checkpoints(output_dir):
        shutil.rmtree(old)
