"""Groups as objectives: one objective per stakeholder group, weights by a social-choice rule; who gains, who loses.

    python studies/groups/run.py                 # results.json: the frozen plan on fresh seeds
    python studies/groups/run.py --develop       # whether the rules' rounds settle, on development seeds; prints
    python studies/groups/run.py --quick         # in small on development seeds, keeps nothing
    python studies/groups/figure.py              # figure.svg (needs matplotlib)

Five groups of unequal size want different mixtures of three base objectives of the exact world and label every pair by
their own mixture. PROTOCOL.md beside this file says what is claimed and how it is decided.

S seeds (a world each), R runs, G groups.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from paretune.sandbox.bandit import Bandit, low_rank  # noqa: E402
from paretune.sandbox.bandit_arms import Arm, Trace, train_arms  # noqa: E402
from paretune.sandbox.bandit_fronts import at_divergence, ceiling, held_out  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies import exact  # noqa: E402
from studies.many_objectives import worlds as w  # noqa: E402
from studies.many_objectives.run import CHOSEN, rule_of  # noqa: E402

# Rows: what a group wants of the three base objectives. The largest two nearly agree; the last wants what they do not.
GROUPS = ("A", "B", "C", "D", "E")
MIXTURES = torch.tensor(
    [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.0, 0.5, 0.5]], dtype=torch.float64
)
SIZES = torch.tensor([0.40, 0.25, 0.20, 0.10, 0.05], dtype=torch.float64)
RULES = ("utilitarian", "nash", "egalitarian")
COMBINERS = ("linear", "raco", "pcgrad")
LEAST = 0.02  # a gain below it counts as it: a logarithm and a quotient need more than 0


@dataclass(frozen=True)
class Plan:
    """How much is run. `rounds` of training fit the weights of the Nash and egalitarian rules."""

    world: str = "apart"
    seeds: tuple[int, ...] = tuple(range(1030, 1060))
    steps: int = 180
    every: int = 4
    rounds: int = 6
    level: float = 0.5  # nats
    levels: tuple[float, ...] = (0.25, 0.5, 1.0)


def worlds_of(plan: Plan) -> list[Bandit]:
    """Worlds whose objectives are the groups."""
    base = [w.WORLDS[plan.world](3, seed) for seed in plan.seeds]
    return [replace(one, rewards=torch.einsum("gk,kxy->gxy", MIXTURES, one.rewards)) for one in base]


def on_training_prompts(world: Bandit) -> Bandit:
    """The same world with its training prompts in the place of the held-out ones: what a rule may look at."""
    n = world.n_train
    return Bandit(world.features[:n], world.reference[:n], world.rewards[:, :n], 0)


def utilities(worlds: Sequence[Bandit], trace: Trace, level: float) -> Tensor:
    """(S, R, G): each group's gain at that KL, from the reference policy (0) to the best for it alone (1).

    NaN where a run does not get there.
    """
    rewards, kl = held_out(worlds, trace.theta)
    read = at_divergence(rewards, kl, level)
    alone = torch.eye(len(GROUPS), dtype=torch.float64)
    top = torch.stack([ceiling(world, alone, level).diagonal() for world in worlds])
    base = rewards[0, :, :1]
    return (read - base) / (top[:, None] - base)


# ---- the rules ----


def utilitarian(weights: Tensor, gains: Tensor, round_: int) -> Tensor:
    """Everyone counts the same: weights are the groups' sizes, whatever comes of it."""
    return SIZES.expand_as(weights)


def nash(weights: Tensor, gains: Tensor, round_: int) -> Tensor:
    """Maximises sum_g size_g log gain_g. Where the gradient of that vanishes, weights are size_g / gain_g.

    A damped fixed point: the geometric mean of the old weights and those. Scale-free: a group that counts its gain in
    other units gets the same (Nash 1950); gains here are shares of what a group could have alone.
    """
    target = SIZES / gains.clamp(min=LEAST)
    return normalized((weights * normalized(target)).sqrt())


def egalitarian(weights: Tensor, gains: Tensor, round_: int) -> Tensor:
    """Maximises the least gain: weight moves to the worst-off (multiplicative weights, steps 4 / sqrt(round)).

    Sizes do not count.
    """
    return normalized(weights * torch.exp(-4.0 / round_**0.5 * (gains - gains.mean(-1, keepdim=True))))


