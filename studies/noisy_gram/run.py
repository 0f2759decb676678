"""How noisy is the Gram, and does it matter?

    python studies/noisy_gram/run.py --only measure language along develop   # what was seen on development seeds
    python studies/noisy_gram/run.py --only confirm                          # the claims of PROTOCOL.md, fresh seeds
    python studies/noisy_gram/run.py --quick                                 # every part in small, writes nothing
    python studies/noisy_gram/figure.py                                      # draws results.json

Parts write into results.json beside this file, each over its own former figures only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from paretune.evaluation.statistics import holm  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.noisy_gram.along import alignment, measure_exact  # noqa: E402
from studies.noisy_gram.arms import LINEAR, RACO, Arm  # noqa: E402
from studies.noisy_gram.fronts import Cell, compared, run_cell, summary  # noqa: E402
from studies.noisy_gram.score import DECLARED  # noqa: E402

PUBLISHED = Arm("raco, own lengths", published=True)
CANDIDATES = (
    Arm("averaged", momentum=0.9),
    Arm("rows", gram="rows", decay=0.9),
    Arm("averaged, mixed", momentum=0.9, rule="mix"),
)
TRIED = (
    Arm("cagrad", rule="none"),
    Arm("raco, c = 0.2", c=0.2),
    Arm("fresh", gram="fresh"),
    Arm("large", gram="large"),
    Arm("averaged 0.98", momentum=0.98),
    Arm("rows, one step", gram="rows"),
    Arm("rows 0.98", gram="rows", decay=0.98),
    Arm("halves", gram="halves", decay=0.9),
    Arm("shrunk", gram="shrunk", decay=0.9, floor=0.05),
    Arm("biased average", decay=0.9),
    Arm("smooth coefficients", smooth=0.9),
    Arm("mixed", rule="mix"),
    Arm("soft", rule="soft"),
    Arm("signal", adapt="signal", decay=0.9),
    Arm("cosine", adapt="cosine"),
    Arm("rows, signal", gram="rows", decay=0.9, adapt="signal"),
    Arm("rows, mixed", gram="rows", decay=0.9, rule="mix"),
    Arm("rows, unclipped", gram="rows", decay=0.9, rule="none"),
)
ADAM_METRIC = (Arm("adam's metric", metric="adam"), Arm("rows, adam's metric", gram="rows", decay=0.9, metric="adam"))
LEVEL = 0.5  # of KL, where all fronts are compared


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    firsts: tuple[float, ...]
    development: tuple[int, ...]
    confirmation: tuple[int, ...]
    developed: tuple[Cell, ...]
    confirmed: tuple[Cell, ...]
    draws: int
    sizes: tuple[int, ...]
    language_rows: int
    language_seeds: tuple[int, ...]


def cells(optimizer: str, size: int, rates: dict[str, float]) -> tuple[Cell, ...]:
    return tuple(Cell(condition, optimizer, size, lr) for condition, lr in rates.items())


# Step sizes by PROTOCOL.md's rule; an untuned condition takes that of its like in the default world.
ADAM = {"clean": 0.0075, "noisy-one": 0.015}
SGD = {"clean": 2.5, "noisy-one": 5.0}
FRESH = ("clean", "noisy-one", "untuned, noisy-two")


def fresh(rates: dict[str, float]) -> dict[str, float]:
    return {name: rates[name if name in rates else "noisy-one"] for name in FRESH}


PLANS = {
    "full": Plan(
        firsts=(0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95),
        development=tuple(range(10)),
        confirmation=tuple(range(1000, 1030)),
        developed=cells("adam", 16, {name: ADAM[name] for name in ("clean", "noisy-one")}),
        confirmed=(*cells("adam", 16, fresh(ADAM)), *cells("sgd", 64, fresh(SGD))),
        draws=400,
        sizes=(1, 4, 16, 64, 256),
        language_rows=192,
        language_seeds=(0,),
    ),
    "quick": Plan(
        firsts=(0.3, 0.7),
        development=(0, 1, 2),
        confirmation=(0, 1, 2),
        developed=(Cell("noisy-one", "adam", 8, 0.06, 12, 4),),
        confirmed=(Cell("noisy-one", "adam", 8, 0.06, 12, 4),),
        draws=50,
        sizes=(4, 16),
        language_rows=24,
        language_seeds=(0,),
    ),
}


def measure(plan: Plan) -> dict[str, Any]:
    """Bias and spread of a batch's Gram and of what is decided on it, in the exact world."""
    small = plan is PLANS["quick"]
    seeds, at = plan.development[: 2 if small else 5], (0, 8) if small else (0, 60, 239)
    return {
        "seeds": len(seeds),
        "rows": measure_exact(("clean", "noisy-one"), seeds, (0.3, 0.5), at, plan.sizes, plan.draws),
    }


