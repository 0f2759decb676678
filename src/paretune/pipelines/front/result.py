"""What a front's cells come to: `front.json`, with every cell, the scale, indicators, differences, and what made it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluation.indicators import scaled, volume
from paretune.evaluation.indicators_compare import (
    EXPLORATORY,
    PROMPT_DRAWS,
    Fronts,
    differences,
    dominated_shares,
    estimates,
    indicator_values,
    resampled_fronts,
)
from paretune.pipelines.front.plan import BASE, SINGLE, Cell, Plan
from paretune.pipelines.front.run import attempts
from paretune.pipelines.front.scoring import temperature_key
from paretune.pipelines.methods import find_method
from paretune.sandbox import WORLDS
from paretune.training.record import commit, plain, versions

Floats = NDArray[np.float64]
Found = Mapping[str, Mapping[str, Any]]
BASELINES = ("linear", "raco")
SAMPLED_DRAWS = 2000  # of a volume by Monte Carlo within a bootstrap, where thousands of them are needed


def collect(
    plan: Plan,
    cells: Sequence[Cell],
    found: Found,
    failed: Mapping[str, str],
    folder: Path,
    references: Sequence[Sequence[float]],
    notices: Sequence[str],
) -> dict[str, Any]:
    """The content of front.json.

    Args:
        found, failed: as `run_front` returns them.
        references: reference points in scaled units, the declared one first.
        notices: what had to be said before.
    """
    keys = [temperature_key(t) for t in plan.temperatures]
    notices = [*notices, *_notices(found, failed)]
    labels, seeds, left_out = complete(plan, cells, found)
    notices += left_out
    content: dict[str, Any] = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions(),
        "command": " ".join(["paretune", *sys.argv[1:]]),
        "objectives": plan.names,
        "units": units(plan),
        "measure": _measure(plan),
        "methods": [
            {**asdict(entry), "title": find_method(entry.method).title, "source": find_method(entry.method).source}
            for entry in plan.entries
        ],
        "weightings": [dict(zip(plan.names, w, strict=True)) for w in plan.weightings],
        "seeds": list(plan.seeds),
        "prompts": prompt_count(found),
        "eval_samples": plan.scoring.eval_samples if plan.samples else None,
        "cells": [_cell(plan, cell, found[cell.name], folder) for cell in cells if cell.name in found],
        "failed": [{"name": name, "error": error} for name, error in failed.items()],
        "references": [dict(zip(plan.names, map(float, point), strict=True)) for point in references],
        "temperatures": {},
    }
    for key in keys if labels and seeds else ():
        part, said = _compared(plan, cells, found, key, labels, seeds, references)
        content["temperatures"][key] = part
        notices += [notice for notice in said if notice not in notices]
    content["notices"] = notices
    content["worlds"] = [_world(plan, cells, found, keys[0])]
    return dict(plain(content))


def scored_cells(cells: Sequence[Cell], label: str, seed: int) -> list[Cell]:
    return [c for c in cells if c.label == label and c.seed == seed and c.kind in ("train", "read", "base")]


def complete(plan: Plan, cells: Sequence[Cell], found: Found) -> tuple[list[str], list[int], list[str]]:
    """Methods and seeds that can be compared: a seed counts for all methods or for none, so that all are paired.

    Returns:
        Labels with at least one whole seed, seeds that are whole for all of these, and in words what is left out.
    """

    def whole(label: str, seed: int) -> bool:
        return all(c.name in found for name in (BASE, SINGLE, label) for c in scored_cells(cells, name, seed))

    labels = [e.label for e in plan.entries if any(whole(e.label, seed) for seed in plan.seeds)]
    seeds = [seed for seed in plan.seeds if all(whole(label, seed) for label in labels)]
    said = [
        f"{e.label} has no seed without failed cells and is left out" for e in plan.entries if e.label not in labels
    ]
    if lost := [str(seed) for seed in plan.seeds if seed not in seeds]:
        said.append(f"seed {', '.join(lost)} left out of all comparisons, because cells failed there")
    return labels, seeds, said


def _compared(
    plan: Plan,
    cells: Sequence[Cell],
    found: Found,
    key: str,
    labels: Sequence[str],
    seeds: Sequence[int],
    references: Sequence[Sequence[float]],
) -> tuple[dict[str, Any], list[str]]:
    """Indicators, differences and dominated shares at one temperature."""
    low, high, notices, how = scale(plan, cells, found, key, seeds)

    def table(label: str, per_prompt: bool) -> Floats:
        """(S, k, m), or (S, k, P, m) with each prompt's scores."""
        rows = [[_scores(plan, found[c.name], key, per_prompt) for c in scored_cells(cells, label, s)] for s in seeds]
        return scaled(np.array(rows, dtype=np.float64), low, high)

    corners = [np.asarray(point, dtype=np.float64) for point in references]
    fronts = Fronts({label: table(label, False) for label in labels}, table(SINGLE, False))
    soup = next((e.label for e in plan.entries if "soup" in e.method and e.label in labels), None)
    values = indicator_values(fronts, corners, soup=soup)
    resampled = None
    if len(seeds) == 1:
        own = {label: table(label, True)[0] for label in labels}
        again = resampled_fronts(own, table(SINGLE, True)[0])
        resampled = indicator_values(again, corners, soup=soup, draws=SAMPLED_DRAWS)
    example = volume(fronts.whole(labels[0], 0), corners[0])
    found_by = {
        "scale": {n: [float(a), float(b)] for n, a, b in zip(plan.names, low, high, strict=True)},
        "scale_from": how,
        "unit": "seeds" if len(seeds) > 1 else "prompts",
        "seeds": list(seeds),
        "exploratory": len(seeds) < EXPLORATORY,
        "volume": {"how": example.how, "error": example.error, "method": labels[0]},
        "draws": 2000 if resampled is None else PROMPT_DRAWS,
        "soup": soup,
        "indicators": {m: {k: vars(v) for k, v in of.items()} for m, of in estimates(values, resampled).items()},
        "by_seed": {m: {k: v.tolist() for k, v in of.items()} for m, of in values.items()},
        "differences": {
            base: differences(values, resampled, base) for base in _baselines(plan, labels) if len(labels) > 1
        },
        "dominated": dominated_shares(fronts),
    }
    return found_by, notices


