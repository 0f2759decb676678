"""Training in the exact world: gradients against autograd of the library's losses, paths against theory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.losses import LogProbs, preference_loss
from paretune.objectives import Objective
from paretune.sandbox.bandit import (
    Bandit,
    Policy,
    expected_rewards,
    log_policy,
    low_rank,
    make_bandit,
    optimum,
    regularized_reward,
    tabular,
)
from paretune.sandbox.bandit_runs import (
    Comparisons,
    Run,
    combine,
    losses_and_gradients,
    make_batch,
    population,
    sampled,
    smoothness,
    train,
)
from paretune.sandbox.labels import PRESETS, Labelling, conflicting

BETA = 0.2
EXACT = Labelling(kappa=1.0, soft=True)  # sigma(r_a - r_b): the DPO optimum of one objective is `optimum`


def small(objectives: int = 2, **options: float) -> Bandit:
    return make_bandit(objectives=objectives, prompts=4, held_out=4, responses=6, **options)  # type: ignore[arg-type]


def by_autograd(
    bandit: Bandit, policy: Policy, theta: Tensor, data: Comparisons, betas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """One run's M losses and gradients (M, P), by the library's losses and autograd."""
    theta = theta.clone().requires_grad_()
    logp, ref = log_policy(bandit, policy, theta).flatten(), bandit.reference.flatten()
    tokens = torch.ones(len(data.a), dtype=torch.int64)
    logps = LogProbs(logp[data.a], logp[data.b], ref[data.a], ref[data.b], tokens, tokens)
    losses = []
    for i, beta in enumerate(betas):
        labelled = ~data.labels[:, i].isnan()
        values = preference_loss(Objective(f"o{i}"), beta, logps, data.labels[:, i])
        losses.append(values.sum() / labelled.sum())
    gradients = [torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses]
    return torch.stack(losses).detach(), torch.stack(gradients)


@pytest.mark.parametrize("policy", [tabular(), low_rank(rank=2)])
def test_gradients_are_those_of_the_librarys_losses(policy: Policy) -> None:
    bandit = small(objectives=3)
    labelling = Labelling(kappa=2.0, missing=(0.5,), tie=0.3, flip=(0.0, 0.2))
    soft = replace(labelling, soft=True)
    betas = labelling.betas(0.3, 2) + [1.5]
    data = [sampled(bandit, labelling, 40, 1), sampled(bandit, soft, 40, 2)]
    generator = torch.Generator().manual_seed(0)
    # half a standard deviation: torch's softplus is a straight line, 2e-9 off, from 20 on
    theta = 0.5 * torch.randn(2, *policy.start(bandit, 0).shape, generator=generator, dtype=torch.float64)
    batch = make_batch(*(torch.stack([getattr(one, name) for one in data]) for name in ("a", "b", "labels")))
    losses, gradients = losses_and_gradients(bandit, policy, theta, batch, torch.tensor(betas, dtype=torch.float64))
    for run, one in enumerate(data):
        expected_losses, expected = by_autograd(bandit, policy, theta[run], one, betas)
        torch.testing.assert_close(losses[run], expected_losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients[run], expected, rtol=1e-10, atol=1e-14)


def test_the_population_is_every_pair_with_its_probability() -> None:
    bandit = small()
    data = population(bandit, EXACT)
    pairs = {frozenset(pair) for pair in zip(data.a.tolist(), data.b.tolist(), strict=True)}
    assert len(data.a) == len(pairs) == 4 * 15
    assert ((data.a // 6) == (data.b // 6)).all()
    rewards = bandit.rewards.flatten(1).T
    torch.testing.assert_close(data.labels, (rewards[data.a] - rewards[data.b]).sigmoid())
    for labelling in (PRESETS["rare-one"], PRESETS["disjoint"], PRESETS["conflict-30"]):
        with pytest.raises(InputError, match="sampled"):
            population(bandit, labelling)


def test_drawn_responses_are_two_of_the_references() -> None:
    bandit = make_bandit(prompts=3, held_out=1, responses=4)
    data = sampled(bandit, PRESETS["clean"], 30_000, 0)
    assert (data.a != data.b).all() and ((data.a // 4) == (data.b // 4)).all()
    counts = torch.bincount(data.a, minlength=12).reshape(3, 4)
    assert (counts.sum(1) == 10_000).all()
    p = bandit.reference[:3].exp()
    assert ((counts / 10_000 - p).abs() < 5 * (p * (1 - p) / 10_000).sqrt()).all()
    # the second one is the reference's too, once the first is out
    joint = torch.bincount(data.a % 4 * 4 + data.b % 4 + 16 * (data.a // 4), minlength=48).reshape(3, 4, 4) / 10_000
    expected = p[:, :, None] * p[:, None, :] / (1 - p[:, :, None]) * (1 - torch.eye(4, dtype=torch.float64))
    assert ((joint - expected).abs() <= 5 * (expected * (1 - expected) / 10_000).sqrt()).all()
    again = sampled(bandit, PRESETS["clean"], 30_000, 0)
    assert torch.equal(data.a, again.a) and torch.equal(data.labels, again.labels)


@pytest.mark.parametrize("share", [0, 30, 60, 100])
def test_drawn_rows_conflict_as_stated(share: int) -> None:
    bandit = make_bandit()
    data = sampled(bandit, PRESETS[f"conflict-{share}"], 1_000, 0)
    assert len(data.a) == 1_000
    opposed = ((data.labels == 1.0).any(1) & (data.labels == 0.0).any(1)).double().mean().item()
    # rows are drawn from a pool of which exactly this share conflicts: five standard deviations
    assert abs(opposed - share / 100) <= 5 * (share / 100 * (1 - share / 100) / 1_000) ** 0.5
    rewards = bandit.rewards.flatten(1).T.numpy()
    assert conflicting(rewards[data.a], rewards[data.b]).mean() == opposed


def test_a_share_that_the_world_does_not_have_is_refused() -> None:
    agreeing = make_bandit(knob=0.0, own=0.0)
    with pytest.raises(InputError, match="no rows that conflict"):
        sampled(agreeing, PRESETS["conflict-60"], 100, 0)
    seldom = make_bandit(knob=0.002, own=0.0)
    with pytest.raises(InputError, match="too few rows of one kind"):
        sampled(seldom, PRESETS["conflict-100"], 2_000, 0)


WEIGHTS = ((0.2, 0.8), (0.5, 0.5), (0.9, 0.1))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 5.0), ("adam", 0.02)])
def test_raco_without_a_radius_is_linear_bit_for_bit(optimizer: str, lr: float) -> None:
    bandit = make_bandit(objectives=3)
    data = {seed: sampled(bandit, PRESETS["rare-one"], 300, seed) for seed in (0, 1)}

    def path(combiner: str, **options: float) -> Tensor:
        weights = ((0.2, 0.3, 0.5), (0.8, 0.1, 0.1))
        runs = [Run(combiner, w, lr, seed, options) for w in weights for seed in (0, 1)]
        betas = [BETA] * 3
        return train(
            bandit, low_rank(), data, runs, steps=40, betas=betas, batch_size=16, optimizer=optimizer, decay=True
        ).theta

    linear = path("linear")
    assert len(linear) == 41
    assert torch.equal(path("raco", c=0.0), linear)
    assert torch.equal(path("linear"), linear)
    assert not torch.allclose(path("raco", c=0.1)[-1], linear[-1])


def test_trained_out_raco_and_linear_meet_after_different_paths() -> None:
    bandit = small()
    data = {0: population(bandit, EXACT)}
    constants = smoothness(bandit, data[0], [BETA, BETA])
    lr = 1 / constants.max().item()
    runs = [Run(combiner, w, lr) for combiner in ("linear", "raco") for w in WEIGHTS]
    paths = train(bandit, tabular(), data, runs, steps=1_000, betas=[BETA, BETA], every=5)
    rewards = expected_rewards(bandit, log_policy(bandit, tabular(), paths.theta))[:, :, 0]
    apart = (rewards[:, :3] - rewards[:, 3:]).abs().amax(-1)
    assert (apart[-1] < 1e-6).all()
    assert (apart.amax(0)[[0, 2]] > 3e-3).all()  # thousands of times their distance at the end
    assert (paths.angles[:10, [3, 5]].amax(0) > 0.1).all()
    # and what they meet in are the three different minima of the three weighted losses
    _, gradients = losses_and_gradients(
        bandit,
        tabular(),
        paths.theta[-1],
        make_batch(data[0].a[None], data[0].b[None], data[0].labels[None]),
        torch.tensor([BETA, BETA], dtype=torch.float64),
    )
    weighted = (torch.tensor(WEIGHTS * 2, dtype=torch.float64)[:, None] @ gradients)[:, 0].norm(dim=-1)
    assert (weighted < 1e-6 * gradients.norm(dim=-1).amax(-1)).all()
    assert (rewards[-1, 0] - rewards[-1, 2]).abs().min() > 0.1


def test_one_objective_trained_out_is_the_closed_form() -> None:
    bandit = small()
    data = {0: population(bandit, EXACT)}
    lr = 1 / smoothness(bandit, data[0], [BETA, BETA]).max().item()
    weights = torch.eye(2, dtype=torch.float64)
    runs = [Run("linear", (1.0, 0.0), lr), Run("raco", (0.0, 1.0), lr)]
    paths = train(bandit, tabular(), data, runs, steps=1_000, betas=[BETA, BETA], every=1_000)
    logp, best = log_policy(bandit, tabular(), paths.theta[-1]), optimum(bandit, weights, BETA)
    torch.testing.assert_close(logp.exp()[:, :4], best.exp()[:, :4], rtol=0, atol=1e-6)
    gap = regularized_reward(bandit, best, weights, BETA) - regularized_reward(bandit, logp, weights, BETA)
    assert (gap[:, 0].abs() < 1e-9).all()
    assert (gap[:, 1] > 0.1).all()  # a table says nothing of held-out prompts


def test_steps_up_to_the_smoothness_descend_as_the_theorem_says() -> None:
    """arXiv 2602.02495, Theorem 3.1, for plain steps of 1 / l_w."""
    bandit = small()
    data = {0: population(bandit, EXACT)}
    constants = smoothness(bandit, data[0], [BETA, 3 * BETA])
    w = torch.tensor(WEIGHTS, dtype=torch.float64)
    c, steps, lr = 0.7, 40, 1 / (w @ constants)
    runs = [Run("raco", one, rate, options={"c": c}) for one, rate in zip(WEIGHTS, lr.tolist(), strict=True)]
    paths = train(bandit, tabular(), data, runs, steps=steps, betas=[BETA, 3 * BETA])
    losses = (paths.losses * w).sum(-1)
    assert (losses.diff(dim=0) < 0).all()
    batch = make_batch(data[0].a[None], data[0].b[None], data[0].labels[None])
    squares = []
    for i in range(3):
        _, gradients = losses_and_gradients(
            bandit, tabular(), paths.theta[:steps, i], batch, torch.tensor([BETA, 3 * BETA], dtype=torch.float64)
        )
        squares.append((w[i] @ gradients).square().sum(-1).min())
    assert (torch.stack(squares) <= 2 * losses[0] / (lr * (1 - c * c) * steps)).all()


def test_smoothness_is_the_largest_curvature_at_the_reference() -> None:
    """There every margin is 0 and the sigmoid's slope 1/4, so the bound is reached."""
    bandit = small()
    data = sampled(bandit, PRESETS["rare-one"], 200, 0)
    betas = [0.2, 0.7]
    batch = make_batch(data.a[None], data.b[None], data.labels[None])
    beta = torch.tensor(betas, dtype=torch.float64)

    def gradients(theta: Tensor) -> Tensor:
        return losses_and_gradients(bandit, tabular(), theta[None], batch, beta)[1][0]

    hessians = torch.autograd.functional.jacobian(gradients, tabular().start(bandit, 0))
    torch.testing.assert_close(torch.linalg.eigvalsh(hessians)[:, -1], smoothness(bandit, data, betas))


