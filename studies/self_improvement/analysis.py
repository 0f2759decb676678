"""From cells to verdicts: paired differences over seeds, fronts' hypervolumes, Holm over the declared claims.

Written before the confirmation runs; PROTOCOL.md says the same in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paretune.evaluation.front import hypervolume
from studies.exact import verdicts
from studies.self_improvement.world import OBJECTIVES

PART_NAMES = ("judge", "true", "wrong-25", "wrong-50", "paraphrased", "front")
CORNER = (0.0, -1.0)  # of hypervolumes: nothing told, everything wrong; the best of all worlds has volume 1
FRONTS = ("raco", "linear", "overall")
ENOUGH = 10  # seeds for a verdict
MORE = "sft more 0.00025"
MORE_RATES = ("0.000125", "0.00025", "0.0005")
Seed = dict[str, Any]  # part -> cell


def seeds_of(cells: Mapping[str, Any]) -> dict[int, Seed]:
    """Seeds with all parts; a seed with a part missing is no unit."""
    found: dict[int, Seed] = {}
    for key, cell in cells.items():
        seed, part = key.split(" ", 1)
        found.setdefault(int(seed), {})[part] = cell
    whole = {seed: found[seed] for seed in sorted(found) if set(PART_NAMES) <= found[seed].keys()}
    for one in whole.values():  # the same start, draws, labels and settings: the same run
        one["front"]["arms"]["overall 0.1"] = one["true"]["arms"]["guided"]
    return whole


def accuracy(set_: str, source: str) -> Callable[[Seed], float]:
    """Of a source on a set of pairs, averaged over both orders."""
    return lambda one: one["judge"]["accuracy"][set_][source]["accuracy"]


def reward(part: str, arm: str, objective: str = "overall", where: str = "held out") -> Callable[[Seed], float]:
    """Mean exact reward of an arm."""
    return lambda one: one[part]["arms"][arm][where][objective]


def volume(front: str, corner: str = "worst", where: str = "held out") -> Callable[[Seed], float]:
    """Hypervolume of a front's three points; from the worst corner, from the start, or from the arms' nadir."""

    def of(one: Seed) -> float:
        arms = one["front"]["arms"]
        points = {name: [arm[where][o] for o in OBJECTIVES] for name, arm in arms.items()}
        mine = [points[name] for name in points if name.split()[0] == front]
        lowest = np.min([point for name, point in points.items() if name != "sft"], axis=0)
        corners = {"worst": np.array(CORNER), "start": np.array(points["sft"]), "nadir": lowest}
        return float(hypervolume(np.array(mine), corners[corner]))

    return of


def best_weighted(front: str, where: str = "held out") -> Callable[[Seed], float]:
    """Mean over weights of the largest w·r among the front's points: no reference point."""
    share = np.linspace(0, 1, 41)
    weights = np.stack([share, 1 - share], 1)

    def of(one: Seed) -> float:
        arms = one["front"]["arms"]
        mine = np.array([[arm[where][o] for o in OBJECTIVES] for name, arm in arms.items() if name.startswith(front)])
        return float((weights @ mine.T).max(1).mean())

    return of


def best_more(ones: Sequence[Seed]) -> Callable[[Seed], float]:
    """Further SFT at the one of three rates that is best on these very seeds: the choice favours it."""
    arms = [reward("true", f"sft more {rate}") for rate in MORE_RATES]
    return max(arms, key=lambda arm: float(np.mean([arm(one) for one in ones])))


