"""Objectives without a label leave the dual; the rest is solved as if they had never been there."""

from __future__ import annotations

import pytest
import torch

from paretune.combine import COMBINERS, linear, raco
from paretune.combine.labelled import combine_labelled
from paretune.errors import InputError
from tests.combine.calls import called, facts_for

GRADIENTS = torch.tensor([[1.0, -4, 0, 2], [-1, 1, 1, 0], [0.5, 0, -2, 1]], dtype=torch.float64)
GRAM = GRADIENTS @ GRADIENTS.T
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
ALL = torch.tensor([True, True, True])


@pytest.mark.parametrize("name", COMBINERS)
def test_with_every_label_it_is_the_combiner(name: str) -> None:
    facts = facts_for(name, 3, state={})
    found = combine_labelled(COMBINERS[name], GRAM, WEIGHTS, **{"present": ALL, **facts})
    plain = called(name, GRAM, WEIGHTS)
    torch.testing.assert_close(found.coefficients, plain.coefficients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.p, plain.p, rtol=1e-9, atol=1e-12)


def test_the_rest_is_solved_with_weights_renormalised() -> None:
    present = torch.tensor([True, False, True])
    gram = GRAM * present[:, None] * present[None, :]  # the absent objective's gradient is zero
    found = combine_labelled(raco, gram, WEIGHTS, present, c=0.4)
    rest = raco(GRAM[[0, 2]][:, [0, 2]], torch.tensor([0.4, 0.6], dtype=torch.float64), c=0.4)
    assert found.coefficients[1] == 0 and found.p[1] == 0
    torch.testing.assert_close(found.coefficients[[0, 2]], 0.5 * rest.coefficients)
    torch.testing.assert_close(found.p[[0, 2]], rest.p)


def test_left_in_it_would_switch_the_correction_off() -> None:
    """Spec 1.4: the reason for the rule. A zero gradient is the dual's vertex."""
    present = torch.tensor([True, False, True])
    gram = GRAM * present[:, None] * present[None, :]
    assert raco(gram, WEIGHTS, c=0.4).p.tolist() == pytest.approx([0, 1, 0], abs=1e-9)


def test_nothing_present_or_no_weight_present() -> None:
    for present, weights in ((~ALL, WEIGHTS), (torch.tensor([False, True, False]), torch.tensor([0.5, 0.0, 0.5]))):
        found = combine_labelled(raco, GRAM, weights.double(), present)
        assert found.coefficients.tolist() == [0.0, 0.0, 0.0] and not found.clip_active


def test_normalized_gradients_pull_by_their_weights() -> None:
    scaled = torch.diag(torch.tensor([1e3, 1.0, 1e-3], dtype=torch.float64))
    gram = scaled @ GRAM @ scaled
    found = combine_labelled(linear, gram, WEIGHTS, ALL, normalize=True)
    pulls = found.coefficients * gram.diagonal().sqrt()
    torch.testing.assert_close(pulls / pulls.sum(), WEIGHTS)
    # the length of the update stays that of the weighted mean norm
    assert float(pulls.sum()) == pytest.approx(float((WEIGHTS * gram.diagonal().sqrt()).sum()))


def test_normalizing_makes_the_direction_free_of_scale() -> None:
    directions = []
    for scales in ([1.0, 1.0, 1.0], [1e4, 1.0, 1e-4]):
        g = GRADIENTS * torch.tensor(scales, dtype=torch.float64)[:, None]
        found = combine_labelled(raco, g @ g.T, WEIGHTS, ALL, normalize=True)
        update = found.coefficients @ g
        directions.append(update / update.norm())
    torch.testing.assert_close(directions[0], directions[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in COMBINERS if name != "replay"])  # it plays what it was given
def test_an_absent_objective_changes_nothing_for_the_rest(name: str) -> None:
    """Its gradient, its loss (NaN) and its memory are out of the way; the rest is as if it had never been there."""
    present = torch.tensor([True, False, True])
    gram = GRAM * present[:, None] * present[None, :]
    losses = torch.tensor([0.7, torch.nan, 0.4], dtype=torch.float64)
    facts = facts_for(name, 3, losses=losses, state={}, present=present)
    found = combine_labelled(COMBINERS[name], gram, WEIGHTS, **{"present": present, **facts})
    assert found.coefficients[1] == 0 and found.coefficients.isfinite().all()
    if "present" in facts:  # a scalarisation, which weighs losses by w and not by w over a sum
        assert name.endswith("tchebycheff") and found.p.sum() == pytest.approx(1.0)
        return
    kept = torch.tensor([0, 2])
    rest = called(name, GRAM[kept][:, kept], torch.tensor([0.4, 0.6], dtype=torch.float64), losses=losses[kept])
    torch.testing.assert_close(found.coefficients[kept], 0.5 * rest.coefficients, rtol=1e-9, atol=1e-12)


def remembering(gram: torch.Tensor, weights: torch.Tensor, *, state: dict) -> object:
    """Counts calls, and per objective and pair of objectives."""
    m = len(weights)
    state["calls"] = state.get("calls", 0) + 1
    state["each"] = [(x or 0) + 1 for x in state.get("each", [0] * m)]
    rows = [row or [0] * m for row in state.get("pairs", [[0] * m] * m)]
    state["pairs"] = [[(x or 0) + 1 for x in row] for row in rows]
    return linear(gram, weights)


def test_memory_follows_the_objectives_and_not_their_places() -> None:
    state: dict = {}
    for present in ([True, False, True], [True, True, True], [False, True, True]):
        combine_labelled(remembering, GRAM, WEIGHTS, torch.tensor(present), state=state)  # type: ignore[arg-type]
    assert state == {"calls": 3, "each": [2, 2, 3], "pairs": [[2, 1, 2], [1, 2, 2], [2, 2, 3]]}


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match="takes losses"):
        combine_labelled(COMBINERS["mgda_decoupled"], GRAM, WEIGHTS, ALL)
    with pytest.raises(InputError, match="takes state"):
        combine_labelled(COMBINERS["famo"], GRAM, WEIGHTS, ALL, losses=torch.ones(3))
    with pytest.raises(InputError, match="does not weigh gradients"):
        combine_labelled(COMBINERS["tchebycheff"], GRAM, WEIGHTS, ALL, losses=torch.ones(3), normalize=True)
