"""What a front consists of: methods, weightings, seeds; and the cells that they come to, each known by its meaning.

A cell is one training, or one reading of a training at other weights, with its scores. Its digest is of all that
decides its result (settings, data, weights, seed, scoring, the cells it needs), so a finished cell is found again while
nothing of that changed, and a changed one is another cell beside it. The code is not part of the digest: a front of
hours would start over with every release. Each cell records the code it came from, and a front of several says so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paretune.errors import SHAPES, InputError
from paretune.objectives import Objective, as_dicts
from paretune.pipelines.methods import find_method
from paretune.sandbox.language import BASE_STEPS
from paretune.training.record import plain
from paretune.training.rundir import MAY_CHANGE

BASE, SINGLE = "base", "single"
_NO_MATTER = MAY_CHANGE | {"dataloader_pin_memory", "seed"}  # the seed is the cell's own


@dataclass(frozen=True)
class Entry:
    """A method as the front compares it.

    Args:
        method: a key of `METHODS`.
        label: its name in tables; two entries of one method differ in it.
        settings: fields of `RACOConfig` over those of the front.
        options: the method's own.
    """

    method: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorldPlan:
    """A world of the sandbox that makes base, comparisons and exact scores itself, anew for every seed.

    Args:
        labelling: a preset of `sandbox.labels`.
        kappa: inverse noise of the labellers.
        prompts: that comparisons are sampled for, and `pairs_per_prompt` of each at most.
        base_steps: of training the base.
        oracle_of: samples per prompt among which the oracle chooses.
    """

    name: str
    labelling: str = "clean"
    kappa: float = 6.0
    prompts: int = 400
    pairs_per_prompt: int = 3
    base_steps: int = BASE_STEPS
    oracle_of: int = 64


@dataclass(frozen=True)
class Scoring:
    """How a policy is scored: by fresh samples for held-out prompts, or without any by held-out comparisons.

    Args:
        sources: objective -> what scores (`scoring.score_source`); none for a world, or where nothing is sampled.
        prompts: where they are read from (`data` of any layout, or rows with a prompt); None for a world, or where
            nothing is sampled.
        eval_prompts: how many of them.
        eval_samples: responses to each.
        temperatures: of the samples; the first is the one that indicators are shown of.
        max_new_tokens: of a response.
        measure: without samples, what is measured of the held-out comparisons: accuracy or margin.
    """

    sources: Mapping[str, Any] = field(default_factory=dict)
    prompts: Any = None
    eval_prompts: int = 256
    eval_samples: int = 4
    temperatures: tuple[float, ...] = (1.0, 0.6)
    max_new_tokens: int = 256
    measure: str = "accuracy"


@dataclass(frozen=True)
class Plan:
    """All that decides what a front's cells are.

    Args:
        objectives: m of them; their weights are the weightings' matter.
        weightings: each (m,), on the simplex, none a vertex: those are the single-objective runs.
        config: fields of `RACOConfig`.
        reading, loading: `data_options` and `model_options` of `RACOTrainer`.
        keep_models: False removes weights once nothing needs them any more.
    """

    objectives: tuple[Objective, ...]
    entries: tuple[Entry, ...]
    weightings: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    config: Mapping[str, Any]
    model: str | None = None
    data: Any = None
    eval_data: Any = None
    ref_model: str | None = None
    adapter: Any = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    world: WorldPlan | None = None
    scoring: Scoring = field(default_factory=Scoring)
    keep_models: bool = True

    @property
    def names(self) -> list[str]:
        return [o.name for o in self.objectives]

    @property
    def samples(self) -> bool:
        """Whether scores are of fresh samples."""
        return self.world is not None or self.scoring.prompts is not None

    @property
    def temperatures(self) -> tuple[float, ...]:
        return self.scoring.temperatures if self.samples else (0.0,)

    def entry(self, label: str) -> Entry:
        if label == SINGLE:
            return Entry("single", SINGLE)
        return next(entry for entry in self.entries if entry.label == label)


@dataclass(frozen=True)
class Cell:
    """One unit of work.

    Args:
        kind: "base" scores what training starts from (and makes a world's base and data); "train" trains and scores;
            "trunk" trains without a score of its own; "read" scores a trunk at other weights.
        label: the entry's, "base" or "single".
        weights: (m,); None where they are ignored.
        needs: names of the cells that must be finished first.
        digest: of the cell's meaning.
    """

    kind: str
    label: str
    weights: tuple[float, ...] | None
    seed: int
    needs: tuple[str, ...] = ()
    meaning: Mapping[str, Any] = field(default_factory=dict, compare=False)
    digest: str = ""

    @property
    def name(self) -> str:
        return "-".join([self.label, *(f"{w:.3f}" for w in self.weights or ()), f"s{self.seed}"])

    @property
    def folder(self) -> str:
        """Of its files, within the front's."""
        return f"cells/{self.name}-{self.digest[:8]}"


def even_weightings(m: int, n: int) -> list[tuple[float, ...]]:
    """An even grid of at least n weightings inside the simplex: all of k/h with whole k >= 1 and the least h that gives
    so many. With two objectives that is exactly n, from 1/(n+1) to n/(n+1).

    Raises:
        InputError: fewer than one weighting, or fewer than two objectives.
    """
    if m < 2 or n < 1:
        found = f"{n} weightings of {m} objectives"
        raise InputError("no front", expected="at least one weighting of two objectives", found=found)
    steps = m
    while math.comb(steps - 1, m - 1) < n:
        steps += 1
    cuts = itertools.combinations(range(1, steps), m - 1)
    parts = (np.diff((0, *cut, steps)) for cut in cuts)
    return [tuple(float(k) / steps for k in part) for part in parts]


def make_cells(plan: Plan) -> list[Cell]:
    """All cells, each behind what it needs: by seed, and within it base, end points, methods."""
    m = len(plan.objectives)
    even = tuple([1 / m] * m)
    cells: list[Cell] = []
    for seed in plan.seeds:
        base = Cell("base", BASE, None, seed)
        singles = [Cell("train", SINGLE, tuple(float(j == i) for j in range(m)), seed, (base.name,)) for i in range(m)]
        cells += [base, *singles]
        for entry in plan.entries:
            method = find_method(entry.method)
            needs = (base.name, *(single.name for single in singles if method.needs_singles))
            if method.steerable:
                trunk = Cell("trunk", entry.label, None, seed, needs)
                cells.append(trunk)
                cells += [Cell("read", entry.label, w, seed, (*needs, trunk.name)) for w in plan.weightings]
            elif method.uses_weights:
                cells += [Cell("train", entry.label, w, seed, needs) for w in plan.weightings]
            else:
                cells.append(Cell("train", entry.label, None, seed, needs))
    return _with_digests(plan, cells, even)


def _with_digests(plan: Plan, cells: Sequence[Cell], even: tuple[float, ...]) -> list[Cell]:
    known: dict[str, str] = {}
    out = []
    shared = _shared(plan)
    for cell in cells:
        content = {**shared, "kind": cell.kind, "weights": cell.weights or even, "seed": cell.seed}
        if cell.kind != "base":
            entry = plan.entry(cell.label)
            config = {k: v for k, v in {**plan.config, **entry.settings}.items() if k not in _NO_MATTER}
            content |= {"method": entry.method, "options": dict(entry.options), "config": config}
            content["adapter"] = repr(plan.adapter)
        if cell.kind == "trunk":
            content.pop("scoring")  # it has no score
        content["needs"] = [known[name] for name in cell.needs]
        content = plain(content)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        if cell.name in known:
            raise InputError("two cells have one name", where="weightings", found=cell.name, fix="Take them apart.")
        known[cell.name] = digest
        out.append(replace(cell, meaning=content, digest=digest))
    return out


def _shared(plan: Plan) -> dict[str, Any]:
    objectives = as_dicts([replace(o, weight=1.0) for o in plan.objectives])
    scoring = asdict(plan.scoring)
    unused = (
        ("sources", "prompts", "max_new_tokens", "measure")
        if plan.world
        else ("measure",)
        if plan.samples
        else ("sources", "prompts", "eval_prompts", "eval_samples", "temperatures", "max_new_tokens")
    )
    for key in unused:
        scoring.pop(key)
    if "prompts" in scoring:
        scoring["prompts"] = fingerprint(plan.scoring.prompts)
    common = {"objectives": objectives, "scoring": scoring}
    if plan.world is not None:
        return {**common, "world": asdict(plan.world)}
    held_out = {} if plan.samples else {"eval_data": fingerprint(plan.eval_data)}
    data = {"data": fingerprint(plan.data), "reading": dict(plan.reading), "loading": dict(plan.loading)}
    return {**common, **data, **held_out, "model": fingerprint(plan.model), "ref_model": fingerprint(plan.ref_model)}


def fingerprint(data: Any) -> Any:
    """Data by its content where it is a file of this machine, and as it was named otherwise.

    A directory (a model's) goes by its path: hashing gigabytes at every start would cost more than it saves.
    """
    if isinstance(data, str):
        path = Path(data).expanduser()
        return f"{path.name} {_content(str(path), path.stat().st_mtime_ns)}" if path.is_file() else data
    if isinstance(data, list | tuple):
        return [fingerprint(entry) for entry in data]
    if isinstance(data, dict):
        return {k: fingerprint(v) if k == "path" or "path" not in data else v for k, v in data.items()}
    return data


@cache
def _content(path: str, changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def finished(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell left; None where it is not finished."""
    try:
        content = json.loads((folder / cell.folder / "cell.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("digest") == cell.digest else None


def superseded(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """Finished cells in the folder that this plan does not use although it has cells of their names: in words, what
    changed for how many."""
    used, names = {Path(cell.folder).name for cell in cells}, {cell.name: cell for cell in cells}
    counts: dict[str, int] = {}
    for entry in sorted(os.scandir(folder / "cells"), key=lambda e: e.name) if (folder / "cells").is_dir() else ():
        cell = names.get(entry.name.rpartition("-")[0])
        if cell is None or entry.name in used:
            continue
        try:
            before = json.loads((Path(entry.path) / "cell.json").read_text(encoding="utf-8"))["meaning"]
            what = ", ".join(_changes(before, dict(cell.meaning))) or "what it needs"
        except (OSError, *SHAPES):
            continue
        counts[what] = counts.get(what, 0) + 1
    return [
        f"{n} finished {'cell' if n == 1 else 'cells'} of other settings not used: {what}" for what, n in counts.items()
    ]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, nested ones with dots, each with both values where they are short."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new or key == "needs":
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{prefix}{key}.")
        else:
            shown = f" ({old} before, {new} now)" if len(f"{old}{new}") < 60 else ""
            found.append(f"{prefix}{key}{shown}")
    return found
