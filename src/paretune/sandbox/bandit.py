"""The exact world: prompts, 24 responses each, a softmax policy; every reward, divergence and optimum a closed sum.

    r_i(x, y) = skill(x, y) +- knob(y) + own_i(x, y)

The *knob* is a property of the response alone, as its length is: one number per response serves all prompts, so every
policy learns it fast, and objectives of even and odd index want it in opposite directions. The *skill* is what prompt
and response do together, as copying the right fact is: all objectives want it, and a low-rank policy learns it slowly,
as a product of prompt factors and response factors that starts at 0. *own* is each objective's alone and follows no
pattern, so nothing learnt of it helps on other prompts. With the knob alone the rewards of two objectives are opposite
and every method moves along one line; only with the skill can methods differ.

X prompts (the first `n_train` train, the rest are held out), Y responses, D features of a prompt, M objectives, K the
rank of a policy, R runs. All tensors are float64. Training, and what it trains on, is in `bandit_runs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.errors import InputError


@dataclass(frozen=True)
class Bandit:
    """A world of `make_bandit`.

    Attributes:
        features: (X, D) of the prompts, what a low-rank policy sees of them.
        reference: (X, Y), log pi_ref(y|x).
        rewards: (M, X, Y).
        n_train: prompts [0, n_train) are trained on.
    """

    features: Tensor
    reference: Tensor
    rewards: Tensor
    n_train: int


def make_bandit(
    *,
    objectives: int = 2,
    prompts: int = 48,
    held_out: int = 48,
    responses: int = 24,
    features: int = 6,
    skill_rank: int = 2,
    skill: float = 1.0,
    knob: float = 1.0,
    own: float = 0.3,
    seed: int = 0,
) -> Bandit:
    """A world; the same numbers make the same world, bit for bit.

    Args:
        skill, knob, own: standard deviations of the parts over the X times Y responses, in units of reward.
        skill_rank: of the skill as a matrix over prompts and responses; at most `features`.

    Raises:
        InputError: a count that leaves nothing to learn.
    """
    for name, count, least in (
        ("objectives", objectives, 1),
        ("prompts", prompts, 1),
        ("held_out", held_out, 0),
        ("responses", responses, 2),
        ("skill_rank", skill_rank, 1),
        ("features", features, skill_rank),
    ):
        if count < least:
            raise InputError(f"too few {name}", expected=f"at least {least}", found=count)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    phi = normal(prompts + held_out, features)
    reference = 0.5 * normal(prompts + held_out, responses)
    skill_XY = phi @ normal(features, skill_rank) @ normal(responses, skill_rank).T
    knob_Y = torch.linspace(-1.0, 1.0, responses, dtype=torch.float64)[torch.randperm(responses, generator=generator)]
    own_MXY = normal(objectives, prompts + held_out, responses)
    signs = 1.0 - 2.0 * (torch.arange(objectives, dtype=torch.float64) % 2)
    rewards = skill * _standard(skill_XY) + knob * signs[:, None, None] * _standard(knob_Y) + own * own_MXY
    return Bandit(phi, F.log_softmax(reference, -1), rewards, prompts)


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)  # what a prompt's responses share is no preference among them
    return centred / centred.square().mean().sqrt()


def expected_rewards(bandit: Bandit, log_policy: Tensor) -> Tensor:
    """E[r_i] over prompts and responses, exactly: (..., X, Y) -> (..., 2, M), on training and on held-out prompts."""
    rewards = torch.einsum("...xy,mxy->...xm", log_policy.exp(), bandit.rewards)
    return _by_split(bandit, rewards)


def divergence(bandit: Bandit, log_policy: Tensor) -> Tensor:
    """KL(pi || pi_ref), mean over prompts, in nats, exactly: (..., X, Y) -> (..., 2), training and held-out prompts."""
    per_prompt = (log_policy.exp() * (log_policy - bandit.reference)).sum(-1)
    return _by_split(bandit, per_prompt[..., None])[..., 0]


def _by_split(bandit: Bandit, values: Tensor) -> Tensor:
    """(..., X, A) -> (..., 2, A): means over training and over held-out prompts."""
    parts = values[..., : bandit.n_train, :], values[..., bandit.n_train :, :]
    return torch.stack([part.mean(-2) for part in parts], -2)


def optimum(bandit: Bandit, weights: Tensor, beta: float) -> Tensor:
    """The policy that maximises E[r_w] - beta KL(pi || pi_ref): pi_ref exp(r_w / beta), normalised.

    Rafailov et al., arXiv 2305.18290, equation 4. It is also the minimiser of the sigmoid DPO loss of labels
    sigma(r_w(a) - r_w(b)), where the policy class contains it.

    Args:
        weights: (..., M). beta: in units of reward.

    Returns:
        (..., X, Y) log-probabilities.
    """
    return F.log_softmax(bandit.reference + torch.einsum("...m,mxy->...xy", weights, bandit.rewards) / beta, -1)


def regularized_reward(bandit: Bandit, log_policy: Tensor, weights: Tensor, beta: float) -> Tensor:
    """E[r_w] - beta KL(pi || pi_ref), (..., 2): what `optimum` maximises, on training and held-out prompts.

    Args:
        log_policy: (..., X, Y). weights: (..., M).
    """
    rewards = (expected_rewards(bandit, log_policy) * weights[..., None, :]).sum(-1)
    return rewards - beta * divergence(bandit, log_policy)


@dataclass(frozen=True)
class Policy:
    """A class of policies pi_theta(y|x) proportional to pi_ref(y|x) exp(score_theta(x, y)); theta is a flat vector.

    `start`: (bandit, seed) -> theta (P,), where every score is 0, so that training starts at the reference.
    `scores`: (bandit, theta (..., P)) -> (..., X, Y).
    `pull`: (bandit, theta (R, P), slopes (R, M, n_train, Y)) -> (R, M, P), the gradients of M losses given their
    derivatives with respect to the training prompts' scores.
    """

    start: Callable[[Bandit, int], Tensor]
    scores: Callable[[Bandit, Tensor], Tensor]
    pull: Callable[[Bandit, Tensor, Tensor], Tensor]


def log_policy(bandit: Bandit, policy: Policy, theta: Tensor) -> Tensor:
    """log pi_theta(y|x): (..., P) -> (..., X, Y)."""
    return F.log_softmax(bandit.reference + policy.scores(bandit, theta), -1)


def tabular() -> Policy:
    """One score for each training prompt and response: contains every policy, says nothing of held-out prompts.

    Losses of margins are convex in these scores, so each weighted loss has one minimum.
    """

    def start(bandit: Bandit, seed: int) -> Tensor:
        return bandit.reference.new_zeros(bandit.n_train * bandit.reference.shape[1])

    def scores(bandit: Bandit, theta: Tensor) -> Tensor:
        responses = bandit.reference.shape[1]
        held_out = len(bandit.reference) - bandit.n_train
        return F.pad(theta.unflatten(-1, (bandit.n_train, responses)), (0, 0, 0, held_out))

    def pull(bandit: Bandit, theta: Tensor, slopes: Tensor) -> Tensor:
        return slopes.flatten(-2)

    return Policy(start, scores, pull)


def low_rank(rank: int = 4, start_scale: float = 0.3, bias_scale: float = 2.0) -> Policy:
    """score(x, y) = bias(y) + <U' features(x), V(y)>: factors that all prompts share, so held-out prompts profit.

    The bias takes the knob up from the first step. V starts at 0 and U small, as low-rank adapters do, so the product
    that can hold the skill takes up speed slowly.

    Args:
        rank: K.
        start_scale: standard deviation of a prompt's K factors at the start, for features of variance 1.
        bias_scale: bias = bias_scale times its parameter, so it learns bias_scale^2 times as fast under plain steps.
    """

    def parts(bandit: Bandit, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """bias (..., Y), U (..., D, K), V (..., Y, K)."""
        responses, features = bandit.reference.shape[1], bandit.features.shape[1]
        bias, u, v = theta.split([responses, features * rank, responses * rank], -1)
        return bias_scale * bias, u.unflatten(-1, (features, rank)), v.unflatten(-1, (responses, rank))

    def start(bandit: Bandit, seed: int) -> Tensor:
        responses, features = bandit.reference.shape[1], bandit.features.shape[1]
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(features * rank, generator=generator, dtype=torch.float64) * start_scale / features**0.5
        return torch.cat((u.new_zeros(responses), u, u.new_zeros(responses * rank)))

    def scores(bandit: Bandit, theta: Tensor) -> Tensor:
        bias, u, v = parts(bandit, theta)
        return bias[..., None, :] + bandit.features @ u @ v.mT

    def pull(bandit: Bandit, theta: Tensor, slopes: Tensor) -> Tensor:
        _, u, v = parts(bandit, theta)
        phi = bandit.features[: bandit.n_train]
        to_u = phi.T @ slopes @ v[:, None]
        to_v = slopes.mT @ (phi @ u)[:, None]
        return torch.cat((bias_scale * slopes.sum(-2), to_u.flatten(-2), to_v.flatten(-2)), -1)

    return Policy(start, scores, pull)
