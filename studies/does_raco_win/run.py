"""Does RACO win over linear weighting in the exact world, and why? The exact tier of the study.

    python studies/does_raco_win/run.py --develop   # development seeds: step sizes, marks, KL levels -> frozen.json
    python studies/does_raco_win/run.py             # confirmation seeds -> cells.jsonl (resumable), results.json
    python studies/does_raco_win/run.py --quick     # the same road on two seeds and few steps, nothing kept

What is compared, and how, was declared in PROTOCOL.md beside this file before the confirmation.
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
    Rule,
    Trace,
    corrected,
    random_correction,
    replayed,
    train_arms,
    weighted,
)
from paretune.sandbox.bandit_fronts import held_out, held_out_losses  # noqa: E402
from studies.exact import (  # noqa: E402
    BATCH,
    CHECKPOINTS,
    CHUNK,
    CONFIRMATION,
    DEVELOPMENT,
    VARIANTS,
    C,
    Levels,
    Setting,
    best_of,
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

OPTIMIZERS = ("sgd", "adam")
WORLDS = ("default", "untuned")
# Five step sizes, a factor 2 apart, by optimizer and variant; the scaled objective's gradients are longer.
GRIDS = {
    "sgd equal": (2.5, 5.0, 10.0, 20.0, 40.0),
    "sgd noisy-one": (2.5, 5.0, 10.0, 20.0, 40.0),
    "sgd scaled": (0.625, 1.25, 2.5, 5.0, 10.0),
    "adam equal": (0.0125, 0.025, 0.05, 0.1, 0.2),
    "adam noisy-one": (0.0125, 0.025, 0.05, 0.1, 0.2),
    "adam scaled": (0.003125, 0.00625, 0.0125, 0.025, 0.05),
}
BUDGET = 100  # updates after which step sizes are compared; runs last twice the mark, at most twice this
FIRST: dict[str, Rule] = {
    "linear": weighted,
    "raco": corrected(C),
    "cagrad": corrected(C, clip=False),
    "random": random_correction(C),
}
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # of the late level, where fronts are read
EARLY, LATE = 0.25, 1.0


@dataclass(frozen=True)
class Plan:
    weights: int = 25
    development: range = DEVELOPMENT
    confirmation: range = CONFIRMATION
    budget: int = BUDGET
    chunk: int = CHUNK


QUICK = Plan(weights=5, development=range(2), confirmation=range(8, 10), budget=10, chunk=2)


def arm(rule: Rule, weights: Tensor, lr: float) -> Arm:
    return Arm(rule, weights, torch.full((len(weights),), lr, dtype=torch.float64))


def develop(plan: Plan, optimizer: str, variant: str) -> dict[str, Any]:
    """By the rule of PROTOCOL.md: each arm's step size, the mark, and the KL levels, on development seeds."""
    grid, weights = GRIDS[f"{optimizer} {variant}"], two_weights((plan.weights + 1) // 3)
    one = setting("default", variant, plan.development[:3])
    arms = [arm(rule, weights, lr) for rule in FIRST.values() for lr in grid]
    last = 2 * plan.budget
    record = sorted({0, *(round(last * k / 16) for k in range(1, 17)), plan.budget})
    trace = _train(one, arms, last, record, optimizer)
    shape = (len(record), len(one.seeds), len(FIRST), len(grid), len(weights))
    loss = _weighted_losses(one, trace, variant, torch.cat([weights] * len(arms))).view(shape).mean((1, 4))
    curve = loss[record.index(plan.budget)]  # (arms, grid)
    curve = torch.where(curve.isfinite(), curve, torch.inf)
    chosen = {name: grid[int(curve[i].argmin())] for i, name in enumerate(FIRST)}
    own = loss[:, 0, grid.index(chosen["linear"])]
    mark = record[int(own.argmin())]
    # the late level: four fifths of the least KL that any run of the primary arms reaches on development seeds
    steps = min(2 * mark, last)
    one, weights = setting("default", variant, plan.development), two_weights(plan.weights)
    linear, raco = (arm(FIRST[name], weights, chosen[name]) for name in ("linear", "raco"))
    primary = _train(one, [linear, raco], steps, record_steps(steps, mark), optimizer)
    matched = matched_arms(primary, slice(len(weights), None), chosen["raco"], optimizer)["linear-matched"]
    level = min(
        _least_kl(one, primary), _least_kl(one, _train(one, [matched], steps, primary.steps.tolist(), optimizer))
    )
    return {
        "grid": grid,
        "held-out loss at the budget": dict(zip(FIRST, rounded(curve), strict=True)),
        "step size": chosen,
        "at an edge": [name for name, lr in chosen.items() if lr in (grid[0], grid[-1])],
        "linear's held-out loss": dict(zip(map(str, record), rounded(own), strict=True)),
        "mark": mark,
        "late level": float(f"{0.8 * level:.3g}"),
    }


def _least_kl(one: Setting, trace: Trace) -> float:
    return float(held_out(one.worlds, trace.theta)[1].amax(0).amin())


def _weighted_losses(one: Setting, trace: Trace, variant: str, weights: Tensor) -> Tensor:
    """(T, S, R)"""
    return torch.stack(
        [
            torch.stack(
                [
                    (held_out_losses(world, theta, VARIANTS[variant], one.betas) * weights).sum(-1)
                    for world, theta in zip(one.worlds, point, strict=True)
                ]
            )
            for point in trace.theta
        ]
    )


def _train(one: Setting, arms: Sequence[Arm], steps: int, record: Sequence[int], optimizer: str) -> Trace:
    return train_arms(
        one.worlds,
        one.data,
        arms,
        seeds=one.seeds,
        steps=steps,
        betas=one.betas,
        record=record,
        batch_size=BATCH,
        optimizer=optimizer,
        dtype=torch.float32,
    )


def matched_arms(trace: Trace, span: slice, lr: float, optimizer: str) -> dict[str, Arm]:
    """Linear arms that copy what RACO's runs (`span` of the trace) weighed on average, or step by step.

    - linear-matched: the run's own mean effective weights a / sum a, and its step size times its mean ||G_0|| / ||g_0||
      (Adam divides the length of updates out, so there the step size stays);
    - linear-scheduled: at each step the mean coefficients of the *other* seeds' runs at that step;
    - linear-replayed: at each step the coefficients of the *next* seed's run. (The run's own would repeat it exactly.)
    """
    a = trace.coefficients[:, :, span]
    effective = (a / a.sum(-1, keepdim=True)).mean(0)
    stretch = trace.stretch[:, span] if optimizer == "sgd" else torch.ones_like(effective[..., 0])
    seeds = a.shape[1]
    others = (a.sum(1, keepdim=True) - a) / max(seeds - 1, 1)
    plain = torch.full_like(stretch, lr, dtype=torch.float64)
    weights = effective  # of the schedules they set no step; they only name the run
    return {
        "linear-matched": Arm(weighted, effective, plain * stretch),
        "linear-scheduled": Arm(replayed(others), weights, plain),
        "linear-replayed": Arm(replayed(a.roll(-1, 1)), weights, plain),
    }


def cell(plan: Plan, frozen: dict[str, Any], key: str) -> dict[str, Any]:
    """One condition and one chunk of seeds: all arms, measured."""
    world, variant, optimizer, first = key.split("/")
    rule = frozen[f"{optimizer} {variant}"]
    seeds = [seed for seed in plan.confirmation if int(first) <= seed < int(first) + plan.chunk]
    one, weights, lr = setting(world, variant, seeds), two_weights(plan.weights), rule["step size"]
    steps = 2 * rule["mark"]
    record = record_steps(steps, rule["mark"])
    levels = [share * rule["late level"] for share in SHARES]
    check = (
        world == WORLDS[0] and int(first) == plan.confirmation.start
    )  # c = 0 is linear: bits, so one chunk is enough
    rules = {**FIRST, **({"raco c=0": corrected(0.0)} if check else {})}
    rates = [lr.get(name, lr["linear"]) for name in rules]
    trace = _train(
        one,
        [arm(rule, weights, rate) for rule, rate in zip(rules.values(), rates, strict=True)],
        steps,
        record,
        optimizer,
    )
    n = plan.weights
    spans = {name: slice(i * n, (i + 1) * n) for i, name in enumerate(rules)}
    copies = matched_arms(trace, spans["raco"], lr["raco"], optimizer)
    if world != WORLDS[0]:
        copies = {"linear-matched": copies["linear-matched"]}
    second = _train(one, list(copies.values()), steps, record, optimizer)
    arms = {name: read_at(one.worlds, trace.theta[:, :, spans[name]], levels) for name in FIRST}
    arms |= {
        name: read_at(one.worlds, second.theta[:, :, i * n : (i + 1) * n], levels) for i, name in enumerate(copies)
    }
    differ = (trace.theta[:, :, spans["linear"]] != trace.theta[:, :, spans["raco c=0"]]).sum() if check else None
    marks = [record.index(min(steps, round(rule["mark"] * share))) for share in CHECKPOINTS]
    a = trace.coefficients[:, :, spans["raco"]]
    return {
        "seeds": seeds,
        "parameters in which c = 0 differs from linear": None if differ is None else int(differ),
        "arms": {name: measure(world, seeds, arms[name], marks) for name in arms},
        "raco minus matched, weighted reward": rounded(_pairwise(arms["raco"], arms["linear-matched"], copies)),
        "effective weight": rounded((a / a.sum(-1, keepdim=True)).mean((0, 1))[:, 0]),
        "stretch": rounded(trace.stretch[:, spans["raco"]].mean(0)),
        "angle": rounded(trace.angle[:, spans["raco"]].mean(0)),
        "points": {name: rounded(arms[name].points[-1].mean(0), 4) for name in arms},
    }


def _pairwise(raco: Levels, matched: Levels, copies: dict[str, Arm]) -> Tensor:
    """(L, S): RACO's reward less its twin's at equal KL, by the effective weights, mean over weightings."""
    gain = ((raco.points - matched.points) * copies["linear-matched"].weights).sum(-1)
    return gain.nanmean(-1)


def measure(world: str, seeds: Sequence[int], read: Levels, marks: Sequence[int]) -> dict[str, Any]:
    """Of one arm, seed by seed: the front at each level of KL, and at each checkpoint (against the late ceiling)."""
    m = read.points.shape[-1]
    late = len(read.levels) - 1
    found: dict[str, Any] = {"front": [], "nadir": [], "reference policy": [], "best of": [], "at steps": []}
    for s, seed in enumerate(seeds):
        tops = [ceiling_of(world, seed, m, level) for level in read.levels]
        points = [read.points[k, s] for k in range(len(tops))]
        found["front"].append([volume(p, *_corner(top, "nadir - 10 %")) for p, top in zip(points, tops, strict=True)])
        for corner in ("nadir", "reference policy"):
            found[corner].append([volume(points[k], *_corner(tops[k], corner)) for k in _two(read)])
        found["best of"].append([best_of(points[k], tops[k][0]) for k in _two(read)])
        found["at steps"].append([volume(read.at_steps[k, s], *_corner(tops[late], "nadir - 10 %")) for k in marks])
    found["KL at steps"] = read.divergence[list(marks)].mean((1, 2))
    found["runs that do not get there"] = read.points[..., 0].isnan().sum((1, 2)).tolist()
    return {name: rounded(values) for name, values in found.items()}


def _corner(top: Any, name: str) -> tuple[Tensor, Any]:
    return top[0], top[1][name]


def _two(read: Levels) -> list[int]:
    return [SHARES.index(EARLY), len(read.levels) - 1]


def differences(cells: dict[str, Any], one: str, two: str, what: str, k: int) -> dict[str, list[float]]:
    """Condition -> per seed, arm `one` less arm `two`."""
    found: dict[str, list[float]] = {}
    for key, content in cells.items():
        condition = key.rsplit("/", 1)[0]
        if two not in content["arms"]:
            continue
        x, y = (content["arms"][name][what] for name in (one, two))
        found.setdefault(condition, []).extend(a[k] - b[k] for a, b in zip(x, y, strict=True))
    return found


def conclude(cells: dict[str, Any]) -> dict[str, Any]:
    """The declared families and what is only described."""
    early, late = SHARES.index(EARLY), len(SHARES) - 1
    families = {
        "primary: raco - linear-matched, late": ("raco", "linear-matched", "front", late),
        "raco - linear-matched, early": ("raco", "linear-matched", "front", early),
        "raco - linear, nominal weights, late": ("raco", "linear", "front", late),
        "raco - linear, nominal weights, early": ("raco", "linear", "front", early),
        "linear-matched - linear, late": ("linear-matched", "linear", "front", late),
        "raco - linear-scheduled, late": ("raco", "linear-scheduled", "front", late),
        "raco - linear-replayed, late": ("raco", "linear-replayed", "front", late),
        "random - linear, late": ("random", "linear", "front", late),
        "raco - cagrad, late": ("raco", "cagrad", "front", late),
        "sensitivity: nadir, late": ("raco", "linear-matched", "nadir", 1),
        "sensitivity: reference policy, late": ("raco", "linear-matched", "reference policy", 1),
        "sensitivity: best of, late": ("raco", "linear-matched", "best of", 1),
    }
    found: dict[str, Any] = {name: verdicts(differences(cells, *what)) for name, what in families.items()}
    pairwise: dict[str, list[float]] = {}
    for key, content in cells.items():
        pairwise.setdefault(key.rsplit("/", 1)[0], []).extend(content["raco minus matched, weighted reward"][late])
    found["weighted reward at equal KL, late"] = verdicts(pairwise)
    for k, share in enumerate(CHECKPOINTS):
        for other in ("linear", "linear-matched"):
            found[f"equal steps, {share:.0%}: raco - {other}"] = verdicts(
                differences(cells, "raco", other, "at steps", k)
            )
    return found


def frozen_choices(before: dict[str, Any], quick: bool) -> dict[str, Any]:
    found = dict(before)
    for name, grid in GRIDS.items():  # a condition whose grid has not moved since is not repeated
        if found.get(name, {}).get("grid") != list(grid):
            found[name] = develop(QUICK if quick else Plan(), *name.split())
        print(f"{name:16} {found[name]['step size']} mark {found[name]['mark']}", flush=True)
    return found


def cell_keys(quick: bool) -> list[str]:
    plan = QUICK if quick else Plan()
    starts = range(plan.confirmation.start, plan.confirmation.stop, plan.chunk)
    keys = [f"{w}/{v}/{o}/{s}" for w in WORLDS for v in VARIANTS for o in OPTIMIZERS for s in starts]
    return [keys[0], keys[-1]] if quick else keys


def main(arguments: Sequence[str] | None = None) -> int:
    return command(
        HERE,
        __doc__,
        arguments,
        develop=frozen_choices,
        keys=cell_keys,
        cell=lambda frozen, quick, key: cell(QUICK if quick else Plan(), frozen, key),
        conclude=lambda cells: {"verdicts": conclude(cells)},
        primary="primary: raco - linear-matched, late",
    )


if __name__ == "__main__":
    sys.exit(main())
