"""What the studies in the exact world share: conditions, cells that are kept when finished, and verdicts over seeds.

Used by `does_raco_win`, `clipping` and `micro_batches`; the rules are in `PROTOCOL.md` and in each study's section.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from paretune.evaluation.front import hypervolume  # noqa: E402
from paretune.evaluation.statistics import equivalence_test, holm, paired_interval, sign_flip_test  # noqa: E402
from paretune.sandbox.bandit import Bandit, make_bandit  # noqa: E402
from paretune.sandbox.bandit_fronts import at_divergence, ceiling, held_out, reference_points  # noqa: E402
from paretune.sandbox.bandit_runs import Comparisons, sampled  # noqa: E402
from paretune.sandbox.labels import Labelling  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

BETA, C, ROWS, BATCH = 0.2, 0.4, 2_000, 64
DEVELOPMENT, CONFIRMATION = range(10), range(1000, 1030)
CHUNK = 10  # seeds that are trained as one tensor
EQUIVALENT = 0.01  # of ceiling-normalised hypervolume
CHECKPOINTS = (0.06, 0.12, 0.25, 0.5, 1.0, 2.0)  # of the step where linear's held-out loss is lowest
VARIANTS = {
    "equal": Labelling(kappa=1.0),
    "scaled": Labelling(kappa=1.0, scale=(4.0,)),  # the first objective's beta times 4
    "noisy-one": Labelling(kappa=1.0, flip=(0.3,)),  # 30 % of the first objective's labels turned round
}
# "untuned" is another world for each seed; nothing was ever chosen on it.
UNTUNED = {"responses": 16, "features": 8, "skill_rank": 3, "own": 0.6}


@cache
def world_of(preset: str, seed: int, objectives: int = 2, **options: float) -> Bandit:
    """The default world is one for all seeds; "knob 0.5" and the like change one number of it."""
    if preset == "default":
        return make_bandit(objectives=objectives)
    if preset == "untuned":
        return make_bandit(objectives=objectives, seed=seed, **UNTUNED)  # type: ignore[arg-type]
    name, value = preset.split()  # such as "knob 0.5"
    return make_bandit(objectives=objectives, **{name: float(value)})  # type: ignore[arg-type]


class Setting(NamedTuple):
    """What a cell's runs share: the seeds, their worlds and data."""

    seeds: list[int]
    worlds: list[Bandit]
    data: list[Comparisons]
    betas: list[float]


def setting(preset: str, variant: str, seeds: Iterable[int], objectives: int = 2) -> Setting:
    labelling, chosen = VARIANTS[variant], list(seeds)
    worlds = [world_of(preset, seed, objectives) for seed in chosen]
    data = [sampled(world, labelling, ROWS, seed) for world, seed in zip(worlds, chosen, strict=True)]
    return Setting(chosen, worlds, data, labelling.betas(BETA, objectives))


def two_weights(count: int) -> Tensor:
    """(count, 2), from one end to the other."""
    first = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.stack((first, 1 - first), -1)


def record_steps(last: int, mark: int, points: int = 26) -> list[int]:
    """Where parameters are kept: denser at the start, and at the checkpoints of `mark`."""
    steps = {0, last, *(round(last * (k / points) ** 1.5) for k in range(1, points))}
    return sorted({*steps, *(min(last, round(mark * share)) for share in CHECKPOINTS)})


def ceiling_of(preset: str, seed: int, objectives: int, level: float) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
    """The best rewards (V, M) at a KL of `level`, and the reference points that follow from them."""
    return _ceiling(preset, seed if preset == "untuned" else 0, objectives, level)


@cache
def _ceiling(preset: str, seed: int, objectives: int, level: float) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
    world = world_of(preset, seed, objectives)
    if objectives == 2:
        weights = two_weights(41)
    else:
        drawn = np.random.default_rng(0).dirichlet(np.full(objectives, 0.7), 200)
        weights = torch.cat((torch.eye(objectives, dtype=torch.float64), torch.from_numpy(drawn)))
    best = ceiling(world, weights, level)
    return best, reference_points(world, best)


class Levels(NamedTuple):
    """Points of R runs of each of S seeds at L levels of KL: (L, S, R, M), NaN where a run does not get there."""

    levels: list[float]
    points: Tensor
    at_steps: Tensor  # (T, S, R, M)
    divergence: Tensor  # (T, S, R)


def read_at(worlds: Sequence[Bandit], theta: Tensor, levels: Sequence[float]) -> Levels:
    rewards, divergence = held_out(worlds, theta)
    points = torch.stack([at_divergence(rewards, divergence, level) for level in levels])
    return Levels(list(levels), points, rewards, divergence)


def volume(points: Tensor, best: Tensor, corner: NDArray[np.float64]) -> float:
    """Ceiling-normalised hypervolume of points (R, M), those that are NaN left out: exact to M = 3, sampled beyond."""
    there = points[~points.isnan().any(-1)].numpy()
    if best.shape[1] <= 3:
        return hypervolume(there, corner) / hypervolume(best.numpy(), corner) if len(there) else 0.0
    return _covered(there, best.numpy(), corner)


