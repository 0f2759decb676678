"""Along training: how far each arm's update is from RACO's on full gradients, which are known here.

S seeds, R runs, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from studies.noisy_gram.arms import Arm
from studies.noisy_gram.duals import coefficients, mixture
from studies.noisy_gram.fronts import Cell, pairs
from studies.noisy_gram.loop import (
    BIAS,
    Group,
    Parts,
    Rows,
    Worlds,
    forward,
    gradients,
    make_worlds,
    rows_of,
    slices,
    split,
    train,
)
from studies.noisy_gram.measure import angle, averaged, measured


def full_gradients(worlds: Worlds, theta: Tensor, at_once: int = 500) -> Tensor:
    """(S, R, 2, P) of the whole data sets."""
    n = worlds.a.shape[1]
    total: Tensor | float = 0.0
    for start in range(0, n, at_once):
        index = torch.arange(start, min(start + at_once, n))
        rows = rows_of(worlds, index.expand(len(worlds.seeds), -1))
        total = total + gradients(rows, forward(rows, theta, worlds.betas)) * (len(index) / n)
    assert isinstance(total, Tensor)
    return total


def alignment(
    cell: Cell, arms: Sequence[Arm], seeds: Sequence[int], firsts: Sequence[float], at: Sequence[int]
) -> dict[str, Any]:
    """Per arm and seed, mean over steps `at` and weightings, degrees.

    `of the Gram`: between the full gradients mixed by the arm's coefficients and by RACO's on the full Gram; `of the
    update`: between the arm's update, batch gradients and all, and RACO's on full gradients.
    """
    worlds, w = make_worlds(cell.condition, seeds), pairs(firsts)
    places = slices([len(firsts)] * len(arms))
    sums: dict[str, list[Tensor]] = {arm.name: [] for arm in arms}

    def watch(
        step: int, rows: Rows, parts: Parts, g: Tensor, theta: Tensor, chosen: list[Tensor], _: Tensor | None
    ) -> None:
        if step not in at:
            return
        full = full_gradients(worlds, theta)
        gram = full @ full.mT
        for arm, place, a in zip(arms, places, chosen, strict=True):
            own, own_gram = full[:, place], gram[:, place]
            weights = w.expand(len(seeds), -1, 2)
            p = mixture(own_gram, weights, 0.4)
            target = (coefficients(own_gram, weights, torch.minimum(p, weights), 0.4)[..., None, :] @ own)[..., 0, :]
            of_gram = angle((a[..., None, :] @ own)[..., 0, :], target)
            of_update = angle((a[..., None, :] @ g[:, place])[..., 0, :], target)
            sums[arm.name].append(torch.stack((of_gram, of_update), -1).mean(1))

    groups = [Group(arm, w, torch.tensor(cell.lr, dtype=torch.float64)) for arm in arms]
    train(worlds, groups, steps=cell.steps, size=cell.size, optimizer=cell.optimizer, record=[cell.steps], watch=watch)
    means = {name: torch.stack(found).mean(0) for name, found in sums.items()}
    return {
        name: {
            "of the Gram": [round(float(x), 3) for x in found[:, 0]],
            "of the update": [round(float(x), 3) for x in found[:, 1]],
        }
        for name, found in means.items()
    }


def row_gradients(worlds: Worlds, seed: int, theta: Tensor) -> tuple[Tensor, Tensor]:
    """J (N, P) and slopes (2, N) of all comparisons of the seed's place in `worlds`, for one policy (P,)."""
    d = worlds.features.shape[-1]
    bias, u, v = split(theta, d)
    rows = rows_of(worlds, torch.arange(worlds.a.shape[1]).expand(len(worlds.seeds), -1))
    phi, signs = rows.features[seed], rows.signs[seed].T
    z, dv = phi @ u, signs @ v
    j = torch.cat(
        (BIAS * signs, (phi[:, :, None] * dv[:, None]).flatten(1), (signs[:, :, None] * z[:, None]).flatten(1)), 1
    )
    x = worlds.betas[:, None] * (BIAS * (signs @ bias) + (z * dv).sum(-1))
    return j, worlds.betas[:, None] * (x.sigmoid() - worlds.labels[seed])


def measure_exact(
    conditions: Sequence[str],
    seeds: Sequence[int],
    firsts: Sequence[float],
    at: Sequence[int],
    sizes: Sequence[int],
    draws: int,
) -> list[dict[str, Any]]:
    """The figures of `measure` at policies along a RACO run (Adam, batches of 16), mean over seeds."""
    found = []
    for condition in conditions:
        worlds, w = make_worlds(condition, seeds), pairs(firsts)
        kept: dict[int, Tensor] = {}

        def watch(
            step: int, rows: Rows, parts: Parts, g: Tensor, theta: Tensor, chosen: list[Tensor], _: Tensor | None,
            kept: dict[int, Tensor] = kept,
        ) -> None:  # fmt: skip
            if step in at:
                kept[step] = theta.clone()

        last = max(at) + 1
        group = Group(Arm("raco"), w, torch.tensor(0.0075, dtype=torch.float64))
        train(worlds, [group], steps=last, size=16, optimizer="adam", record=[last], watch=watch)
        for step, theta in kept.items():
            for i, weights in enumerate(w):
                rows = [row_gradients(worlds, s, theta[s, i]) for s in range(len(seeds))]
                for n in sizes:
                    ones = [measured(j, slopes, weights, n, draws, s) for s, (j, slopes) in enumerate(rows)]
                    found.append(
                        {
                            "condition": condition,
                            "step": step,
                            "weight": float(weights[0]),
                            "size": n,
                            **averaged(ones),
                        }
                    )
    return found
