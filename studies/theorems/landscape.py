"""The two-dimensional landscape of the CAGrad paper: two losses, two parameters, steep curved valleys.

Source: Liu et al. 2021 (arXiv 2110.14048), figure 1 and its appendix; the functions as the authors' toy.py has them,
with x = theta_1, y = theta_2 and [v]+ = max(v, 0):

    L_i = [tanh(y/2)]+ wall_i + [tanh(-y/2)]+ bowl_i
    wall_1 = log max(|(-x - 7)/2 + tanh y|, 5e-6) + 6          bowl_1 = ((x - 7)^2 + (y + 8)^2 / 10) / 10 - 20
    wall_2 = log max(|(-x + 3)/2 - tanh y + 2|, 5e-6) + 6      bowl_2 = ((x + 7)^2 + (y + 8)^2 / 10) / 10 - 20

Nothing here is smooth with a known constant (a logarithm of an absolute value, cut off at 5e-6): Theorem 3.1 does not
speak of it. It is a picture, and known as one. R runs; numpy, since a step is so little work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paretune.combine import find_combiner
from paretune.combine.labelled import combine_labelled

Floats = npt.NDArray[np.float64]
FLOOR = 5e-6
# The first three are the authors'; the other two are Navon et al.'s (Nash-MTL, arXiv 2202.01017, appendix).
STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (0.0, 0.0), (9.0, -1.0))
# The minima of the two paraboloids, as the authors mark them; the Pareto set is the line between.
PARETO_X, PARETO_Y = 7.0, -8.3552
# A run that moves no further than so many learning rates in so many steps has come to rest, and is left there.
STILL, STILL_STEPS = 0.2, 500


def losses_and_slopes(at: Floats) -> tuple[Floats, Floats]:
    """(R, 2) -> losses (R, 2), gradients (R, 2, 2): [run, loss, parameter].

    At y = 0 the slopes of both sides add up, as they do in autograd of the authors' code.
    """
    x, y = at[:, 0], at[:, 1]
    bent, steep = np.tanh(y), 1.0 - np.tanh(y) ** 2
    half = np.tanh(y / 2)
    upper, lower = np.maximum(half, 0.0), np.maximum(-half, 0.0)
    half_slope = 0.5 * (1.0 - half**2)
    losses, slopes = np.empty((len(at), 2)), np.empty((len(at), 2, 2))
    for i, (inner, sign, centre) in enumerate((((-x - 7) / 2 + bent, 1.0, 7.0), ((-x + 3) / 2 - bent + 2, -1.0, -7.0))):
        held = np.abs(inner) > FLOOR
        safe = np.where(held, inner, FLOOR)
        wall = np.log(np.abs(safe)) + 6
        bowl = ((x - centre) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        losses[:, i] = upper * wall + lower * bowl
        slopes[:, i, 0] = upper * held * -0.5 / safe + lower * (x - centre) / 5
        along = upper * held * sign * steep / safe + lower * 0.02 * (y + 8)
        slopes[:, i, 1] = along + half_slope * (np.where(half >= 0, wall, 0.0) - np.where(half <= 0, bowl, 0.0))
    return losses, slopes


def trajectories(
    arms: Mapping[str, tuple[str, Mapping[str, Any], float]], weights: Sequence[float], steps: int, *, every: int
) -> tuple[Floats, Floats]:
    """Adam (arXiv 1412.6980, default betas) on every arm's update, from every start.

    Args:
        arms: name -> combiner, its options, learning rate.

    Returns:
        points (S, arms, starts, 2) each `every` steps and the last, their losses (S, arms, starts, 2).
    """
    rows = [(combiner, options, lr) for combiner, options, lr in arms.values() for _ in STARTS]
    at = np.tile(np.array(STARTS), (len(arms), 1))
    lr = np.array([[rate] for _, _, rate in rows])
    w, there = torch.tensor(weights, dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    states: list[dict[str, Any]] = [{} for _ in rows]
    first, second, update = np.zeros_like(at), np.zeros_like(at), np.zeros_like(at)
    moving, last = np.ones(len(at), dtype=bool), at.copy()
    points, values = [], []
    for step in range(steps + 1):
        losses, slopes = losses_and_slopes(at)
        if step % every == 0 or step == steps:
            points.append(at.copy())
            values.append(losses)
        if step and step % STILL_STEPS == 0:
            moving &= np.abs(at - last).max(1) > STILL * lr[:, 0]
            last = at.copy()
        for i in np.flatnonzero(moving):
            name, options, _ = rows[i]
            given: dict[str, Any] = {**options, "losses": torch.from_numpy(losses[i]), "seed": step, "state": states[i]}
            gram = torch.from_numpy(slopes[i] @ slopes[i].T)
            found = combine_labelled(find_combiner(name), gram, w, there, **given)
            update[i] = np.array(found.coefficients.tolist()) @ slopes[i]
        first, second = 0.9 * first + 0.1 * update, 0.999 * second + 0.001 * update**2
        scale = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        at = at - np.where(moving[:, None], lr, 0.0) * scale * first / (np.sqrt(second) + 1e-8)
    shape = (len(points), len(arms), len(STARTS), 2)
    return np.array(points).reshape(shape), np.array(values).reshape(shape)


def distance_to_pareto(at: Floats) -> Floats:
    """(..., 2) -> (...): to the segment between the two minima."""
    inside = np.clip(at[..., 0], -PARETO_X, PARETO_X)
    return np.hypot(at[..., 0] - inside, at[..., 1] - PARETO_Y)
