"""RACO of each micro-batch against RACO of the whole batch, in the exact world.

    python studies/micro_batches/run.py --develop   # development seeds: KL levels -> frozen.json
    python studies/micro_batches/run.py             # confirmation seeds -> cells.jsonl (resumable), results.json
    python studies/micro_batches/run.py --quick     # the same road on two seeds and few steps, nothing kept

Released code solves the dual in every micro-batch and adds up the combined gradients; the algorithm combines once per
step. What is compared, and how, was declared in PROTOCOL.md beside this file before the confirmation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.sandbox.bandit_arms import (  # noqa: E402
    Arm,
    Combined,
    Step,
    Trace,
    corrected,
    per_micro_batch,
    train_arms,
    weighted,
)
from paretune.sandbox.bandit_fronts import held_out  # noqa: E402
from studies.exact import (  # noqa: E402
    BATCH,
    CHUNK,
    CONFIRMATION,
    DEVELOPMENT,
    C,
    Setting,
    ceiling_of,
    command,
    read_at,
    record_steps,
    rounded,
    setting,
    two_weights,
    verdicts,
    volume,
)

SIZES = (1, 2, 8)
CONDITIONS = (
    *(f"default/{variant}/{optimizer}" for variant in ("equal", "noisy-one") for optimizer in ("sgd", "adam")),
    *(f"untuned/equal/{optimizer}" for optimizer in ("sgd", "adam")),
)
LR, STEPS = {"sgd": 10.0, "adam": 0.05}, 100  # what study a's rule chose for linear and raco alike, and its budget
SHARES = (0.25, 1.0)  # of the late level of KL
WEIGHTS = two_weights(13)


@dataclass(frozen=True)
class Plan:
    development: range = DEVELOPMENT[:3]
    confirmation: range = CONFIRMATION
    steps: int = STEPS
    chunk: int = CHUNK


QUICK = Plan(development=range(1), confirmation=range(8, 10), steps=8, chunk=2)


@dataclass
class OneRow:
    """Micro-batches of one row, held against the statement on paper at every step of training.

    `off`: (R,), the largest distance, over steps and seeds, between the update and the mean over rows of (1 + c) g_0 of
    rows whose objectives agree and (1 - c) g_0 of rows whose objectives conflict, relative to the update.
    """

    off: Tensor | None = None

    def rule(self, step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        made = per_micro_batch(1, C)(step, source, gradients, gram, weights)
        mixed = (source.slopes * weights[:, None].to(source.slopes.dtype)).sum(-1)
        agree = source.slopes.prod(-1) > 0
        stated = source.pull((mixed * torch.where(agree, 1 + C, 1 - C))[..., None])[:, :, 0]
        apart = ((made.update - stated).norm(dim=-1) / made.update.norm(dim=-1)).amax(0)
        self.off = apart if self.off is None else torch.maximum(self.off, apart)
        return made


def trained(one: Setting, optimizer: str, steps: int) -> tuple[dict[str, Tensor], Trace, OneRow]:
    """Arm -> parameters (T, S, R, P)."""
    single = OneRow()
    rules = {"linear": weighted, "whole": corrected(C), "1 row": single.rule}
    rules |= {f"{size} rows": per_micro_batch(size, C) for size in SIZES[1:]}
    lr = torch.full((len(WEIGHTS),), LR[optimizer])
    trace = train_arms(
        one.worlds,
        one.data,
        [Arm(rule, WEIGHTS, lr) for rule in rules.values()],
        seeds=one.seeds,
        steps=steps,
        betas=one.betas,
        record=record_steps(steps, steps),
        batch_size=BATCH,
        optimizer=optimizer,
        dtype=torch.float32,
    )
    return dict(zip(rules, trace.theta.chunk(len(rules), 2), strict=True)), trace, single


def develop(plan: Plan, condition: str) -> float:
    """Four fifths of the least KL that any run reaches."""
    world, variant, optimizer = condition.split("/")
    one = setting(world, variant, plan.development)
    paths = trained(one, optimizer, plan.steps)[0]
    return 0.8 * min(float(held_out(one.worlds, theta)[1].amax(0).amin()) for theta in paths.values())


def cell(plan: Plan, frozen: dict[str, float], key: str) -> dict[str, Any]:
    condition, first = key.rsplit("/", 1)
    world, variant, optimizer = condition.split("/")
    seeds = [seed for seed in plan.confirmation if int(first) <= seed < int(first) + plan.chunk]
    one = setting(world, variant, seeds)
    paths, trace, single = trained(one, optimizer, plan.steps)
    levels = [share * frozen[f"default/{variant}/{optimizer}"] for share in SHARES]
    found: dict[str, Any] = {"seeds": seeds, "front": {}, "points": {}, "runs that do not get there": 0, "degrees": {}}
    for i, (name, theta) in enumerate(paths.items()):
        read = read_at(one.worlds, theta, levels)
        fronts = []
        for s, seed in enumerate(seeds):
            tops = [ceiling_of(world, seed, 2, level) for level in levels]
            fronts.append([volume(read.points[k, s], top[0], top[1]["nadir - 10 %"]) for k, top in enumerate(tops)])
        span = slice(i * len(WEIGHTS), (i + 1) * len(WEIGHTS))
        found["front"][name] = rounded(fronts)
        found["points"][name] = rounded(read.points[-1].nanmean(0), 4)
        found["runs that do not get there"] += int(read.points[..., 0].isnan().sum())
        # `turned` is the angle to the whole batch's RACO for micro-batches, and what clipping turned for the rest
        whole = trace.turned[:, :, span].mean((0, 1)) if "row" in name else trace.turned[:, :, span].mean((0, 1)) * 0
        found["degrees"][name] = {
            "to linear": rounded(trace.angle[:, span].mean(0).rad2deg(), 3),
            "to the whole batch's": rounded(whole.rad2deg(), 3),
        }
    off = torch.as_tensor(single.off)
    found["one row against paper"] = {"inner weights": float(off[1:-1].max()), "ends": off[[0, -1]].tolist()}
    return found


def conclude(cells: dict[str, Any]) -> dict[str, Any]:
    """The declared families, the angles, and how far one-row updates are from what the paper statement says."""
    found: dict[str, Any] = {}
    names = ["1 row", "2 rows", "8 rows"]
    for name, arms, other, k in (
        ("primary: micro-batches - whole, late", names, "whole", 1),
        ("micro-batches - whole, early", names, "whole", 0),
        ("micro-batches - linear, late", names, "linear", 1),
        ("whole - linear, late", ["whole"], "linear", 1),
    ):
        family: dict[str, list[float]] = {}
        for key, content in cells.items():
            for arm in arms:
                x, y = content["front"][arm], content["front"][other]
                family.setdefault(f"{key.rsplit('/', 1)[0]}/{arm}", []).extend(
                    a[k] - b[k] for a, b in zip(x, y, strict=True)
                )
        found[name] = verdicts(family)
    angles: dict[str, Any] = {}
    for condition in dict.fromkeys(key.rsplit("/", 1)[0] for key in cells):
        parts = [content["degrees"] for key, content in cells.items() if key.rsplit("/", 1)[0] == condition]
        angles[condition] = {
            name: {
                what: rounded(torch.tensor([part[name][what] for part in parts]).mean(0), 2) for what in parts[0][name]
            }
            for name in parts[0]
        }
    checks = [content["one row against paper"] for content in cells.values()]
    return {
        "verdicts": found,
        "degrees by weighting": angles,
        "weightings": rounded(WEIGHTS[:, 0], 4),
        "one row against paper, largest relative difference": {
            "inner weights": max(check["inner weights"] for check in checks),
            "ends": max(max(check["ends"]) for check in checks),
        },
        "runs that do not get there": sum(content["runs that do not get there"] for content in cells.values()),
    }


def frozen_levels(before: dict[str, Any], quick: bool) -> dict[str, Any]:
    tuned = [one for one in CONDITIONS if one.startswith("default")]
    some, plan = (tuned[:1], QUICK) if quick else (tuned, Plan())
    return {"late level": {one: float(f"{develop(plan, one):.3g}") for one in some}}


def cell_keys(quick: bool) -> list[str]:
    plan = QUICK if quick else Plan()
    starts = range(plan.confirmation.start, plan.confirmation.stop, plan.chunk)
    keys = [f"{one}/{start}" for one in CONDITIONS for start in starts]
    return keys[:1] if quick else keys


def main(arguments: Sequence[str] | None = None) -> int:
    return command(
        HERE,
        __doc__,
        arguments,
        develop=frozen_levels,
        keys=cell_keys,
        cell=lambda frozen, quick, key: cell(QUICK if quick else Plan(), frozen["late level"], key),
        conclude=conclude,
        primary="primary: micro-batches - whole, late",
    )


if __name__ == "__main__":
    sys.exit(main())