UPDATES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "utilitarian": utilitarian,
    "nash": nash,
    "egalitarian": egalitarian,
}


def normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def welfare(gains: Tensor) -> dict[str, Tensor]:
    """(..., G) -> each rule's own aim, (...): mean by size, geometric mean by size, least."""
    return {
        "utilitarian": gains @ SIZES,
        "nash": (gains.clamp(min=LEAST).log() @ SIZES).exp(),
        "egalitarian": gains.amin(-1),
    }


# ---- the study ----


def fit(plan: Plan) -> dict[str, Any]:
    """Weights of every rule under every combiner, the end of its own rounds; then everything on held-out prompts."""
    worlds = worlds_of(plan)
    data, seen = w.data_of(worlds, plan.seeds), [on_training_prompts(world) for world in worlds]
    count, groups = len(worlds), len(GROUPS)
    start = torch.stack([SIZES, SIZES, torch.full((groups,), 1 / groups, dtype=torch.float64)])
    weights = {name: start.expand(count, -1, -1).clone() for name in COMBINERS}
    history: list[dict[str, Any]] = []

    def train(arms: Sequence[Arm]) -> Trace:
        shared: dict[str, Any] = {"steps": plan.steps, "betas": [w.BETA] * groups, "seeds": plan.seeds}
        return train_arms(worlds, data, arms, record=range(0, plan.steps + 1, plan.every), **shared)

    def arm(name: str, own: Tensor, rate: Tensor | None = None) -> Arm:
        lr = torch.full(own.shape[:-1], CHOSEN[name], dtype=torch.float64) if rate is None else rate
        return Arm(rule_of(name), own, lr)

    for round_ in range(1, plan.rounds + 1):
        trace = train([arm(name, weights[name]) for name in COMBINERS])
        gains = utilities(seen, trace, plan.level).nan_to_num(LEAST).unflatten(1, (len(COMBINERS), len(RULES)))
        for k, name in enumerate(COMBINERS):
            moved = [UPDATES[rule](weights[name][:, j], gains[:, k, j], round_) for j, rule in enumerate(RULES)]
            aims = [welfare(gains[:, k, j])[rule].mean() for j, rule in enumerate(RULES)]
            history.append({"round": round_, "combiner": name, "aims": exact.rounded(torch.stack(aims))})
            weights[name] = torch.stack(moved, 1)
    even = torch.full((count, 1, groups), 1 / groups, dtype=torch.float64)
    last = train([*(arm(name, weights[name]) for name in COMBINERS), arm("mgda", even)])
    at = COMBINERS.index("raco") * len(RULES)
    mixed = last.coefficients[:, :, at : at + len(RULES)]
    effective = normalized(mixed).mean(0)
    matched = train([arm("linear", effective, CHOSEN["raco"] * last.stretch[:, at : at + len(RULES)])])
    return {
        "worlds": worlds,
        "data": data,
        "weights": weights | {"linear-matched": effective},
        "history": history,
        "gains": {level: gains_of(worlds, last, matched, level) for level in plan.levels},
    }


def gains_of(worlds: Sequence[Bandit], last: Trace, matched: Trace, level: float) -> dict[str, Tensor]:
    """Combiner -> (S, rules, G) on held-out prompts; MGDA has no rule and stands under all of them."""
    every, twin = utilities(worlds, last, level), utilities(worlds, matched, level)
    size = len(RULES)
    found = {name: every[:, k * size : (k + 1) * size] for k, name in enumerate(COMBINERS)}
    return found | {"linear-matched": twin, "mgda": every[:, -1:].expand(-1, size, -1)}


