"""The rivals: against their own definitions on the vectors themselves."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from paretune.combine import COMBINERS, cagrad, linear, mgda, pcgrad, raco
from paretune.errors import InputError
from tests.combine.calls import called
from tests.combine.grams import MAKERS, made


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_every_combiner_on_every_kind(name: str, kind: str) -> None:
    for g, w in made(kind, 10, sizes=range(2, 9)):
        gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
        combination = called(name, gram, weights)
        for values in (combination.coefficients, combination.p, combination.clipped):
            assert values.dtype == torch.float64 and values.shape == (len(w),) and torch.isfinite(values).all()
        assert combination.p.sum() == pytest.approx(1.0) and combination.p.min() >= 0.0
        assert 0.0 <= combination.info["angle_to_linear"] <= np.pi
        # pure: the same answer again, the arguments as they were
        assert torch.equal(called(name, gram, weights).coefficients, combination.coefficients)
        assert torch.equal(gram, torch.tensor(g @ g.T)) and torch.equal(weights, torch.tensor(w))


@pytest.mark.parametrize("name", COMBINERS)
def test_every_combiner_refuses_bad_weights(name: str) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        called(name, torch.eye(2), torch.tensor([1.0, 1.0]))


def test_linear_is_the_weights() -> None:
    weights = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    assert torch.equal(linear(torch.eye(3), weights).coefficients, weights)


def test_cagrad_is_raco_unclipped() -> None:
    for g, w in made("conflicting", 20):
        gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
        expected = raco(gram, weights, 0.7, clip=False)
        got = cagrad(gram, weights, 0.7)
        assert torch.equal(got.coefficients, expected.coefficients) and not got.clip_active


def test_cagrad_improves_the_worst_objective_more_than_any_other_direction_in_its_ball() -> None:
    """Its primal: max over ||d - g_0|| <= c ||g_0|| of min_i <g_i, d>, against 2,000 directions tried."""
    rng = np.random.default_rng(0)
    for g, w in made("normal", 20, sizes=range(2, 5)):
        g0, c = w @ g, 0.5
        update = cagrad(torch.tensor(g @ g.T), torch.tensor(w), c).coefficients.numpy() @ g
        tried = rng.normal(size=(2000, len(g0)))
        tried = g0 + c * np.linalg.norm(g0) * tried / np.linalg.norm(tried, axis=1, keepdims=True)
        assert (g @ update).min() >= (tried @ g.T).min(1).max() - 1e-12


@pytest.mark.parametrize("kind", MAKERS)
def test_mgda_is_the_shortest_mixture(kind: str) -> None:
    """Exactly when <g_i, G_p> >= ||G_p||^2 for every i."""
    for g, w in made(kind, 60):
        combination = mgda(torch.tensor(g @ g.T), torch.tensor(w))
        mixture = combination.p.numpy() @ g
        assert (g @ mixture).min() >= mixture @ mixture - 1e-12 * np.square(g).sum()
        length = np.linalg.norm(mixture) / np.linalg.norm(g)
        assert combination.info["length"] == pytest.approx(length, rel=1e-6, abs=2e-8)  # a Gram resolves no less


def test_mgda_of_two_in_closed_form() -> None:
    for g, w in made("normal", 50, sizes=range(2, 3)):
        first = np.clip(g[1] @ (g[1] - g[0]) / np.square(g[0] - g[1]).sum(), 0.0, 1.0)
        np.testing.assert_allclose(mgda(torch.tensor(g @ g.T), torch.tensor(w)).p, (first, 1 - first), atol=1e-12)


def test_pcgrad_is_the_projection_of_the_vectors() -> None:
    """Algorithm 1 on the weighted gradients themselves, in the same random order."""
    for seed, (g, w) in enumerate(made("conflicting", 50, sizes=range(2, 8))):
        scaled, order, total = w[:, None] * g, random.Random(seed), np.zeros(g.shape[1])
        for i in range(len(w)):
            v = scaled[i].copy()
            for j in order.sample(range(len(w)), len(w)):
                if j != i and v @ scaled[j] < 0.0:
                    v -= (v @ scaled[j]) / (scaled[j] @ scaled[j]) * scaled[j]
            total += v
        combination = pcgrad(torch.tensor(g @ g.T), torch.tensor(w), seed=seed)
        np.testing.assert_allclose(combination.coefficients.numpy() @ g, total, atol=1e-10)


def test_pcgrad_of_two_in_closed_form_and_without_conflict() -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    gram = torch.tensor([[4.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    np.testing.assert_allclose(pcgrad(gram, half).coefficients, (0.5 * (1 + 1 / 4), 0.5 * (1 + 1 / 2)), rtol=1e-15)
    assert torch.equal(pcgrad(gram.abs(), half).coefficients, half)


def test_pcgrad_order_comes_from_the_seed_alone() -> None:
    g, w = next(made("conflicting", 1, sizes=range(6, 7)))
    gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
    runs = [pcgrad(gram, weights, seed=seed).coefficients for seed in (1, 2, 1)]
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])
