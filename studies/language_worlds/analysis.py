"""From runs to verdicts: the learning rate by its rule, fronts at equal KL, paired differences.

Everything here was written before the confirmation runs; PROTOCOL.md says the same in words.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paretune.evaluation.front import hypervolume
from paretune.evaluation.statistics import equivalence_test, holm, paired_interval, sign_flip_test

RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
DEVELOPMENT_SEEDS = (0, 1, 2)
ARMS = ("linear", "linear-matched", "cagrad", "raco")
# (better, than): the first is the primary claim of a world
PAIRS = (("raco", "linear-matched"), ("raco", "linear"), ("raco", "cagrad"), ("linear-matched", "linear"))
BOUND = 0.01  # of ceiling-normalised hypervolume
SENSITIVITY = ("nadir", "base", "below nadir")  # the reference points, the first is the declared one


def chosen(runs: list[dict[str, Any]], world: str) -> dict[str, Any]:
    """Per combiner, the rate whose held-out loss, mean over development seeds, falls lowest, and the step where."""
    out: dict[str, Any] = {}
    for combiner in ("linear", "raco"):
        table = []
        for rate in RATES:
            mine = [run for run in runs if run["key"][0] == world and tuple(run["key"][2:]) == (combiner, rate)]
            if sorted(run["seed"] for run in mine) != list(DEVELOPMENT_SEEDS):
                raise SystemExit(f"{world}: {combiner} at {rate:g} lacks development runs")
            steps = sorted(map(int, mine[0]["losses"]))
            mean = np.mean([[run["losses"][str(step)] for step in steps] for run in mine], 0)
            table.append({"rate": rate, "lowest": float(mean.min()), "step": steps[int(mean.argmin())]})
        best = min(table, key=lambda row: row["lowest"])
        out[combiner] = {**best, "edge": best["rate"] in (RATES[0], RATES[-1]), "table": table}
    return out


def at_kl(points: list[dict[str, Any]], kl: float) -> np.ndarray:
    """Scores of a trajectory where it has gone `kl` nats: linear between checkpoints, and its ends beyond them.

    KL may fall back late; the trajectory is read up to its largest KL.
    """
    last = int(np.argmax([point["kl"] for point in points]))
    points = points[: last + 1]
    distance = np.maximum.accumulate([point["kl"] for point in points])
    scores = np.array([point["scores"] for point in points])
    return np.array([np.interp(kl, distance, column) for column in scores.T])


def seed_results(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One world's seed: hypervolumes and mean weighted scores of every arm at the KL that all of its runs reach."""
    base = next(run for run in runs if run["key"][2] == "base")["points"][0]
    others = [run for run in runs if run["key"][2] != "base"]
    paths = {tuple(run["key"][2:]): [{**base, "kl": 0.0}, *run["points"]] for run in others}
    reach = {key: max(point["kl"] for point in points) for key, points in paths.items()}
    kl = min(value for key, value in reach.items() if key[0] in ARMS)
    singles = np.array([at_kl(points, kl) for key, points in sorted(paths.items()) if key[0] == "single"])[::-1]
    start, ideal, nadir = np.array(base["scores"]), singles.diagonal(), singles.min(0)
    found: dict[str, Any] = {"kl": kl, "base": start.tolist(), "ideal": ideal.tolist(), "nadir": nadir.tolist()}
    corners = dict(zip(SENSITIVITY, (nadir, np.minimum(start, ideal), nadir - 0.25 * (ideal - nadir)), strict=True))
    for arm in ARMS:
        keys = [key for key in paths if key[0] == arm]
        scores = np.array([at_kl(paths[key], kl) for key in keys])
        weights = np.array([key[1:] for key in keys])
        scaled = (scores - nadir) / (ideal - nadir)
        found[arm] = {
            "scores": scores.tolist(),
            "weighted": float((weights * scaled).sum(1).mean()),
            **{
                name: hypervolume(np.vstack([scores, singles]), corner) / float(np.prod(ideal - corner))
                for name, corner in corners.items()
            },
        }
    return found


def results(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Both worlds: per-seed figures, differences with intervals and tests, Holm over the two primary claims."""
    worlds: dict[str, Any] = {}
    for world in sorted({run["key"][0] for run in runs}):
        per_seed = {}
        for seed in sorted({run["key"][1] for run in runs if run["key"][0] == world}):
            mine = [run for run in runs if tuple(run["key"][:2]) == (world, seed)]
            m = len(next(run for run in mine if run["arm"])["arm"]["weights"])
            if len(mine) == 1 + m + 3 * len(ARMS):  # a seed with runs missing is no unit
                per_seed[seed] = seed_results(mine)
        if len(per_seed) >= 2:
            worlds[world] = {"seeds": per_seed, "differences": _differences(per_seed), "runs": _means(runs, world)}
    primary = [worlds[w]["differences"]["raco - linear-matched"]["nadir"]["p"] for w in worlds]
    adjusted = dict(zip(worlds, holm(primary), strict=True))
    return {"worlds": worlds, "holm": adjusted}


def _differences(per_seed: dict[int, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for ours, theirs in PAIRS:
        row = {}
        for measure in (*SENSITIVITY, "weighted"):
            d = [found[ours][measure] - found[theirs][measure] for found in per_seed.values()]
            interval = paired_interval(d)
            row[measure] = {
                "mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n,
                "p": sign_flip_test(d), "equivalent": equivalence_test(d, BOUND),
            }  # fmt: skip
        out[f"{ours} - {theirs}"] = row
    return out


def _means(runs: list[dict[str, Any]], world: str) -> dict[str, Any]:
    """What the steps of an arm looked like: cosines, angles, clipping, effective weights; means over seeds."""
    out: dict[str, Any] = {}
    for key in sorted({tuple(run["key"][2:]) for run in runs if run["key"][0] == world and run["arm"]}):
        mine = [run for run in runs if run["key"][0] == world and tuple(run["key"][2:]) == key]
        means = {name: float(np.mean([run["means"][name] for run in mine])) for name in mine[0]["means"]}
        effective = np.mean([run["effective"] for run in mine], 0).tolist()
        total = float(np.mean([run["total"] for run in mine]))
        out[" ".join(map(str, key))] = {**means, "effective": effective, "total": total}
    return out
