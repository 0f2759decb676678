"""RACO's combination: the paper's vectors, the certificate over a zoo of Grams, and what must leave it unchanged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from paretune.combine import Combination, angle, cagrad, linear, raco
from paretune.combine.combination import checked, norm
from paretune.combine.raco import _minimise_many, _minimise_two, minimise
from paretune.errors import InputError
from tests.combine.grams import MAKERS, made

Array = np.ndarray
EPS = np.finfo(float).eps


def solved(g: Any, w: Any, c: float = 0.4, **options: Any) -> tuple[Combination, Array]:
    """The combination and its update."""
    gradients, weights = torch.tensor(np.array(g, float)), torch.tensor(np.array(w, float))
    combination = raco(gradients @ gradients.T, weights, c, **options)
    return combination, (combination.coefficients @ gradients).numpy()


def degrees(x: Array, y: Array) -> float:
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return math.degrees(2.0 * math.atan2(float(np.linalg.norm(x - y)), float(np.linalg.norm(x + y))))


# gradients, weights, c, p, clipped, g_0, RACO, CAGrad (None: the same as RACO; p None: any)
VECTORS: list[tuple[Any, ...]] = [
    (
        [(1, -4), (-1, 1)],
        (0.2, 0.8),
        0.5,
        (0.356145, 0.643855),
        (0.2, 0.643855),
        (-0.6, 0),
        (-0.882999, -0.099557),
        (-0.703735, -0.281494),
    ),
    ([(1, 0), (0, 2)], (0.8, 0.2), 0.4, (0.8, 0.2), (0.8, 0.2), (0.8, 0.4), (1.12, 0.56), None),
    ([(2, 0), (-1, 1)], (0.5, 0.5), 0.4, (0, 1), (0, 0.5), (0.5, 0.5), (0.3, 0.7), None),
    ([(1, 0), (-3, 1)], (0.8, 0.2), 0.4, (0, 1), (0, 0.2), (0.2, 0.2), (0.092669, 0.235777), None),
    ([(1, 2), (1, 2)], (0.7, 0.3), 0.4, None, None, (1, 2), (1.4, 2.8), None),
    ([(1, 2), (-1, -2)], (0.8, 0.2), 0.4, (0, 1), (0, 0.2), (0.6, 1.2), (0.36, 0.72), None),
    ([(1, 2), (-1, -2)], (0.5, 0.5), 0.4, None, None, (0, 0), (0, 0), None),
    ([(0, 0), (1, 1)], (0.8, 0.2), 0.4, (1, 0), (0.8, 0), (0.2, 0.2), (0.2, 0.2), None),
    (
        [(3, 0, 0), (-1, 2, 0), (-1, -1, 2)],
        (0.5, 0.3, 0.2),
        0.4,
        (0, 0.435415, 0.564585),
        (0, 0.3, 0.2),
        (1, 0.4, 0.4),
        (0.695646, 0.643483, 0.643483),
        (0.701406, 0.491443, 0.737164),
    ),
]


@pytest.mark.parametrize(("g", "w", "c", "p", "clipped", "g0", "update", "unclipped"), VECTORS)
def test_vectors(g: Any, w: Any, c: float, p: Any, clipped: Any, g0: Any, update: Any, unclipped: Any) -> None:
    combination, got = solved(g, w, c)
    np.testing.assert_allclose(got, update, atol=1e-6)
    if p is not None:
        np.testing.assert_allclose(combination.p, p, atol=1e-6)
        np.testing.assert_allclose(combination.clipped, clipped, atol=1e-6)
    _, got_unclipped = solved(g, w, c, clip=False)
    np.testing.assert_allclose(got_unclipped, update if unclipped is None else unclipped, atol=1e-6)
    np.testing.assert_allclose(solved(g, w, 0.0)[1], g0, atol=1e-15)
    assert combination.clip_active == (unclipped is not None)
    if unclipped is not None:
        expected = math.radians(degrees(np.array(update), np.array(unclipped)))
        assert combination.info["angle_to_unclipped"] == pytest.approx(expected, rel=1e-4)
    if any(g0):
        expected = math.radians(degrees(np.array(update), np.array(g0)))
        assert combination.info["angle_to_linear"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_descent_certificate_of_the_first_vector() -> None:
    """Theorem 3.2: Gamma(rho) = 1 + c rho - (l_w eta / 2)(1 + c^2 + 2 c rho) rises by c (1 - l_w eta) (rho~ - rho)."""
    g, w, c, _, _, g0, _, _ = VECTORS[0]
    rho = []
    for clip in (False, True):
        correction = solved(g, w, c, clip=clip)[1] - np.array(g0)
        rho.append(float(correction @ g0 / np.linalg.norm(correction) / np.linalg.norm(g0)))
    step = 3.0 * 0.1
    gamma = [1.0 + c * r - 0.5 * step * (1.0 + c * c + 2.0 * c * r) for r in rho]
    assert rho == pytest.approx([0.345785, 0.943330], abs=1e-6)
    assert gamma == pytest.approx([0.933525, 1.142665], abs=1e-6)
    assert gamma[1] - gamma[0] == pytest.approx(0.209141, abs=1e-6)
    assert gamma[1] - gamma[0] == pytest.approx(c * (1.0 - step) * (rho[1] - rho[0]), rel=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_certificate(kind: str) -> None:
    """gap = h(p) - min_i(b_i + s (Hp)_i / ||G_p||) on 11 x 910 Grams, m = 2..12.

    It is evaluated here a second time, from the Gram as it was passed, where the Gram can tell: p'Hp carries an
    error of 4 eps tr H, which near ||G_p|| = 1e-6 sqrt(tr H) is 1e-3 of it; the solver's own value is free of that.
    """
    rng = np.random.default_rng(0)
    told = 0
    for g, w in made(kind, 910):
        gram, weights, c = torch.tensor(g @ g.T), torch.tensor(w), float(rng.choice([0.1, 0.4, 0.9]))
        combination = raco(gram, weights, c)
        H, wl, _ = checked(gram, weights)
        tr, s = sum(H[i][i] for i in range(len(w))), c * norm(H, wl)
        if s == 0.0:
            continue
        p = np.array(minimise(H, wl, s).p)
        assert p.min() >= 0.0 and abs(p.sum() - 1.0) <= 1e-12
        if combination.info["shift"] == 0.0:
            assert combination.p.tolist() == p.tolist()
        length = norm(H, p.tolist())
        assert -1e-12 <= combination.info["gap_relative"] <= (1e-10 if length >= 1e-6 * math.sqrt(tr) else 1e-8)
        h = np.array(H)
        error = s * math.sqrt(h.diagonal().max()) * 4 * EPS * tr
        if length > 0.0 and error <= 1e-11 * tr * length**2:
            told += 1
            b = h @ w
            assert b @ p + s * length - (b + s * (h @ p) / length).min() <= 1e-10 * tr
    assert told >= 200  # the others mix to nearly 0


def test_value_of_an_independent_solver() -> None:
    """The dual as a smooth program on the vectors themselves, max nu with <g_i, g_0 + u> >= nu and ||u|| <= s."""
    for kind in ("normal", "conflicting", "rank-deficient", "integers"):
        for g, w in made(kind, 50, sizes=range(2, 9), seed=1):
            g = g / np.linalg.norm(g)
            g0, c = w @ g, 0.4
            s, d = c * float(np.linalg.norm(g0)), g.shape[1]
            if s == 0.0:
                continue
            # s units keep the solver's tolerance relative
            result = minimize(
                lambda x: -x[-1],
                np.append(np.zeros(d), (g @ g0).min() / s),
                jac=lambda x: np.append(np.zeros(len(x) - 1), -1.0),
                constraints=[
                    {"type": "ineq", "fun": lambda x, g=g, g0=g0, s=s: g @ (g0 / s + x[:-1]) - x[-1]},
                    {"type": "ineq", "fun": lambda x: 1.0 - x[:-1] @ x[:-1]},
                ],
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 500},
            )
            combination = raco(torch.tensor(g @ g.T), torch.tensor(w), c)
            assert combination.info["h"] == pytest.approx(result.x[-1] * s, abs=1e-7)


@pytest.mark.parametrize("kind", MAKERS)
def test_closed_form_for_two_is_the_general_method(kind: str) -> None:
    for g, w in made(kind, 100, sizes=range(2, 3), seed=2):
        H, wl, _ = checked(torch.tensor(g @ g.T), torch.tensor(w))
        s = 0.4 * norm(H, wl)
        if s > 0.0:
            two, many = _minimise_two(H, wl, s), _minimise_many(H, wl, s)
            assert two.h == pytest.approx(many.h, abs=1e-8 if kind == "nearly stationary" else 1e-10)


@pytest.mark.parametrize("noise", [1e-16, 1e-14, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7])
def test_noise_on_equal_gradients_does_not_turn_the_update(noise: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        m, d = int(rng.integers(2, 6)), 8
        g, w = rng.normal(size=(m, d)), rng.dirichlet(np.ones(m + 1))
        exact = np.concatenate((g, g[:1]))
        shaken = exact * (1.0 + noise * rng.normal(size=exact.shape))
        assert degrees(solved(exact, w)[1], solved(shaken, w)[1]) < 0.1


def test_noise_test_can_fail() -> None:
    """Without the pull to the weights (tau tiny) the same noise turns the clipped update by degrees."""
    rng = np.random.default_rng(3)
    worst = 0.0
    for _ in range(60):
        g, w = rng.normal(size=(3, 8)), rng.dirichlet(np.ones(4))
        exact = np.concatenate((g, g[:1]))
        shaken = exact * (1.0 + 1e-7 * rng.normal(size=exact.shape))
        worst = max(worst, degrees(solved(exact, w)[1], solved(shaken, w, tau=1e-12)[1]))
    assert worst > 1.0


@pytest.mark.parametrize("clip", [True, False])
def test_splitting_an_objective_into_two_halves_changes_nothing(clip: bool) -> None:
    for kind in ("normal", "conflicting"):
        for g, w in made(kind, 60, sizes=range(1, 7), seed=4):
            split_g, split_w = np.concatenate((g, g[:1])), np.append(w, w[0] / 2)
            split_w[0] /= 2
            whole, parts = solved(g, w, clip=clip)[1], solved(split_g, split_w, clip=clip)[1]
            np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-7 * np.linalg.norm(whole))


@pytest.mark.parametrize("exponent", [-20, -13, -7, -1, 1, 6, 12, 20])
def test_scale_of_the_gram_does_not_matter(exponent: int) -> None:
    for kind in ("normal", "conflicting", "duplicated", "integers"):
        for g, w in made(kind, 15, seed=5):
            gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
            one, scaled, doubled = (raco(gram * x, weights) for x in (1.0, 10.0**exponent, 2.0 ** (3 * exponent)))
            np.testing.assert_allclose(scaled.p, one.p, atol=1e-8)
            np.testing.assert_allclose(scaled.coefficients, one.coefficients, rtol=1e-6, atol=1e-6)
            assert torch.equal(doubled.p, one.p) and torch.equal(doubled.coefficients, one.coefficients)


@pytest.mark.parametrize("kind", MAKERS)
def test_order_of_the_objectives_does_not_matter(kind: str) -> None:
    rng = np.random.default_rng(6)
    for g, w in made(kind, 40, seed=6):
        if kind == "nearly stationary" and np.linalg.norm(w @ g) < 1e-6 * np.linalg.norm(g):
            continue  # g_0 itself is rounding of the Gram
        order = rng.permutation(len(w))
        one, other = solved(g, w)[1], solved(g[order], w[order])[1]
        if np.linalg.norm(one) > 0.0:
            assert degrees(one, other) < 0.01


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("tau", [1e-3, 1e-5, 1e-8])
def test_coefficients_are_bounded(kind: str, tau: float) -> None:
    for g, w in made(kind, 60, seed=7):
        combination, update = solved(g, w, tau=tau)
        a, gram = combination.coefficients.numpy(), g @ g.T
        assert (a >= w).all() and (a <= w + 0.4 / tau).all()
        assert torch.isfinite(combination.coefficients).all()
        if not combination.info["correction_zero"]:  # line 6: the correction has length c ||g_0||
            assert norm(gram.tolist(), (a - w).tolist()) == pytest.approx(
                0.4 * norm(gram.tolist(), w.tolist()), rel=1e-5, abs=1e-8 * math.sqrt(np.trace(gram))
            )


def test_opposed_gradients_give_no_huge_coefficients() -> None:
    g = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [0.0, 0.0, 1.0]])
    for noise in (0.0, 1e-9):
        shaken = g + noise * np.random.default_rng(0).normal(size=g.shape)
        combination, _ = solved(shaken, (0.4, 0.4, 0.2))
        assert combination.info["correction_zero"] and combination.info["why_zero"] == "the mixture is 0"
        assert combination.coefficients.tolist() == [0.4, 0.4, 0.2]


@pytest.mark.parametrize("kind", MAKERS)
def test_c_zero_is_linear_bit_for_bit(kind: str) -> None:
    for g, w in made(kind, 10, seed=8):
        gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
        for combiner in (raco, cagrad):
            combination = combiner(gram, weights, 0.0)
            assert torch.equal(combination.coefficients, weights)
            assert torch.equal(combination.coefficients, linear(gram, weights).coefficients)
            assert combination.info["correction_zero"] and combination.info["why_zero"] == "c is 0"


def test_one_objective() -> None:
    combination, update = solved([(3.0, 4.0)], [1.0])
    np.testing.assert_allclose(update, (1.4 * 3.0, 1.4 * 4.0), rtol=1e-15)
    assert combination.p.tolist() == combination.clipped.tolist() == [1.0]
    assert solved([(0.0, 0.0)], [1.0])[0].coefficients.tolist() == [1.0]


@pytest.mark.parametrize("m", [1, 2, 3, 12])
def test_gradients_that_are_all_zero(m: int) -> None:
    weights = torch.full((m,), 1.0 / m, dtype=torch.float64)
    combination = raco(torch.zeros(m, m), weights)
    assert torch.equal(combination.coefficients, weights) and combination.info["why_zero"] == "g_0 is 0"


def test_clipping_has_no_effect_at_a_vertex_and_never_lowers_the_cosine_for_two() -> None:
    vertices = interior = 0
    for g, w in made("conflicting", 600, sizes=range(2, 3), seed=9):
        clipped, update = solved(g, w)
        _, unclipped = solved(g, w, clip=False)
        g0 = w @ g
        if clipped.p.max() == 1.0:
            vertices += 1
            assert not clipped.clip_active and degrees(update, unclipped) < 1e-5
        elif clipped.clip_active:
            interior += 1
            assert (update - g0) @ g0 > (unclipped - g0) @ g0  # both corrections have one length
    assert vertices > 100 and interior > 30


def test_minimiser_nearest_the_weights_where_it_is_open() -> None:
    """Two equal gradients and a third: any split of their share minimises h; nearest the weights is the even move."""
    g = np.array([[1.0, -4.0], [1.0, -4.0], [-1.0, 1.0]])
    combination, _ = solved(g, (0.05, 0.15, 0.8), 0.5)
    share = 0.356145 - 0.2
    np.testing.assert_allclose(combination.p, (0.05 + share / 2, 0.15 + share / 2, 0.643855), atol=1e-6)
    assert combination.info["shift"] > 0.01


@pytest.mark.parametrize("kind", MAKERS)
def test_pull_to_the_weights_stays_among_the_minimisers(kind: str) -> None:
    """It costs no more of h than gradients known to tau leave open, and nothing where the minimiser is unique."""
    tau, c, moved, count = 1e-5, 0.4, 0, 100
    for g, w in made(kind, count, seed=10):
        combination, _ = solved(g, w, c, tau=tau)
        p, g0 = combination.p.numpy(), w @ g
        size, longest = np.linalg.norm(g), np.linalg.norm(g, axis=1).max()
        h = p @ g @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(p @ g)
        rounding = 2e-8 * size**2  # of ||g_0|| from a Gram
        room = (1 + c) * np.linalg.norm(g0) * tau * (math.sqrt(2) * size + len(w) * longest)
        assert h - combination.info["h"] <= room + rounding
        moved += combination.info["shift"] > 0.0
    if kind in ("normal", "conflicting", "mixing to zero"):
        assert moved <= 5
    if kind == "duplicated":
        assert moved >= 25


@pytest.mark.parametrize(
    ("gram", "weights", "options", "words"),
    [
        (torch.eye(2), torch.tensor([0.5, 0.5]), {"c": 1.0}, "0 <= c < 1"),
        (torch.eye(2), torch.tensor([0.5, 0.5]), {"c": -0.1}, "0 <= c < 1"),
        (torch.eye(2), torch.tensor([0.5, 0.5]), {"c": math.nan}, "0 <= c < 1"),
        (torch.eye(2), torch.tensor([0.5, 0.5]), {"tau": 0.0}, "0 < tau < 1"),
        (torch.eye(2), torch.tensor([0.5, 0.6]), {}, "sum to 1"),
        (torch.eye(2), torch.tensor([1.5, -0.5]), {}, "numbers >= 0"),
        (torch.eye(2), torch.tensor([math.nan, 0.5]), {}, "sum to 1"),
        (torch.eye(3), torch.tensor([0.5, 0.5]), {}, "shapes"),
        (torch.zeros(0, 0), torch.zeros(0), {}, "shapes"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), torch.tensor([0.5, 0.5]), {}, "finite"),
        (torch.tensor([[math.inf, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.5]), {}, "finite"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), torch.tensor([0.5, 0.5]), {}, "symmetric"),
        (torch.tensor([[1.0, 1.1], [1.1, 1.0]]), torch.tensor([0.5, 0.5]), {}, "not a Gram matrix"),
        (torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.5]), {}, "not a Gram matrix"),
        (1.9 * torch.eye(3) - 0.9, torch.tensor([0.8, 0.1, 0.1]), {}, "not a Gram matrix"),
    ],
)
def test_bad_input_is_refused(gram: Tensor, weights: Tensor, options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        raco(gram, weights, **options)


def test_float32_rounding_is_not_refused() -> None:
    g = torch.randn(4, 1000)
    g[1] = g[0]
    combination = raco(g @ g.T, torch.full((4,), 0.25))
    assert combination.coefficients.dtype == torch.float64 and torch.isfinite(combination.coefficients).all()


def test_angle_to_linear_is_the_public_angle() -> None:
    g, w = next(made("conflicting", 1, sizes=range(5, 6)))
    gram, weights = torch.tensor(g @ g.T), torch.tensor(w)
    combination = raco(gram, weights)
    assert combination.info["angle_to_linear"] == pytest.approx(
        angle(gram, combination.coefficients, weights), rel=1e-9
    )
