"""Each method against its source's statement, written out on the gradients themselves (never on their Gram)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from paretune.combine import (
    aligned_mtl,
    cagrad,
    cagrad_fast,
    cagrad_uniform,
    dualproj,
    famo,
    gapo,
    imtl_g,
    linear,
    mgda_decoupled,
    nash_mtl,
    p_gapo,
    raco,
    random_correction,
    replay,
    smooth_tchebycheff,
    tchebycheff,
    upgrad,
)
from paretune.combine.labelled import combine_labelled
from paretune.errors import InputError
from tests.combine.grams import made

Array = np.ndarray


def cases(kind: str = "conflicting", count: int = 15, low: int = 2, high: int = 7) -> Any:
    return made(kind, count, sizes=range(low, high), seed=5)


def update(combiner: Callable[..., Any], g: Array, w: Array, **options: Any) -> Array:
    return combiner(torch.tensor(g @ g.T), torch.tensor(w), **options).coefficients.numpy() @ g


def losses_of(m: int) -> Array:
    return np.random.default_rng(m).uniform(0.2, 2.0, m)


# ---- CAGrad ----


def test_cagrad_uniform_is_the_published_dual() -> None:
    """Against SLSQP on min_p <G_p, g_0> + c ||g_0|| ||G_p||, as its authors solve it."""
    for g, w in cases(high=5):
        m, g0, c = len(w), g.mean(0), 0.5

        def dual(p: Array, g: Array = g, g0: Array = g0) -> float:
            return (p @ g) @ g0 + 0.5 * np.linalg.norm(g0) * np.linalg.norm(p @ g)

        found = cagrad_uniform(torch.tensor(g @ g.T), torch.tensor(w), c)
        rule = {"type": "eq", "fun": lambda p: p.sum() - 1.0}
        best = minimize(dual, np.full(m, 1 / m), bounds=[(0, 1)] * m, constraints=rule, method="SLSQP")
        p = found.p.numpy()
        assert dual(p) <= best.fun + 1e-9
        correction = p @ g / np.linalg.norm(p @ g)
        expected = g0 + c * np.linalg.norm(g0) * correction
        np.testing.assert_allclose(found.coefficients.numpy() @ g, expected, rtol=1e-6, atol=1e-8)
        cosine = expected @ (w @ g) / np.linalg.norm(expected) / np.linalg.norm(w @ g)
        assert np.cos(found.info["angle_to_linear"]) == pytest.approx(cosine, abs=1e-7)


@pytest.mark.parametrize("uniform", [True, False], ids=["equal weights", "weights"])
def test_cagrad_fast_is_cagrad_of_fewer_gradients(uniform: bool) -> None:
    for seed, (g, w) in enumerate(cases(low=5, high=9)):
        m, n = len(w), 3
        w = np.full(m, 1 / m) if uniform else w
        kept = random.Random(seed).sample(range(m), n - 1)
        rest = [i for i in range(m) if i not in kept]
        fewer = np.stack([*g[kept], (w[rest, None] * g[rest]).sum(0) / w[rest].sum()])
        anchor = np.array([*w[kept], w[rest].sum()])
        if uniform:  # the authors' anchor, and the plain mean of *all* of the rest
            np.testing.assert_allclose(anchor, [1 / m] * (n - 1) + [1 - (n - 1) / m])
            np.testing.assert_allclose(fewer[-1], g[rest].mean(0))
        expected = update(raco, fewer, anchor, c=0.6, clip=False)
        np.testing.assert_allclose(update(cagrad_fast, g, w, c=0.6, n=n, seed=seed), expected, atol=1e-9)


def test_cagrad_fast_of_few_objectives_is_cagrad() -> None:
    for g, w in cases(high=5):
        np.testing.assert_array_equal(update(cagrad_fast, g, w, n=4), update(cagrad, g, w))


# ---- MGDA on gradients of one scale ----


@pytest.mark.parametrize("p", [1, 2])
def test_gapo_mixes_normalised_gradients_shortest(p: int) -> None:
    for g, w in cases("scales"):
        lengths = np.linalg.norm(g, axis=1)
        unit = g / lengths[:, None] ** p
        found = gapo(torch.tensor(g @ g.T), torch.tensor(w), p=p)
        mixture = found.p.numpy() @ unit
        assert (unit @ mixture).min() >= mixture @ mixture - 1e-9 * np.square(unit).sum(1).max()
        expected = (w @ lengths**p) * mixture
        np.testing.assert_allclose(found.coefficients.numpy() @ g, expected, rtol=1e-6, atol=1e-9 * lengths.max())


def test_gapo_of_two_unit_lengths_is_their_bisector() -> None:
    g, w = np.array([[3.0, 0.0], [0.0, 0.5]]), np.array([0.2, 0.8])
    np.testing.assert_allclose(update(gapo, g, w), (0.6 + 0.4) * np.array([0.5, 0.5]))


def test_p_gapo_is_the_weighted_mean_of_directions_and_linear_on_normalised_gradients() -> None:
    for g, w in cases("scales"):
        lengths = np.linalg.norm(g, axis=1)
        expected = (w @ lengths) * (w @ (g / lengths[:, None]))
        found = update(p_gapo, g, w)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * lengths.max())
        everyone = torch.ones(len(w), dtype=torch.bool)
        same = combine_labelled(linear, torch.tensor(g @ g.T), torch.tensor(w), everyone, normalize=True)
        np.testing.assert_allclose(found, same.coefficients.numpy() @ g, rtol=1e-9, atol=1e-12 * lengths.max())


def test_mgda_decoupled_applies_the_normalised_coefficients_to_raw_gradients() -> None:
    for g, w in cases("normal"):
        losses = losses_of(len(w))
        relative = g / losses[:, None]
        found = mgda_decoupled(torch.tensor(g @ g.T), torch.tensor(w), losses=torch.tensor(losses))
        mixture = found.p.numpy() @ relative
        assert (relative @ mixture).min() >= mixture @ mixture - 1e-6 * np.square(relative).sum()
        np.testing.assert_allclose(found.coefficients, found.p)
    with pytest.raises(InputError, match="divides by the losses"):
        mgda_decoupled(torch.eye(2), torch.tensor([0.5, 0.5]), losses=torch.tensor([-0.1, 1.0]))


# ---- projections, bargains, alignment ----


def on_the_cone(g: Array, x: Array) -> Array:
    """argmin ||d - x||^2 with <g_i, d> >= 0, by a general solver."""
    size = np.linalg.norm(x)
    rule = {"type": "ineq", "fun": lambda d: g @ d, "jac": lambda d: g}
    found = minimize(
        lambda d: 0.5 * np.square(d - x / size).sum(), x / size, jac=lambda d: d - x / size, constraints=rule,
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return size * found.x


def test_dualproj_is_the_nearest_update_that_no_objective_opposes() -> None:
    for g, w in cases(high=5):
        np.testing.assert_allclose(update(dualproj, g, w), on_the_cone(g, w @ g), atol=2e-5 * np.linalg.norm(g))


def test_upgrad_sums_projected_gradients() -> None:
    for g, w in cases(high=5):
        expected = sum(on_the_cone(g, x) for x in w[:, None] * g)
        np.testing.assert_allclose(update(upgrad, g, w), expected, atol=5e-5 * np.linalg.norm(g))


def test_without_conflict_projections_are_linear() -> None:
    g = np.abs(np.random.default_rng(0).normal(size=(4, 6)))
    w = np.array([0.1, 0.2, 0.3, 0.4])
    for combiner in (upgrad, dualproj):
        np.testing.assert_array_equal(update(combiner, g, w), update(linear, g, w))


def test_nash_mtl_maximises_the_product_of_gains() -> None:
    """Its definition: of all updates of one length, the one with the largest sum_i w_i log <g_i, d>."""
    rng = np.random.default_rng(1)
    for g, w in cases("normal", high=5):
        g = g + 0.5  # so that some update serves all
        found = update(nash_mtl, g, w)
        assert np.linalg.norm(found) == pytest.approx(w @ np.linalg.norm(g, axis=1), rel=1e-6)
        d = found / np.linalg.norm(found)
        gains = g @ d
        assert gains.min() > 0
        tried = d + rng.normal(size=(3000, len(d))) * 10.0 ** rng.uniform(-4, 0, size=(3000, 1))
        tried /= np.linalg.norm(tried, axis=1, keepdims=True)
        other = tried @ g.T
        products = np.where((other > 0).all(1), (w * np.log(np.maximum(other, 1e-300))).sum(1), -np.inf)
        assert products.max() <= w @ np.log(gains) + 1e-9
        a = nash_mtl(torch.tensor(g @ g.T), torch.tensor(w)).coefficients.numpy()
        share = (g @ g.T @ a) * a  # H a = w / a, up to the length
        np.testing.assert_allclose(share / share.sum(), w, rtol=1e-6, atol=1e-9)


def test_nash_mtl_does_not_depend_on_the_objectives_scales() -> None:
    for g, w in cases("normal"):
        one, two = (update(nash_mtl, g * s, w) for s in (1.0, 10.0 ** np.arange(len(w))[:, None]))
        np.testing.assert_allclose(one / np.linalg.norm(one), two / np.linalg.norm(two), atol=1e-6)


def test_nash_mtl_fades_out_where_no_update_serves_all() -> None:
    g = np.array([[1.0, 2.0], [-0.5, -1.0]])
    assert np.linalg.norm(update(nash_mtl, g, np.array([0.5, 0.5]))) < 1e-3


def test_imtl_g_projects_equally_on_every_direction() -> None:
    for g, w in cases("normal"):
        found = imtl_g(torch.tensor(g @ g.T), torch.tensor(w))
        projections = g @ (found.coefficients.numpy() @ g) / np.linalg.norm(g, axis=1)
        np.testing.assert_allclose(projections, np.full(len(w), projections.mean()), rtol=1e-6)
        assert float(found.coefficients.sum()) == pytest.approx(1.0)


def test_aligned_mtl_makes_the_principal_components_equally_long() -> None:
    """Algorithm 1 on the matrix of gradients: G = U S V', aligned to s_min U V'."""
    for g, w in cases("normal"):
        u, s, v = np.linalg.svd(g, full_matrices=False)
        np.testing.assert_allclose(update(aligned_mtl, g, w), w @ (s[-1] * u @ v), rtol=1e-6, atol=1e-9)


# ---- losses ----


def test_tchebycheff_is_the_gradient_of_the_weighted_maximum() -> None:
    stch = pytest.importorskip("torchjd.scalarization").STCH
    for g, w in cases("normal"):
        m, ideal = len(w), 0.1
        losses, theta = losses_of(m), torch.zeros(g.shape[1], dtype=torch.float64, requires_grad=True)
        values = torch.tensor(losses) + torch.tensor(g) @ theta  # losses with these gradients
        hard = (torch.tensor(w) * (values - ideal)).max()
        (expected,) = torch.autograd.grad(hard, theta, retain_graph=True)
        facts = {"losses": torch.tensor(losses), "ideal": ideal}
        np.testing.assert_allclose(update(tchebycheff, g, w, **facts), expected, rtol=1e-12)
        smooth = stch(0.3, torch.tensor(w), torch.full((m,), ideal, dtype=torch.float64))(values)
        (expected,) = torch.autograd.grad(smooth, theta)
        np.testing.assert_allclose(update(smooth_tchebycheff, g, w, mu=0.3, **facts), expected, rtol=1e-9, atol=1e-12)
        sharp = update(smooth_tchebycheff, g, w, mu=1e-6, **facts)
        np.testing.assert_allclose(sharp, update(tchebycheff, g, w, **facts), rtol=1e-9, atol=1e-12)


def test_tchebycheff_of_equals_is_their_mean() -> None:
    same = torch.tensor([0.7, 0.7], dtype=torch.float64)
    found = tchebycheff(torch.eye(2), torch.tensor([0.5, 0.5]), losses=same, ideal=[0.1, 0.1])
    assert found.coefficients.tolist() == [0.25, 0.25]


def test_famo_is_torchjds_given_the_fall_of_the_losses_that_it_predicts() -> None:
    reference = pytest.importorskip("torchjd.scalarization").FAMO
    rng = np.random.default_rng(2)
    m, state = 4, {}
    oracle, w = reference(m, weight_decay=1e-3).double(), np.full(4, 0.25)
    for _ in range(12):
        g, losses = rng.normal(size=(m, 7)), rng.uniform(0.2, 2.0, m)
        found = famo(torch.tensor(g @ g.T), torch.tensor(w), losses=torch.tensor(losses), state=state)
        values = torch.tensor(losses, requires_grad=True)
        (expected,) = torch.autograd.grad(oracle(values), values)
        np.testing.assert_allclose(found.coefficients, expected, rtol=1e-6)
        # first order: log L_i falls by <g_i, d> / L_i per unit of learning rate, d the mixture of log losses' gradients
        relative = g / losses[:, None]
        z = torch.softmax(oracle._w.detach(), 0).numpy()
        fall = relative @ (z @ relative) / np.square(relative).sum()
        oracle.update(torch.tensor(losses * np.exp(-fall)))
        np.testing.assert_allclose(state["logits"], oracle._w.detach(), rtol=1e-4, atol=1e-6)
    assert state["steps"] == 12 and max(map(abs, state["logits"])) > 0.05


def test_famo_favours_what_falls_slowly() -> None:
    gram, state = torch.diag(torch.tensor([1.0, 0.01], dtype=torch.float64)), {}
    for _ in range(20):
        found = famo(gram, torch.tensor([0.5, 0.5]), losses=torch.tensor([1.0, 1.0]), state=state)
    assert found.coefficients[1] > 0.6


# ---- controls ----


def test_random_correction_is_as_long_as_racos_and_new_in_each_step() -> None:
    for g, w in cases("normal"):
        g0 = w @ g
        found = [update(random_correction, g, w, c=0.4, seed=s, stream=t) - g0 for s, t in ((0, 0), (1, 0), (0, 1))]
        for correction in found:
            assert np.linalg.norm(correction) == pytest.approx(0.4 * np.linalg.norm(g0), rel=1e-6)
        assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])
        again = update(random_correction, g, w, c=0.4, seed=0) - g0
        np.testing.assert_array_equal(again, found[0])


def test_random_correction_draws_the_whole_simplex_evenly() -> None:
    gram, w = torch.eye(3, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    p = torch.stack([random_correction(gram, w, seed=s).p for s in range(2000)])
    np.testing.assert_allclose(p.mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(p.var(0), 1 / 18, atol=0.006)  # Dirichlet(1, 1, 1)


def test_replay_gives_back_what_it_was_given() -> None:
    recorded: list[list[float]] = [[0.3, 1.2], [0.0, -0.1]]
    gram, w = torch.eye(2, dtype=torch.float64), torch.tensor([0.5, 0.5])
    absent: Tensor = torch.tensor([True, False])
    for step in range(2):
        found = combine_labelled(replay, gram, w, absent, seed=step, coefficients=recorded)
        assert found.coefficients.tolist() == recorded[step]
    with pytest.raises(InputError, match="no coefficients to replay"):
        replay(gram, w, coefficients=recorded, seed=2)
