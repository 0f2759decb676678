"""A run's record as a configuration: what a run was, as settings of another one, and in what the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.errors import InputError

# Of the run, not of what it trains.
_NOT_AGAIN = {"output_dir", "logging_dir", "run_name", "resume", "overwrite", "dry_run", "disable_tqdm", "scheme"}


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
    if not isinstance(record, dict) or not all(
        isinstance(value, dict) for value in (record.get("config"), record.get("settings"), record.get("method") or {})
    ):
        fix = "Give the run.json of a run that began to train."
        raise InputError("not a run's record", where=f"from {path}", expected="its config and settings", fix=fix)
    return record


def settings_of(record: Mapping[str, Any], defaults: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The run's settings, by key, as a configuration file has them.

    Args:
        record: of `read_record`.
        defaults: of the configuration, in plain values; fields that the run left at them are left out.
        known: keys that there are; others of the record are of another version.

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
    """In what two runs' records differ beside their settings, a sentence each: versions, commit, data, rows of a step.

    Only what both name is compared.
    """

    def each(name: str) -> list[tuple[str, Any, Any]]:
        old, new = before.get(name) or {}, now.get(name) or {}
        return [(key, old[key], new[key]) for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]

    said = [f"another version of {key}: {new}, the run had {old}" for key, old, new in each("versions")]
    old, new = before.get("commit"), now.get("commit")
    if old and new and old != new:
        said.append(f"another version of the code: commit {new}, the run had {old}")
    for key, old, new in each("data"):
        prints = [part.get("rows", {}).get("fingerprint") for part in (old, new)]
        if None not in prints and prints[0] != prints[1]:
            said.append(f"other {key} data: fingerprint {prints[1]}, the run had {prints[0]}")
    for key, old, new in each("decided"):
        said.append(f"decided otherwise: {key} {new}, the run had {old}")
    return said
