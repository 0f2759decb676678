"""What reward models are trained on, against formulas written out, and what missing labels may do: nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paretune.preferences.reward_models.losses import (
    aggregate,
    all_pairs,
    label_weights,
    listwise,
    mean_by_objective,
    pairwise,
    pointwise,
)
from paretune.preferences.reward_models.ridge import STRENGTHS, fit_ridge


def ranking_loss(rewards: list[float], order: tuple[int, ...]) -> float:
    """-log of Plackett and Luce's probability of an order, best first, by drawing without replacement."""
    left, total = list(order), 0.0
    for best in order:
        total -= rewards[best] - math.log(sum(math.exp(rewards[k]) for k in left))
        left.remove(best)
    return total


def test_listwise_is_the_probability_of_the_ranking() -> None:
    rewards = [0.3, -1.2, 2.0, 0.5]
    total = 0.0
    for order in itertools.permutations(range(4)):
        scores = torch.zeros(1, 4, 1, dtype=torch.float64)
        for place, k in enumerate(order):
            scores[0, k, 0] = -place
        loss = listwise(torch.tensor(rewards, dtype=torch.float64).view(1, 4, 1), scores)
        assert loss.item() == pytest.approx(ranking_loss(rewards, order), rel=1e-12)
        total += math.exp(-loss.item())
    assert total == pytest.approx(1.0)


def test_listwise_of_two_is_bradley_terry() -> None:
    rewards = torch.randn(50, 2, 3, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(50, 2, 3, dtype=torch.float64)
    hard = (scores[:, 0] > scores[:, 1]).double()
    lists = listwise(rewards, scores)
    pairs = pairwise(rewards[:, 0], rewards[:, 1], hard)
    assert torch.allclose(lists, pairs, rtol=1e-12)
    (g_lists,), (g_pairs,) = (torch.autograd.grad(loss.sum(), rewards, retain_graph=True) for loss in (lists, pairs))
    assert torch.allclose(g_lists, g_pairs, rtol=1e-10)
    tied = listwise(rewards, torch.zeros_like(scores))
    assert torch.allclose(tied, 2 * pairwise(rewards[:, 0], rewards[:, 1], torch.full_like(hard, 0.5)), rtol=1e-12)


def test_ties_and_missing_scores_of_a_list() -> None:
    rewards = torch.randn(1, 5, 1, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([2.0, math.nan, 2.0, 1.0, math.nan], dtype=torch.float64).view(1, 5, 1)
    loss = listwise(rewards, scores)
    a, b, c = (rewards[0, k, 0] for k in (0, 2, 3))
    every = torch.stack([a, b, c]).logsumexp(0)
    assert loss.item() == pytest.approx((2 * every - a - b).item())
    loss.sum().backward()
    assert rewards.grad is not None and (rewards.grad[0, [1, 4], 0] == 0).all() and rewards.grad.isfinite().all()
    swapped = listwise(rewards.detach()[:, [2, 1, 0, 3, 4]], scores)
    assert swapped.item() == pytest.approx(loss.item()), "the order of tied responses decides nothing"
    nobody = listwise(rewards, torch.full_like(scores, math.nan))
    assert nobody.item() == 0


def test_pairwise_with_margins_soft_labels_and_centring() -> None:
    a, b = torch.randn(2, 40, 2, dtype=torch.float64)
    p, margins = torch.rand(2, 40, 2, dtype=torch.float64)
    d = a - b
    wanted = -p * torch.log(torch.sigmoid(d - margins)) - (1 - p) * torch.log(torch.sigmoid(-d - margins))
    assert torch.allclose(pairwise(a, b, p, margins), wanted)
    assert torch.allclose(pairwise(a, b, p, margins), pairwise(b, a, 1 - p, margins)), "which side is a means nothing"
    plain = F.binary_cross_entropy_with_logits(d, p, reduction="none")
    assert torch.allclose(pairwise(a, b, p), plain)
    assert torch.allclose(pairwise(a, b, p, None, 0.1) - plain, 0.1 * (a + b) ** 2)


def test_all_pairs_are_the_mean_of_each_pair_alone() -> None:
    rewards = torch.randn(3, 5, 2, dtype=torch.float64)
    scores = torch.randint(0, 4, (3, 5, 2)).double()
    scores[0, 1, 0] = scores[1, 3:, 1] = math.nan
    scores[2, :, 0] = math.nan  # nothing known
    found = all_pairs(rewards, scores, margin_scale=0.2, centring=0.1)
    for n, m in itertools.product(range(3), range(2)):
        alone = []
        for i, j in itertools.combinations(range(5), 2):
            s_i, s_j = scores[n, i, m], scores[n, j, m]
            if not (s_i - s_j).isnan():
                p = torch.tensor(float(s_i > s_j) if s_i != s_j else 0.5, dtype=torch.float64)
                alone.append(pairwise(rewards[n, i, m], rewards[n, j, m], p, 0.2 * (s_i - s_j).abs(), 0.1).item())
        assert found[n, m].item() == pytest.approx(sum(alone) / len(alone) if alone else 0.0, rel=1e-12)


@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "listwise", "all pairs"])
def test_a_missing_label_has_no_loss_and_no_gradient(kind: str) -> None:
    rewards = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(6, 3, dtype=torch.float64)
    labels[torch.rand(6, 3) < 0.5] = math.nan
    labels[:, 1] = math.nan

    def losses(r: Tensor) -> Tensor:
        if kind == "pairwise":
            return pairwise(r[:, 0], r[:, 1], labels, labels, 0.3)  # NaN margins, too
        scores = torch.stack([labels, torch.zeros_like(labels).masked_fill(labels.isnan(), math.nan)], dim=1)
        if kind == "all pairs":
            return all_pairs(r, scores, 0.2, 0.3)
        return pointwise(r, scores).sum(1) if kind == "pointwise" else listwise(r, scores)

    found = losses(rewards)
    assert (found[labels.isnan()] == 0).all() and (found[~labels.isnan()] > 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), rewards)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).equal(~labels.isnan())