def test_company_changes_nothing() -> None:
    bandit = small()
    data = {seed: sampled(bandit, PRESETS["clean"], 60, seed) for seed in (3, 7)}
    runs = [Run(name, (0.3, 0.7), 5.0, seed) for name in ("raco", "pcgrad", "mgda", "cagrad") for seed in (3, 7)]
    together = train(bandit, low_rank(), data, runs, steps=30, betas=[BETA, BETA], batch_size=8)
    for i, run in enumerate(runs):
        alone = train(bandit, low_rank(), {run.seed: data[run.seed]}, [run], steps=30, betas=[BETA, BETA], batch_size=8)
        torch.testing.assert_close(alone.theta[:, 0], together.theta[:, i], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(alone.clipped[0], together.clipped[i])
    assert not torch.allclose(together.theta[-1, 0], together.theta[-1, 1])  # seeds differ
    assert not torch.allclose(together.theta[-1, 0], together.theta[-1, 2])  # combiners differ


def test_points_are_recorded_when_asked_and_at_the_end() -> None:
    bandit = small()
    data = {0: population(bandit, EXACT)}
    runs = [Run("raco", (0.5, 0.5), 100.0)]
    every, some = (train(bandit, tabular(), data, runs, steps=7, betas=[BETA] * 2, every=k) for k in (1, 3))
    assert some.steps.tolist() == [0, 3, 6, 7]
    for name in ("theta", "losses", "angles", "cosines"):
        assert torch.equal(getattr(some, name), getattr(every, name)[[0, 3, 6, 7]])


def test_adam_is_torchs() -> None:
    bandit = small()
    data = {0: population(bandit, EXACT)}
    paths = train(
        bandit, low_rank(), data, [Run("linear", (0.3, 0.7), 0.05)], steps=20, betas=[BETA] * 2, optimizer="adam"
    )
    theta = low_rank().start(bandit, 0).requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.05)
    for _ in range(20):
        _, gradients = by_autograd(bandit, low_rank(), theta.detach(), data[0], [BETA] * 2)
        theta.grad = 0.3 * gradients[0] + 0.7 * gradients[1]
        adam.step()
    # what is symmetric in the true gradient is rounding here and there, and Adam gives it a step of its own
    torch.testing.assert_close(paths.theta[-1, 0], theta.detach(), rtol=1e-6, atol=1e-6)


