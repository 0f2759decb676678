"""Theorems 3.1 and 3.2 of RACO where the constants are known, and the landscape where they are not.

    python studies/theorems/run.py               # writes results.json beside this file; exit 1 if a theorem fails
    python studies/theorems/run.py --quick       # the same on few instances and steps, under a minute
    python studies/theorems/figure.py            # draws results.json (needs matplotlib)

Parts: descent (Theorem 3.1 step by step, for corrections good and bad, and iterations to tolerance), clipping (Theorem
3.2 step by step, two objectives and three), landscape (a picture). Only that the theorems hold is a claim.
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

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from paretune.combine import COMBINERS, find_combiner, raco  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.theorems import landscape as toy  # noqa: E402
from studies.theorems.problems import FAMILIES, Problem, quadratics, wells  # noqa: E402

C = 0.4
WEIGHTS = ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2))
# Corrections of one length, c ||g_0||: the theorem's bound is the same for all but the first, which makes none.
CORRECTIONS = ("linear", "raco", "cagrad", "random", "anti", "along")
OTHERS = ("pcgrad", "mgda")  # no correction of that length; they are only timed
TOLERANCE = 1e-3  # of ||g_0|| at the start
ROUNDING = 1e-12  # of the loss: what a difference of two losses cannot resolve


@dataclass(frozen=True)
class Plan:
    """How much is run. `shares` are step sizes in units of 1 / l_w, the theorem's largest."""

    instances: int
    shares: tuple[float, ...]
    steps: int
    grams: int
    toy_steps: int
    toy_rates: tuple[float, ...]


PLANS = {
    "full": Plan(6, (0.5, 1.0), 400, 8_000, 2_000, (0.05,)),
    "quick": Plan(1, (1.0,), 6, 40, 6, (0.05,)),
}


@dataclass(frozen=True)
class Trace:
    """What `descend` records: T steps of R runs.

    Attributes:
        loss: (T + 1, R), L_w. slope: (T + 1, R), ||grad L_w||. critical: (T + 1, R), M(theta), two objectives only.
        rho: (T, R), cosine of correction and g_0 (0 where there is none).
        clipped, unclipped: (T, R), rho with and without clipping; other: (T, R), L_w after the step without it (RACO).
    """

    loss: Tensor
    slope: Tensor
    critical: Tensor
    rho: Tensor
    clipped: Tensor
    unclipped: Tensor
    other: Tensor


def gamma(rho: Tensor, share: float | Tensor, c: float = C) -> Tensor:
    """Gamma(rho) of Theorem 3.1 with share = l_w eta: L_w falls by at least eta ||g_0||^2 Gamma(rho)."""
    return 1.0 + c * rho - share / 2 * (1.0 + c * c + 2.0 * c * rho)


def descend(problem: Problem, arm: str, share: float, steps: int, *, until: float = 1e-4) -> Trace:
    """Plain steps of eta = share / l_w with one arm's update, all instances and weights side by side.

    A run whose ||g_0|| has fallen to `until` of its start stays where it is; PCGrad and MGDA, which end elsewhere, when
    M(theta) has.
    """
    count, m = problem.constants.shape
    grid = WEIGHTS if m == 2 else ((1 / 3, 1 / 3, 1 / 3), (0.6, 0.2, 0.2), (0.2, 0.3, 0.5))
    rows = torch.arange(count).repeat(len(grid))
    w = torch.tensor(grid, dtype=torch.float64).repeat_interleave(count, 0)
    eta = share / (w * problem.constants[rows]).sum(-1)
    generator = torch.Generator().manual_seed(7)
    theta = problem.start[rows].clone()
    columns: dict[str, list[Tensor]] = {name: [] for name in Trace.__dataclass_fields__}
    first = torch.zeros(len(rows), dtype=torch.float64)
    for step in range(steps + 1):
        losses, gradients = problem.evaluate(theta, rows)
        g0 = (w[:, None] @ gradients)[:, 0]
        length = g0.norm(dim=-1)
        first = length if step == 0 else first
        columns["loss"].append((w * losses).sum(-1))
        columns["slope"].append(length)
        columns["critical"].append(nearest_to_zero(gradients) if m == 2 else length)
        moving = (columns["critical"][-1] if arm in OTHERS else length) > until * first
        if step == steps or not moving.any():
            break
        update, facts = updates(arm, gradients, w, moving, generator, step)
        correction = update - g0
        for name in ("clipped", "unclipped"):
            columns[name].append(cosine(facts[name], g0) if name in facts else torch.zeros_like(length))
        columns["rho"].append(cosine(correction, g0))
        if "unclipped" in facts:
            rival = g0 + C * length[:, None] * unit(facts["unclipped"])
            columns["other"].append((w * problem.evaluate(theta - eta[:, None] * rival, rows)[0]).sum(-1))
        else:
            columns["other"].append(columns["loss"][-1])
        theta = theta - torch.where(moving[:, None], eta[:, None] * update, 0.0)
    return Trace(**{name: torch.stack(column) for name, column in columns.items()})