def test_the_loss_of_a_data_set_does_not_depend_on_how_it_is_cut() -> None:
    losses = torch.rand(12, 3).double()
    labelled = torch.rand(12, 3) < torch.tensor([1.0, 0.4, 0.0])
    labelled[0, 1] = True
    losses = losses * labelled
    weights = label_weights(labelled)
    whole = mean_by_objective(losses, weights)
    cut = torch.stack([mean_by_objective(part, weights) for part in losses.split(3)]).mean()
    means = [losses[labelled[:, i], i].mean() for i in (0, 1)]
    assert whole.item() == pytest.approx(float(sum(means)) / 2, rel=1e-6) == pytest.approx(cut.item(), rel=1e-6)


def test_tokens_are_summed_or_averaged_over_the_response_alone() -> None:
    tokens = torch.randn(3, 5, 2)
    response = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    tokens[0, 0] = math.nan  # a token of the prompt says nothing, whatever it is
    assert torch.allclose(aggregate(tokens, response, "sum")[0], tokens[0, 2:4].sum(0))
    assert torch.allclose(aggregate(tokens, response, "mean")[1], tokens[1, 1:].mean(0))


# ---- ridge ----


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 8).double()
    truth = torch.randn(2, 8).double()
    s = x @ truth.T + 0.1 * torch.randn(200, 2)
    s[::3, 1] = math.nan
    held = torch.arange(200) % 5 == 0
    ridge = fit_ridge(x, s, held)
    assert ridge.errors.shape == (len(STRENGTHS), 2) and set(ridge.strengths.tolist()) <= set(STRENGTHS)
    for i in range(2):
        known = ~s[:, i].isnan()
        rows, strength = x[known], ridge.strengths[i]
        plain = torch.linalg.solve(rows.T @ rows + strength * torch.eye(8), rows.T @ s[known, i])
        assert torch.allclose(ridge.weights[i], plain, rtol=1e-8)
        fit, choose = known & ~held, known & held
        for tried, error in zip(STRENGTHS, ridge.errors[:, i].tolist(), strict=True):
            w = torch.linalg.solve(x[fit].T @ x[fit] + tried * torch.eye(8), x[fit].T @ s[fit, i])
            assert error == pytest.approx((x[choose] @ w - s[choose, i]).square().mean().item(), rel=1e-8)
    assert torch.allclose(ridge.weights, truth, atol=0.05)


def test_the_strength_follows_the_noise() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 50).double()
    clean = x @ torch.randn(50).double()
    noisy = torch.randn(60).double() * 10
    held = torch.arange(60) % 5 == 0
    ridge = fit_ridge(x, torch.stack([clean, noisy], 1), held)
    assert ridge.strengths[1] > 100 * ridge.strengths[0]
