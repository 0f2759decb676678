"""What must be true of RACO where everything can be computed: three claims, and hundreds of runs beside them.

    python studies/exact_world/run.py              # writes results.json beside this file; exit 1 if a claim fails
    python studies/exact_world/run.py --quick      # the same claims on fewer weights, seeds and steps, half a minute
    python studies/exact_world/figure.py           # draws results.json (needs matplotlib)

The world is `paretune.sandbox.bandit` as it stands: 48 + 48 prompts, 24 responses, two objectives with an agreeing
skill and opposed knobs. Parts: radius (claim a: c = 0 is linear), ends (claim b: trained out, RACO and linear meet),
ceiling (claim c: pi_ref exp(r / beta) is reached), knob (without a skill there is nothing to gain), fronts (all
combiners on drawn labels and small batches; no claim, figures).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "src"))

from paretune.sandbox.bandit import (  # noqa: E402
    Bandit,
    Policy,
    divergence,
    expected_rewards,
    log_policy,
    low_rank,
    make_bandit,
    optimum,
    regularized_reward,
    tabular,
)
from paretune.sandbox.bandit_runs import (  # noqa: E402
    Comparisons,
    Paths,
    Run,
    losses_and_gradients,
    make_batch,
    population,
    sampled,
    smoothness,
    train,
)
from paretune.sandbox.labels import PRESETS, Labelling  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

BETA, C = 0.2, 0.4
LABELS = Labelling(kappa=1.0)  # drawn with probability sigma(r_a - r_b), so `optimum` is what one objective's DPO wants
COMBINERS = ("linear", "raco", "cagrad", "mgda", "pcgrad")
# What the claims are held to, stated before the runs.
TOLERANCE = {
    "ends tabular": 1e-6,  # largest difference of an expected reward at the end, in units of reward
    "ends low-rank": 1e-3,
    "paths apart": 1e-2,  # at least, where weights are uneven, in units of reward
    "ceiling reward": 1e-6,  # regularized reward below the closed form, in units of reward
    "ceiling probability": 1e-4,  # largest difference of a probability
    "knob line": 1e-9,  # |r_1 + r_2|
}


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    weights: tuple[tuple[float, float], ...]
    few_weights: tuple[tuple[float, float], ...]  # where full gradients of low-rank policies make runs long
    seeds: tuple[int, ...]
    steps: int
    horizons: tuple[int, ...]  # when fronts are read, the last being `steps`
    table_steps: int
    low_rank_steps: int
    ceiling_steps: int
    rates: tuple[float, ...]


def grid(*firsts: int) -> tuple[tuple[float, float], ...]:
    """Tenths of the first objective's weight -> pairs of weights."""
    return tuple((first / 10, (10 - first) / 10) for first in firsts)


NINE = grid(*range(1, 10))
PLANS = {
    "full": Plan(
        NINE,
        grid(1, 3, 5, 7, 9),
        (0, 1, 2, 3, 4),
        400,
        (50, 100, 200, 400),
        4_000,
        8_000,
        1_000,
        (1.0, 2.0, 5.0, 10.0, 20.0),
    ),
    "quick": Plan(grid(2, 5, 8), grid(3), (0, 1), 50, (50,), 2_000, 2_000, 500, (5.0,)),
}


def radius(plan: Plan) -> dict[str, Any]:
    """Claim a. Every parameter after every step of RACO with c = 0 and of linear, compared as bits."""
    cases = []
    for m, preset in ((2, "clean"), (3, "clean"), (3, "rare-one"), (3, "disjoint")):
        bandit = make_bandit(objectives=m)
        labelling = replace(PRESETS[preset], kappa=1.0)
        data = {seed: sampled(bandit, labelling, 2_000, seed) for seed in plan.seeds}
        # any last weights that leave the sum at 1
        weights = [(*(x / (m - 1) for _ in range(m - 1)), y) for x, y in plan.weights]
        for optimizer, lr in (("sgd", 5.0), ("adam", 0.02)):
            thetas = []
            for combiner, options in (("linear", {}), ("raco", {"c": 0.0})):
                runs = [Run(combiner, w, lr, seed, options) for w in weights for seed in plan.seeds]
                betas = labelling.betas(BETA, m)
                paths = train(
                    bandit, low_rank(), data, runs, steps=plan.steps, betas=betas, batch_size=64, optimizer=optimizer
                )
                thetas.append(paths.theta)
            # as integers, so that even 0 and -0 would differ
            one, two = (theta.view(torch.int64) for theta in thetas)
            cases.append(
                {
                    "objectives": m,
                    "labels": preset,
                    "optimizer": optimizer,
                    "runs": len(runs),
                    "steps": plan.steps,
                    "numbers compared": one.numel(),
                    "numbers that differ": int((one != two).sum()),
                    "moved": float((thetas[0][-1] - thetas[0][0]).abs().amax()),
                }
            )
    holds = all(case["numbers that differ"] == 0 and case["moved"] > 0.1 for case in cases)
    return {"holds": holds, "cases": cases}


