"""The fast loop against the plain one, rules against their definitions, fronts against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from paretune.combine import raco
from paretune.errors import InputError
from paretune.sandbox.bandit import divergence, expected_rewards, log_policy, low_rank, make_bandit, optimum
from paretune.sandbox.bandit_arms import (
    Arm,
    Trace,
    corrected,
    per_micro_batch,
    random_correction,
    replayed,
    rows_of,
    step_of,
    train_arms,
    vector_angle,
    weighted,
)
from paretune.sandbox.bandit_fronts import at_divergence, ceiling, held_out, held_out_losses, reference_points
from paretune.sandbox.bandit_runs import Run, sampled, train
from paretune.sandbox.labels import Labelling

LABELS = Labelling(kappa=1.0, scale=(4.0,))
BETAS = LABELS.betas(0.2, 2)
SEEDS = (3, 4)
W = torch.tensor([[0.0, 1.0], [0.3, 0.7], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
LR = torch.full((4,), 2.0)


def small(objectives: int = 2, seed: int = 0):  # type: ignore[no-untyped-def]
    return make_bandit(objectives=objectives, prompts=6, held_out=4, responses=5, seed=seed)


def fast(arms: list[Arm], steps: int = 15, worlds=None, **options) -> Trace:  # type: ignore[no-untyped-def]
    worlds = worlds or [small()] * len(SEEDS)
    data = [sampled(world, LABELS, 100, seed) for world, seed in zip(worlds, SEEDS, strict=True)]
    record = [0, 4, steps]
    return train_arms(
        worlds, data, arms, seeds=SEEDS, steps=steps, betas=BETAS, record=record, batch_size=16, **options
    )


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 2.0), ("adam", 0.05)])
def test_it_trains_what_the_plain_loop_trains(optimizer: str, lr: float) -> None:
    rates = torch.full((4,), lr)
    arms = [Arm(rule, W, rates) for rule in (weighted, corrected(0.4), corrected(0.4, clip=False))]
    trace = fast(arms, optimizer=optimizer)
    world = small()
    data = {seed: sampled(world, LABELS, 100, seed) for seed in SEEDS}
    runs = [
        Run(name, tuple(w.tolist()), lr, seed) for seed in SEEDS for name in ("linear", "raco", "cagrad") for w in W
    ]
    paths = train(world, low_rank(), data, runs, steps=15, betas=BETAS, batch_size=16, optimizer=optimizer)
    plain = paths.theta[[0, 4, 15]].view(3, 2, 12, -1)
    assert (plain[-1] - plain[0]).abs().max() > 0.1
    torch.testing.assert_close(trace.theta, plain, rtol=1e-6, atol=1e-6)
    single = fast(arms, optimizer=optimizer, dtype=torch.float32)
    torch.testing.assert_close(single.theta.double(), trace.theta, rtol=1e-3, atol=1e-3)


def test_each_seed_may_have_its_own_world() -> None:
    worlds = [small(seed=8), small(seed=9)]
    trace = fast([Arm(corrected(0.4), W, LR)], worlds=worlds)
    for s, (world, seed) in enumerate(zip(worlds, SEEDS, strict=True)):
        runs = [Run("raco", tuple(w.tolist()), 2.0, seed) for w in W]
        data = {seed: sampled(world, LABELS, 100, seed)}
        paths = train(world, low_rank(), data, runs, steps=15, betas=BETAS, batch_size=16, every=15)
        torch.testing.assert_close(trace.theta[-1, s], paths.theta[-1], rtol=1e-6, atol=1e-6)


def test_a_replayed_run_of_its_own_seed_is_that_run() -> None:
    trace = fast([Arm(corrected(0.4), W, LR)])
    again = fast([Arm(replayed(trace.coefficients), W, LR)])
    torch.testing.assert_close(again.theta, trace.theta, rtol=0, atol=0)
    other = fast([Arm(replayed(trace.coefficients.roll(-1, 1)), W, LR)])
    assert (other.theta[-1] - trace.theta[-1]).abs().max() > 1e-3


def test_a_random_correction_has_its_length_and_no_direction() -> None:
    world = small()
    rows = rows_of([world], [sampled(world, LABELS, 64, 0)])
    theta = low_rank().start(world, 0)[None, None].repeat(1, 4, 1)
    source = step_of(theta, rows, torch.tensor(BETAS, dtype=torch.float64))
    g = source.pull(source.slopes)
    linear = weighted(0, source, g, g @ g.mT, W[None]).update
    one, two = (random_correction(0.4)(k, source, g, g @ g.mT, W[None]).update - linear for k in (0, 1))
    torch.testing.assert_close(one.norm(dim=-1), 0.4 * linear.norm(dim=-1))
    assert not torch.equal(one, two)


def micro_by_hand(g: Tensor, w: Tensor) -> Tensor:
    """(groups, M, P), each group's mean gradients -> the mean of their RACO updates."""
    updates = [raco(one @ one.mT, w, c=0.4).coefficients @ one for one in g]
    return torch.stack(updates).mean(0)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_micro_batches_are_combined_by_themselves(size: int) -> None:
    world, w = small(), W[1]
    data = sampled(world, LABELS, 16, 0)
    rows = rows_of([world], [data])
    generator = torch.Generator().manual_seed(0)
    theta = 0.5 * torch.randn(1, 1, 5 + 6 * 4 + 5 * 4, generator=generator, dtype=torch.float64)
    beta = torch.tensor(BETAS, dtype=torch.float64)
    source = step_of(theta, rows, beta)
    g = source.pull(source.slopes)
    made = per_micro_batch(size)(0, source, g, g @ g.mT, w[None, None])
    parts = []
    for k in range(0, 16, size):
        part = step_of(theta, type(rows)(*(one[:, k : k + size] for one in rows)), beta)
        parts.append(part.pull(part.slopes)[0, 0])
    by_hand = micro_by_hand(torch.stack(parts), w)
    torch.testing.assert_close(made.update[0, 0], by_hand, rtol=1e-5, atol=1e-9)
    whole = raco((g @ g.mT)[0, 0], w, c=0.4).coefficients @ g[0, 0]
    torch.testing.assert_close(made.turned[0, 0], vector_angle(by_hand, whole), rtol=1e-4, atol=1e-6)


