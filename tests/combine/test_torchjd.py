"""Weightings of torchjd by name: what they give, what they ask for, and how it is to be without torchjd."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from paretune.combine import COMBINERS, find_combiner
from paretune.combine.by_torchjd import torchjd_combiner, torchjd_names
from paretune.combine.contract import needs, options_of
from paretune.combine.labelled import combine_labelled
from paretune.errors import InputError

aggregation = pytest.importorskip("torchjd.aggregation")
G = torch.tensor([[1.0, -4, 0, 2], [-1, 1, 1, 0], [0.5, 0, -2, 1]], dtype=torch.float64)
GRAM, WEIGHTS = G @ G.T, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REQUIRED: dict[str, dict[str, Any]] = {"Krum": {"n_byzantine": 0}, "CAGrad": {"c": 0.4}, "FairGrad": {"alpha": 1.0}}
ELSEWHERE = {"CAGrad": "cvxpy", "UPGrad": "quadprog", "DualProj": "quadprog"}  # need packages that we do not


@pytest.mark.parametrize("name", torchjd_names())
def test_every_weighting_is_what_torchjd_makes_of_the_same_gram(name: str) -> None:
    combiner, options = find_combiner(f"torchjd:{name}"), REQUIRED.get(name, {})
    if name in ELSEWHERE:
        with pytest.raises(InputError, match=ELSEWHERE[name]):
            combiner(GRAM, WEIGHTS, **options)
        return
    made = getattr(aggregation, f"{name}Weighting")
    own = {"pref_vector": WEIGHTS} if name == "AlignedMTL" else {"weights": WEIGHTS} if name == "Constant" else {}
    found = combiner(GRAM, WEIGHTS, seed=3, **options)
    torch.manual_seed(3)
    expected = made(**options, **own)(GRAM / GRAM.trace())
    torch.testing.assert_close(found.coefficients, expected.double(), rtol=1e-9, atol=1e-12)
    tiny = combiner(1e-20 * GRAM, WEIGHTS, seed=3, **options)
    torch.testing.assert_close(tiny.coefficients, found.coefficients, rtol=1e-6, atol=1e-9)


def test_the_guard_is_needed() -> None:
    """Why the Gram is scaled: with short gradients GradVac's own 1e-8 decides."""
    short = aggregation.GradVacWeighting()(1e-20 * GRAM)
    assert not torch.allclose(short, find_combiner("torchjd:GradVac")(1e-20 * GRAM, WEIGHTS).coefficients, rtol=1e-3)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    find_combiner("torchjd:Random")(GRAM, WEIGHTS, seed=5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["GradVac", "PCD"])
def test_a_memory_in_plain_numbers_is_a_living_object(name: str) -> None:
    combiner, alive = find_combiner(f"torchjd:{name}"), getattr(aggregation, f"{name}Weighting")()
    state: dict[str, Any] = {}
    for step in range(5):
        g = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        gram = g @ g.T
        state = json.loads(json.dumps(state))  # as a checkpoint does
        found = combiner(gram, WEIGHTS, state=state, seed=step)
        torch.manual_seed(step)
        scale = gram.trace()
        torch.testing.assert_close(found.coefficients, alive(gram / scale).double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["GradVac", "PCD"])
def test_a_memory_survives_an_absent_objective(name: str) -> None:
    combiner, state = find_combiner(f"torchjd:{name}"), {}
    for present in ([True, False, True], [False, True, True], [True, True, True]):
        found = combine_labelled(combiner, GRAM, WEIGHTS, torch.tensor(present), state=state)
        assert found.coefficients.isfinite().all()


def test_what_they_ask_for_is_read_from_their_constructors() -> None:
    assert set(options_of(find_combiner("torchjd:AlignedMTL"))) == {"scale_mode"}
    assert set(options_of(find_combiner("torchjd:MGDA"))) == {"epsilon", "max_iters"}
    assert needs(find_combiner("torchjd:GradVac")) == {"seed", "state"}
    assert find_combiner("torchjd:MGDA") is find_combiner("torchjd:MGDA")


def test_without_torchjd_its_names_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    torchjd_combiner.cache_clear()
    assert "aligned_mtl" in COMBINERS
    for call in (lambda: find_combiner("torchjd:MGDA"), lambda: COMBINERS["imtl_g"](GRAM, WEIGHTS)):
        with pytest.raises(InputError, match=r"torchjd is not installed.*pip install 'paretune\[rivals\]'"):
            call()
    monkeypatch.undo()
    torchjd_combiner.cache_clear()