def updates(
    arm: str, gradients: Tensor, w: Tensor, moving: Tensor, generator: torch.Generator, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """G_0 (R, P) of one arm, and for RACO the directions of its correction with and without clipping."""
    g0 = (w[:, None] @ gradients)[:, 0]
    length = C * g0.norm(dim=-1, keepdim=True)
    if arm == "random":
        return g0 + length * unit(torch.randn(g0.shape, generator=generator, dtype=torch.float64)), {}
    if arm in ("linear", "anti", "along"):
        return {"linear": 1.0, "anti": 1.0 - C, "along": 1.0 + C}[arm] * g0, {}
    gram = gradients @ gradients.mT
    options: dict[str, Any] = {"c": C} if arm in ("raco", "cagrad") else {"seed": step} if arm == "pcgrad" else {}
    coefficients, p, clipped = w.clone(), w.clone(), w.clone()
    for i in moving.nonzero()[:, 0].tolist():
        found = find_combiner(arm)(gram[i], w[i], **options)
        coefficients[i], p[i], clipped[i] = found.coefficients, found.p, found.clipped
    update = (coefficients[:, None] @ gradients)[:, 0]
    if arm != "raco":
        return update, {}
    return update, {"unclipped": (p[:, None] @ gradients)[:, 0], "clipped": (clipped[:, None] @ gradients)[:, 0]}


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """(R, P) -> (R,); 0 where one of them is rounding."""
    small = u.norm(dim=-1) <= 1e-12 * v.norm(dim=-1)
    return torch.where(small, 0.0, (unit(u) * unit(v)).sum(-1))


def nearest_to_zero(gradients: Tensor) -> Tensor:
    """M(theta) = min over mixtures of ||sum lambda_i g_i|| for two: (R, 2, P) -> (R,)."""
    one, two = gradients[:, 0], gradients[:, 1]
    edge = one - two
    share = (-(two * edge).sum(-1) / edge.square().sum(-1).clamp(min=1e-300)).clamp(0.0, 1.0)
    return (two + share[:, None] * edge).norm(dim=-1)


def descent(plan: Plan) -> dict[str, Any]:
    """Theorem 3.1: every step against its bound, the bound on the smallest gradient, and iterations to tolerance."""
    rows: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    for name, family in FAMILIES.items():
        problem = family(plan.instances)
        for share in plan.shares:
            reached: dict[str, tuple[Tensor, Tensor]] = {}
            for arm in (*CORRECTIONS, *OTHERS):
                trace = descend(problem, arm, share, plan.steps)
                limit = TOLERANCE * trace.slope[0]
                reached[arm] = first_below(trace.slope, limit), first_below(trace.critical, limit)
                if arm in CORRECTIONS:
                    bounds = against_bounds(trace, problem, share, arm)
                    rows.append({"family": name, "share": share, "correction": arm, **bounds})
            times += [{"family": name, "share": share, "arm": arm, **iterations(reached, arm)} for arm in reached]
    broken = sum(row["steps below the bound"] + row["runs above the rate"] for row in rows)
    return {"holds": broken == 0, "tolerance": TOLERANCE, "rows": rows, "iterations": times}


def iterations(reached: dict[str, tuple[Tensor, Tensor]], arm: str) -> dict[str, Any]:
    """Steps until ||grad L_w||, and until M(theta), are TOLERANCE times ||grad L_w|| at the start."""
    found = {}
    for k, kind in enumerate(("weighted gradient", "Pareto-critical")):
        mine, base = reached[arm][k], reached["linear"][k]
        both = (mine > 0) & (base > 0)
        found[kind] = {
            "reached": round(float((mine > 0).double().mean()), 3),
            "median steps": float(mine[mine > 0].median()) if (mine > 0).any() else None,
            "steps over linear's": quantiles((mine / base)[both]),
        }
    return found


def against_bounds(trace: Trace, problem: Problem, share: float, arm: str) -> dict[str, Any]:
    """Measured descent over its bound, and 2 L_w(0) / (eta (1 - c^2) T) over the smallest ||grad L_w||^2."""
    m = problem.constants.shape[1]
    weights = torch.tensor(WEIGHTS if m == 2 else ((1 / 3,) * 3,), dtype=torch.float64)
    constants = (weights[:, None] * problem.constants).sum(-1).flatten()  # (R,), l_w
    eta, c = share / constants, 0.0 if arm == "linear" else C
    moved = trace.loss[:-1] != trace.loss[1:]
    bound = eta * trace.slope[:-1].square() * gamma(trace.rho, share, c)
    fall = trace.loss[:-1] - trace.loss[1:]
    below = moved & (fall < bound - ROUNDING * trace.loss[0])
    count = torch.arange(1, len(trace.slope), dtype=torch.float64)[:, None]
    smallest = trace.slope[:-1].square().cummin(0).values
    rate = 2.0 * trace.loss[0] / (eta * (1.0 - c * c) * count)
    ratio = (fall / bound)[moved]
    return {
        "steps": int(moved.sum()),
        "steps below the bound": int(below.sum()),
        "descent over bound": quantiles(ratio),
        "rho": quantiles(trace.rho[moved]),
        "runs above the rate": int((smallest > rate * (1.0 + 1e-9)).any(0).sum()),
        "rate bound over found, after 100 steps": quantiles((rate / smallest)[min(99, len(rate) - 1)]),
    }


def quantiles(values: Tensor) -> list[float]:
    """Least, median, largest."""
    return [round(float(x), 6) for x in (values.min(), values.median(), values.max())] if values.numel() else []


def first_below(values: Tensor, limit: Tensor) -> Tensor:
    """(T, R) -> (R,): the first index at or below the limit, 0 where there is none (the start never is)."""
    hit = values <= limit
    return torch.where(hit.any(0), hit.int().argmax(0), 0).double()


def clipping(plan: Plan) -> dict[str, Any]:
    """Theorem 3.2: Gamma(rho~) - Gamma(rho) on the way and on random Grams; with three objectives it may fail."""
    share, paths = 0.5, []
    problems = [(2, name, family(plan.instances)) for name, family in FAMILIES.items()]
    problems += [(3, "quadratics", quadratics(plan.instances, 3)), (3, "wells", wells(plan.instances, 3))]
    for m, name, problem in problems:
        trace = descend(problem, "raco", share, min(plan.steps, 300))
        gain = gamma(trace.clipped, share) - gamma(trace.unclipped, share)
        moved = (trace.loss[:-1] != trace.loss[1:]) & (trace.rho != 0.0)
        acts = moved & (gain.abs() > 1e-9)
        lower = trace.other - trace.loss[1:]  # how much lower L_w is with clipping than without, from the same point
        seen = lower.abs() > ROUNDING * trace.loss[0]
        paths.append(
            {
                "objectives": m,
                "family": name,
                "steps": int(moved.sum()),
                "share of steps in which clipping changes Gamma": round(float(acts.sum() / moved.sum()), 4),
                "gain of Gamma where it does": quantiles(gain[acts]),
                "negative": int((gain[acts] < 0.0).sum()),
                "share of them with a lower L_w after the step": mean((lower > 0)[acts & seen]),
            }
        )
    grams = [random_grams(m, plan.grams, share) for m in (2, 3, 4)]
    holds = all(row["negative"] == 0 for row in paths + grams if row["objectives"] == 2)
    return {"holds": holds, "l_w eta": share, "paths": paths, "random": grams}


def mean(values: Tensor) -> float | None:
    return round(float(values.double().mean()), 4) if values.numel() else None


def random_grams(m: int, count: int, share: float) -> dict[str, Any]:
    """Gradients of normal numbers in m + 1 dimensions with lengths over two decades; weights uniform on the simplex."""
    rng = np.random.default_rng(m)
    gains: list[float] = []
    worst: tuple[float, dict[str, Any]] = (0.0, {})
    count = count if m == 2 else count // 4
    for _ in range(count):
        g = rng.normal(size=(m, m + 1)) * 10 ** rng.uniform(-1, 1, size=(m, 1))
        w = rng.dirichlet(np.ones(m))
        found = raco(torch.from_numpy(g @ g.T), torch.from_numpy(w), C)
        g0, plain, clipped = w @ g, found.p.numpy() @ g, found.clipped.numpy() @ g
        cosines = [float(u @ g0 / (np.linalg.norm(u) * np.linalg.norm(g0))) for u in (plain, clipped)]
        gain = C * (1 - share) * (cosines[1] - cosines[0])
        gains.append(gain)
        if gain < worst[0]:
            worst = (gain, {"g": g.round(4).tolist(), "w": w.round(4).tolist(), "rho, rho~": cosines})
    values = torch.tensor(gains)
    acts = values.abs() > 1e-9
    return {
        "objectives": m,
        "grams": count,
        "clipping acts": int(acts.sum()),
        "negative": int((values < -1e-9).sum()),
        "gain of Gamma": quantiles(values[acts]),
        "worst": worst[1],
    }


def landscape(plan: Plan) -> dict[str, Any]:
    """Paths of all methods at equal weights, and linear and RACO over learning rates."""
    middle = plan.toy_rates[0]
    arms = {name: (name, {"c": 0.5} if name in ("raco", "cagrad") else {}, middle) for name in toy_methods()}
    arms |= {f"{n} at {lr:g}": (n, arms[n][1], lr) for n in ("linear", "raco") for lr in plan.toy_rates[1:]}
    points, values = toy.trajectories(arms, (0.5, 0.5), plan.toy_steps, every=max(1, plan.toy_steps // 400))
    least = toy.losses_and_slopes(np.array([[0.0, toy.PARETO_Y]]))[0].mean()
    rows = []
    for i, (name, (_, _, lr)) in enumerate(arms.items()):
        near = toy.distance_to_pareto(points[:, i]) <= 0.1
        low = values[:, i].mean(-1) <= least + 0.05
        every = max(1, plan.toy_steps // 400)
        rows.append(
            {
                "arm": name,
                "learning rate": lr,
                "steps until 0.1 from the Pareto set": [first_step(near[:, k], every) for k in range(len(toy.STARTS))],
                "steps until 0.05 above the least mean": [first_step(low[:, k], every) for k in range(len(toy.STARTS))],
                "end": points[-1, i].round(3).tolist(),
                "losses at the end": values[-1, i].round(3).tolist(),
                "paths": [thin(points[:, i, k]) for k in range(len(toy.STARTS))] if i < len(toy_methods()) else None,
            }
        )
    return {"steps": plan.toy_steps, "least mean loss": float(least), "starts": toy.STARTS, "rows": rows}


def toy_methods() -> list[str]:
    """Of the combiners there are, those of this comparison that a Gram is enough for."""
    wanted = ("linear", "raco", "cagrad", "pcgrad", "mgda", "nash_mtl", "upgrad", "imtl_g", "aligned_mtl")
    return [name for name in wanted if name in COMBINERS]


def first_step(hit: np.ndarray, every: int) -> int | None:
    return int(hit.argmax()) * every if hit.any() else None


def thin(path: np.ndarray, most: int = 60) -> list[list[float]]:
    """At most that many points of a path, evenly along its length."""
    length = np.concatenate(([0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()))
    chosen = np.searchsorted(length, np.linspace(0.0, length[-1], most)).clip(max=len(path) - 1)
    return [path[i].round(3).tolist() for i in sorted({0, *chosen.tolist(), len(path) - 1})]


PARTS = {"descent": descent, "clipping": clipping, "landscape": landscape}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few instances and steps")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="some parts; others are kept")
    parser.add_argument("--out", type=Path, help="where the results go (results.json beside this file; --quick: none)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    plan = PLANS["quick" if options.quick else "full"]
    out = options.out or (None if options.quick else HERE / "results.json")
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}
    words = ["python studies/theorems/run.py", *(sys.argv[1:] if arguments is None else arguments)]
    holds = True
    for name in options.only:
        began = time.process_time()
        part = PARTS[name](plan)
        holds = holds and part.get("holds") is not False
        spent = round(time.process_time() - began, 1)
        results[name] = {"command": " ".join(words), "commit": commit(), "CPU seconds": spent, **part}
        verdict = {True: "holds", False: "FAILS", None: "no claim"}[part.get("holds")]
        print(f"{name:10} {verdict:8} {spent:6.1f} s of CPU time", flush=True)
        if out:
            write_json(out, results | {"versions": versions(), "c": C})
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
