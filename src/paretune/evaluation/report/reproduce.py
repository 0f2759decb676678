"""How to make a report's runs again: their configurations as files, commits, seeds and versions.

A configuration repeats what decides a run. The settings that a reader looks for stand in it in any case; of all others,
those that differ from their defaults, whatever they are: a short list of "important" ones would reproduce another run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import yaml

from paretune.evaluation.report.blocks import Block, Code, Section, Table
from paretune.evaluation.report.load import Demo, Run
from paretune.objectives import Objective

# Of a run's configuration, what is shown even at its default.
_SHOWN = (
    *("output_dir", "combiner", "c", "clip", "beta", "learning_rate", "lr_scheduler_type", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "eval_fraction", "seed"),
)
# What says how a run was started, not what it was.
_OF_THE_CALL = ("resume", "overwrite", "dry_run")
_OPTIONS = {field.name: field.default for field in fields(Objective) if field.default is not MISSING}


def how_to_reproduce(
    demos: Sequence[Demo], runs: Sequence[Run], defaults: Mapping[str, Any] | None, *, most: int
) -> Section:
    """Commands and configurations, then a table of commits, seeds and versions.

    Args:
        defaults: of a run's configuration, by field, in the plain values of run.json; None where they are not known,
            and every field is shown.
        most: configurations.
    """
    blocks: list[Block] = []
    sources: list[tuple[str, dict[str, Any]]] = [(demo.name, demo.facts) for demo in demos]
    sources += [(run.name, {**run.record, "seeds": [run.seed]}) for run in runs]
    for demo in demos:
        if demo.facts.get("command"):
            blocks.append(Code(str(demo.facts["command"]), "What made the demo's results."))
    for run in runs[:most]:
        blocks.append(
            Code(configuration(run, defaults), f"config.yaml of {run.name}: paretune train config.yaml.{_missing(run)}")
        )
    rows = []
    for name, facts in sources:
        versions = ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items())
        seeds = ", ".join(str(seed) for seed in facts.get("seeds") or [])
        rows.append([name, str(facts.get("commit") or "not recorded"), seeds or "–", versions or "–"])
    caption = "A commit with + had files that differed from it."
    blocks.append(Table(["of", "commit", "seeds", "versions"], rows, caption, words=4))
    return Section("How to reproduce", blocks)


def configuration(run: Run, defaults: Mapping[str, Any] | None) -> str:
    """A run's configuration file (YAML); `defaults` as in `how_to_reproduce`."""
    settings = _said(run.record.get("settings") or {}, ("objectives", *_OF_THE_CALL))
    config = run.record.get("config") or {}
    chosen = {key: config[key] for key in _SHOWN if config.get(key) is not None}
    chosen |= {key: value for key, value in config.items() if _differs(key, value, defaults)}
    objectives = {
        o["name"]: {k: v for k, v in o.items() if k == "weight" or (k != "name" and _differs(k, v, _OPTIONS))}
        for o in run.record["objectives"]
    }
    return yaml.safe_dump({**settings, "objectives": objectives, **chosen}, sort_keys=False, allow_unicode=True).strip()


def _missing(run: Run) -> str:
    """What a run.json does not name and the configuration therefore lacks: rows and models that were in memory."""
    settings = run.record.get("settings") or {}
    kinds = run.record.get("in_memory") or {}
    gone = {key: kinds.get(key) for key in ("model", "ref_model", "lora", "data", "eval_data") if not settings.get(key)}
    named = [
        key if kind is None else f"{key} ({kind})" for key, kind in gone.items() if kind or key in ("model", "data")
    ]
    return f" Its run.json does not name these, which were in memory or not recorded: {', '.join(named)}." * bool(named)


def _said(values: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in without and value not in (None, "", [], {})}


def _differs(key: str, value: Any, defaults: Mapping[str, Any] | None) -> bool:
    """A key without a default, of another version, differs where it says something."""
    if defaults is None:
        return True
    return bool(value != defaults[key]) if key in defaults else value is not None