def distance_to_path(points: Tensor, path: Tensor) -> Tensor:
    """From each of points (S, 2) to the polyline through path (K, 2): how far apart two ways lie, whatever the pace."""
    start, along = path[:-1], path.diff(dim=0)
    length = along.square().sum(-1).clamp(min=1e-300)
    share = ((points[:, None] - start) * along).sum(-1) / length
    nearest = start + share.clamp(0.0, 1.0)[..., None] * along
    return (points[:, None] - nearest).norm(dim=-1).amin(-1)


def ends(plan: Plan) -> dict[str, Any]:
    """Claim b. Full gradients of the population's loss, constant plain steps, until nothing moves."""
    bandit = make_bandit()
    data = {0: population(bandit, LABELS)}
    constants = smoothness(bandit, data[0], [BETA, BETA])
    found: dict[str, Any] = {}
    for name, policy, weights, steps in (
        ("tabular", tabular(), plan.weights, plan.table_steps),
        ("low-rank", low_rank(), plan.few_weights, plan.low_rank_steps),
    ):
        # the table's step is a tenth of the theorem's 1 / l_w; a product of factors has no such constant
        rates = [float(0.1 / (torch.tensor(w).double() @ constants)) if name == "tabular" else 20.0 for w in weights]
        runs = [Run(one, w, lr) for one in ("linear", "raco") for w, lr in zip(weights, rates, strict=True)]
        # the same steps twice: the first 100 seen one by one, all of them seen now and then
        parts = [
            train(bandit, policy, data, runs, steps=last, betas=[BETA] * 2, every=every)
            for last, every in ((100, 1), (steps, 50))
        ]
        paths, logp = parts[1], log_policy(bandit, policy, parts[1].theta[-1])
        at = torch.cat((parts[0].steps, paths.steps[3:]))
        rewards = torch.cat([rewards_of(bandit, policy, part)[skip:] for part, skip in zip(parts, (0, 3), strict=True)])
        n = len(weights)
        gradients = end_gradients(bandit, policy, data[0], paths)
        w_all = torch.tensor(weights * 2, dtype=torch.float64)
        slope = (w_all[:, None] @ gradients)[:, 0].norm(dim=-1) / gradients.norm(dim=-1).amax(-1)
        rows = []
        for i, w in enumerate(weights):
            linear, raco = rewards[:, i], rewards[:, n + i]
            apart = (linear - raco).abs().amax((-1, -2))
            rows.append(
                {
                    "weights": w,
                    "end": {"linear": linear[-1, 0].tolist(), "raco": raco[-1, 0].tolist()},
                    "rewards apart at the end": float(apart[-1]),
                    "probabilities apart at the end": float((logp[i].exp() - logp[n + i].exp()).abs().amax()),
                    "rewards apart at the same step, largest": float(apart.amax()),
                    "at step": int(at[apart.argmax()]),
                    "paths apart, largest": float(distance_to_path(raco[:, 0], linear[:, 0]).amax()),
                    # later on g_0 is shorter than what a float64 Gram resolves, and its direction rounding
                    "largest angle to linear, first 100 steps": float(parts[0].angles[:, n + i].amax()),
                    "steps in which clipping acted, first 100": float(parts[0].clipped[n + i]),
                    "weighted gradient over the longest": {"linear": float(slope[i]), "raco": float(slope[n + i])},
                    "path linear": thin(linear[:, 0]),
                    "path raco": thin(raco[:, 0]),
                }
            )
        found[name] = {"steps": steps, "step size": rates, "rows": rows, **ends_hold(name, rows)}
    return {"holds": all(part["holds"] for part in found.values()), **found}


def rewards_of(bandit: Bandit, policy: Policy, paths: Paths) -> Tensor:
    """(S, R, 2, M), point by point: all points' policies at once would not fit a small machine."""
    return torch.stack([expected_rewards(bandit, log_policy(bandit, policy, theta)) for theta in paths.theta])


