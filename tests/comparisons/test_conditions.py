"""Prefixes that say what is wanted, weights and ratings by their formulas, and pairs that carry ratings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from paretune.comparisons.conditions import (
    Prefix,
    as_ratings,
    check_prefix,
    conditioned_reward,
    drawn_requirements,
    drawn_weights,
    make_prefix,
    prefixed,
    rating_cuts,
    read_prefix,
    required_ratings,
    rounded_shares,
    write_prefix,
)
from paretune.comparisons.ratings import rated_by_preference, read_rated
from paretune.errors import InputError
from paretune.objectives import Objective
from tests.cli.made import records
from tests.tokenizers_made import byte_bpe, word_level

NAMES = ["helpful", "short"]
OBJECTIVES = [Objective("helpful"), Objective("short")]
NAN = math.nan


def test_weights_and_words_are_written_before_a_prompt() -> None:
    numbers = make_prefix(NAMES, None, None, default="Weights: {values}.\n", decimals=1)
    assert numbers.text({"helpful": 7, "short": 3}) == "Weights: helpful 0.7, short 0.3.\n"
    hundredths = make_prefix(NAMES, "[{values}] ", None, default="", decimals=2)
    assert hundredths.text({"helpful": 100, "short": 0}) == "[helpful 1.00, short 0.00] "
    words = make_prefix(NAMES, None, {"short": "cat", "helpful": "moon"}, default="", decimals=0)
    assert words.text({"helpful": 2, "short": 1}) == "moon moon cat "
    assert numbers.text({}) == ""
    assert prefixed("Name a bird.", "P ") == "P Name a bird."
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    assert [m["content"] for m in prefixed(chat, "P\n")] == ["S", "P\nU", "A"]
    assert chat[1]["content"] == "U", "the given messages were changed"


def test_prefixes_that_cannot_work_are_refused() -> None:
    for template in ("no place", "{values} {values}"):
        with pytest.raises(InputError, match="bad prefix"):
            make_prefix(NAMES, template, None, default="", decimals=1)
    for words in ({"helpful": "a"}, {"helpful": "a", "short": "a"}, {"helpful": "a", "short": " "}, "a b"):
        with pytest.raises(InputError, match="bad words"):
            make_prefix(NAMES, None, words, default="", decimals=1)
    tokenizer = word_level()
    with pytest.raises(InputError, match="does not know all words"):
        check_prefix(["Weights: helpful 0.5"], tokenizer)
    check_prefix(["cat cat moon", "cat moon moon"], tokenizer)
    with pytest.raises(InputError, match="writes different conditions alike"):
        check_prefix(["cat moon", "cat  moon"], tokenizer)
    check_prefix(["Weights: helpful 0.5, short 0.5.\n", "Weights: helpful 0.6, short 0.4.\n"], byte_bpe())


def test_rounded_weights_are_the_nearest_of_that_sum() -> None:
    """Against all ways to share the levels out."""
    rng = np.random.default_rng(0)
    for m, levels in ((2, 10), (3, 5), (4, 6)):
        weights = rng.dirichlet([0.7] * m, size=40)
        found = rounded_shares(weights, levels)
        ways = [way for way in itertools.product(range(levels + 1), repeat=m) if sum(way) == levels]
        for w, shares in zip(weights, found, strict=True):
            best = min(sum(abs(levels * a - b) for a, b in zip(w, way, strict=True)) for way in ways)
            assert np.abs(levels * w - shares).sum() == pytest.approx(best) and shares.sum() == levels
    assert rounded_shares(np.array([[0.7, 0.3], [0.1 + 0.2, 0.7]]), 10).tolist() == [[7, 3], [3, 7]]


def test_drawn_weights_are_dirichlet_and_repeatable() -> None:
    m, alpha, n = 3, 0.5, 4000
    drawn = drawn_weights(n, m, alpha, 100, [5, 0])
    np.testing.assert_array_equal(drawn, drawn_weights(n, m, alpha, 100, [5, 0]))
    assert (drawn != drawn_weights(n, m, alpha, 100, [5, 1])).any() and np.allclose(drawn.sum(1), 1)
    variance = (m - 1) / (m * m * (m * alpha + 1))  # of a symmetric Dirichlet
    np.testing.assert_allclose(drawn.mean(0), 1 / m, atol=5 * math.sqrt(variance / n))
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.1)


def test_scores_become_ratings() -> None:
    whole = np.array([[1.0, 5.0], [3.0, NAN]])
    assert rating_cuts(whole, 5) is None
    np.testing.assert_array_equal(as_ratings(whole, None, 5), whole)
    scores = np.append(np.linspace(0.0, 1.0, 101), [-50.0, 80.0, NAN])
    cuts = rating_cuts(scores, 5)
    assert cuts is not None and -0.05 < cuts[0] < 0.06 and 0.94 < cuts[1] < 1.05
    ratings = as_ratings(scores, cuts, 5)
    assert [ratings[0], ratings[25], ratings[50], ratings[75], ratings[100]] == [1, 2, 3, 4, 5]
    assert ratings[101:103].tolist() == [1, 5] and np.isnan(ratings[103])


def test_reward_is_nearness_where_asked_and_the_rating_elsewhere() -> None:
    ratings, required = np.array([[4.0, 2.0, 5.0], [NAN, 2.0, 5.0]]), np.array([[5.0, NAN, 2.0], [5.0, NAN, NAN]])
    assert conditioned_reward(ratings, required).tolist() == [-1 + 2 - 3, 2 + 5]
    assert required_ratings([0.7, 0.3], [1, 1], [5, 5]) == [5, round(1 + 0.6 * 4)]
    assert required_ratings([0.25, 0.5, 0.25], [1, 0, 1], [5, 1, 3]) == [4, 1, round(1 + 0.75 * 2)]
    assert required_ratings([0.0, 1.0], [1, 2], [5, 4]) == [1, 4]


def test_requirements_are_ratings_that_one_side_has() -> None:
    ratings = np.random.default_rng(0).integers(1, 6, size=(500, 2, 3)).astype(float)
    required = drawn_requirements(ratings, [0])
    controlled = ~np.isnan(required)
    assert controlled.any(1).all() and 0.4 < controlled.mean() < 0.7
    one_side = [
        (np.where(controlled, ratings[:, side], 0) == np.where(controlled, required, 0)).all(1) for side in (0, 1)
    ]
    assert (one_side[0] | one_side[1]).all() and not one_side[0].all() and not one_side[1].all()
    np.testing.assert_array_equal(required, drawn_requirements(ratings, [0]))


def test_rated_pairs_come_from_scores_and_from_native_rows() -> None:
    found = read_rated(records("scores", 4), OBJECTIVES, {})
    for row, record, given in zip(found.rows, records("scores", 4), found.ratings, strict=True):
        assert row["response_a"] == record["responses"][0]
        assert given.T.tolist() == [record["scores"][name] for name in NAMES]
    native = [
        {"prompt": "p", "response_a": "a", "response_b": "b", "ratings": {"kind": [4, None], "short": [2, 3.5]}},
        {"prompt": "q", "response_a": "a", "response_b": "b", "ratings": {"kind": [4, 1]}, "id": "7"},
    ]
    found = read_rated(native, [Objective("helpful", labels="kind"), Objective("short")], {})
    np.testing.assert_array_equal(found.ratings, [[[4, 2], [NAN, 3.5]], [[4, NAN], [1, NAN]]])
    assert found.rows[1]["id"] == "7"
    three = {"prompt": "p", "responses": ["x", "y", "z"], "scores": {"helpful": [1, 2, 2], "short": [3, 1, 1]}}
    assert len(read_rated([three], OBJECTIVES, {"pairs": "conflict"}).rows) == 2


def test_data_without_ratings_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"have no ratings.*from_preferences"):
        read_rated(records("native", 3), OBJECTIVES, {})
    with pytest.raises(InputError, match="nothing rates 'kind'"):
        read_rated(records("scores", 3), [*OBJECTIVES, Objective("kind")], {})
    with pytest.raises(InputError, match="compares and does not rate"):
        read_rated(records("scores", 3), [Objective("x", rule="shorter")], {})
    bad = {"prompt": "p", "response_a": "a", "response_b": "b", "ratings": {"helpful": [1, 2, 3]}}
    with pytest.raises(InputError, match=r"bad ratings.*ratings\.helpful"):
        read_rated([bad], [Objective("helpful")], {})
    found = rated_by_preference(records("native", 8), OBJECTIVES, {})
    labels = [[row["preferences"][name] for name in NAMES] for row in records("native", 8)]
    np.testing.assert_array_equal(found.ratings[:, 0], np.array(labels, dtype=float))
    np.testing.assert_array_equal(found.ratings[:, 1], 1 - np.array(labels, dtype=float))


def test_a_prefix_is_kept_and_found_again(tmp_path: Path) -> None:
    prefix = Prefix("{values} ", {"helpful": "cat", "short": "moon"})
    write_prefix(tmp_path, prefix, levels=5)
    assert read_prefix(tmp_path) == (prefix, {"levels": 5})
    with pytest.raises(InputError, match="not a conditioned model"):
        read_prefix(tmp_path / "elsewhere")