# claim -> (what it says is larger, than what); None: than the best further SFT
PRIMARY: dict[str, tuple[Callable[[Seed], float], Callable[[Seed], float] | None]] = {
    "1. judge: guided - free": (accuracy("overall, true", "guided overall"), accuracy("overall, true", "free overall")),
    "2a. policy: guided - best more SFT": (reward("true", "guided"), None),
    "2b. policy: guided - free": (reward("true", "guided"), reward("true", "free")),
    "3. front: RACO of two judged objectives - one judge": (volume("raco"), volume("overall")),
}
SECONDARY: dict[str, tuple[Callable[[Seed], float], Callable[[Seed], float] | None]] = {
    "judge: guided - form alone": (accuracy("overall, true", "guided overall"), accuracy("overall, true", "form")),
    "judge: guided - ROUGE": (accuracy("overall, true", "guided overall"), accuracy("overall, true", "rouge")),
    "judge, paraphrased: guided - ROUGE": (
        accuracy("overall, paraphrased", "guided overall"),
        accuracy("overall, paraphrased", "rouge"),
    ),
    "judge, 25 % wrong: guided - free": (
        accuracy("overall, wrong-25", "guided overall"),
        accuracy("overall, true", "free overall"),
    ),
    "judge, 50 % wrong: guided - free": (
        accuracy("overall, wrong-50", "guided overall"),
        accuracy("overall, true", "free overall"),
    ),
    "policy: more SFT - SFT": (reward("true", MORE), reward("true", "sft")),
    "policy: free - SFT": (reward("true", "free"), reward("true", "sft")),
    "policy: guided - SFT": (reward("true", "guided"), reward("true", "sft")),
    "policy: guided - ROUGE": (reward("true", "guided"), reward("true", "rouge")),
    "policy: exact labels - guided": (reward("true", "exact"), reward("true", "guided")),
    **{
        f"policy, {quality}: guided - {label}": (reward(quality, "guided"), reward(part or quality, arm))
        for quality in ("wrong-25", "wrong-50", "paraphrased")
        for label, part, arm in (
            ("its own more SFT", "", MORE),
            ("free from true references", "true", "free"),
        )
    },
    "policy, paraphrased: guided - ROUGE": (reward("paraphrased", "guided"), reward("paraphrased", "rouge")),
    "front: RACO - linear": (volume("raco"), volume("linear")),
    "front: linear - one judge": (volume("linear"), volume("overall")),
    "front from the start: RACO - one judge": (volume("raco", "start"), volume("overall", "start")),
    "front from the nadir: RACO - one judge": (volume("raco", "nadir"), volume("overall", "nadir")),
    "front, best for each weight: RACO - one judge": (best_weighted("raco"), best_weighted("overall")),
    "even weights, overall reward: RACO - one judge": (reward("front", "raco 0.5"), reward("front", "overall 0.1")),
}


def results(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Differences with intervals and tests, mean figures, and the seeds that they are of."""
    seeds = seeds_of(cells)
    ones = list(seeds.values())
    found = {
        name: verdicts({claim: _differences(ones, a, b or best_more(ones)) for claim, (a, b) in family.items()})
        for name, family in (("primary", PRIMARY), ("secondary", SECONDARY))
    }
    for row in found["secondary"].values():  # without correction, and without a verdict
        row.pop("p Holm"), row.pop("verdict")
    if len(seeds) < ENOUGH:
        for row in found["primary"].values():
            row["verdict"] = "exploratory"
    core = sum(cell.get("core seconds", 0.0) for one in ones for cell in one.values())
    return {"seeds": list(seeds), "core seconds": round(core), **found, "means": _mean(ones), "volumes": _volumes(ones)}


def afterwards(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that were run again with a policy that knows both words of a value: means, nothing else."""
    found: dict[str, Seed] = {}
    for key, cell in cells.items():
        seed, part = key.split(" ", 1)
        found.setdefault(seed, {})[part] = {name: cell[name] for name in ("arms", "labels right")}
    return {"seeds": sorted(map(int, found)), "means": _mean(list(found.values()))}


def _differences(ones: Sequence[Seed], ours: Callable[[Seed], float], other: Callable[[Seed], float]) -> list[float]:
    return [ours(one) - other(one) for one in ones]


def _volumes(ones: Sequence[Seed]) -> dict[str, dict[str, float]]:
    return {
        front: {
            corner: float(np.mean([volume(front, corner)(one) for one in ones]))
            for corner in ("worst", "start", "nadir")
        }
        for front in FRONTS
    }


def _mean(values: Sequence[Any]) -> Any:
    """The mean over seeds of all numbers of nested mappings; None where one is missing."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return None if any(value is None for value in values) else float(np.mean(values))