def _baselines(plan: Plan, labels: Sequence[str]) -> list[str]:
    """The methods that others are compared with; of two methods, one: the other way round says the same."""
    found = [e.label for name in BASELINES for e in plan.entries if e.method == name and e.label in labels]
    return found[:1] if len(labels) == 2 else found


def scale(
    plan: Plan, cells: Sequence[Cell], found: Found, key: str, seeds: Sequence[int]
) -> tuple[Floats, Floats, list[str], str]:
    """Where each objective's scale begins (the base: 0) and ends (1): the oracle, which chooses among the base's
    samples by the true scores, where the world has one, else the run on that objective alone. Means over seeds.

    Returns:
        (m,) low, (m,) high, what has to be said, and what 1 is.
    """
    bases = [found[c.name] for s in seeds for c in scored_cells(cells, BASE, s)]
    low = np.mean([_scores(plan, base, key, False) for base in bases], axis=0)
    how = "oracle" if all("oracle" in base for base in bases) else "single"
    if how == "oracle":
        high = np.mean([[max(p["scores"][n] for p in base["oracle"]) for n in plan.names] for base in bases], axis=0)
    else:
        ends = [[_scores(plan, found[c.name], key, False) for c in scored_cells(cells, SINGLE, s)] for s in seeds]
        high = np.mean(ends, axis=0).max(0)
    notices = []
    for i, name in enumerate(plan.names):
        if not high[i] > low[i]:
            of_all = [_scores(plan, one, key, False)[i] for one in found.values() if key in one.get("temperatures", {})]
            span = max(abs(score - low[i]) for score in of_all) or 1.0
            high[i] = low[i] + span
            notices.append(
                f"{name}: no {'oracle' if how == 'oracle' else 'single-objective run'} is above the base; its scale is "
                "the largest distance of any score from the base"
            )
    return low, high, notices, how


def _scores(plan: Plan, content: Mapping[str, Any], key: str, per_prompt: bool) -> Floats:
    """(m,), or (P, m) of each prompt."""
    part = content["temperatures"][key]
    if per_prompt:
        return np.array(part["prompts"], dtype=np.float64)  # null becomes NaN
    return np.array([part["scores"][name] for name in plan.names], dtype=np.float64)


