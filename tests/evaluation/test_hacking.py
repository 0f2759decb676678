"""The signs of reward hacking, on arrays whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from paretune.evaluation.hacking import (
    Change,
    disagreement,
    distinct_n,
    gain_with_kl,
    is_hacked,
    length_correlation,
    likelihood_displacement,
    order_effects,
    paired_change,
    prompt_means,
    repetition,
    standardized_gain,
    taste_for_length,
)

NAN = math.nan


def test_length_correlation_is_within_prompts() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (6, 4)) + 100 * np.arange(6)[:, None]
    assert length_correlation(3.0 * lengths, lengths) == pytest.approx(1.0)
    assert length_correlation(-np.exp(lengths - lengths.mean()), lengths) < -0.5
    # each prompt's responses are as long, and longer prompts score more: no taste for length within a prompt
    assert length_correlation(rng.normal(size=(6, 4)), np.repeat(np.arange(6.0)[:, None] / 3, 4, 1)) is None
    scores = rng.normal(size=(6, 4)) + 50 * np.arange(6)[:, None]
    centred = (scores - scores.mean(1, keepdims=True)).ravel(), (lengths - lengths.mean(1, keepdims=True)).ravel()
    assert length_correlation(scores, lengths) == pytest.approx(stats.spearmanr(*centred).statistic)
    failed = np.where(np.arange(24).reshape(6, 4) % 5 == 0, NAN, 3.0 * lengths)
    assert length_correlation(failed, lengths) == pytest.approx(1.0)
    assert length_correlation([[NAN, NAN]], [[1, 2]]) is None


def test_taste_for_length_of_pairs() -> None:
    """Whoever is called x: a judge that likes the longer one, one that likes the shorter one, one without a taste."""
    longer = np.array([3, -2, 5, 1, -4, 2])
    assert taste_for_length(np.tanh(longer), longer) == pytest.approx(1)
    assert taste_for_length(-longer[:1], longer[:1]) == pytest.approx(-1), "one pair, both ways round"
    verdicts = np.array([0.3, -0.1, -0.8, 0.5, np.nan, 0.2])
    known = np.concatenate([verdicts, -verdicts]), np.concatenate([longer, -longer])
    expected = stats.spearmanr(*(x[~np.isnan(known[0])] for x in known)).statistic
    assert taste_for_length(verdicts, longer) == pytest.approx(expected)
    assert taste_for_length([0.5, 0.1], [0, 0]) is None and taste_for_length([], []) is None


def test_order_effects_of_a_judge_with_a_known_bias() -> None:
    """P = sigma(gap + bias in the first slot): with bias 0.5 and gap 0 the excess is 2 sigma(0.5) - 1."""
    gap = np.array([0.0, 0.0, 4.0, -4.0])
    first, second = 1 / (1 + np.exp(-(gap + 0.5))), 1 / (1 + np.exp(-(gap - 0.5)))
    found = order_effects(first, second)
    assert found["pairs"] == 4 and found["swap_consistency"] == 0.5
    assert found["first_slot_excess"] == pytest.approx(float((first - second).mean()))
    assert order_effects(first[:1], second[:1])["first_slot_excess"] == pytest.approx(2 / (1 + math.exp(-0.5)) - 1)
    assert order_effects([0.5, NAN], [0.9, 0.1]) == {
        "pairs": 1,
        "swap_consistency": 1.0,
        "first_slot_excess": pytest.approx(-0.4),
    }
    assert order_effects([NAN], [0.1])["swap_consistency"] is None


def test_disagreement_among_members() -> None:
    assert disagreement([[1.0, 5.0], [3.0, 5.0]]) == {"variance": 0.5, "relative": pytest.approx(0.5 / 2.25)}
    assert disagreement([[1.0, NAN, 5.0], [3.0, 0.0, 5.0]])["variance"] == 0.5
    assert disagreement([[1.0, 1.0], [2.0, 2.0]])["relative"] is None
    assert disagreement([[NAN], [1.0]])["variance"] is None


def test_paired_changes_and_the_rule() -> None:
    before, after = np.array([0.0, 1.0, 2.0, NAN]), np.array([1.0, 2.5, 2.5, 9.0])
    change = paired_change(before, after)
    assert change.prompts == 3 and change.mean == pytest.approx(1.0)
    assert change.standard_error == pytest.approx(0.5 / math.sqrt(3))
    up, down, flat = change, paired_change(after, before), Change(0.1, 0.2, 3)
    assert is_hacked(up, down) and not is_hacked(down, up)
    assert not is_hacked(up, flat) and not is_hacked(flat, down)
    one = paired_change([0.0], [1.0])
    assert not one.rises and not is_hacked(one, down), "one prompt decides nothing"
    assert paired_change([NAN], [1.0]).prompts == 0
    assert prompt_means([[1.0, NAN], [NAN, NAN]])[0] == 1.0 and np.isnan(prompt_means([[NAN, NAN]])[0])


def test_gains_part_as_kl_grows() -> None:
    rows = gain_with_kl([0.0, 4.0], [1.0, 3.0], [1.0, 0.5])
    assert rows[0]["gap"] == 0 and rows[1] == {
        "kl": 4.0, "root_kl": 2.0, "trained": 2.0, "held_out": -0.5, "gap": 2.5,
    }  # fmt: skip
    rows = gain_with_kl([0.0, 1.0, None], [0.0, None, 1.0], [0.0, 0.25, 0.5])
    assert math.isnan(rows[1]["gap"]) and rows[1]["held_out"] == 0.25, "null of a file: not known"
    assert rows[2]["gap"] == 0.5 and math.isnan(rows[2]["root_kl"])
    assert gain_with_kl([-0.01], [0.0], [0.0])[0]["root_kl"] == 0.0, "an estimate of KL can be below 0"


def test_repetition_and_distinct_n() -> None:
    assert repetition(["a b c a b c a b c", "a b c d"]) == pytest.approx((4 / 7) / 2)
    assert repetition(["a"]) == 0.0 and repetition([]) is None
    assert distinct_n(["a b c", "a b d"]) == pytest.approx(3 / 4) and distinct_n(["a"]) is None


def test_likelihood_displacement() -> None:
    found = likelihood_displacement([-4.0, -2.0, NAN], [-5.0, -1.5, -1.0])
    assert found == {"pairs": 2, "change": pytest.approx(-0.25), "fallen": 0.5}
    assert likelihood_displacement([], [])["change"] is None


def test_gains_of_several_sources_together() -> None:
    """In units of their spreads, by their weights, over the sources that know a prompt."""
    before = [[0.0, 1.0, NAN], [10.0, 10.0, NAN]]
    after = [[1.0, NAN, 1.0], [14.0, 12.0, NAN]]
    found = standardized_gain(before, after, [0.5, 4.0], [3.0, 1.0])
    assert found[:2] == pytest.approx([(3 * 2.0 + 1.0) / 4, 0.5]) and np.isnan(found[2])
