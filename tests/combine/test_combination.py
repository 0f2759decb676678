"""Angles in the Gram's metric, and the checks of what comes in."""

from __future__ import annotations

import math

import pytest
import torch

from paretune.combine import angle
from paretune.combine.combination import checked


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-6, 1e-3, 0.5, 1.5, 3.0, math.pi - 1e-9])
def test_angle_is_exact_at_any_size(size: float) -> None:
    """Orthonormal gradients: coefficients are coordinates. An arc cosine returns 0 below 1e-8."""
    v = torch.tensor([7.0 * math.cos(size), 7.0 * math.sin(size)], dtype=torch.float64)
    u = torch.tensor([0.3, 0.0], dtype=torch.float64)
    assert angle(torch.eye(2, dtype=torch.float64), u, v) == pytest.approx(size, rel=1e-7)


def test_angle_knows_the_metric() -> None:
    g = torch.randn(4, 9, dtype=torch.float64)
    u, v = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.acos(torch.cosine_similarity(u @ g, v @ g, dim=0))
    assert angle(g @ g.T, u, v) == pytest.approx(float(expected), rel=1e-9)


def test_angle_to_nothing_is_zero() -> None:
    assert angle(torch.eye(2), torch.zeros(2), torch.ones(2)) == 0.0
    assert angle(torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, -1.0])) == 0.0


def test_scale_is_a_power_of_two_near_the_trace() -> None:
    gram = torch.diag(torch.tensor([3e-30, 5e-30], dtype=torch.float64))
    rows, weights, scale = checked(gram, torch.tensor([0.25, 0.75]))
    assert math.frexp(scale)[0] == 0.5 and 0.5 <= rows[0][0] + rows[1][1] < 1.0
    assert rows[0][0] * scale == 3e-30 and weights == [0.25, 0.75]
