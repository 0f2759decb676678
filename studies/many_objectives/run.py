"""More objectives: fronts of m = 2, 3, 5, 8 in the exact world, method by method, at equal KL.

    python studies/many_objectives/run.py develop          # learning rates, on development seeds and world
    python studies/many_objectives/run.py confirm          # the claims, once, on fresh seeds and another world
    python studies/many_objectives/run.py cost             # CPU time of a combination
    python studies/many_objectives/run.py quick            # all of it in small, nothing is kept
    python studies/many_objectives/figure.py               # figure.svg (needs matplotlib)

What is claimed, and how it is decided, stands in PROTOCOL.md beside this file. All seeds of a world and m run side by
side; what is finished is kept in work/cells and never repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from paretune.combine import find_combiner  # noqa: E402
from paretune.combine.labelled import combine_labelled  # noqa: E402
from paretune.sandbox.bandit_arms import (  # noqa: E402
    Arm,
    Combined,
    Rule,
    Step,
    Trace,
    corrected,
    rows_of,
    step_of,
    train_arms,
    weighted,
)
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies import exact  # noqa: E402
from studies.many_objectives import worlds as w  # noqa: E402

C = 0.4
METHODS = ("linear", "raco", "cagrad", "pcgrad", "mgda")
MATCHED = "linear-matched"
RATES = (1.25, 2.5, 5.0, 10.0, 20.0)
MAIN = "reference-free"


@dataclass(frozen=True)
class Plan:
    """How much is run; fronts are read at `levels` of KL, in nats, and the claims are about `level`."""

    objectives: tuple[int, ...] = (2, 3, 5, 8)
    steps: int = 200
    every: int = 5
    weightings: int = 10
    level: float = 0.5
    levels: tuple[float, ...] = (0.25, 0.5, 1.0)
    seeds: tuple[int, ...] = tuple(range(1030, 1060))
    many: int = 5  # seeds with 8 objectives, which are dear
    described: tuple[int, ...] = ()  # on the development world, without verdicts


# Step sizes chosen by `develop`, at 120 updates, on two and three objectives, taken for all; see PROTOCOL.md.
CHOSEN = {"linear": 5.0, "raco": 2.5, "cagrad": 2.5, "pcgrad": 2.5, "mgda": 5.0}


def rule_of(name: str) -> Rule:
    if name == "linear":
        return weighted
    if name in ("raco", "cagrad"):
        return corrected(C, clip=name == "raco")
    return run_by_run(name)


def run_by_run(name: str, **options: Any) -> Rule:
    """Any combiner of the library as a rule; what is random in it is drawn from the step."""

    def rule(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        combiner, there = find_combiner(name), torch.ones(gram.shape[-1]).bool()
        made = [
            combine_labelled(combiner, h, own, there, seed=step, **options).coefficients
            for h, own in zip(gram.flatten(0, 1), weights.flatten(0, 1), strict=True)
        ]
        coefficients, none = torch.stack(made).view_as(weights), weights.new_zeros(weights.shape[:-1])
        update = (coefficients[..., None, :].to(gradients.dtype) @ gradients)[..., 0, :]
        return Combined(update, coefficients, none, none)

    return rule


def arms_of(plan: Plan, m: int, rates: dict[str, Sequence[float]]) -> dict[str, Arm]:
    """Each method at its rates on all weightings (MGDA knows none), and the single-objective runs that all share."""
    grid, alone = w.weightings(m, plan.weightings), torch.eye(m, dtype=torch.float64)
    arms = {f"alone {rate:g}": Arm(weighted, alone, torch.full((m,), rate).double()) for rate in rates["linear"]}
    for name in METHODS:
        own, rate = grid[:1] if name == "mgda" else grid, torch.tensor(rates[name], dtype=torch.float64)
        arms[name] = Arm(rule_of(name), own.repeat(len(rate), 1), rate.repeat_interleave(len(own)))
    return arms


def spans_of(arms: dict[str, Arm], rates: dict[str, Sequence[float]]) -> dict[tuple[str, float], slice]:
    """Where each method's runs at each rate stand among all runs; the single-objective ones are named "alone"."""
    spans, at = {}, 0
    for name, arm in arms.items():
        own = [float(name.split()[1])] if name.startswith("alone") else rates[name]
        size = arm.weights.shape[-2] // len(own)
        for rate in own:
            spans[name.split()[0], rate] = slice(at, at + size)
            at += size
    return spans