def test_an_objective_without_labels_in_a_step_is_left_out_of_the_dual() -> None:
    gram = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, -0.5], [0.0, -0.5, 1.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64)
    present = torch.tensor([[False, True, True]])
    (found,) = combine([Run("raco", (0.4, 0.3, 0.3), 1.0)], gram, weights, present, 0)
    assert found.coefficients[0] == 0.0
    torch.testing.assert_close(found.coefficients[1:], torch.full((2,), 0.3 * 1.4, dtype=torch.float64))


def test_pcgrads_order_is_new_in_each_step_unless_it_is_set() -> None:
    gram = torch.tensor([[[1.0, -0.6, -0.1], [-0.6, 1.0, -0.7], [-0.1, -0.7, 1.0]]], dtype=torch.float64)
    weights = torch.full((1, 3), 1 / 3, dtype=torch.float64)

    def coefficients(**options: int) -> set[tuple[float, ...]]:
        run = Run("pcgrad", (1 / 3, 1 / 3, 1 / 3), 1.0, options=options)
        present = torch.ones(1, 3, dtype=torch.bool)
        return {tuple(combine([run], gram, weights, present, step)[0].coefficients.tolist()) for step in range(8)}

    assert len(coefficients()) > 1
    assert len(coefficients(seed=3)) == 1


