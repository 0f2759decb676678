"""Every loss against its formula written out in scalars, and its slopes against numeric ones and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from paretune.errors import InputError
from paretune.losses import LOSSES, LogProbs, batch_losses, check_losses
from paretune.objectives import Objective, normalize_weights, parse_objectives

N = 6


def made(seed: int = 0) -> LogProbs:
    generator = torch.Generator().manual_seed(seed)
    a, b, ref_a, ref_b = (-20 + 6 * torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(4))
    return LogProbs(a, b, ref_a, ref_b, torch.tensor([1, 2, 3, 7, 5, 4]), torch.tensor([4, 2, 1, 3, 9, 8]))


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# One formula per loss, of a single number, straight from its paper; gamma 0.5 and epsilon 0.1 are the defaults.
FORMULAS: dict[str, Callable[[float, float], float]] = {
    "sigmoid": lambda z, beta: -log_sigma(beta * z),
    "ipo": lambda z, beta: (z - 1 / (2 * beta)) ** 2,
    "hinge": lambda z, beta: max(0.0, 1 - beta * z),
    "simpo": lambda z, beta: -log_sigma(beta * z - beta * 0.5),
    "robust": lambda z, beta: (-0.9 * log_sigma(beta * z) + 0.1 * log_sigma(-beta * z)) / 0.8,
}


def plain_margin(logps: LogProbs, n: int, *, reference: bool, per_token: bool) -> float:
    assert logps.ref_a is not None and logps.ref_b is not None
    a, b = float(logps.a[n]), float(logps.b[n])
    if reference:
        a, b = a - float(logps.ref_a[n]), b - float(logps.ref_b[n])
    return a / int(logps.tokens_a[n]) - b / int(logps.tokens_b[n]) if per_token else a - b


def test_every_loss_has_a_formula_here() -> None:
    assert FORMULAS.keys() == LOSSES.keys()


@pytest.mark.parametrize("per_token", [None, True, False])
@pytest.mark.parametrize("reference_free", [None, True, False])
@pytest.mark.parametrize("p", [1.0, 0.0, 0.5, 0.3])
@pytest.mark.parametrize("name", FORMULAS)
def test_values(name: str, p: float, reference_free: bool | None, per_token: bool | None) -> None:
    logps, beta = made(), 0.7
    objective = Objective("o", loss=name, reference_free=reference_free, length_normalized=per_token)
    found = batch_losses([objective], beta, logps, torch.full((N, 1), p, dtype=torch.float64)).values[0]
    reference = name != "simpo" if reference_free is None else not reference_free
    normalized = name == "simpo" if per_token is None else per_token
    for n in range(N):
        z = plain_margin(logps, n, reference=reference, per_token=normalized)
        expected = p * FORMULAS[name](z, beta) + (1 - p) * FORMULAS[name](-z, beta)
        assert float(found[n]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sft", [0.0, 0.4])
@pytest.mark.parametrize("name", FORMULAS)
def test_slopes_are_the_derivatives(name: str, sft: float) -> None:
    logps, beta, step = made(1), 0.7, 1e-6
    p = torch.tensor([1.0, 0.0, 0.5, 0.3, 0.9, 1.0])[:, None]
    objective = Objective("o", loss=name, sft=sft)

    def values(da: float, db: float) -> torch.Tensor:
        moved = LogProbs(logps.a + da, logps.b + db, logps.ref_a, logps.ref_b, logps.tokens_a, logps.tokens_b)
        return batch_losses([objective], beta, moved, p).values[0]

    found = batch_losses([objective], beta, logps, p)
    for slope, da, db in ((found.slopes_a[0], step, 0.0), (found.slopes_b[0], 0.0, step)):
        numeric = (values(da, db) - values(-da, -db)) / (2 * step)
        torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-8)
    assert found.slopes_a.abs().max() > 0


def test_slopes_against_autograd_through_a_model() -> None:
    """The chain rule of the whole house: slopes times the log-probabilities' gradients are the loss's gradient."""
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, N, 4, dtype=torch.float64)
    base = made(2)

    def logps() -> LogProbs:
        a, b = (-20 + torch.tanh(f @ theta) * 3 for f in features)
        return LogProbs(a, b, base.ref_a, base.ref_b, base.tokens_a, base.tokens_b)

    p = torch.rand(N, 1)
    objective = Objective("o", loss="sigmoid", sft=0.2)
    graph = logps()
    found = batch_losses([objective], 0.3, graph, p)
    (through_slopes,) = torch.autograd.grad((found.slopes_a[0] * graph.a + found.slopes_b[0] * graph.b).sum(), theta)

    graph = logps()
    assert graph.ref_a is not None and graph.ref_b is not None
    z = (graph.a - graph.ref_a) - (graph.b - graph.ref_b)
    q = p[:, 0].double()
    log_sigmoid = torch.nn.functional.logsigmoid
    loss = -(q * log_sigmoid(0.3 * z) + (1 - q) * log_sigmoid(-0.3 * z))
    loss = loss - 0.2 * (q * graph.a / graph.tokens_a + (1 - q) * graph.b / graph.tokens_b)
    (plain,) = torch.autograd.grad(loss.sum(), theta)
    torch.testing.assert_close(through_slopes, plain, rtol=1e-10, atol=1e-12)


def test_a_missing_preference_contributes_nothing() -> None:
    p = torch.tensor([[1.0], [float("nan")], [0.0], [float("nan")], [0.5], [0.2]])
    found = batch_losses([Objective("o", sft=0.5)], 0.2, made(), p)
    for tensor in (found.values, found.slopes_a, found.slopes_b):
        assert tensor[0, [1, 3]].eq(0).all() and tensor[0, [0, 2, 5]].ne(0).all()
    assert found.labelled[0].tolist() == [True, False, True, False, True, True]


def test_a_tie_pulls_the_margin_to_zero() -> None:
    found = batch_losses([Objective("o")], 0.2, made(), torch.full((N, 1), 0.5))
    assert (found.slopes_a[0] * (found.reward_a - found.reward_b)[0] > 0).all()


def test_weighted_losses_are_soft_labels() -> None:
    """Spec reward_design 1.2, identity 5: opposed sigmoid losses weighted w, 1-w are one loss with p = w."""
    logps, w = made(), 0.7
    both = batch_losses([Objective("x"), Objective("y")], 0.2, logps, torch.tensor([[1.0, 0.0]] * N))
    soft = batch_losses([Objective("s")], 0.2, logps, torch.full((N, 1), w, dtype=torch.float64))
    torch.testing.assert_close(w * both.values[0] + (1 - w) * both.values[1], soft.values[0])
    torch.testing.assert_close(w * both.slopes_a[0] + (1 - w) * both.slopes_a[1], soft.slopes_a[0])


def test_without_a_reference() -> None:
    logps = made()
    bare = LogProbs(logps.a, logps.b, None, None, logps.tokens_a, logps.tokens_b)
    assert batch_losses([Objective("o", loss="simpo")], 2.0, bare, torch.ones(N, 1)).values.isfinite().all()
    with pytest.raises(InputError, match="no reference"):
        batch_losses([Objective("o")], 0.2, bare, torch.ones(N, 1))


def test_unknown_loss() -> None:
    with pytest.raises(InputError, match="unknown loss.*sigmoid.*found nosuch"):
        check_losses([Objective("o", loss="nosuch")])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"a": {"weigth": 1}}, "Did you mean 'weight'"),
        ({"a": {"weight": -1}}, "bad weight.*>= 0"),
        ({"a": {"beta": 0}}, "bad beta.*> 0"),
        ({"a": {"epsilon": 0.5}}, "bad epsilon"),
        ({"a": {"weight": "x"}}, "bad weight"),
        ({"a/b": 1}, "bad objective name"),
        ([{"weight": 1}], "without a name"),
        (["a", "a"], "given 2 times"),
        ({}, "no objectives"),
        ("a", "mapping or a list"),
        ({"a": {"labels": "chosen", "rule": "shorter"}}, "both labels and rule"),
    ],
    ids=str,
)
def test_bad_objectives(spec: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_objectives(spec)  # type: ignore[arg-type]


def test_objectives_in_every_form() -> None:
    assert parse_objectives({"a": 2, "b": {"weight": 1, "beta": 0.1}, "c": None}) == [
        Objective("a", weight=2),
        Objective("b", weight=1, beta=0.1),
        Objective("c"),
    ]
    assert parse_objectives(["a", {"name": "b"}, Objective("c")]) == [Objective("a"), Objective("b"), Objective("c")]
    weights = [o.weight for o in normalize_weights(parse_objectives({"a": 3, "b": 1}))]
    assert weights == [0.75, 0.25]
    with pytest.raises(InputError, match="all weights are zero"):
        normalize_weights(parse_objectives({"a": 0, "b": 0}))


def test_objectives_together_are_the_objectives_one_by_one() -> None:
    """Losses, options, references, lengths and anchors of all kinds, computed in groups, each in its own place."""
    objectives = [
        Objective("a", beta=0.3),
        Objective("b", loss="simpo", gamma=0.2),
        Objective("c", loss="robust", epsilon=0.3),
        Objective("d", loss="simpo", gamma=1.5, beta=2.0),
        Objective("e", sft=0.4),
        Objective("f", loss="ipo", length_normalized=True),
        Objective("g", sft=0.1, beta=0.7),
    ]
    logps, p = made(), torch.rand(N, len(objectives), generator=torch.Generator().manual_seed(3)).double()
    p[0, 1] = p[2, 4] = float("nan")
    together = batch_losses(objectives, 0.2, logps, p)
    for i, objective in enumerate(objectives):
        alone = batch_losses([objective], 0.2, logps, p[:, i : i + 1])
        for name in ("values", "slopes_a", "slopes_b", "reward_a", "reward_b", "labelled"):
            torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name)[0], rtol=1e-12, atol=1e-15)
    assert together.shared is None


@pytest.mark.parametrize("changes", [{}, {"loss": "simpo"}, {"loss": "ipo", "length_normalized": True}], ids=str)
def test_the_shared_signal_of_common_margins(changes: dict[str, Any]) -> None:
    objectives = [Objective("x", **changes), Objective("y", **{**changes, "beta": 1.5})]
    found = batch_losses(objectives, 0.2, made(), torch.rand(N, 2))
    assert found.shared is not None
    torch.testing.assert_close(found.slopes_b, found.shared * found.slopes_a, rtol=1e-12, atol=1e-15)
