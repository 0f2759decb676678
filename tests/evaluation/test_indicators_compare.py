"""Fronts side by side: values by hand, pairing, intervals that hold what they should, and resampled prompts."""

from __future__ import annotations

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.evaluation.indicators import additive_epsilon, igd_plus
from paretune.evaluation.indicators_compare import (
    GAINS,
    INDICATORS,
    Fronts,
    differences,
    dominated_shares,
    estimates,
    indicator_values,
    resampled_fronts,
)

ENDS = np.array([[1.0, 0.0], [0.0, 1.0]])
ZERO = np.zeros(2)


def fronts(units: int = 1, **own: list[list[float]]) -> Fronts:
    return Fronts(
        {name: np.repeat(np.array([points]), units, 0) for name, points in own.items()}, np.repeat(ENDS[None], units, 0)
    )


def test_values_by_hand() -> None:
    found = indicator_values(fronts(good=[[0.5, 0.5]], bad=[[0.2, 0.2]]), [ZERO, np.array([-1.0, -1.0])], soup="bad")
    good, bad = found["good"], found["bad"]
    assert good["hypervolume"].tolist() == [0.25] and bad["hypervolume"][0] == pytest.approx(0.04)
    assert good["hypervolume@1"][0] == pytest.approx(2 + 1 + 0.25), "the ends count from a lower corner"
    assert good["epsilon"].tolist() == [0] and bad["epsilon"][0] == pytest.approx(0.3)
    assert bad["igd_plus"][0] == pytest.approx(0.3 * 2**0.5 / 3), "a mean over the three points of the common front"
    assert good["extent"].tolist() == [1.0] == bad["extent"].tolist()
    assert good["gain_hypervolume"][0] == pytest.approx(0.21) and bad["gain_reference_free"].tolist() == [0]
    assert set(good) == {*INDICATORS, "hypervolume@1", *GAINS}


def test_the_common_front_is_that_of_all_methods() -> None:
    rng = np.random.default_rng(0)
    own = {name: rng.random((3, 4, 3)) for name in "abc"}
    ends = rng.random((3, 3, 3))
    found = indicator_values(Fronts(own, ends), [np.zeros(3)], soup=None)
    for u in range(3):
        everything = np.concatenate([*(o[u] for o in own.values()), ends[u]])
        front = np.array([p for p in everything if not any((q >= p).all() and (q > p).any() for q in everything)])
        for name in "abc":
            points = np.concatenate([own[name][u], ends[u]])
            assert found[name]["epsilon"][u] == pytest.approx(additive_epsilon(points, front))
            assert found[name]["igd_plus"][u] == pytest.approx(igd_plus(points, front))


def test_shares_by_hand() -> None:
    found = dominated_shares(fronts(units=2, good=[[0.5, 0.5], [0.1, 0.1]], bad=[[0.4, 0.4], [0.9, 0.4]]))
    assert found == {"good": {"bad": 0.5}, "bad": {"good": 0.5}}


def test_differences_are_paired() -> None:
    """Seeds differ far more than methods: unpaired intervals would say nothing."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 5, 12)
    values = {"a": {"x": seeds}, "b": {"x": seeds + 0.1 + 0.01 * rng.normal(size=12)}}
    both = estimates(values, None)
    assert both["b"]["x"].low < both["a"]["x"].mean < both["b"]["x"].high
    found = differences(values, None, "a")
    assert set(found) == {"b"}
    one = found["b"]["x"]
    assert 0.08 < one["low"] < 0.1 + 0.01 < 0.13 and one["low"] < one["mean"] < one["high"] < 0.12
    assert 0.08 < one["t_low"] < one["t_high"] < 0.12 and one["p"] < 0.01
    assert "p" not in differences({k: {"x": v["x"][:1]} for k, v in values.items()}, None, "a")["b"]["x"]


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        one = estimates({"a": {"x": rng.normal(size=25)}}, None, draws=300)["a"]["x"]
        hits += one.low <= 0 <= one.high
    assert 85 <= hits <= 99


def test_resampled_prompts_are_the_same_for_all() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.random((2, 40, 2))
    own = {"a": prompts, "b": prompts + 0.25}
    again = resampled_fronts(own, ENDS[:, None] + np.zeros((2, 40, 2)), draws=300)
    assert again.own["a"].shape == (300, 2, 2) and again.ends.shape == (300, 2, 2)
    assert np.allclose(again.own["b"] - again.own["a"], 0.25), "one resample for both"
    assert np.allclose(again.own["a"].mean(0), prompts.mean(1), atol=0.01)
    assert again.own["a"].std(0) == pytest.approx(prompts.std(1) / 40**0.5, rel=0.2)
    found = indicator_values(fronts(a=prompts.mean(1).tolist(), b=own["b"].mean(1).tolist()), [ZERO], soup=None)
    resampled = indicator_values(again, [ZERO], soup=None)
    one = estimates(found, resampled)["a"]["hypervolume"]
    assert one.low < one.mean < one.high and one.high - one.low < 0.2
    assert differences(found, resampled, "a")["b"]["hypervolume"]["low"] > 0.1


def test_prompts_that_say_nothing_of_an_objective_do_not_count() -> None:
    scores = np.full((1, 30, 2), 0.5)
    scores[0, 3:, 1] = np.nan
    scores[0, :3, 1] = [0.1, 0.2, 0.3]
    again = resampled_fronts({"a": scores}, scores, draws=200)
    assert np.isfinite(again.own["a"]).all()
    assert again.own["a"][:, 0, 0] == pytest.approx(0.5) and again.own["a"][:, 0, 1].mean() == pytest.approx(
        0.2, abs=0.02
    )


def test_four_objectives_have_intervals_too() -> None:
    rng = np.random.default_rng(4)
    own = {"a": rng.random((2, 3, 4)), "b": rng.random((2, 3, 4))}
    found = indicator_values(Fronts(own, np.tile(np.eye(4), (2, 1, 1))), [np.full(4, -0.5)], soup=None, draws=500)
    assert all(np.isfinite(v).all() for of in found.values() for v in of.values())


def test_nothing_has_no_estimate() -> None:
    with pytest.raises(InputError, match="of nothing"):
        estimates({"a": {"x": np.empty(0)}}, None)
