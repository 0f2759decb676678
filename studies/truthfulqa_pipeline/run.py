"""TruthfulQA's labels through `paretune train` on a 260K-parameter story model: does the pipeline work end to end?

    python studies/truthfulqa_pipeline/run.py --data ../shared

`--data` (or PARETUNE_SHARED, or ../shared beside the repository) is a folder that holds data/stories260K and
data/truthfulqa. Everything made on the way goes to --work (runs/truthfulqa_pipeline); a cell that is finished there is
not run again, so a stopped study goes on where it was. What is kept is results.json beside this file: figures only.

Stages: pairs (split by question) -> tune (learning rates, on the validation questions) -> cells (`paretune train`, one
process each) -> figures (on the test questions, which nothing before has read).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.truthfulqa_pipeline.measure import (  # noqa: E402
    DRAWS,
    Part,
    against,
    baseline_scores,
    figures,
    log_ratios,
    token_counts,
    tokenized,
)
from studies.truthfulqa_pipeline.pairs import OBJECTIVES, SHARES, write_parts  # noqa: E402

SPLIT_SEED = 0
SEEDS = (0, 1, 2)
WEIGHTS = (0.5, 0.8)  # of `truthful`; `informative` has the rest
COMBINERS = ("raco", "linear")
RATES = {"lora": (3e-4, 1e-3, 3e-3), "full": (1e-4, 3e-4, 1e-3)}
BETA, MAX_LENGTH = 0.1, 512  # as in config.yaml


@dataclass(frozen=True)
class Cell:
    """One run of `paretune train`."""

    method: str  # "lora" or "full"
    combiner: str
    weight: float
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.combiner}-w{self.weight:g}-lr{self.rate:g}-s{self.seed}"

    def command(self, model: Path, work: Path) -> list[str]:
        """Its command line."""
        weights = ", ".join(f"{n}: {w:g}" for n, w in zip(OBJECTIVES, (self.weight, 1 - self.weight), strict=True))
        return [
            *["paretune", "train", str(HERE / "config.yaml"), "--model", str(model)],
            *["--data", str(work / "data" / "train.jsonl"), "--eval_data", str(work / "data" / "validation.jsonl")],
            *["--objectives", f"{{{weights}}}", "--combiner", self.combiner, "--learning_rate", f"{self.rate:g}"],
            *["--seed", str(self.seed), "--output_dir", str(work / "cells" / self.name), "--overwrite"],
            *(["--lora", "true"] if self.method == "lora" else []),
        ]


def main() -> None:
    options = parse_arguments()
    source, work = options.data.resolve(), options.work.resolve()
    model = source / "data" / "stories260K"
    for needed in (model, source / "data" / "truthfulqa"):
        if not needed.is_dir():
            raise SystemExit(f"{needed} is not there: give --data, the folder that holds data/stories260K")
    started = time.time()
    facts = write_parts(source / "data" / "truthfulqa", work / "data", SPLIT_SEED)
    checks = {"untrained": untrained(model, work)}
    trials = [Cell(m, "linear", 0.5, rate, seed=0) for m, rates in RATES.items() for rate in rates]
    run_cells(trials, model, work, options.jobs)
    tried = [{**vars(cell), **outcome(cell, work)} for cell in trials]
    best = {m: min((t for t in tried if t["method"] == m), key=lambda t: t["validation_loss"])["rate"] for m in RATES}
    base = Cell("", "", 0.0, 0.0, 0)
    cells = [
        replace(base, method=method, combiner=combiner, weight=weight, rate=best[method], seed=seed)
        for seed, method, combiner, weight in itertools.product(SEEDS, RATES, COMBINERS, WEIGHTS)
    ]
    run_cells(cells, model, work, options.jobs)
    print("figures", flush=True)
    results = {
        "what": "a pipeline check on real labels and real weights; not evidence of alignment",
        "command": "python studies/truthfulqa_pipeline/run.py --data SHARED",
        "commit": commit(), "commits_of_cells": sorted({record(cell, work)["commit"] for cell in cells}),
        "versions": versions(), "split_seed": SPLIT_SEED, "seeds": SEEDS, "bootstrap_draws": DRAWS,
        "data": facts, "tried": tried, "rates": best, "checks": checks,
        **tables(cells, model, work),
    }  # fmt: skip
    write_json(options.results, rounded(results))
    print(f"{options.results} written after {time.time() - started:.0f} s")


def rounded(value: Any) -> Any:
    """The same with floats of five significant digits: no figure here is known better."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("PARETUNE_SHARED") or ROOT.parent / "shared")
    parser.add_argument("--data", type=Path, default=shared, help="folder that holds data/stories260K, data/truthfulqa")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "truthfulqa_pipeline", help="what is made on the way"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, one core each")
    return parser.parse_args()


# ---- running ----


def paretune(command: list[str], work: Path, log: Path) -> None:
    """Runs a `paretune` command line in a process of its own, its output in a file."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PARETUNE_CACHE": str(work / "cache"),
        "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT / "src"), os.environ.get("PYTHONPATH")) if p),
    }  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        words = [sys.executable, "-m", *command]
        done = subprocess.run(words, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"status {done.returncode} of: {' '.join(command)}\n{log.read_text(encoding='utf-8')[-2000:]}")


def run_cells(cells: Iterable[Cell], model: Path, work: Path, jobs: int) -> None:
    """Runs those that are not finished."""

    def run(cell: Cell) -> None:
        if (work / "cells" / cell.name / "run.json").exists() and record(cell, work)["status"] == "finished":
            return
        began = time.time()
        paretune(cell.command(model, work), work, work / "logs" / f"{cell.name}.txt")
        print(f"{cell.name}: {time.time() - began:.0f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def record(cell: Cell, work: Path) -> dict[str, Any]:
    """The cell's run.json."""
    return json.loads((work / "cells" / cell.name / "run.json").read_text(encoding="utf-8"))


