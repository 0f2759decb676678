"""A run's record as a configuration: what a run was, as settings of another one, and in what the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.errors import InputError

# Of the run, not of what it trains.
_NOT_AGAIN = {"output_dir", "logging_dir", "run_name", "resume", "overwrite", "dry_run", "disable_tqdm", "scheme"}
_MAPPINGS = ("versions", "data", "decided", "method", "in_memory")


def read_record(path: str) -> dict[str, Any]:
    """A run.json, or that of a run's folder.

    Raises:
        InputError: it cannot be read, or is none.
    """
    place = Path(path).expanduser()
    place = place / "run.json" if place.is_dir() else place
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read a run's record: {error}", where=f"from {path}") from error
    needed = isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in ("config", "settings"))
    if not needed or not all(isinstance(record.get(key) or {}, dict) for key in _MAPPINGS):
        fix = "Give the run.json of a run that began to train."
        raise InputError("not a run's record", where=f"from {path}", expected="its config and settings", fix=fix)
    return record


def settings_of(record: Mapping[str, Any], defaults: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The run's settings, by key, as a configuration file has them.

    Args:
        record: of `read_record`.
        defaults: of the configuration, in plain values; fields that the run left at them are left out.
        known: keys that there are; others of the record are of another version, which `differences` names.
    """
    config = {key: value for key, value in record["config"].items() if defaults.get(key) != value}
    settings = {key: value for key, value in record["settings"].items() if value is not None}
    method = record.get("method") or {}
    if method.get("name") not in (None, record["config"].get("combiner")):
        settings = {"method": method["name"], "method_options": method.get("options") or None, **settings}
    values = {"objectives": record.get("objectives_given") or record.get("objectives"), **config, **settings}
    keys = set(known)
    return {key: value for key, value in values.items() if key in keys and key not in _NOT_AGAIN}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two runs' records differ beside the values of settings, a sentence each: versions, commit, data, settings
    that are not there any more, what was decided by looking at the model. Only what both name is compared."""

    def each(name: str) -> list[tuple[str, Any, Any]]:
        old, new = before.get(name) or {}, now.get(name) or {}
        return [(key, old[key], new[key]) for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]

    said = [f"another version of {key}: {new}, the run had {old}" for key, old, new in each("versions")]
    old, new = before.get("commit"), now.get("commit")
    if old and new and old != new:
        said.append(f"another version of the code: commit {new}, the run had {old}")
    for key, old, new in each("data"):
        was, found = _fingerprint(old), _fingerprint(new)
        if None not in (was, found) and was != found:
            said.append(f"other {key} data: fingerprint {found}, the run had {was}")
    config, known = before.get("config") or {}, now.get("config") or {}
    said += [f"no setting {key} in this version, the run had {config[key]}" for key in sorted(config.keys() - known)]
    for key, old, new in each("decided"):
        said.append(f"decided otherwise: {key} {new}, the run had {old}")
    return said


def _fingerprint(data: Any) -> Any:
    rows = data.get("rows") if isinstance(data, dict) else None
    return rows.get("fingerprint") if isinstance(rows, dict) else None