def _cell(plan: Plan, cell: Cell, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A cell's line: what it is, its scores, what it cost, how often it was started."""
    weights = None if cell.weights is None else dict(zip(plan.names, cell.weights, strict=True))
    log = attempts(folder / cell.folder)
    run = content.get("run")
    return {
        "name": cell.name,
        "kind": cell.kind,
        "label": cell.label,
        "weights": weights,
        "seed": cell.seed,
        "folder": cell.folder,
        "run": None if run is None else f"cells/{run}",
        "scores": {key: {"scores": part["scores"], "ci": part["ci"], "extras": part.get("extras", {})}
                   for key, part in content.get("temperatures", {}).items()},
        "kl": content.get("kl"),
        "kl_ci": content.get("kl_ci"),
        "seconds": content["seconds"],
        "commit": content.get("commit"),
        "starts": sum(entry["event"] == "start" for entry in log),
        "crashes": [entry["error"] for entry in log if entry["event"] == "error"],
    }  # fmt: skip


def _notices(found: Found, failed: Mapping[str, str]) -> list[str]:
    said = []
    codes: dict[str, int] = {}
    for content in found.values():
        codes[str(content.get("code"))] = codes.get(str(content.get("code")), 0) + 1
    if len(codes) > 1:
        counts = ", ".join(map(str, sorted(codes.values(), reverse=True)))
        said.append(
            f"cells were made by {len(codes)} versions of the code ({counts} cells each); remove the folders of older "
            "ones to make them anew"
        )
    if failed:
        said.append(f"{len(failed)} cells failed: {', '.join(failed)}")
    return said


def prompt_count(found: Found) -> int | None:
    """How many held-out prompts (or groups) the scores are means over."""
    for content in found.values():
        for part in content.get("temperatures", {}).values():
            return len(part["prompts"])
    return None


def units(plan: Plan) -> dict[str, str]:
    """What an objective's score means."""
    if plan.world is not None:
        return dict(WORLDS[plan.world.name].units)
    if not plan.samples:
        text = {"accuracy": "held-out accuracy (0 to 1)", "margin": "held-out margin (nats)"}[plan.scoring.measure]
        return dict.fromkeys(plan.names, text)
    return {name: f"score by {source}" for name, source in plan.scoring.sources.items()}


def _measure(plan: Plan) -> str:
    if plan.world is not None:
        return f"exact rewards of fresh samples, world {plan.world.name}"
    if plan.samples:
        return "scores of fresh samples"
    return f"held-out {plan.scoring.measure}, nothing sampled"


def _world(plan: Plan, cells: Sequence[Cell], found: Found, key: str) -> dict[str, Any]:
    """The front as `paretune report` draws a world."""
    there = [cell for cell in cells if cell.name in found and key in found[cell.name].get("temperatures", {})]

    def point(cell: Cell) -> dict[str, Any]:
        content, m = found[cell.name], len(plan.names)
        part, weights = content["temperatures"][key], cell.weights or tuple([1 / m] * m)
        run = content.get("run")
        return {
            "method": cell.label,
            "weights": dict(zip(plan.names, weights, strict=True)),
            "seed": cell.seed,
            **({"run": f"cells/{run}"} if run else {}),
            "scores": part["scores"],
            "ci": part["ci"],
            "kl": content.get("kl"),
            "extras": part.get("extras", {}),
        }

    singles = [cell for cell in there if cell.label == SINGLE]
    bases = [cell for cell in there if cell.label == BASE]
    first = found[bases[0].name] if bases else {}
    world = WORLDS[plan.world.name] if plan.world else None
    return {
        "name": world.name if world else "front",
        "description": world.description if world else _measure(plan),
        "objectives": plan.names,
        "units": units(plan),
        "base": {**point(bases[0]), "weights": {}} if bases else None,
        "oracle": first.get("oracle", []),
        "ceilings": {
            name: [point(c) for c in singles if c.weights is not None and c.weights[i] == 1.0]
            for i, name in enumerate(plan.names)
        },
        "points": [point(cell) for cell in there if cell.label not in (SINGLE, BASE)],
        "data": {"rows": first["rows"]} if "rows" in first else {},
    }
