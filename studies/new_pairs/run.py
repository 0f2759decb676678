"""New pairs arriving: a run goes on with file B after file A; what is kept of A, what is forgotten.

    python studies/new_pairs/run.py              # results.json: the frozen plan on fresh seeds, exact world
    python studies/new_pairs/run.py --develop    # development seeds and worlds; prints
    python studies/new_pairs/run.py --quick      # in small, keeps nothing
    python studies/new_pairs/road.py             # the same road with `paretune train` on a language world: road.json
    python studies/new_pairs/figure.py           # figure.svg (needs matplotlib)

PROTOCOL.md beside this file says what is claimed and how it is decided.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from paretune.sandbox.bandit_fronts import at_divergence  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies import exact  # noqa: E402
from studies.new_pairs import world as n  # noqa: E402

COMBINERS = ("linear", "raco")
# Way -> rows of A among the 64 of a step.
WAYS = {"B only": 0, "B with replay": 6, "A and B": 32}
REFERENCES = ("first model", "base")


@dataclass(frozen=True)
class Plan:
    """How much is run: `steps` on A, then as many on. `level`: KL from the first model at which arms are compared."""

    base: str = "apart"
    seeds: tuple[int, ...] = tuple(range(1000, 1030))
    steps: int = 100
    every: int = 4
    rate: float = 10.0
    level: float = 0.1


def run_case(plan: Plan, name: str, seeds: Sequence[int]) -> dict[str, dict[str, Tensor]]:
    """One kind of B -> arm -> figures, (S, ...): gains on A's prompts and B's, before, at the level, and at the end."""
    cases = [n.CASES[name](seed, plan.base) for seed in seeds]
    files, tops = n.files_of(cases), [n.tops(case) for case in cases]
    shared: dict[str, Any] = {"rate": plan.rate, "every": plan.every}
    both, start = range(2 * plan.steps), n.starts(cases, seeds)[:, None].repeat(1, len(COMBINERS), 1)
    first = n.go_on(files, seeds, start, start, COMBINERS, from_a=n.BATCH, span=both[: plan.steps], **shared)[-1]
    joint = n.go_on(files, seeds, start, start, COMBINERS, from_a=n.BATCH // 2, span=both, **shared)
    found = {
        f"{name}, A and B from the start": read(plan, cases, tops, joint[:, :, k], first[:, k])
        for k, name in enumerate(COMBINERS)
    }
    arms = [(name, reference) for reference in REFERENCES for name in COMBINERS]
    references = torch.cat((first, start), 1)  # in the order of REFERENCES
    for way, from_a in WAYS.items():
        track = n.go_on(
            files,
            seeds,
            first.repeat(1, len(REFERENCES), 1),
            references,
            [name for name, _ in arms],
            from_a=from_a,
            span=both[plan.steps :],
            **shared,
        )
        for k, (name, reference) in enumerate(arms):
            began = first[:, COMBINERS.index(name)]
            found[f"{name}, {way}, {reference}"] = read(plan, cases, tops, track[:, :, k], began)
    return found


def collect(
    plan: Plan, kept: Path | None, names: Sequence[str]
) -> tuple[dict[str, dict[str, dict[str, Tensor]]], list[str]]:
    """`run_case` by tens of seeds, each ten run once and then read from its file in the folder `kept`; and the commits
    that they were run at."""

    def compute(key: str) -> dict[str, Any]:
        name, first = key.split()
        seeds = [seed for seed in plan.seeds if 0 <= seed - int(first) < exact.CHUNK]
        arms = run_case(plan, name, seeds)
        return {
            "arms": {arm: {k: exact.rounded(v, 6) for k, v in values.items()} for arm, values in arms.items()},
            "commit": commit(),
        }

    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    commits: set[str] = set()
    for name in names:
        parts = []
        for first in plan.seeds[:: exact.CHUNK]:
            if kept:
                kept.mkdir(parents=True, exist_ok=True)
            key = f"{name} {first}"
            path = kept / f"{name}-{first}.jsonl" if kept else None
            cell = exact.fill(path, [key], compute)[key]
            parts.append(cell["arms"])
            commits.add(cell["commit"])
        found[name] = {
            arm: {k: torch.cat([_tensor(part[arm][k]) for part in parts]) for k in parts[0][arm]} for arm in parts[0]
        }
    return found, sorted(str(one) for one in commits)


def _tensor(values: Any) -> Tensor:
    """Of nested lists in which null stands for NaN."""

    def plain(one: Any) -> Any:
        return [plain(x) for x in one] if isinstance(one, list) else float("nan") if one is None else one

    return torch.tensor(plain(values), dtype=torch.float64)


def read(
    plan: Plan, cases: Sequence[n.Case], tops: Sequence[Tensor], theta: Tensor, first: Tensor
) -> dict[str, Tensor]:
    """Figures of one arm: theta (T, S, P) of its second part, first (S, P) where that began."""
    rows: dict[str, list[Tensor]] = {}
    for i, case in enumerate(cases):
        on_a, on_b = n.gains(case, theta[:, i], tops[i])
        before_a, before_b = (x[0] for x in n.gains(case, first[None, i], tops[i]))
        away = n.moved(case, theta[:, i], first[i])
        course = torch.stack((on_a @ case.of_a, on_b @ case.of_b), -1)  # (T, 2): A's and B's weighted gain
        column = {
            "A before": before_a @ case.of_a,
            "B before": before_b @ case.of_b,
            "A at the end": course[-1, 0],
            "B at the end": course[-1, 1],
            "at the level": at_divergence(course, away, plan.level),
            "KL from the first model": away[-1],
            "objectives on A's prompts": on_a[-1],
            "objectives on B's prompts": on_b[-1],
            "objectives on A's prompts before": before_a,
            "course": course,
        }
        for key, value in column.items():
            rows.setdefault(key, []).append(value)
    return {key: torch.stack(values) for key, values in rows.items()}


def claims(found: dict[str, dict[str, dict[str, Tensor]]]) -> dict[str, list[float]]:
    """The declared family, differences per seed."""
    family: dict[str, list[float]] = {}
    for name, arms in found.items():
        for way in WAYS:
            raco, linear = (arms[f"{combiner}, {way}, first model"] for combiner in ("raco", "linear"))
            at = raco["at the level"][:, 0] - linear["at the level"][:, 0]
            family[f"{name}: A's gain, raco - linear, {way}"] = [float(x) for x in at[~at.isnan()]]
        for way in ("B with replay", "A and B"):
            one, two = (arms[f"linear, {x}, first model"]["A at the end"] for x in (way, "B only"))
            family[f"{name}: A's gain at the end, {way} - B only, linear"] = (one - two).tolist()
        one, two = (arms[f"linear, B only, {x}"]["A at the end"] for x in ("base", "first model"))
        family[f"{name}: A's gain at the end, B only, base - first model as reference, linear"] = (one - two).tolist()
    return {key: values for key, values in family.items() if len(values) > 1}


def summarize(found: dict[str, dict[str, dict[str, Tensor]]]) -> dict[str, Any]:
    rows = []
    for name, arms in found.items():
        for arm, values in arms.items():
            # training on both files from the start did not go on from the first model, and has no KL from it to read at
            level = values["at the level"] * (torch.nan if arm.endswith("from the start") else 1.0)
            there = ~level.isnan().any(-1)
            rows.append(
                {
                    "case": name,
                    "arm": arm,
                    **{k: round(float(v.mean()), 4) for k, v in values.items() if v.ndim == 1},
                    "forgotten": round(float((values["A before"] - values["A at the end"]).mean()), 4),
                    "at the level": exact.rounded(level[there].mean(0), 4) if there.any() else None,
                    "reached the level": round(float(there.double().mean()), 4),
                    **{k: exact.rounded(v.mean(0), 4) for k, v in values.items() if k.startswith("objectives")},
                    "course": exact.rounded(values["course"].mean(0), 4),
                }
            )
    family = claims(found)
    return {"claims": exact.verdicts(family) if family else {}, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--develop", action="store_true", help="development seeds and worlds; prints")
    parser.add_argument("--quick", action="store_true", help="two development seeds, few steps; keeps nothing")
    parser.add_argument(
        "--only", choices=n.CASES, nargs="+", default=list(n.CASES), help="some kinds of B, side by side"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the results go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    plan = Plan()
    if options.quick:
        plan = Plan(base="camps", seeds=(0, 1), steps=8, every=2, level=0.001)
    elif options.develop:
        plan = Plan(base="camps", seeds=(0, 1, 2, 3))
    began = time.process_time()
    kept = None if options.quick or options.develop else HERE / "work" / "cells"
    found, commits = collect(plan, kept, options.only)
    results: dict[str, Any] = summarize(found)
    if options.quick or options.develop:
        for row in results["rows"]:
            print(json.dumps({k: v for k, v in row.items() if k != "course"}), flush=True)
        print(json.dumps(results["claims"], indent=1))
        return 0
    results |= {
        "command": "python studies/new_pairs/run.py",
        "commit": commit(),
        "commits of the cells": commits,
        "versions": versions(),
        "plan": {**vars(plan), "ways": WAYS, "beta": n.BETA},
        "CPU seconds": round(time.process_time() - began),
    }
    write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
