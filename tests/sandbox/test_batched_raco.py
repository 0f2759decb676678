"""RACO of many Grams at once against `paretune.combine.raco`, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paretune.combine import raco
from paretune.sandbox.batched_raco import gram_angles, raco_many, raco_two

N = 150


def grams(m: int, kind: str) -> tuple[Tensor, Tensor]:
    """N Grams and weights, some of them vertices of the simplex."""
    generator = torch.Generator().manual_seed(m)
    g = torch.randn(N, m, 8, generator=generator, dtype=torch.float64)
    g[:, 1] -= 1.2 * g[:, 0]  # conflict, so that mixtures lie within the simplex
    if kind == "uneven":
        g *= 10.0 ** (2 * torch.randn(N, m, 1, generator=generator, dtype=torch.float64))
    if kind == "collinear":  # one comparison's gradients are multiples of one vector
        g = g[:, :1] * torch.randn(N, m, 1, generator=generator, dtype=torch.float64)
    if kind == "tiny":
        g *= 1e-9
    w = torch.rand(N, m, generator=generator, dtype=torch.float64) + 0.01
    w[: 2 * m] = torch.eye(m, dtype=torch.float64).repeat(2, 1)
    return g @ g.mT, w / w.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", ["even", "uneven", "collinear", "tiny"])
@pytest.mark.parametrize(("m", "clip"), [(2, True), (2, False), (3, True), (3, False), (5, True)])
def test_it_is_raco_one_by_one(m: int, clip: bool, kind: str) -> None:
    h, w = grams(m, kind)
    coefficients, turned, interior = (raco_two if m == 2 else raco_many)(h, w, 0.4, clip)
    single = [raco(one, weights, c=0.4, clip=clip) for one, weights in zip(h, w, strict=True)]
    wanted = torch.stack([one.coefficients for one in single])
    torch.testing.assert_close(coefficients, wanted, rtol=1e-7, atol=1e-7)
    angles = torch.tensor([one.info["angle_to_unclipped"] for one in single], dtype=torch.float64)
    torch.testing.assert_close(turned, angles, rtol=1e-5, atol=1e-6)
    if kind != "collinear":  # there a mixture is open up to rounding
        assert interior.tolist() == [float((one.p > 0).sum() > 1) for one in single]


def test_the_cases_are_not_trivial() -> None:
    for m in (2, 3, 5):
        _, turned, interior = (raco_two if m == 2 else raco_many)(*grams(m, "even"), 0.4, True)
        assert 0.05 < interior.mean() < 0.95
        assert (turned > 1e-3).double().mean() > 0.03


def test_without_a_radius_or_a_gradient_nothing_is_added() -> None:
    h, w = grams(2, "even")
    assert torch.equal(raco_two(h, w, 0.0, True)[0], w)
    assert torch.equal(raco_two(torch.zeros_like(h), w, 0.4, True)[0], w)
    h, w = grams(3, "even")
    assert torch.equal(raco_many(h, w, 0.0, True)[0], w)


def test_leading_dimensions_are_runs() -> None:
    h, w = grams(3, "even")
    flat = raco_many(h, w, 0.4, True)
    shaped = raco_many(h.view(10, 15, 3, 3), w.view(10, 15, 3), 0.4, True)
    for one, two in zip(flat, shaped, strict=True):
        torch.testing.assert_close(two.reshape(one.shape), one)
    u, v = w[:5], w[5:10]
    vectors = torch.linalg.cholesky(h[:5] + 1e-12 * torch.eye(3, dtype=torch.float64)).mT
    a, b = ((vectors @ x[..., None])[..., 0] for x in (u, v))
    cosines = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(gram_angles(h[:5], u, v), cosines.clamp(-1, 1).arccos(), rtol=1e-6, atol=1e-6)
