"""Exact worlds with m conflicting objectives, their weightings, and what a front is worth in them.

S seeds (a world each), R runs of each, T recorded points, M objectives, V weightings of the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.evaluation.indicators import reference_free, scaled, volume
from paretune.sandbox.bandit import Bandit, make_bandit
from paretune.sandbox.bandit_arms import Rows, Trace, rows_of, step_of
from paretune.sandbox.bandit_fronts import at_divergence, ceiling, held_out, reference_points
from paretune.sandbox.bandit_runs import Comparisons, sampled
from paretune.sandbox.labels import Labelling

LABELS = Labelling(kappa=1.0)  # drawn with probability sigma(r_a - r_b)
BETA = 0.2
COMPARISONS = 4_000


def camps(m: int, seed: int) -> Bandit:
    """The sandbox's world: objectives of even and odd index want the knob in opposite directions."""
    return make_bandit(objectives=m, seed=seed)


def apart(m: int, seed: int) -> Bandit:
    """Every objective has a knob of its own, at a cosine of about -1 / (m - 1) to every other one; two are opposed."""
    world = make_bandit(objectives=m, knob=0.0, seed=seed)
    generator = torch.Generator().manual_seed(10_000 + seed)
    knobs = torch.randn(m, world.reference.shape[1], generator=generator, dtype=torch.float64)
    knobs = knobs - knobs.mean(-1, keepdim=True)
    knobs = knobs - knobs.mean(0)
    knobs = knobs / knobs.square().mean(-1, keepdim=True).sqrt()
    return replace(world, rewards=world.rewards + knobs[:, None])


WORLDS = {"camps": camps, "apart": apart}


def weightings(m: int, count: int = 10) -> Tensor:
    """(count, m): the even one, each objective favoured with 0.6, and uniform draws, always the same."""
    tilted = (0.4 / (m - 1)) * torch.ones(m, m, dtype=torch.float64)
    tilted.fill_diagonal_(0.6)
    fixed = torch.cat((torch.full((1, m), 1 / m, dtype=torch.float64), tilted))
    drawn = torch.from_numpy(np.random.default_rng(m).dirichlet(np.ones(m), max(0, count - len(fixed))))
    return torch.cat((fixed, drawn))[:count]


def target_weightings(m: int) -> Tensor:
    """(V, m): what the ceiling is read at: the vertices, the runs' weightings, and more draws, fewer where volumes are
    dear."""
    extra = 60 if m <= 3 else 20
    drawn = torch.from_numpy(np.random.default_rng(100 + m).dirichlet(np.ones(m), extra))
    return torch.cat((torch.eye(m, dtype=torch.float64), weightings(m), drawn))


def data_of(worlds: Sequence[Bandit], seeds: Sequence[int]) -> list[Comparisons]:
    return [sampled(world, LABELS, COMPARISONS, seed) for world, seed in zip(worlds, seeds, strict=True)]


@dataclass(frozen=True)
class Target:
    """What one seed's fronts are measured by at one KL.

    Attributes:
        base, top: (M,), rewards of the reference policy, and the ceiling's largest of each objective.
        corners: reference points by name, each with the ceiling's hypervolume from there.
        score: the ceiling's reference-free score, on rewards scaled from `base` (0) to `top` (1).
    """

    base: Tensor
    top: Tensor
    corners: dict[str, tuple[np.ndarray, float]]
    score: float


def target_of(world: Bandit, level: float) -> Target:
    best = ceiling(world, target_weightings(len(world.rewards)), level)
    held = world.reference[world.n_train :].exp()
    base = torch.einsum("xy,mxy->m", held, world.rewards[:, world.n_train :]) / len(held)
    top = best.amax(0)
    corners = {name: (at, volume(best.numpy(), at).value) for name, at in reference_points(world, best).items()}
    return Target(base, top, corners, reference_free(scaled(best, base, top)))


def worth(points: Tensor, target: Target) -> dict[str, float]:
    """Shares of the ceiling that points (R, M) reach: reference-free score, and hypervolume from three corners."""
    shares = {"reference-free": reference_free(scaled(points, target.base, target.top)) / target.score}
    return shares | {name: volume(points.numpy(), at).value / most for name, (at, most) in target.corners.items()}


def read_at(trace: Trace, worlds: Sequence[Bandit], levels: Sequence[float]) -> dict[float, Tensor]:
    """Level of KL -> (S, R, M): held-out rewards where each run first is there; NaN where it does not get there."""
    rewards, kl = held_out(worlds, trace.theta)
    return {level: at_divergence(rewards, kl, level) for level in levels}


def gradient_cosines(worlds: Sequence[Bandit], data: Sequence[Comparisons], theta: Tensor) -> Tensor:
    """(S, M, M): cosines between the objectives' full gradients at one policy (S, P) of each seed."""
    rows: Rows = rows_of(worlds, data)
    betas = torch.full((len(worlds[0].rewards),), BETA, dtype=torch.float64)
    source = step_of(theta[:, None], rows, betas)
    gradients = source.pull(source.slopes)[:, 0]
    unit = gradients / gradients.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return unit @ unit.mT


def spread(values: Any) -> dict[str, float]:
    """Mean, least and largest over seeds."""
    array = np.asarray(values, dtype=np.float64)
    return {"mean": float(array.mean()), "least": float(array.min()), "largest": float(array.max())}
