"""A demo's folder as the demo writes it: real combiners on made Gram matrices, made scores."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretune.combine import COMBINERS
from paretune.objectives import Objective
from paretune.training.diagnostics import step_metrics

OPTIONS: dict[str, dict[str, float]] = {"raco": {"c": 0.4}, "cagrad": {"c": 0.4}}
METHODS = ("linear", "cagrad", "mgda", "raco")
LONG_UNIT = "the length of the answer in words over twenty, negative (-1.2 to 0)"
WORLDS: dict[str, dict[str, str]] = {
    "summaries": {"coverage": "share of facts", "faithfulness": "share of statements", "conciseness": LONG_UNIT},
    "safety": {"helpful": "points of 4", "harmless": "−hazards"},
}
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \"quotes\" "
    "{{ 7 * 7 }} ünï 事実 \u2028 \x07 $x_1$"
)


def made_demo(folder: Path, *, seeds: Sequence[int] = (0, 1, 2), steps: int = 40, **changes: Any) -> Path:
    """Writes result.json and every run's directory; keyword arguments replace entries of result.json."""
    worlds = [made_world(folder, name, units, seeds, steps) for name, units in WORLDS.items()]
    result = {
        "kind": "demo",
        "created": "2030-01-02T03:04:05Z",
        "commit": "0123456789abcdef+",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "command": "paretune demo --seeds 3",
        "seeds": list(seeds),
        "worlds": worlds,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def made_world(folder: Path, name: str, units: dict[str, str], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    objectives = list(units)
    m = len(objectives)
    base = dict.fromkeys(objectives, 0.3)
    points = []
    for method, weights, seed in itertools.product(METHODS, weightings(m), seeds):
        if method == "mgda" and max(weights) > 0.51:  # takes no weights: one point
            continue
        run = f"runs/{name}/{method}-{'-'.join(f'{w:g}' for w in weights)}-seed{seed}"
        made_run(folder / run, objectives, weights, method, seed, steps)
        rng = random.Random(f"{method}{weights}{seed}")
        pull = {"linear": 1.0, "cagrad": 0.7, "mgda": 0.1, "raco": 0.85}[method]
        scores = {
            o: 0.45 + 0.2 * (pull * (w - 1 / m) * m / 2) + rng.gauss(0, 0.012) - 1.6 * (o == "conciseness")
            for o, w in zip(objectives, weights, strict=True)
        }
        points.append(
            {
                "method": method,
                "weights": dict(zip(objectives, weights, strict=True)),
                "seed": seed,
                "scores": scores,
                "ci": {o: [v - 0.02, v + 0.02] for o, v in scores.items()},
                "kl": 1.5 + 2 * max(weights) + rng.gauss(0, 0.1),
                "extras": {"over-refusal": 0.1 + rng.random() / 10},
                "run": run,
            }
        )
    return {
        "name": name,
        "objectives": objectives,
        "units": units,
        "description": f"A made world, {name}, with {m} objectives.",
        "base": {"scores": base, "ci": {o: [0.28, 0.32] for o in objectives}, "n": 200},
        "oracle": [
            {
                "weights": dict(zip(objectives, w, strict=True)),
                "scores": {o: 0.55 + 0.4 * x**0.5 for o, x in zip(objectives, w, strict=True)},
            }
            for w in weightings(m)
        ],
        "ceilings": {
            o: [
                {"scores": {k: (0.75 if k == o else 0.2) + seed / 100 for k in objectives}, "kl": 4.0, "seed": seed}
                for seed in seeds
            ]
            for o in objectives
        },
        "hacks": {"always empty": {"scores": dict.fromkeys(objectives, 0.0)}},
        "points": points,
        "examples": made_examples(objectives),
        "data": {"rows": 4000, "conflicting_share": 0.62, "agreement": {"coverage~faithfulness": 0.41}},
    }


def made_examples(objectives: Sequence[str]) -> list[dict[str, Any]]:
    texts = [HOSTILE, "the cook found a red pan and the boy a coin", "", "x" * 300]
    examples = []
    for i in range(10):
        answers = {who: texts[(i + k) % 4] for k, who in enumerate(("base", "linear", "raco"))}
        scores = {who: {o: 0.1 * i for o in objectives} for who in answers}
        examples.append(
            {"prompt": f"prompt {i} {HOSTILE if i == 0 else 'note the cook found a pan'}", **answers, "scores": scores}
        )
    return examples


def weightings(m: int) -> list[tuple[float, ...]]:
    if m == 2:
        return [(w, round(1 - w, 3)) for w in (0.2, 0.35, 0.5, 0.65, 0.8)]
    return [tuple(0.6 if i == k else 0.4 / (m - 1) for i in range(m)) for k in range(m)] + [(1 / m,) * m]


def made_run(
    path: Path, names: Sequence[str], weights: Sequence[float], method: str, seed: int, steps: int = 40
) -> Path:
    """A run's directory whose lines come from the real combiner on gradients that conflict more and more."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, steps, len(method), int(1000 * weights[0])])
    objectives = [Objective(name, weight=w) for name, w in zip(names, weights, strict=True)]
    m = len(names)
    lines = []
    for step in range(1, steps + 1):
        conflict = 0.6 * step / steps
        gradients = rng.normal(size=(m, 30)) * 0.5 + (np.eye(m) - conflict / m) @ np.ones((m, 30)) * np.eye(m, 30).sum(
            0
        )
        gradients[0] *= 1.5
        gradients[-1] -= conflict * gradients[0]
        gram = torch.from_numpy(gradients @ gradients.T)
        w = torch.tensor(weights, dtype=torch.float64)
        combination = COMBINERS[method](gram, w, **OPTIONS.get(method, {}))
        plain, angles = step_metrics(objectives, gram, torch.ones(m, dtype=torch.bool), combination)
        line: dict[str, Any] = {"step": step, "time": 1e9 + step, "loss": 0.69 - 0.2 * step / steps, **plain, **angles}
        for i, name in enumerate(names):
            line[f"loss/{name}"] = 0.69 - 0.1 * (i + 1) * step / steps + rng.normal() * 0.01
            line[f"rewards/margins/{name}"] = 0.3 * (i + 1) * step / steps + rng.normal() * 0.02
            line[f"rewards/accuracies/{name}"] = 0.5 + 0.1 * (i + 1) * step / steps
        lines.append(line)
        if step % max(1, steps // 4) == 0:
            held = {f"eval_{key}": value for key, value in line.items() if key.startswith(("loss", "rewards"))}
            lines.append({"step": step, "time": 1e9 + step, **held})
    lines.append({"step": steps, "time": 1e9, "train_runtime": 12.0, "train_loss": 0.6})
    record = {
        "status": "finished",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "objectives": [{"name": o.name, "weight": o.weight, "loss": "sigmoid", "beta": None} for o in objectives],
        "seed": seed,
        "notices": ["one backward pass per objective, because of a made reason"] if method == "mgda" else [],
        "settings": {"model": "base", "data": "train.jsonl"},
        "config": {"combiner": method, "c": 0.4, "clip": True, "beta": 0.2, "learning_rate": 1e-3, "max_steps": steps},
        "final": {},
    }
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
