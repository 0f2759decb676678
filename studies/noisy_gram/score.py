"""Fronts at equal KL, over the ceiling's.

A run's trajectory is read where its held-out KL first reaches the declared value, between two recorded points, all
quantities linear in KL; a run that does not get there is read at its end, at its lower KL. The ceiling is
pi_ref exp(r_w / b) with b such that its held-out KL is that value, for 25 weightings; a front's hypervolume is divided
by its. That ratio does not change when rewards are scaled. Every front holds the two single-objective runs too, which
all arms share.

T points of a path, S seeds, R runs or W weightings, V weightings of the ceiling, 2 objectives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.evaluation.front import hypervolume
from studies.noisy_gram.loop import Worlds

DECLARED = "nadir - 10 %"


def read_at(points: Tensor, kl: float, *others: Tensor) -> tuple[Tensor, ...]:
    """Values (S, R, ...) of points (T, S, R, 3) = rewards and KL, then of others (T, S, R), where KL first is `kl`."""
    reached = points[..., 2] >= kl
    index = torch.where(reached.any(0), reached.int().argmax(0), len(points) - 1).clamp(min=1)
    below = points[..., 2].gather(0, index[None] - 1)[0]
    above = points[..., 2].gather(0, index[None])[0]
    share = ((kl - below) / (above - below).clamp(min=1e-12)).clamp(0.0, 1.0)
    share = torch.where(reached.any(0), share, 1.0)

    def between(values: Tensor) -> Tensor:
        at = index.view(1, *index.shape, *[1] * (values.ndim - 3)).expand(1, *values.shape[1:])
        low, high = values.gather(0, at - 1)[0], values.gather(0, at)[0]
        part = share.view(*share.shape, *[1] * (values.ndim - 3))
        return low + part * (high - low)

    return tuple(between(values) for values in (points, *others))


def ceiling(worlds: Worlds, kl: float, weightings: int = 25) -> Tensor:
    """(S, weightings, 2): held-out expected rewards of the best policies of that KL, by bisection on 1 / b."""
    first = torch.linspace(0.0, 1.0, weightings, dtype=torch.float64)
    w = torch.stack((first, 1.0 - first), -1)
    reference, rewards = worlds.reference[:, worlds.n_train :], worlds.rewards[:, :, worlds.n_train :]
    wanted = torch.einsum("wm,smxy->swxy", w, rewards)
    low, high = torch.zeros(wanted.shape[:2]).double(), torch.full(wanted.shape[:2], 100.0).double()
    for _ in range(50):
        middle = (low + high) / 2
        logp = F.log_softmax(reference[:, None] + middle[..., None, None] * wanted, -1)
        too_far = (logp.exp() * (logp - reference[:, None])).sum(-1).mean(-1) > kl
        low, high = torch.where(too_far, low, middle), torch.where(too_far, middle, high)
    return torch.einsum("swxy,smxy->swm", logp.exp(), rewards) / rewards.shape[2]


def corners(best: Tensor, base: Tensor) -> dict[str, Tensor]:
    """Reference points (S, 2) from the ceiling's points (S, V, 2) and the reference policy's (S, 2); declared first."""
    worst, top = best.amin(1), best.amax(1)
    return {"nadir - 10 %": worst - 0.1 * (top - worst), "nadir": worst, "reference policy": base}


def volumes(points: Tensor, corner: Tensor) -> Tensor:
    """(S,): hypervolume of each seed's front (S, W, 2) from its corner (S, 2)."""
    pairs = zip(points.numpy(), corner.numpy(), strict=True)
    return torch.tensor([hypervolume(front, own) for front, own in pairs], dtype=torch.float64)


def reference_free(points: Tensor, best: Tensor, base: Tensor, grid: int = 101) -> Tensor:
    """(S,): mean over weights of the largest weighted gain over the reference policy, over the ceiling's."""
    first = torch.linspace(0.0, 1.0, grid, dtype=torch.float64)
    w = torch.stack((first, 1.0 - first))
    gains = [((values - base[:, None]) @ w).amax(1).mean(-1) for values in (points, best)]
    return gains[0] / gains[1]


def front_scores(front: Tensor, ends: Tensor, base: Tensor, best: Tensor) -> dict[str, Tensor]:
    """All scores (S,) of one arm's points (S, W, 2) with the shared end points (S, 2, 2) added."""
    points = torch.cat((front, ends), 1)
    scores = {name: volumes(points, at) / volumes(best, at) for name, at in corners(best, base).items()}
    return scores | {"reference-free": reference_free(points, best, base)}
