"""One operator for mean, worst case and uncertainty-weighted ensembles: its limits and what lies between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.pipelines.labelling import label_candidates
from paretune.preferences.candidates import Candidates, read_candidates
from paretune.preferences.ensembles import combined, rounding, tilted, uncertainty_weighted
from paretune.preferences.labels import LabelOptions
from paretune.preferences.source import Source
from paretune.preferences.specs import Labeller, parse_sources

REWARDS = st.lists(st.floats(-50, 50), min_size=1, max_size=6)


@given(REWARDS, st.floats(1e-3, 1e3))
def test_tilted_is_its_formula_and_lies_between_worst_and_mean(rewards: list[float], tau: float) -> None:
    r = np.array(rewards)
    shifted = -(r - r.min()) / tau
    plain = r.min() - tau * math.log(np.exp(shifted).mean())
    found = float(tilted(r, tau))
    spread = float(np.ptp(r)) + tau
    assert found == pytest.approx(plain, abs=1e-9 * spread, rel=1e-9)
    assert r.min() - 1e-9 * spread <= found <= r.mean() + 1e-9 * spread


def test_its_limits_are_the_worst_member_and_the_mean() -> None:
    r = np.random.default_rng(0).normal(size=(5, 7))
    assert (tilted(r, 0.0) == r.min(0)).all() and (tilted(r, math.inf) == r.mean(0)).all()
    assert tilted(r, 1e-9) == pytest.approx(r.min(0), rel=1e-7)
    assert tilted(r, 1e12) == pytest.approx(r.mean(0), rel=1e-9)  # naively, log mean exp keeps four digits here
    assert (combined(r, "worst", 0) == r.min(0)).all() and (combined(r, "mean", 0) == r.mean(0)).all()
    assert (combined(r, "tilted", 0.7) == tilted(r, 0.7)).all()


@pytest.mark.parametrize("ddof", [0, 1])
def test_uncertainty_weighted_is_its_second_order_with_the_population_variance(ddof: int) -> None:
    """What is left after mean - var/(2τ) falls as 1/τ²; with the unbiased variance it falls as 1/τ only."""
    r = np.random.default_rng(1).normal(size=4)
    errors = []
    for tau in (50.0, 100.0):
        errors.append(abs(float(tilted(r, tau)) - (r.mean() - r.var(ddof=ddof) / (2 * tau))))
    assert errors[0] / errors[1] == pytest.approx(4.0 if ddof == 0 else 2.0, rel=0.1)


def test_normal_members_make_it_exact() -> None:
    r = np.random.default_rng(2).normal(1.0, 0.5, size=400_000)
    assert float(tilted(r, 1.0)) == pytest.approx(float(uncertainty_weighted(r, 0.5)), abs=2e-3)
    assert float(uncertainty_weighted(r, 0.5)) == pytest.approx(1.0 - 0.125, abs=5e-3)


@pytest.mark.parametrize(
    ("way", "strength"), [("mean", 0.0), ("worst", 0.0), ("uncertainty", 0.5), ("tilted", 1e-3), ("tilted", 1e6)]
)
def test_members_in_another_order_are_a_tie(way: str, strength: float) -> None:
    r = np.array([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]]) * 1e3
    values, off = combined(r, way, strength), rounding(r, way, strength)
    assert abs(values[0] - values[1]) <= off.sum() <= 1e-9


def test_a_mean_is_no_vote_by_its_last_bit() -> None:
    members = [Labeller(f"x.{i}", LabelOptions(), source=_fixed(f"x.{i}", own)) for i, own in enumerate(ORDERS)]
    ensemble = Labeller("x", LabelOptions(), combination="ensemble", way="mean", parts=tuple(members))
    made, _ = label_candidates([Candidates("w", "p", ("a", "b"), {})], [ensemble], None)
    assert made[0]["preferences"] == {"x": 0.5}


ORDERS = [[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]]


def _fixed(name: str, scores: list[float]) -> Source:
    return Source(name, "f", score=lambda *_, **__: scores)


def test_shift_scale_and_missing_members() -> None:
    r = np.random.default_rng(3).normal(size=(3, 5))
    assert tilted(2 * r + 7, 2 * 0.3) == pytest.approx(2 * tilted(r, 0.3) + 7)
    r[1, 2] = np.nan
    for way, strength in (("mean", 0.0), ("worst", 0.0), ("uncertainty", 0.2), ("tilted", 0.2)):
        assert np.isnan(combined(r, way, strength)).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"way": "wrost"}, "one of mean, worst, uncertainty, tilted"),
        ({"way": "tilted"}, "bad tau"),
        ({"way": "uncertainty", "penalty": -1}, "bad penalty"),
        ({"way": "worst", "tau": 1}, "tau means nothing"),
        ({"tua": 1}, "Did you mean 'tau'"),
    ],
)
def test_a_bad_ensemble_is_an_error(own: dict[str, Any], words: str) -> None:
    entry = {"ensemble": [{"rule": "shorter"}, {"rule": "rouge"}], **own}
    with pytest.raises(InputError, match=words):
        parse_sources({"x": entry})
    with pytest.raises(InputError, match="at least two"):
        parse_sources({"x": {"ensemble": [{"rule": "shorter"}]}})


@pytest.mark.parametrize(("own", "wanted"), [({}, 0.0), ({"way": "worst"}, 1.0), ({"way": "tilted", "tau": 0.5}, 1.0)])
def test_an_ensemble_labels_and_asks_each_member_by_itself(own: dict[str, Any], wanted: float) -> None:
    """The members count "a" and "b": 2 and 2 for the first response, 0 and 5 for the second."""
    rows = [{"prompt": "p", "responses": ["aabb", "bbbbb"]}]
    members = [{"function": f"tests.preferences.members_made:count_{letter}"} for letter in "ab"]
    (labeller,) = parse_sources({"x": {"ensemble": members, **own}})
    candidates, _ = read_candidates(rows)
    made, report = label_candidates(candidates, [labeller], None)
    assert list(report.sources) == ["x.1", "x.2"] and all(one["asked"] == 2 for one in report.sources.values())
    assert made[0]["preferences"]["x"] == wanted