def test_held_out_figures_are_the_worlds() -> None:
    world, policy = small(), low_rank()
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(2, 1, 3, policy.start(world, 0).numel(), generator=generator, dtype=torch.float64)
    rewards, kl = held_out([world], theta)
    logp = log_policy(world, policy, theta)
    torch.testing.assert_close(rewards, expected_rewards(world, logp)[..., 1, :])
    torch.testing.assert_close(kl, divergence(world, logp)[..., 1])


def test_held_out_loss_is_the_mean_of_many_drawn_labels() -> None:
    world, policy = small(), low_rank()
    theta = 0.5 * torch.randn(1, policy.start(world, 0).numel(), dtype=torch.float64)
    labelling = Labelling(kappa=2.0, flip=(0.3,))
    # the held-out prompts of the one are the training prompts of the other
    turned = type(world)(world.features.flip(0), world.reference.flip(0), world.rewards.flip(1), 4)
    drawn = sampled(turned, labelling, 60_000, 0)
    scores = policy.scores(turned, theta)[0].flatten()
    margins = scores[drawn.a] - scores[drawn.b]
    found = held_out_losses(world, theta, labelling, [0.2, 0.8])[0]
    for i, beta in enumerate((0.2, 0.8)):
        p = drawn.labels[:, i]
        wanted = (p * softplus(-beta * margins) + (1 - p) * softplus(beta * margins)).mean()
        assert found[i].item() == pytest.approx(wanted.item(), rel=0.02)


def test_trajectories_are_read_where_they_first_get_to_a_divergence() -> None:
    kl = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.5, 0.2], [2.0, 0.3]], dtype=torch.float64)
    values = torch.stack((10 * kl, torch.arange(4.0).double()[:, None].expand(4, 2)), -1)
    found = at_divergence(values, kl, 0.75)
    assert found[0].tolist() == pytest.approx([7.5, 0.75])
    assert found[1].isnan().all()


def test_nothing_passes_the_ceiling_at_its_divergence() -> None:
    world = small()
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0]], dtype=torch.float64)
    own = optimum(world, weights[0], 0.7)
    level = divergence(world, own)[1].item()
    best = ceiling(world, weights, level)
    torch.testing.assert_close(best[0], expected_rewards(world, own)[1], rtol=1e-6, atol=1e-6)
    corner = reference_points(world, best)
    assert (corner["nadir - 10 %"] < corner["nadir"]).all()
    with pytest.raises(InputError, match="so far"):
        ceiling(world, weights, 1e3)


def test_what_it_cannot_do_is_refused() -> None:
    world = small()
    data = sampled(world, Labelling(missing=(0.9,)), 50, 0)
    with pytest.raises(InputError, match="missing labels"):
        rows_of([world], [data])
    with pytest.raises(InputError, match="optimizer"):
        fast([Arm(weighted, W, LR)], optimizer="lion")
    with pytest.raises(InputError, match="rows left over"):
        fast([Arm(per_micro_batch(5), W, LR)])