def ends_hold(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the ends agree and the paths did not. At equal weights the two objectives pull evenly: no path claim."""
    worst = max(row["rewards apart at the end"] for row in rows)
    least = min(row["paths apart, largest"] for row in rows if row["weights"][0] != row["weights"][1])
    holds = worst <= TOLERANCE[f"ends {name}"] and least >= TOLERANCE["paths apart"]
    return {"holds": holds, "worst end": worst, "least distance of paths, uneven weights": least}


def end_gradients(bandit: Bandit, policy: Policy, data: Comparisons, paths: Paths) -> Tensor:
    """(R, M, P) at the last point."""
    batch = make_batch(data.a[None], data.b[None], data.labels[None])
    return losses_and_gradients(bandit, policy, paths.theta[-1], batch, torch.tensor([BETA, BETA]).double())[1]


def thin(path: Tensor, most: int = 40) -> list[list[float]]:
    """At most that many points (r_1, r_2) of a path, evenly along its length, rounded for the file."""
    length = torch.cat((path.new_zeros(1), path.diff(dim=0).norm(dim=-1).cumsum(0)))
    chosen = torch.searchsorted(length, torch.linspace(0, float(length[-1]), most, dtype=length.dtype)).clamp(
        max=len(path) - 1
    )
    return [[round(x, 4) for x in path[i].tolist()] for i in sorted({0, *chosen.tolist(), len(path) - 1})]


def ceiling(plan: Plan) -> dict[str, Any]:
    """Claim c. One soft label per pair, sigma(r_w(a) - r_w(b)): DPO must end in pi_ref exp(r_w / beta).

    Beside it, with no claim: two labels mixed by the same weights, sum_i w_i L_i, which is another problem.
    """
    bandit = make_bandit()
    weights = torch.tensor(grid(*range(11)), dtype=torch.float64)
    single = [replace(bandit, rewards=torch.einsum("m,mxy->xy", w, bandit.rewards)[None]) for w in weights]
    data = {k: population(world, LABELS) for k, world in enumerate(single)}
    best = optimum(bandit, weights, BETA)
    top = regularized_reward(bandit, best, weights, BETA)
    lr = 1 / float(smoothness(single[0], data[0], [BETA]))
    count = len(weights)
    found: dict[str, Any] = {}
    mixed = {0: population(bandit, LABELS)}
    for name, policy, steps, rate in (
        ("tabular", tabular(), plan.ceiling_steps, lr),
        ("low-rank", low_rank(), plan.ceiling_steps, 20.0),
    ):
        runs = [Run("linear", (1.0,), rate, seed) for seed in range(count)]
        one = train(single[0], policy, data, runs, steps=steps, betas=[BETA], every=steps)
        logp = log_policy(bandit, policy, one.theta[-1])
        gap = top - regularized_reward(bandit, logp, weights, BETA)
        runs = [Run("linear", tuple(w.tolist()), rate) for w in weights]
        two = train(bandit, policy, mixed, runs, steps=steps, betas=[BETA] * 2, every=steps)
        mixed_gap = top - regularized_reward(bandit, log_policy(bandit, policy, two.theta[-1]), weights, BETA)
        found[name] = {
            "steps": steps,
            "gap, training prompts": gap[:, 0].tolist(),
            "gap, held-out prompts": gap[:, 1].tolist(),
            "largest difference of a probability": float((logp.exp() - best.exp())[:, : bandit.n_train].abs().amax()),
            "gap of mixed losses, training prompts": mixed_gap[:, 0].tolist(),
        }
    start = regularized_reward(bandit, bandit.reference.expand(count, -1, -1), weights, BETA)
    table = found["tabular"]
    holds = max(table["gap, training prompts"]) <= TOLERANCE["ceiling reward"]
    holds = holds and table["largest difference of a probability"] <= TOLERANCE["ceiling probability"]
    return {
        "holds": holds,
        "weights": weights.tolist(),
        "ceiling, training prompts": top[:, 0].tolist(),
        "ceiling, held-out prompts": top[:, 1].tolist(),
        "reference, training prompts": start[:, 0].tolist(),
        "optimum's rewards, training prompts": expected_rewards(bandit, best)[:, 0].tolist(),
        "optimum's rewards, held-out prompts": expected_rewards(bandit, best)[:, 1].tolist(),
        "optimum's KL, held-out prompts": divergence(bandit, best)[:, 1].tolist(),
        **found,
    }


def knob(plan: Plan) -> dict[str, Any]:
    """Without a skill the rewards are opposite: all methods on one line, and what they waste is only divergence."""
    bandit = make_bandit(skill=0.0, own=0.0)
    data = {seed: sampled(bandit, LABELS, 2_000, seed) for seed in plan.seeds}
    runs = [Run(name, w, 5.0, seed) for name in COMBINERS for w in plan.weights for seed in plan.seeds]
    paths = train(bandit, low_rank(), data, runs, steps=plan.steps, betas=[BETA] * 2, batch_size=64, every=plan.steps)
    rewards = expected_rewards(bandit, log_policy(bandit, low_rank(), paths.theta[-1]))
    off = float(rewards.sum(-1).abs().amax())
    first = rewards[:, 1, 0]
    return {
        "holds": off <= TOLERANCE["knob line"],
        "runs": len(runs),
        "largest |r_1 + r_2|": off,
        "r_1 from": float(first.min()),
        "r_1 to": float(first.max()),
    }


def fronts(plan: Plan) -> dict[str, Any]:
    """Every combiner, weighting, seed and step on drawn labels and batches of 64: exact figures on held-out prompts."""
    bandit = make_bandit()
    data = {seed: sampled(bandit, LABELS, 4_000, seed) for seed in plan.seeds}
    runs = [
        Run(name, w, lr, seed) for name in COMBINERS for lr in plan.rates for w in plan.weights for seed in plan.seeds
    ]
    began = time.perf_counter()
    paths = train(
        bandit, low_rank(), data, runs, steps=plan.steps, betas=[BETA] * 2, batch_size=64, every=plan.horizons[0]
    )
    seconds = time.perf_counter() - began
    rows = [
        row
        for at, theta in zip(paths.steps.tolist(), paths.theta, strict=True)
        if at in plan.horizons
        for row in front_rows(plan, bandit, log_policy(bandit, low_rank(), theta), at)
    ]
    return {"runs": len(runs), "steps": plan.steps, "seconds": seconds, "weights": plan.weights, "rows": rows}


def front_rows(plan: Plan, bandit: Bandit, logp: Tensor, at: int) -> list[dict[str, Any]]:
    """Figures of all combiners and step sizes after `at` steps, on held-out prompts."""
    shape = (len(COMBINERS), len(plan.rates), len(plan.weights), len(plan.seeds))
    rewards = expected_rewards(bandit, logp)[:, 1].view(*shape, 2)
    kl = divergence(bandit, logp)[:, 1].view(shape)
    w = torch.tensor(plan.weights, dtype=torch.float64)
    top = regularized_reward(bandit, optimum(bandit, w, BETA), w, BETA)[:, 1]
    # what weights v think of the runs trained with weights w: (combiner, rate, w, seed, v)
    value = rewards @ w.T - BETA * kl[..., None]
    own = (top - value.diagonal(dim1=2, dim2=4)).mean(-1)  # v = w; (combiner, rate, seed)
    best = (top - value.amax(2)).mean(-1)  # v may choose among all the runs of a method; (combiner, rate, seed)
    return [
        {
            "steps": at,
            "combiner": name,
            "step size": lr,
            "gap at its own weights": spread(own[i, j]),
            "gap at the best of its weights": spread(best[i, j]),
            "KL": spread(kl[i, j].mean(0)),
            "points": [[round(x, 4) for x in point] for point in rewards[i, j].mean(1).tolist()],
        }
        for i, name in enumerate(COMBINERS)
        for j, lr in enumerate(plan.rates)
    ]


def spread(values: Tensor) -> dict[str, float]:
    """Mean, least and largest over seeds."""
    return {"mean": float(values.mean()), "least": float(values.min()), "largest": float(values.max())}


PARTS = {"radius": radius, "ends": ends, "ceiling": ceiling, "knob": knob, "fronts": fronts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer weights, seeds and steps")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="some parts")
    parser.add_argument("--out", type=Path, help="where the results go (results.json beside this file; --quick: none)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    plan = PLANS["quick" if options.quick else "full"]
    results: dict[str, Any] = {
        "command": " ".join(["python studies/exact_world/run.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "commit": commit(),
        "versions": versions(),
        "beta": BETA,
        "c": C,
        "tolerance": TOLERANCE,
    }
    for name in options.only:
        began = time.perf_counter()
        results[name] = PARTS[name](plan)
        results[name]["part took seconds"] = round(time.perf_counter() - began, 1)
        verdict = {True: "holds", False: "FAILS", None: "no claim"}[results[name].get("holds")]
        print(f"{name:8} {verdict:8} {results[name]['part took seconds']:6.1f} s", flush=True)
    out = options.out or (None if options.quick else HERE / "results.json")
    if out:
        write_json(out, results)
    return int(any(results[name].get("holds") is False for name in options.only))


if __name__ == "__main__":
    sys.exit(main())