def test_the_knob_is_learnt_first_and_the_skill_reaches_held_out_prompts() -> None:
    bandit = make_bandit()
    data = {0: population(bandit, EXACT)}
    runs = [Run("linear", (0.8, 0.2), 5.0)]
    paths = train(bandit, low_rank(), data, runs, steps=400, betas=[BETA, BETA], every=5)
    rewards = expected_rewards(bandit, log_policy(bandit, low_rank(), paths.theta))[:, 0]
    rewards = rewards - rewards[0]
    knob, skill = (rewards[..., 0] - rewards[..., 1]) / 2, (rewards[..., 0] + rewards[..., 1]) / 2
    for split in (0, 1):
        half_knob, half_skill = (int((part[:, split] > part[-1, split] / 2).nonzero()[0]) for part in (knob, skill))
        assert half_knob * 2.5 < half_skill
        assert skill[-1, split] > 1.0
    assert paths.cosines[0, 0, 0, 1] < -0.8  # the knob's conflict at the start
    assert paths.cosines[:, 0, 0, 1].max() > -0.4  # the skill's agreement, while it is learnt


def test_with_the_knob_alone_there_is_one_line() -> None:
    bandit = make_bandit(skill=0.0, own=0.0)
    data = {0: sampled(bandit, PRESETS["clean"], 500, 0)}
    runs = [Run(name, w, 5.0) for name in ("linear", "raco", "mgda") for w in WEIGHTS]
    paths = train(bandit, low_rank(), data, runs, steps=100, betas=[BETA, BETA], batch_size=32, every=50)
    rewards = expected_rewards(bandit, log_policy(bandit, low_rank(), paths.theta))
    assert (rewards.sum(-1).abs() < 1e-12).all()
    assert rewards[-1, :, 0, 0].max() - rewards[-1, :, 0, 0].min() > 1.0  # and they do stand at different places on it


def test_names_and_sizes_that_do_not_exist_are_refused() -> None:
    bandit = small()
    data = {0: sampled(bandit, PRESETS["clean"], 20, 0), 1: sampled(bandit, PRESETS["clean"], 21, 1)}
    run = Run("raco", (0.5, 0.5), 1.0)
    with pytest.raises(InputError, match="unknown combiner"):
        train(bandit, tabular(), data, [replace(run, combiner="racoon")], steps=1, betas=[BETA] * 2)
    with pytest.raises(InputError, match="unknown optimizer"):
        train(bandit, tabular(), data, [run], steps=1, betas=[BETA] * 2, optimizer="lion")
    with pytest.raises(InputError, match="differ in size"):
        train(bandit, tabular(), data, [run, replace(run, seed=1)], steps=1, betas=[BETA] * 2)
