"""Arms against the paper's RACO and against their own matched linear weighting, front by front at equal KL.

S seeds, W weightings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paretune.evaluation.statistics import equivalence_test, paired_interval, sign_flip_test
from studies.noisy_gram.arms import LINEAR, Arm
from studies.noisy_gram.loop import Group, Paths, Worlds, make_worlds, slices, train
from studies.noisy_gram.score import DECLARED, ceiling, front_scores, read_at

BOUND = 0.01  # of equivalence, in ceiling-normalised hypervolume


@dataclass(frozen=True)
class Cell:
    """One condition: which labels in which worlds, which optimizer, its step and the batch."""

    condition: str
    optimizer: str
    size: int
    lr: float
    steps: int = 240
    every: int = 6

    @property
    def name(self) -> str:
        return f"{self.condition}, {self.optimizer}, {self.size}"


class Scores(NamedTuple):
    """values[arm][kl][kind] (S,), arms and their matched twins ("NAME, matched"); the rest are means for the page."""

    values: dict[str, dict[float, dict[str, Tensor]]]
    effective: dict[str, list[float]]
    short: dict[str, float]  # share of runs that do not reach the KL, the largest level
    points: dict[str, list[list[float]]]


def pairs(firsts: Sequence[float]) -> Tensor:
    """(W, 2)."""
    first = torch.tensor(firsts, dtype=torch.float64)
    return torch.stack((first, 1.0 - first), -1)


def run_cell(
    cell: Cell, arms: Sequence[Arm], seeds: Sequence[int], firsts: Sequence[float], kls: Sequence[float],
    alone: Sequence[str] = ("linear",),
) -> Scores:  # fmt: skip
    """Trains all arms, then each arm's matched twins (one per KL), and scores them.

    A twin is linear weighting at the constant weights that its run had on average until it reached that KL. Steps have
    one length for all arms (`loop.train`), so the twin's step is the arm's; only an arm as published is longer, and
    its twin's plain steps are longer by its mean ratio (Adam divides lengths out). Arms named in `alone` get no twin.
    """
    worlds, w = make_worlds(cell.condition, seeds), pairs(firsts)
    groups = [Group(LINEAR, pairs([1.0, 0.0]), torch.tensor(cell.lr, dtype=torch.float64))]
    groups += [Group(arm, w, torch.tensor(cell.lr, dtype=torch.float64)) for arm in arms]
    paths = _train(cell, worlds, groups)
    parts = slices([len(group.weights) for group in groups])
    twins: list[tuple[str, float, Group]] = []
    for kl in kls:
        _, share, length = read_at(paths.points, kl, paths.effective, paths.lengths)
        for arm, part in zip(arms, parts[1:], strict=True):
            if arm.name not in alone:
                own = share[:, part]
                longer = length[:, part] if arm.published and cell.optimizer == "sgd" else torch.ones_like(own)
                twins.append((arm.name, kl, Group(LINEAR, torch.stack((own, 1.0 - own), -1), cell.lr * longer)))
    matched = _train(cell, worlds, [group for _, _, group in twins])
    places = slices([len(firsts)] * len(twins))
    return _scores(
        worlds,
        arms,
        kls,
        paths,
        parts,
        matched,
        [(name, kl, at) for (name, kl, _), at in zip(twins, places, strict=True)],
    )


def _train(cell: Cell, worlds: Worlds, groups: Sequence[Group]) -> Paths:
    record = {*range(0, cell.steps + 1, cell.every), cell.steps}
    return train(worlds, groups, steps=cell.steps, size=cell.size, optimizer=cell.optimizer, record=sorted(record))


def _scores(
    worlds: Worlds, arms: Sequence[Arm], kls: Sequence[float], paths: Paths, parts: list[slice], matched: Paths,
    twins: list[tuple[str, float, slice]],
) -> Scores:  # fmt: skip
    base = paths.points[0, :, 0, :2]
    values: dict[str, dict[float, dict[str, Tensor]]] = {}
    effective, short, points = {}, {}, {}
    for kl in kls:
        best = ceiling(worlds, kl)
        at, share = read_at(paths.points, kl, paths.effective)
        ends = at[:, parts[0], :2]
        for arm, part in zip(arms, parts[1:], strict=True):
            values.setdefault(arm.name, {})[kl] = front_scores(at[:, part, :2], ends, base, best)
            effective[arm.name] = share[:, part].mean(0).tolist()
            short[arm.name] = float((at[:, part, 2] < kl - 1e-9).double().mean())
            points[arm.name] = at[:, part].mean(0).tolist()
        for name, level, place in twins:
            if level == kl:
                own = read_at(matched.points, kl)[0][:, place]
                twin = f"{name}, matched"
                values.setdefault(twin, {})[kl] = front_scores(own[..., :2], ends, base, best)
                short[twin] = float((own[..., 2] < kl - 1e-9).double().mean())
                points[twin] = own.mean(0).tolist()
    return Scores(values, effective, short, points)


def compared(scores: Scores, kl: float, first: str, second: str, kind: str = DECLARED) -> dict[str, float]:
    """first - second over seeds: mean, 95 % interval, sign-flip p, equivalence p."""
    difference = (scores.values[first][kl][kind] - scores.values[second][kl][kind]).numpy()
    interval = paired_interval(difference)
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "p": sign_flip_test(difference),
        "p equivalent": equivalence_test(difference, BOUND),
        "n": interval.n,
    }


def summary(scores: Scores) -> dict[str, Any]:
    """What the page shows of a cell beside the comparisons."""
    return {
        "hypervolume": {
            name: {str(kl): round(float(kinds[DECLARED].mean()), 5) for kl, kinds in levels.items()}
            for name, levels in scores.values.items()
        },
        "effective weights": {name: [round(x, 3) for x in row] for name, row in scores.effective.items()},
        "short of the KL": {name: round(x, 4) for name, x in scores.short.items()},
        "points": {name: [[round(x, 4) for x in row] for row in rows] for name, rows in scores.points.items()},
    }
