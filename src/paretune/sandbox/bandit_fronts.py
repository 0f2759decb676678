"""What runs in the exact world are worth on held-out prompts, read where all are equally far from the reference.

Everything is a closed sum. S seeds (a world each), R runs of each, T recorded points, M objectives, X held-out prompts,
Y responses, V weightings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.sandbox.bandit import Bandit
from paretune.sandbox.bandit_arms import BIAS_SCALE, RANK
from paretune.sandbox.labels import Labelling, each, sigmoid


def held_out(worlds: Sequence[Bandit], theta: Tensor) -> tuple[Tensor, Tensor]:
    """Expected rewards (T, S, R, M) and KL to the reference in nats (T, S, R) of policies (T, S, R, P)."""
    rewards, divergences = [], []
    for points in theta:
        parts = [held_out_of(world, own) for world, own in zip(worlds, points, strict=True)]
        reward, divergence = (torch.stack(column) for column in zip(*parts, strict=True))
        rewards.append(reward)
        divergences.append(divergence)
    return torch.stack(rewards).double(), torch.stack(divergences).double()


def held_out_scores(world: Bandit, theta: Tensor) -> Tensor:
    """(R, P) -> (R, X, Y): `low_rank`'s scores of held-out prompts."""
    responses, features = world.reference.shape[1], world.features.shape[1]
    bias, u, v = theta.split([responses, features * RANK, responses * RANK], -1)
    phi = world.features[world.n_train :].to(theta.dtype)
    left = phi @ u.unflatten(-1, (features, RANK))
    return BIAS_SCALE * bias[:, None] + left @ v.unflatten(-1, (responses, RANK)).mT


def held_out_of(world: Bandit, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Of one world's runs (R, P): (R, M) and (R,)."""
    reference = world.reference[world.n_train :].to(theta.dtype)
    logp = F.log_softmax(reference + held_out_scores(world, theta), -1)
    p = logp.exp()
    rewards = world.rewards[:, world.n_train :].to(theta.dtype).flatten(1)
    return p.flatten(1) @ rewards.T / len(reference), (p * (logp - reference)).sum(-1).mean(-1)


def held_out_losses(world: Bandit, theta: Tensor, labelling: Labelling, betas: Sequence[float]) -> Tensor:
    """(R, M): each objective's loss on every pair of responses to every held-out prompt, labels at their probability.

    Pairs count as training draws them: by the reference's probability of drawing both.
    """
    responses = world.reference.shape[1]
    first, second = torch.triu_indices(responses, responses, offset=1)
    p = world.reference[world.n_train :].exp()
    pa, pb = p[:, first], p[:, second]
    share = pa * pb / (1 - pa) + pb * pa / (1 - pb)  # one then the other, in either order, without replacement
    share = (share / len(p)).to(theta.dtype)
    margins = held_out_scores(world, theta)
    margins = margins[..., first] - margins[..., second]
    rewards = world.rewards[:, world.n_train :]
    m = len(rewards)
    kappa, flip = each("kappa", labelling.kappa, m, None), each("flip", labelling.flip, m, 0.0)
    losses = []
    for i, beta in enumerate(betas):
        difference = (rewards[i][:, first] - rewards[i][:, second]).numpy()
        label = torch.from_numpy(sigmoid(kappa[i] * difference) * (1 - 2 * flip[i]) + flip[i]).to(theta.dtype)
        x = beta * margins
        losses.append((share * (F.softplus(x) - label * x)).sum((-1, -2)))
    return torch.stack(losses, -1).double()


def at_divergence(values: Tensor, divergence: Tensor, level: float) -> Tensor:
    """Each trajectory read where it first reaches a KL of `level`, by linear interpolation between its points.

    Args:
        values: (T, ..., A). divergence: (T, ...), 0 at the start.

    Returns:
        (..., A), NaN for trajectories that do not get there.
    """
    above = divergence >= level
    reached = above.any(0)
    at = above.double().argmax(0).clamp(min=1)[None]
    low, high = divergence.gather(0, at - 1)[0], divergence.gather(0, at)[0]
    share = ((level - low) / torch.where(high > low, high - low, 1.0))[..., None]
    index = at[..., None].expand(1, *values.shape[1:])
    one, two = values.gather(0, index - 1)[0], values.gather(0, index)[0]
    return torch.where(reached[..., None], one + share * (two - one), torch.nan)


def ceiling(world: Bandit, weights: Tensor, level: float) -> Tensor:
    """Rewards (V, M) of the policies that are best for weights (V, M) among all at a KL of `level` on held-out prompts.

    They are pi_ref exp(eta r_w), normalised, with eta for each w found by Newton steps, halves where those overshoot.

    Raises:
        InputError: no policy is so far from the reference.
    """
    reference, rewards = world.reference[world.n_train :], world.rewards[:, world.n_train :]
    mixed = torch.einsum("vm,mxy->vxy", weights, rewards)

    def tilted(eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, KL, and its slope in eta: eta times the variance of r_w."""
        logp = F.log_softmax(reference + eta[:, None, None] * mixed, -1)
        p = logp.exp()
        variance = (p * mixed.square()).sum(-1) - (p * mixed).sum(-1).square()
        return p, (p * (logp - reference)).sum(-1).mean(-1), eta * variance.mean(-1)

    low, high = torch.zeros(len(weights), dtype=torch.float64), torch.full((len(weights),), 1e3, dtype=torch.float64)
    if bool((tilted(high)[1] < level).any()):
        raise InputError("no policy is so far from the reference", where="level", found=level)
    eta = torch.ones_like(low)
    for _ in range(100):
        p, found, slope = tilted(eta)
        off = found - level
        if bool((off.abs() <= 1e-10 * level).all()):
            break
        low, high = torch.where(off < 0, eta, low), torch.where(off < 0, high, eta)
        step = eta - off / slope
        eta = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return torch.einsum("vxy,mxy->vm", p, rewards) / len(reference)


def reference_points(world: Bandit, best: Tensor) -> dict[str, NDArray[np.float64]]:
    """The ceiling's worst value of each objective, less a tenth of its range ("nadir - 10 %"), and two others."""
    worst, top = best.amin(0).numpy(), best.amax(0).numpy()
    start = world.reference[world.n_train :].exp()
    own = torch.einsum("xy,mxy->m", start, world.rewards[:, world.n_train :]) / len(start)
    return {"nadir - 10 %": worst - 0.1 * (top - worst), "nadir": worst, "reference policy": own.numpy()}