def language(plan: Plan) -> dict[str, Any]:
    """The same in the safety world, with rows' gradients from the library."""
    from studies.noisy_gram.language import measure_language  # transformers takes seconds to import

    steps = 2 if plan is PLANS["quick"] else 20
    sizes = [n for n in plan.sizes if 1 < n < plan.language_rows]
    rows = measure_language(plan.language_rows, steps, sizes, plan.draws, list(plan.language_seeds))
    return {"seeds": len(plan.language_seeds), "rows": rows}


def along(plan: Plan) -> dict[str, Any]:
    """Angles to RACO on full gradients along training."""
    small = plan is PLANS["quick"]
    arms = (RACO, *CANDIDATES, *(arm for arm in TRIED if arm.name in ALONG))
    found = {}
    for cell in plan.developed:
        at = (4, 8) if small else (12, 60, 120, 180, 239)
        found[cell.name] = alignment(cell, arms, plan.development[:6], (0.2, 0.5, 0.8), at)
    return found


ALONG = ("fresh", "large", "averaged 0.98", "rows, one step", "rows 0.98", "halves", "shrunk", "biased average")


def develop(plan: Plan) -> dict[str, Any]:
    """All arms on development seeds: means and standard errors, no verdicts."""
    found = {}
    for cell in plan.developed:
        own = ADAM_METRIC if cell.optimizer == "adam" else ()
        arms = [LINEAR, RACO, PUBLISHED, *CANDIDATES, *TRIED, *own]
        scores = run_cell(cell, arms, plan.development[:6], plan.firsts, (LEVEL,))
        rows = {}
        for arm in arms:
            row = {"hypervolume": float(scores.values[arm.name][LEVEL][DECLARED].mean())}
            for key, other in (("over raco", "raco"), ("over matched", f"{arm.name}, matched")):
                if other in scores.values and other != arm.name:
                    found_ = compared(scores, LEVEL, arm.name, other)
                    row[key], row[f"{key}, error"] = found_["mean"], _error(found_)
            rows[arm.name] = row
        found[cell.name] = {"cell": asdict(cell), "arms": rows, "effective weights": scores.effective}
    return found


def confirm(plan: Plan) -> dict[str, Any]:
    """The claims of PROTOCOL.md on fresh seeds, Holm over the declared family."""
    rows, shown = [], {}
    for cell in plan.confirmed:
        scores = run_cell(
            cell,
            [LINEAR, RACO, PUBLISHED, *CANDIDATES],
            plan.confirmation,
            plan.firsts,
            (LEVEL,),
            ("linear", PUBLISHED.name),
        )
        shown[cell.name] = summary(scores)
        for candidate in CANDIDATES:
            for against in (f"{candidate.name}, matched", "raco"):
                row = {"cell": cell.name, "arm": candidate.name, "against": against.split(", ")[-1]}
                row |= compared(scores, LEVEL, candidate.name, against)
                row["other scores"] = {
                    kind: compared(scores, LEVEL, candidate.name, against, kind)["mean"]
                    for kind in scores.values[candidate.name][LEVEL]
                    if kind != DECLARED
                }
                rows.append(row)
        for arm, against in (("raco", "raco, matched"), ("raco", "linear"), (PUBLISHED.name, "raco")):
            shown[cell.name][f"{arm} - {against}"] = compared(scores, LEVEL, arm, against)
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p, Holm"] = adjusted
        row["verdict"] = verdict(row["mean"], adjusted, row["p equivalent"])
    return {"level": LEVEL, "claims": rows, "cells": shown}


def verdict(mean: float, adjusted: float, equivalent: float) -> str:
    """In the protocol's words."""
    found = [("better" if mean > 0 else "worse")] if adjusted < 0.05 else []
    found += ["equivalent"] if equivalent < 0.05 else []
    return " and ".join(found) or "undecided"


def _error(row: dict[str, float]) -> float:
    """The standard error from a 95 % interval."""
    from scipy import stats

    return (row["high"] - row["low"]) / 2 / float(stats.t.ppf(0.975, row["n"] - 1))


PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "measure": measure, "language": language, "along": along, "develop": develop, "confirm": confirm,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every part in small")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="some parts")
    parser.add_argument("--out", type=Path, help="where results go (results.json beside this file; --quick: none)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = PLANS["quick" if options.quick else "full"]
    out = options.out or (None if options.quick else HERE / "results.json")
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}
    for name in options.only:
        began = time.perf_counter()
        found = PARTS[name](plan)
        took = round(time.perf_counter() - began, 1)
        results[name] = {"commit": commit(), "versions": versions(), "seconds": took, "found": rounded(found)}
        print(f"{name:10} {took:7.1f} s", flush=True)
        if out:
            write_json(out, results)
    return 0


def rounded(value: Any) -> Any:
    """Six digits are more than any of it is good for."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
