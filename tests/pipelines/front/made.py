"""Plans and finished cells that nothing was trained for, and an engine that runs cells where it is asked to."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.objectives import Objective
from paretune.pipelines.front.engine import Ended, Job, run_job
from paretune.pipelines.front.plan import Cell, Entry, Plan, Scoring, make_cells
from paretune.training.record import write_json

NAMES = ("helpful", "short")


def made_plan(*methods: str, **changes: Any) -> Plan:
    plan = Plan(
        objectives=tuple(Objective(name) for name in NAMES),
        entries=tuple(Entry(name, name) for name in methods or ("linear", "raco")),
        weightings=((0.25, 0.75), (0.75, 0.25)),
        seeds=(0, 1),
        config={"max_steps": 2, "eval_fraction": 0.3},
        model="a model",
        data="data.jsonl",
        scoring=Scoring(prompts=["a", "b"], sources=dict.fromkeys(NAMES, "shorter")),
    )
    return replace(plan, **changes)


def write_cell(folder: Path, plan: Plan, cell: Cell, **changes: Any) -> dict[str, Any]:
    """A cell.json as `run_cell` leaves it, with scores that depend on method, weights and seed."""
    m, rng = len(plan.objectives), np.random.default_rng([cell.seed, len(cell.label)])
    weights = np.array(cell.weights if cell.weights is not None else [1 / m] * m)
    level = 0.0 if cell.kind == "base" else 0.1 * len(cell.label) * weights
    prompts = level + 0.1 * cell.seed + 0.05 * rng.normal(size=(20, m))
    part = {
        "scores": dict(zip(plan.names, prompts.mean(0).tolist(), strict=True)),
        "ci": {name: [x - 0.02, x + 0.02] for name, x in zip(plan.names, prompts.mean(0).tolist(), strict=True)},
        "prompts": prompts.tolist(),
        "extras": {},
    }
    content: dict[str, Any] = {
        **{"cell": cell.name, "kind": cell.kind, "label": cell.label, "weights": cell.weights, "seed": cell.seed},
        **{"digest": cell.digest, "meaning": dict(cell.meaning), "code": "made", "commit": None, "seconds": 1.0},
        "run": None if cell.kind == "base" else Path(cell.folder).name,
        "temperatures": {} if cell.kind == "trunk" else {"1": part, "0.6": part},
        "kl": 0.0 if cell.kind == "base" else 0.5,
        **changes,
    }
    write_json(folder / cell.folder / "cell.json", content)
    return content


def write_front(folder: Path, plan: Plan) -> tuple[list[Cell], dict[str, dict[str, Any]]]:
    """All cells of a plan, finished."""
    cells = make_cells(plan)
    return cells, {cell.name: write_cell(folder, plan, cell) for cell in cells}


class Inline:
    """Runs each job when it is waited for, or takes the end that `ends` holds for it by its name."""

    def __init__(self, **ends: list[Ended]):
        self.jobs: deque[Job] = deque()
        self.ran: list[str] = []
        self.ends = {name.replace("_", "-"): list(some) for name, some in ends.items()}

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def running(self) -> list[str]:
        return [job.name for job in self.jobs]

    def wait(self, seconds: float) -> list[Ended]:
        if not self.jobs:
            return []
        job = self.jobs.popleft()
        self.ran.append(job.name)
        prepared = self.ends.get(job.name)
        return [prepared.pop(0) if prepared else run_job(job)]

    def close(self) -> None:
        self.jobs.clear()
