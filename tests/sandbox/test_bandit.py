"""The exact world: its sums against loops, its optimum against every other policy, its shape as described."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.sandbox.bandit import (
    Bandit,
    Policy,
    divergence,
    expected_rewards,
    log_policy,
    low_rank,
    make_bandit,
    optimum,
    regularized_reward,
    tabular,
)


def small(**options: float) -> Bandit:
    return make_bandit(prompts=5, held_out=3, responses=6, **options)  # type: ignore[arg-type]


def some_policy(bandit: Bandit, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(bandit.reference.shape, generator=generator, dtype=torch.float64)
    return torch.log_softmax(bandit.reference + noise, -1)


def test_a_world_repeats_and_changes_with_its_seed() -> None:
    one, two, other = make_bandit(), make_bandit(), make_bandit(seed=1)
    for name in ("features", "reference", "rewards"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    assert one.reference.shape == (96, 24)
    assert one.rewards.shape == (2, 96, 24)
    torch.testing.assert_close(one.reference.logsumexp(-1), torch.zeros(96, dtype=torch.float64))


def test_rewards_are_a_shared_skill_and_opposed_knobs() -> None:
    bandit = make_bandit(objectives=3, skill=0.7, knob=1.3, own=0.0)
    first, second, third = bandit.rewards
    skill, knob = (first + second) / 2, (first - second) / 2
    assert torch.equal(first, third)  # even objectives want the knob the same way
    assert skill.square().mean().sqrt().item() == pytest.approx(0.7)
    assert knob.square().mean().sqrt().item() == pytest.approx(1.3)
    torch.testing.assert_close(knob, knob[:1].expand_as(knob))  # of the response alone
    assert skill.std(0).min() > 0.1  # of prompt and response together
    assert torch.linalg.matrix_rank(skill) == 2
    own = make_bandit(objectives=3, skill=0.0, knob=0.0, own=0.3).rewards
    assert own.std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(torch.corrcoef(own.flatten(1))[0, 1]) < 0.1


def test_expectations_are_the_loops() -> None:
    bandit = small()
    logp = some_policy(bandit)
    for split, prompts in enumerate((range(5), range(5, 8))):
        reward, kl = [0.0, 0.0], 0.0
        for x in prompts:
            for y in range(6):
                p = math.exp(logp[x, y])
                kl += p * (logp[x, y] - bandit.reference[x, y]).item() / len(prompts)
                for i in range(2):
                    reward[i] += p * bandit.rewards[i, x, y].item() / len(prompts)
        assert expected_rewards(bandit, logp)[split].tolist() == pytest.approx(reward)
        assert divergence(bandit, logp)[split].item() == pytest.approx(kl)
    both = torch.stack((logp, bandit.reference))
    torch.testing.assert_close(expected_rewards(bandit, both)[0], expected_rewards(bandit, logp))
    assert divergence(bandit, both)[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_no_policy_passes_the_closed_form(beta: float) -> None:
    bandit = small()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    best = optimum(bandit, weights, beta)
    ceiling = regularized_reward(bandit, best, weights, beta)
    # its value is beta E[log Z]
    tilted = bandit.reference + torch.einsum("m,mxy->xy", weights, bandit.rewards) / beta
    log_z = beta * tilted.logsumexp(-1)
    torch.testing.assert_close(ceiling, torch.stack((log_z[:5].mean(), log_z[5:].mean())))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 10.0):
        for _ in range(20):
            noise = size * torch.randn(best.shape, generator=generator, dtype=torch.float64)
            other = regularized_reward(bandit, torch.log_softmax(best + noise, -1), weights, beta)
            assert (other < ceiling).all()
    scores = torch.zeros_like(best, requires_grad=True)
    value = regularized_reward(bandit, torch.log_softmax(best + scores, -1), weights, beta).sum()
    (slope,) = torch.autograd.grad(value, scores)
    assert slope.abs().max() < 1e-14


def test_optima_of_many_weights_are_those_of_each() -> None:
    bandit = small()
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    together = optimum(bandit, weights, 0.2)
    for w, one in zip(weights, together, strict=True):
        torch.testing.assert_close(optimum(bandit, w, 0.2), one)
        value = regularized_reward(bandit, one, w, 0.2)
        torch.testing.assert_close(regularized_reward(bandit, together, weights, 0.2)[(weights == w).all(1)][0], value)


@pytest.mark.parametrize("policy", [tabular(), low_rank(), low_rank(rank=1)])
def test_training_starts_at_the_reference(policy: Policy) -> None:
    bandit = small()
    theta = torch.stack([policy.start(bandit, seed) for seed in (0, 1)])
    torch.testing.assert_close(log_policy(bandit, policy, theta)[1], bandit.reference)


def test_a_table_holds_every_policy_of_its_prompts_and_no_other_prompt() -> None:
    bandit = small()
    wanted = some_policy(bandit)
    got = log_policy(bandit, tabular(), (wanted - bandit.reference)[:5].flatten())
    torch.testing.assert_close(got[:5], wanted[:5])
    torch.testing.assert_close(got[5:], bandit.reference[5:])


def test_low_rank_scores_have_their_rank_and_reach_held_out_prompts() -> None:
    bandit = make_bandit()
    policy = low_rank(rank=3)
    generator = torch.Generator().manual_seed(0)
    start = policy.start(bandit, 0)
    scores = policy.scores(bandit, torch.randn(start.shape, generator=generator, dtype=torch.float64))
    assert torch.linalg.matrix_rank(scores) == 4  # three factors and the bias
    assert torch.linalg.matrix_rank(scores - scores.mean(0)) == 3
    assert scores[48:].std() > 0.5
    assert not torch.equal(start, policy.start(bandit, 1))


def test_impossible_worlds_are_refused() -> None:
    for options in ({"responses": 1}, {"objectives": 0}, {"features": 1, "skill_rank": 2}):
        with pytest.raises(InputError, match="too few"):
            make_bandit(**options)