def outcome(cell: Cell, work: Path) -> dict[str, Any]:
    """What the run itself said about the validation questions at its end, and how long a step took."""
    final = record(cell, work)["final"]
    accuracies = {name: final[f"eval_rewards/accuracies/{name}"] for name in OBJECTIVES}
    return {"validation_loss": final["eval_loss"], "validation_accuracy": accuracies}


def untrained(model: Path, work: Path) -> dict[str, Any]:
    """`paretune evaluate` of the untrained model against itself: every margin must be exactly 0, every loss log 2."""
    log, found = work / "logs" / "untrained.txt", work / "untrained.json"
    if not found.exists():
        command = ["paretune", "evaluate", "--model", str(model), "--ref_model", str(model)]
        command += ["--data", str(work / "data" / "test.jsonl"), "--objectives", ",".join(OBJECTIVES)]
        paretune([*command, "--beta", str(BETA), "--max_length", str(MAX_LENGTH), "--json", str(found)], work, log)
    models = json.loads(found.read_text(encoding="utf-8"))["models"][0]
    return {name: {figure: models[name][figure]["value"] for figure in ("margin", "loss")} for name in OBJECTIVES}


# ---- figures ----


def tables(cells: list[Cell], model: Path, work: Path) -> dict[str, Any]:
    """The test questions' figures of every group of seeds, of the baselines, and what the runs logged on the way."""
    data = {name: tokenized(work / "data" / f"{name}.jsonl", str(model), MAX_LENGTH) for name in SHARES}
    parts = {name: Part(work / "data" / f"{name}.jsonl", token_counts(data[name])) for name in SHARES}
    test = parts["test"]
    weights = {"truthful only": (1.0, 0.0), "informative only": (0.0, 1.0)}
    weights |= {f"{w:g}/{1 - w:g}": (w, 1 - w) for w in WEIGHTS}
    baselines = {label: baseline_scores(parts, pair) for label, pair in weights.items()}
    untrained = log_ratios(str(model), data["test"], str(model))
    margins = {
        cell: BETA * (log_ratios(str(work / "cells" / cell.name), data["test"], str(model)) - untrained)
        for cell in cells
    }
    groups = []
    for _, members in itertools.groupby(sorted(cells, key=_key), key=_key):
        group = list(members)
        scores, label = [margins[cell] for cell in group], f"{group[0].weight:g}/{1 - group[0].weight:g}"
        groups.append(
            {
                **{key: getattr(group[0], key) for key in ("method", "combiner", "weight", "rate")},
                "test": figures(scores, test),
                "beside": {name: against(scores, other, test) for name, other in baselines[label].items()},
                "runs": [logged(cell, work) for cell in group],
            }
        )
    return {
        "groups": groups,
        "baselines": {
            label: {name: figures([score], test) for name, score in found.items()} for label, found in baselines.items()
        },
        "evaluate_agrees": agreement(cells[0], margins[cells[0]], test, work),
    }


def _key(cell: Cell) -> tuple[Any, ...]:
    return (cell.method, cell.weight, cell.combiner)


def logged(cell: Cell, work: Path) -> dict[str, Any]:
    """What one run logged: margins at its first and last lines, conflict, seconds."""
    lines = (work / "cells" / cell.name / "history.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "grad/norm/" + OBJECTIVES[0] in line]

    def mean(key: str) -> float | None:
        found = [line[key] for line in steps if key in line]
        return sum(found) / len(found) if found else None

    ends = {"first": steps[0], "last": steps[-1]}
    return {
        "seed": cell.seed,
        **outcome(cell, work),
        "train_margin": {
            name: {end: line[f"rewards/margins/{name}"] for end, line in ends.items()} for name in OBJECTIVES
        },
        "cosine": mean(f"grad/cosine/{OBJECTIVES[0]}~{OBJECTIVES[1]}"),
        "effective_weight": {name: mean(f"combine/effective_weight/{name}") for name in OBJECTIVES},
        "clip_active": mean("combine/clip_active"),
        "angle_to_linear": mean("combine/angle_to_linear"),
        "seconds_per_step": mean("time/step"),
        "trained_parameters": record(cell, work)["decided"]["trained_parameters"],
    }


def agreement(cell: Cell, margins: Any, test: Part, work: Path) -> dict[str, Any]:
    """`paretune evaluate` of one cell beside the figures made here: two ways to the same number."""
    found, directory = work / "evaluate.json", work / "cells" / cell.name
    if not found.exists():
        command = ["paretune", "evaluate", "--model", str(directory), "--data", str(work / "data" / "test.jsonl")]
        paretune([*command, "--json", str(found)], work, work / "logs" / "evaluate.txt")
    theirs = json.loads(found.read_text(encoding="utf-8"))
    mine = figures([margins], test)["all"]
    return {
        name: {
            figure: {"command": theirs["models"][0][name][figure]["value"], "here": mine[name][figure]["value"]}
            for figure in ("accuracy", "margin")
        }
        for name in OBJECTIVES
    }


if __name__ == "__main__":
    if not shutil.which("git"):
        print("git is not there: the commit will be missing from results.json", file=sys.stderr)
    main()