def _covered(points: NDArray[np.float64], best: NDArray[np.float64], corner: NDArray[np.float64]) -> float:
    """Share of what the ceiling dominates that `points` dominate: the same 20,000 places for all, so paired."""
    top = best.max(0)
    places = corner + np.random.default_rng(0).random((20_000, len(corner))) * (top - corner)

    def dominated(by: NDArray[np.float64]) -> NDArray[np.bool_]:
        found = np.zeros(len(places), dtype=bool)
        for point in by:
            found |= (places <= point).all(1)
        return found

    inside = dominated(best)
    return float(dominated(points)[inside].sum() / inside.sum())


def best_of(points: Tensor, best: Tensor) -> float:
    """Reference-free: over the ceiling's own weightings, how far the best point of each gets, mean, in reward."""
    there = points[~points.isnan().any(-1)]
    m = best.shape[1]
    weights = two_weights(41) if m == 2 else torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(m), 200))
    return float((weights @ there.T).amax(1).mean() / (weights @ best.T).amax(1).mean()) if len(there) else 0.0


def finished(path: Path) -> dict[str, Any]:
    """The cells of a file, key -> content. A line that was cut off by a kill is not one."""
    cells: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        cells[cell.pop("key")] = cell
    return cells


def fill(path: Path | None, keys: Sequence[str], compute: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Computes the cells that are not in the file yet and appends each as it is finished; None keeps no file.

    The file is read again before each cell, so several processes may fill one file with different parts of the keys.
    """
    cells: dict[str, Any] = {}
    for key in keys:
        cells = finished(path) if path else cells
        if key in cells:
            continue
        cells[key] = compute(key)
        if path:
            cut = path.exists() and not path.read_text(encoding="utf-8").endswith("\n")
            with path.open("a", encoding="utf-8") as file:
                file.write(
                    ("\n" if cut and path.stat().st_size else "") + json.dumps({"key": key, **cells[key]}) + "\n"
                )
        print(f"{key:50} done", flush=True)
    return {key: cells[key] for key in keys}


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers for a file: of tensors, arrays and nested lists; NaN becomes null."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [rounded(one, digits) for one in values]
    if isinstance(values, float):
        return None if values != values else round(values, digits)
    return values


def verdicts(family: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Each claim's differences (one per seed) -> its figures and its verdict, with Holm over the whole family."""
    p_values = {name: sign_flip_test(values) for name, values in family.items()}
    adjusted = dict(zip(family, holm(list(p_values.values())), strict=True))
    found = {}
    for name, values in family.items():
        interval, equivalent = paired_interval(values), equivalence_test(values, EQUIVALENT)
        different, close = adjusted[name] < 0.05, equivalent < 0.05
        words = ["better" if interval.mean > 0 else "worse"] if different else []
        words += ["equivalent"] if close else []
        found[name] = {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": interval.n,
            "p": p_values[name],
            "p Holm": adjusted[name],
            "p equivalence": equivalent,
            "verdict": ", ".join(words) or "undecided",
        }
    return found


def command(
    folder: Path,
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    develop: Callable[[dict[str, Any], bool], dict[str, Any]],
    keys: Callable[[bool], list[str]],
    cell: Callable[[dict[str, Any], bool, str], dict[str, Any]],
    conclude: Callable[[dict[str, Any]], dict[str, Any]],
    primary: str,
) -> int:
    """A study's command line: --develop freezes choices, otherwise cells are filled and verdicts drawn up.

    Args:
        folder: the study's, where frozen.json, cells.jsonl and results.json lie.
        develop: (what was frozen before, quick) -> what is frozen.
        keys: quick -> the confirmation's cells.
        cell: (frozen, quick, key) -> the cell.
        conclude: cells -> results, "verdicts" among them.
        primary: the family that is printed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--develop", action="store_true", help="development seeds; writes frozen.json")
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, nothing written")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("I", "N"), help="cells I, I + N, ... alone, no conclusions"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began, quick, kept = time.perf_counter(), options.quick, folder / "frozen.json"
    frozen = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() and not quick else {}
    if options.develop or quick:
        frozen = develop(frozen, quick)
    if options.develop and not quick:
        write_json(kept, {**frozen, "commit": commit()})
        return 0
    part = slice(*(options.part[0], None, options.part[1]) if options.part else (None,))
    cells = fill(None if quick else folder / "cells.jsonl", keys(quick)[part], lambda key: cell(frozen, quick, key))
    if options.part:
        return 0
    results = {
        "command": f"python studies/{folder.name}/run.py",
        "commit": commit(),
        "versions": versions(),
        "seconds of this call": round(time.perf_counter() - began, 1),
        **conclude(cells),
    }
    if not quick:
        write_json(folder / "results.json", results)
    for name, row in results["verdicts"][primary].items():
        print(f"{name:32} {row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] {row['verdict']}")
    return 0
