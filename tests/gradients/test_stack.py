"""The stack of m gradients: its Gram against float64, what it writes, and near-equal objectives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from paretune.combine import raco
from paretune.gradients import GradientStack, gram, joined
from paretune.gradients.mixing import add_mixed, add_scaled


def made_stack(sizes: list[int], m: int, dtype: torch.dtype = torch.float32) -> GradientStack:
    parameters = {f"p{i}": nn.Parameter(torch.zeros(size, dtype=dtype)) for i, size in enumerate(sizes)}
    stack = GradientStack(parameters, m)
    generator = torch.Generator().manual_seed(0)
    for name in parameters:
        stack.buffer(name).normal_(generator=generator)
    return stack


def whole(stack: GradientStack) -> Tensor:
    return torch.cat([stack.buffer(name).double() for name in stack.parameters], dim=1)


@pytest.mark.parametrize("sizes", [[7], [4096], [200_000, 3, 90_001]], ids=str)
def test_gram_in_blocks_agrees_with_float64(sizes: list[int]) -> None:
    stack = made_stack(sizes, 4)
    g = whole(stack)
    exact = g @ g.T
    scale = exact.diagonal().sqrt()
    scale = scale[:, None] * scale[None, :]
    torch.testing.assert_close(stack.gram(exact=True), exact, rtol=1e-12, atol=1e-12)
    assert ((stack.gram() - exact).abs() / scale).max() <= 1e-6


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7])
def test_a_duplicated_objective_hardly_turns_the_update(noise: float) -> None:
    """Equal objectives with float32 noise: a Gram of float32 products turns the clipped update by degrees."""
    angles = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        stack = GradientStack({"p": nn.Parameter(torch.zeros(50_000))}, 4)
        g = stack.buffer("p")
        g[:3] = torch.randn(3, 3, generator=generator) @ torch.randn(3, g.shape[1], generator=generator)
        g[3] = g[0] + noise * g[0].square().mean().sqrt() * torch.randn(g.shape[1], generator=generator)
        weights = torch.rand(4, generator=generator, dtype=torch.float64)
        weights /= weights.sum()
        exact = torch.cat([g[:3], g[:1]]).double()  # the same without noise, and with an exact Gram
        wanted = raco(exact @ exact.T, weights).coefficients @ exact
        found = raco(stack.gram(), weights).coefficients @ g.double()
        cosine = float(found @ wanted / (found.norm() * wanted.norm()))
        angles.append(math.degrees(math.acos(min(1.0, cosine))))
    assert max(angles) < 0.1


def test_only_near_dependent_gradients_cost_a_second_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    original = GradientStack.gram

    def counted(self: GradientStack, *, exact: bool = False) -> Tensor:
        calls.append(exact)
        return original(self, exact=exact)

    monkeypatch.setattr(GradientStack, "gram", counted)
    stack = made_stack([5000], 3)
    stack.gram()
    assert calls == [False]
    stack.buffer("p0")[2] = -stack.buffer("p0")[1]
    stack.gram()
    assert calls == [False, False, True]


def test_writing_the_combination() -> None:
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in {"p0": (2, 3), "p1": (4,), "un": 3}.items()}
    stack = GradientStack(parameters, 2)
    for name in ("p0", "p1"):
        stack.buffer(name).normal_()
    wanted = {name: 2 * stack.buffer(name)[0] - stack.buffer(name)[1] for name in ("p0", "p1")}
    stack.write_grad(torch.tensor([2.0, -1.0], dtype=torch.float64))
    for name, update in wanted.items():
        grad = parameters[name].grad
        assert grad is not None and grad.shape == parameters[name].shape
        torch.testing.assert_close(grad.flatten(), update)
    assert parameters["un"].grad is None
    stack.zero_()
    assert stack.gram().abs().max() == 0


def test_a_new_step_forgets_what_only_the_last_one_reached() -> None:
    stack = made_stack([8, 8], 2)
    stack.zero_()
    stack.add("p0", 1, torch.ones(8))
    assert stack.gram().tolist() == [[0.0, 0.0], [0.0, 8.0]]
    stack.write_grad(torch.ones(2))
    assert stack.parameters["p1"].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_mixed_into_the_stack(dtype: torch.dtype) -> None:
    stack = GradientStack({"p": nn.Parameter(torch.zeros(5, 7))}, 3, dtype=dtype)
    slopes, rows = torch.randn(3, 6), torch.randn(6, 35)
    for parts in ([(slopes[:, :4], rows[:4]), (slopes[:, 4:], rows[4:])], [(slopes, rows)]):
        stack.receive("p", lambda buffer, fresh, parts=parts: add_mixed(buffer, parts, fresh=fresh))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(stack.buffer("p").float(), 2 * slopes @ rows, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_signal_adds_the_same(dtype: torch.dtype) -> None:
    at_once = 4 * 3 * 7 * 2  # two of the five outputs
    stack = GradientStack({"p": nn.Parameter(torch.zeros(5, 7))}, 3, dtype=dtype)
    slopes, left, right = torch.randn(3, 4), torch.randn(4, 6, 5), torch.randn(4, 6, 7)
    wanted = torch.einsum("mr,rto,rti->moi", slopes, left, right).flatten(1)
    for _ in range(2):
        stack.receive("p", lambda buffer, fresh: add_scaled(buffer, slopes, left, right, fresh=fresh, at_once=at_once))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(stack.buffer("p").float(), 2 * wanted, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("side", [1, 8])
def test_blocks_side_by_side_give_the_same_gram(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes several blocks as the rows of one tile."""
    monkeypatch.setattr(gram, "blocks_per_tile", lambda m, device: side)
    stack = made_stack([200_000, 3, 90_001], 3)
    exact = whole(stack) @ whole(stack).T
    torch.testing.assert_close(stack.gram(exact=True), exact, rtol=1e-12, atol=1e-9)


def test_stacks_join() -> None:
    first, second = made_stack([5, 9], 2), made_stack([5, 9], 3)
    second.zero_()
    second.add("p0", 2, torch.ones(5))
    g = torch.cat([whole(first), whole(second)])
    torch.testing.assert_close(joined([first, second]).gram(), g @ g.T, rtol=1e-5, atol=1e-5)


def test_half_precision_parameters_get_float32_buffers_and_their_own_dtype_back() -> None:
    stack = made_stack([8], 2, torch.bfloat16)
    assert stack.buffer("p0").dtype == torch.float32
    stack.write_grad(torch.ones(2))
    grad = stack.parameters["p0"].grad
    assert grad is not None and grad.dtype == torch.bfloat16