def run_group(
    plan: Plan, kind: str, m: int, seeds: Sequence[int], rates: dict[str, Sequence[float]], matched: bool
) -> list[dict[str, Any]]:
    """One world and m, all seeds side by side -> a cell per seed and rate: every method's front and steps."""
    worlds = [w.WORLDS[kind](m, seed) for seed in seeds]
    data, arms = w.data_of(worlds, seeds), arms_of(plan, m, rates)
    shared: dict[str, Any] = {
        "seeds": seeds,
        "steps": plan.steps,
        "betas": [w.BETA] * m,
        "record": list(range(0, plan.steps + 1, plan.every)),
    }
    trace, spans = train_arms(worlds, data, list(arms.values()), **shared), spans_of(arms, rates)
    levels = plan.levels if matched else (plan.level,)
    points = {level: {"all": one} for level, one in w.read_at(trace, worlds, levels).items()}
    if matched:
        span = spans["raco", rates["raco"][0]]
        part = trace.coefficients[:, :, span]
        arm = Arm(weighted, (part / part.sum(-1, keepdim=True)).mean(0), rates["raco"][0] * trace.stretch[:, span])
        again = train_arms(worlds, data, [arm], **shared)
        for level, one in w.read_at(again, worlds, levels).items():
            points[level][MATCHED] = one
    middle = spans["linear", rates["linear"][0]].start
    turns = [w.gradient_cosines(worlds, data, trace.theta[k][:, middle]) for k in (0, len(trace.theta) // 2, -1)]
    cells = []
    for i, (world, seed) in enumerate(zip(worlds, seeds, strict=True)):
        cell: dict[str, Any] = {"world": kind, "m": m, "seed": seed, "levels": {}}
        for level in levels:
            target, read = w.target_of(world, level), points[level]["all"][i]
            grid, found = w.weightings(m, plan.weightings), {}
            for (name, rate), span in spans.items():
                if name != "alone":
                    end = read[spans["alone", rate if ("alone", rate) in spans else rates["linear"][0]]]
                    key = name if matched else f"{name} {rate:g}"
                    found[key] = front_of(read[span], end, target, grid[: span.stop - span.start])
            if matched:
                found[MATCHED] = front_of(
                    points[level][MATCHED][i], read[spans["alone", rates["linear"][0]]], target, grid
                )
            cell["levels"][str(level)] = found
        if matched:
            cell["steps"] = {name: facts_of(trace, i, spans[name, rates[name][0]]) for name in METHODS}
            cell["cosines"] = [cosines_of(one[i]) for one in turns]
        cells.append(cell)
    return cells


def front_of(points: Tensor, alone: Tensor, target: w.Target, weights: Tensor) -> dict[str, float]:
    """Worth of an arm's points together with the single-objective ones; w·r of each point at its own weights."""
    there = ~points.isnan().any(-1)
    whole = torch.cat((points[there], alone[~alone.isnan().any(-1)]))
    found = {name: round(value, 6) for name, value in w.worth(whole, target).items()}
    unit = (points[there] - target.base) / (target.top - target.base)
    own = (unit * weights[there]).sum(-1).mean() if there.any() else torch.tensor(torch.nan)
    least = unit.amin(-1).mean() if there.any() else torch.tensor(torch.nan)
    return found | {
        "at its own weights": round(float(own), 6),
        "worst-off objective": round(float(least), 6),
        "reached": round(float(there.double().mean()), 4),
    }


def facts_of(trace: Trace, i: int, span: slice) -> dict[str, float]:
    """Means over runs and steps: how far the update is turned and stretched, how often clipping turns it."""
    turned = trace.turned[:, i, span]
    acts = turned > 1e-6
    return {
        "clipping acts": round(float(acts.double().mean()), 4),
        "radians where it does": round(float(turned[acts].mean()), 4) if acts.any() else 0.0,
        "mixture is no vertex": round(float(trace.interior[i, span].mean()), 4),
        "angle to linear": round(float(trace.angle[i, span].mean()), 4),
        "length over linear's": round(float(trace.stretch[i, span].mean()), 4),
    }


def cosines_of(cosines: Tensor) -> dict[str, float]:
    """Of pairs of objectives: least, mean, largest, and the share below 0."""
    i, j = torch.triu_indices(len(cosines), len(cosines), offset=1)
    pairs = cosines[i, j]
    numbers = {
        "least": pairs.min(),
        "mean": pairs.mean(),
        "largest": pairs.max(),
        "negative": (pairs < 0).double().mean(),
    }
    return {name: round(float(value), 4) for name, value in numbers.items()}


# ---- parts ----


def develop(plan: Plan, kept: Path | None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, dict[str, list[float]]]:
    """All methods at all rates on "camps": method -> m -> mean worth at each rate, by which the rates are chosen."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    for m in plan.objectives:
        rates: dict[str, Sequence[float]] = dict.fromkeys(METHODS, RATES)
        group = partial(run_group, plan, "camps", m, seeds, rates, False)
        cells = fill(kept, f"develop camps {m}", group)
        for name in METHODS:
            worths = [[cell["levels"][str(plan.level)][f"{name} {rate:g}"][MAIN] for cell in cells] for rate in RATES]
            found[name][str(m)] = [round(float(np.mean(own)), 4) for own in worths]
            best = RATES[int(np.argmax(found[name][str(m)]))]
            edge = "at the edge" if best in (RATES[0], RATES[-1]) else ""
            print(f"m={m} {name:8} {best:5g} {found[name][str(m)]} {edge}", flush=True)
    return found


def confirm(plan: Plan, kept: Path | None) -> list[dict[str, Any]]:
    """Frozen rates, fresh seeds, the world "apart"; and, without verdict, "camps" on the development seeds."""
    cells = []
    for kind, seeds in (("apart", plan.seeds), ("camps", plan.described)):
        for m in plan.objectives:
            rates: dict[str, Sequence[float]] = {name: (CHOSEN[name],) for name in METHODS}
            own = seeds[: plan.many] if m > 5 else seeds
            for chunk in (own[at : at + exact.CHUNK] for at in range(0, len(own), exact.CHUNK)):
                group = partial(run_group, plan, kind, m, chunk, rates, True)
                cells += fill(kept, f"confirm {kind} {m} {chunk[0]}", group)
    return cells


def fill(kept: Path | None, key: str, run: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A group of cells, run once and then read from its file in the folder `kept`."""

    def compute(key: str) -> dict[str, Any]:
        began = time.process_time()
        return {"cells": run(), "commit": commit(), "CPU seconds": round(time.process_time() - began)}

    if kept:
        kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{key.replace(' ', '-')}.jsonl" if kept else None
    cells: list[dict[str, Any]] = exact.fill(path, [key], compute)[key]["cells"]
    return cells


def cost(objectives: Sequence[int], count: int = 200) -> list[dict[str, Any]]:
    """CPU microseconds of one combination: median over Grams met in training (linear weighting, even weights)."""
    rows = []
    for m in objectives:
        world = w.apart(m, 0)
        data = w.data_of([world], [0])
        even = torch.full((1, m), 1 / m, dtype=torch.float64)
        record = list(range(0, count + 1))
        shared: dict[str, Any] = {"seeds": [0], "steps": count, "betas": [w.BETA] * m, "record": record}
        trace = train_arms([world], data, [Arm(weighted, even, torch.tensor([20.0]))], **shared)
        every, betas = rows_of([world], data), torch.full((m,), w.BETA, dtype=torch.float64)
        grams = []
        for step, theta in enumerate(trace.theta[:-1]):
            chosen = torch.from_numpy(np.random.default_rng(step).integers(w.COMPARISONS, size=64))
            source = step_of(theta, type(every)(*(one[:, chosen] for one in every)), betas)
            gradients = source.pull(source.slopes)[0, 0]
            grams.append(gradients @ gradients.mT)
        row: dict[str, Any] = {"m": m}
        for name in METHODS:
            combiner, times = find_combiner(name), []
            for gram in grams:
                began = time.thread_time_ns()
                combiner(gram, even[0], **({"seed": 0} if name == "pcgrad" else {}))
                times.append((time.thread_time_ns() - began) / 1e3)
            row[name] = round(float(np.median(times)), 1)
        rows.append(row)
    return rows


def summarize(plan: Plan, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of every figure, and the verdicts of the declared families."""
    fronts, steps, cosines = [], [], []
    for kind in sorted({cell["world"] for cell in cells}):
        for m in plan.objectives:
            own = [cell for cell in cells if cell["world"] == kind and cell["m"] == m]
            if not own:
                continue
            for level in plan.levels:
                for name in (*METHODS, MATCHED):
                    values = [cell["levels"][str(level)][name] for cell in own]
                    means = {key: w.spread([one[key] for one in values]) for key in values[0]}
                    fronts.append({"world": kind, "m": m, "level": level, "arm": name, "seeds": len(own), **means})
            for name in METHODS:
                keys = own[0]["steps"][name]
                mean = {key: float(np.mean([cell["steps"][name][key] for cell in own])) for key in keys}
                steps.append({"world": kind, "m": m, "arm": name, **mean})
            when = ("start", "middle", "end")
            for k, name in enumerate(when):
                mean = {key: float(np.mean([cell["cosines"][k][key] for cell in own])) for key in own[0]["cosines"][k]}
                cosines.append({"world": kind, "m": m, "when": name, **mean})
    families = {rival: family(plan, cells, rival) for rival in (MATCHED, "cagrad")}
    claims = {rival: exact.verdicts(own) for rival, own in families.items()}
    kept = {rival: {key: exact.rounded(values) for key, values in own.items()} for rival, own in families.items()}
    return {"claims": claims, "differences": kept, "fronts": fronts, "steps": steps, "cosines": cosines}


def family(plan: Plan, cells: Sequence[dict[str, Any]], rival: str) -> dict[str, list[float]]:
    """RACO less one rival in the share of the ceiling's reference-free score: a claim per m, a difference per seed."""
    fronts = {
        m: [one["levels"][str(plan.level)] for one in cells if one["world"] == "apart" and one["m"] == m]
        for m in plan.objectives
        if m <= 5  # eight objectives have too few seeds for a claim
    }
    return {
        f"raco - {rival}, m = {m}": [front["raco"][MAIN] - front[rival][MAIN] for front in own]
        for m, own in fronts.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("develop", "confirm", "cost", "quick"))
    parser.add_argument("--objectives", type=int, nargs="+", default=(2, 3, 5, 8), help="only these m, side by side")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where results go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    plan, kept = Plan(objectives=tuple(options.objectives)), HERE / "work" / "cells"
    if options.part == "quick":
        plan = Plan(objectives=(2, 3), steps=15, weightings=3, level=0.01, levels=(0.01,), seeds=(0, 1), described=())
        print(json.dumps(summarize(plan, confirm(plan, None))["claims"], indent=1))
        return 0
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if options.part == "develop":
        results["develop"] = {"rates": RATES, "level": plan.level, "worth": develop(plan, kept)}
    elif options.part == "cost":
        results["cost"] = cost(plan.objectives)
    else:
        results["confirm"] = summarize(plan, confirm(plan, kept))
    results |= {"commit": commit(), "versions": versions(), "c": C, "beta": w.BETA, "rates": CHOSEN}
    write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
