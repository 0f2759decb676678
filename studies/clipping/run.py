"""What does clipping do? RACO against the same without line 4 (CAGrad around the weighted mean), in the exact world.

    python studies/clipping/run.py --develop   # development seeds: KL levels -> frozen.json
    python studies/clipping/run.py             # confirmation seeds -> cells.jsonl (resumable), results.json
    python studies/clipping/run.py --quick     # the same road on two seeds and few steps, nothing kept

What is compared, and how, was declared in PROTOCOL.md beside this file before the confirmation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.sandbox.bandit_arms import Arm, Combined, Step, corrected, train_arms, weighted  # noqa: E402
from paretune.sandbox.bandit_fronts import held_out  # noqa: E402
from paretune.sandbox.batched_raco import gram_angles, raco_many, raco_two  # noqa: E402
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

OBJECTIVES = (2, 3, 5)
WORLDS = ("knob 0.5", "knob 1", "knob 2", "untuned")  # the knob is what the objectives conflict about
LR, STEPS = 10.0, 100  # what study a's rule chose for plain steps and equal objectives, and its budget
SHARES = (0.25, 1.0)  # of the late level of KL
ACTS = 1e-6  # radians; what the library calls an active clip


@dataclass(frozen=True)
class Plan:
    development: range = DEVELOPMENT[:3]
    confirmation: range = CONFIRMATION
    steps: int = STEPS
    chunk: int = CHUNK


QUICK = Plan(development=range(1), confirmation=range(8, 10), steps=8, chunk=2)


def weightings(m: int) -> Tensor:
    """(R, m): 13 for two objectives, 21 for three (fifths), 15 for five (halves); ends and middles included."""
    if m == 2:
        return two_weights(13)
    parts = {3: 5, 5: 2}[m]
    rows = [[one.count(i) / parts for i in range(m)] for one in combinations_with_replacement(range(m), parts)]
    return torch.tensor(rows, dtype=torch.float64)


@dataclass
class Watched:
    """RACO, and what clipping did in each step: sums over steps, (S, R) each.

    Attributes:
        acts: steps in which clipping turned the update. turned: radians, summed over those.
        lowers: steps in which it moved the update away from g_0.
        by_step: share of runs in which it acted, step by step.
    """

    acts: Tensor | float = 0.0
    turned: Tensor | float = 0.0
    lowers: Tensor | float = 0.0
    by_step: list[float] = field(default_factory=list)

    def rule(self, step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        solve = raco_two if gram.shape[-1] == 2 else raco_many
        made = corrected(C)(step, source, gradients, gram, weights)
        acts = made.turned > ACTS
        unclipped = solve(gram, weights, C, False)[0]
        one, two = (gram_angles(gram, a, weights) for a in (made.coefficients, unclipped))
        self.acts = self.acts + acts.double()
        self.turned = self.turned + made.turned * acts
        self.lowers = self.lowers + (acts & (one > two + ACTS)).double()
        self.by_step.append(float(acts.double().mean()))
        return made


def trained(one: Setting, m: int, steps: int) -> tuple[dict[str, Tensor], Watched]:
    """Arm -> parameters (T, S, R, P)."""
    weights, watched = weightings(m), Watched()
    lr = torch.full((len(weights),), LR)
    rules = {"linear": weighted, "raco": watched.rule, "cagrad": corrected(C, clip=False)}
    trace = train_arms(
        one.worlds,
        one.data,
        [Arm(rule, weights, lr) for rule in rules.values()],
        seeds=one.seeds,
        steps=steps,
        betas=one.betas,
        record=record_steps(steps, steps),
        batch_size=BATCH,
        dtype=torch.float32,
    )
    return dict(zip(rules, trace.theta.chunk(3, 2), strict=True)), watched


def develop(plan: Plan, m: int, world: str) -> float:
    """Four fifths of the least KL that any run reaches."""
    one = setting(world, "equal", plan.development, m)
    paths, _ = trained(one, m, plan.steps)
    return 0.8 * min(float(held_out(one.worlds, theta)[1].amax(0).amin()) for theta in paths.values())


def cell(plan: Plan, frozen: dict[str, float], key: str) -> dict[str, Any]:
    count, world, first = key.split("/")
    m = int(count)
    seeds = [seed for seed in plan.confirmation if int(first) <= seed < int(first) + plan.chunk]
    one = setting(world, "equal", seeds, m)
    paths, watched = trained(one, m, plan.steps)
    level = frozen[f"{m}/{'knob 1' if world == 'untuned' else world}"]
    levels = [share * level for share in SHARES]
    fronts: dict[str, Any] = {}
    points: dict[str, Any] = {}
    missing: dict[str, Any] = {}
    for name, theta in paths.items():
        read = read_at(one.worlds, theta, levels)
        fronts[name] = []
        for s, seed in enumerate(seeds):
            tops = [ceiling_of(world, seed, m, level) for level in levels]
            fronts[name].append(
                [volume(read.points[k, s], top[0], top[1]["nadir - 10 %"]) for k, top in enumerate(tops)]
            )
        points[name] = read.points[-1].nanmean(0)
        missing[name] = int(read.points[..., 0].isnan().sum())
    acts = torch.as_tensor(watched.acts)
    return {
        "seeds": seeds,
        "front": {name: rounded(values) for name, values in fronts.items()},
        "runs that do not get there": missing,
        "acts": rounded(acts.mean(0) / plan.steps),
        "degrees where it acts": rounded((torch.as_tensor(watched.turned) / acts).rad2deg().nanmean(0), 3),
        "lowers": rounded(torch.as_tensor(watched.lowers).mean(0) / plan.steps),
        "by step": rounded(watched.by_step, 3),
        "points": {name: rounded(values, 4) for name, values in points.items()},
    }


def conclude(cells: dict[str, Any]) -> dict[str, Any]:
    """The declared families, and per condition what clipping did."""
    found: dict[str, Any] = {}
    for name, (other, k) in {
        "primary: raco - cagrad, late": ("cagrad", 1),
        "raco - cagrad, early": ("cagrad", 0),
        "raco - linear, nominal weights, late": ("linear", 1),
    }.items():
        family: dict[str, list[float]] = {}
        for key, content in cells.items():
            x, y = (content["front"][arm] for arm in ("raco", other))
            family.setdefault(key.rsplit("/", 1)[0], []).extend(a[k] - b[k] for a, b in zip(x, y, strict=True))
        found[name] = verdicts(family)
    what: dict[str, Any] = {}
    for key in cells:
        condition = key.rsplit("/", 1)[0]
        parts = [content for other, content in cells.items() if other.rsplit("/", 1)[0] == condition]
        acts, lowers, degrees, steps = (
            torch.tensor([part[name] for part in parts]).double()
            if name != "degrees where it acts"
            else torch.tensor([[x if x is not None else torch.nan for x in part[name]] for part in parts]).double()
            for name in ("acts", "lowers", "degrees where it acts", "by step")
        )
        what[condition] = {
            "share of steps": rounded(acts.mean()),
            "share of steps it lowers alignment": rounded(lowers.mean()),
            "degrees where it acts": rounded(degrees.nanmean(), 3),
            "by weighting": rounded(acts.mean(0), 4),
            "degrees by weighting": rounded(degrees.nanmean(0), 3),
            "weightings": rounded(weightings(int(condition[0])), 3),
            "first tenth of steps": rounded(steps[:, : max(steps.shape[1] // 10, 1)].mean()),
            "last half of steps": rounded(steps[:, steps.shape[1] // 2 :].mean()),
            "runs that do not get there": sum(sum(part["runs that do not get there"].values()) for part in parts),
        }
    return {"verdicts": found, "clipping": what}


def frozen_levels(before: dict[str, Any], quick: bool) -> dict[str, Any]:
    some = [(2, "knob 1"), (3, "knob 1")] if quick else [(m, world) for m in OBJECTIVES for world in WORLDS[:-1]]
    levels = {f"{m}/{world}": float(f"{develop(QUICK if quick else Plan(), m, world):.3g}") for m, world in some}
    return {"late level": levels}


def cell_keys(quick: bool) -> list[str]:
    plan = QUICK if quick else Plan()
    starts = range(plan.confirmation.start, plan.confirmation.stop, plan.chunk)
    if quick:
        return [f"2/knob 1/{starts[0]}", f"3/untuned/{starts[0]}"]
    return [f"{m}/{world}/{start}" for m in OBJECTIVES for world in WORLDS for start in starts]


def main(arguments: Sequence[str] | None = None) -> int:
    return command(
        HERE,
        __doc__,
        arguments,
        develop=frozen_levels,
        keys=cell_keys,
        cell=lambda frozen, quick, key: cell(QUICK if quick else Plan(), frozen["late level"], key),
        conclude=conclude,
        primary="primary: raco - cagrad, late",
    )


if __name__ == "__main__":
    sys.exit(main())
