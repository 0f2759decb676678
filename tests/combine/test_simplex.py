"""The quadratic program behind the combiners."""

from __future__ import annotations

import numpy as np
import pytest

from paretune.combine.simplex import nearest_point, points_of
from tests.combine.grams import MAKERS, made


@pytest.mark.parametrize("kind", MAKERS)
def test_points_have_the_gram(kind: str) -> None:
    for g, _ in made(kind, 20):
        gram = g @ g.T
        points = points_of(gram.tolist())
        lengths = np.sqrt(gram.diagonal())
        # relative to each pair, not to the largest: short gradients keep their digits
        assert (np.abs(points.T @ points - gram) <= 3e-14 * np.outer(lengths, lengths)).all()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("mu", [0.0, 1e-6, 1.0, 1e3])
def test_nearest_point_is_optimal_from_any_start(kind: str, mu: float) -> None:
    rng = np.random.default_rng(0)
    for g, w in made(kind, 20):
        points, m = g.T / np.linalg.norm(g), len(w)
        direction = points @ w
        for start in (np.eye(m)[0], w, rng.dirichlet(np.ones(m))):
            p, line = nearest_point(points, direction, mu, start)
            residual = points @ p + mu * direction
            assert p.min() >= 0.0 and p.sum() == pytest.approx(1.0, abs=1e-12)
            tolerance = 1e-12 * (1.0 + mu * np.linalg.norm(direction))
            assert (points.T @ residual).min() >= residual @ (points @ p) - tolerance
            np.testing.assert_allclose(line.alpha + mu * line.beta, p, atol=1e-12)
            assert line.alpha.sum() == pytest.approx(1.0, abs=1e-9 * (1 + np.abs(line.alpha).max()))