def summarize(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for level, gains in found["gains"].items():
        for name, values in gains.items():
            for j, rule in enumerate(RULES):
                own = values[:, j]
                there = ~own.isnan().any(-1)
                aims = welfare(own[there])
                rows.append(
                    {
                        "level": level,
                        "rule": rule,
                        "combiner": name,
                        "reached": round(float(there.double().mean()), 4),
                        "gains": exact.rounded(own[there].mean(0)),
                        "welfare": {aim: round(float(value.mean()), 5) for aim, value in aims.items()},
                        "worst off": worst_off(own[there]),
                    }
                )
    weights = {
        name: {rule: exact.rounded(found["weights"][name][:, j].mean(0)) for j, rule in enumerate(RULES)}
        for name in found["weights"]
    }
    main = found["gains"][plan.level]
    return {
        "claims": exact.verdicts(claims(main)),
        "who gains from raco": who(main["raco"] - main["linear"]),
        "who gains from raco, against linear-matched": who(main["raco"] - main["linear-matched"]),
        "spread": spread(main),
        "weights": weights,
        "rows": rows,
        "rounds": found["history"],
        "cosines at the start": exact.rounded(start_cosines(found)),
    }


def claims(gains: dict[str, Tensor]) -> dict[str, list[float]]:
    """The declared family, differences per seed; a seed in which an arm does not reach the KL is left out of it."""

    def difference(one: str, two: str, rule: str, aim: str) -> list[float]:
        j = RULES.index(rule)
        values = welfare(gains[one][:, j])[aim] - welfare(gains[two][:, j])[aim]
        return [float(x) for x in values[~values.isnan()]]

    own = {f"raco - linear, {rule} rule, its own aim": difference("raco", "linear", rule, rule) for rule in RULES}
    rest = {
        f"raco - {rival}, utilitarian rule, the least gain": difference("raco", rival, "utilitarian", "egalitarian")
        for rival in ("linear", "linear-matched")
    }
    return {claim: values for claim, values in (own | rest).items() if len(values) > 1}


def worst_off(gains: Tensor) -> dict[str, float]:
    """How often each group is the one that gains least."""
    at = gains.argmin(-1)
    return {name: round(float((at == g).double().mean()), 3) for g, name in enumerate(GROUPS)}


def who(difference: Tensor) -> dict[str, dict[str, Any]]:
    """(S, rules, G) -> per rule and group the mean difference and the share of seeds in which it is positive."""
    there = ~difference.isnan().any(-1).any(-1)
    kept = difference[there]
    return {
        rule: {
            name: {
                "mean": round(float(kept[:, j, g].mean()), 5),
                "positive": round(float((kept[:, j, g] > 0).double().mean()), 3),
            }
            for g, name in enumerate(GROUPS)
        }
        for j, rule in enumerate(RULES)
    }


def spread(gains: dict[str, Tensor]) -> dict[str, Any]:
    """How far a group's mean gain moves with the rule (combiner fixed) and with the combiner (rule fixed), in gain."""
    means = torch.stack([gains[name].nanmean(0) for name in COMBINERS])  # (combiners, rules, G)
    by_rule = (means.amax(1) - means.amin(1)).mean(0)
    by_combiner = (means.amax(0) - means.amin(0)).mean(0)
    return {
        "by rule": dict(zip(GROUPS, exact.rounded(by_rule), strict=True)),
        "by combiner": dict(zip(GROUPS, exact.rounded(by_combiner), strict=True)),
        "mean": [round(float(by_rule.mean()), 4), round(float(by_combiner.mean()), 4)],
    }


def start_cosines(found: dict[str, Any]) -> Tensor:
    """(G, G), mean over seeds of the cosines of the groups' full gradients at the reference policy."""
    theta = torch.stack([low_rank().start(world, 0) for world in found["worlds"]])
    return w.gradient_cosines(found["worlds"], found["data"], theta).mean(0)


def develop() -> None:
    """Prints whether the rounds settle; nothing else was looked at before the plan was frozen."""
    plan = Plan(world="camps", seeds=(0, 1, 2))
    found = fit(plan)
    for name in COMBINERS:
        print(name, [one["aims"] for one in found["history"] if one["combiner"] == name])
        print(name, exact.rounded(found["weights"][name][0], 3))
    print("reached", {k: float((~v.isnan()).double().mean()) for k, v in found["gains"][plan.level].items()})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--develop", action="store_true", help="development seeds and world; prints")
    parser.add_argument("--quick", action="store_true", help="two development seeds, few steps; keeps nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the results go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    if options.develop:
        develop()
        return 0
    plan = (
        Plan(world="camps", seeds=(0, 1), steps=12, rounds=2, level=0.002, levels=(0.002,)) if options.quick else Plan()
    )
    began = time.process_time()
    results: dict[str, Any] = summarize(plan, fit(plan))
    if options.quick:
        print(json.dumps(results["claims"], indent=1))
        return 0
    results |= {
        "command": "python studies/groups/run.py",
        "commit": commit(),
        "versions": versions(),
        "plan": {**vars(plan), "sizes": SIZES.tolist(), "mixtures": MIXTURES.tolist(), "beta": w.BETA},
        "CPU seconds": round(time.process_time() - began),
    }
    write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
