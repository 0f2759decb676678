"""Layouts of scored responses, on made rows in exactly the public layout."""

from __future__ import annotations

from typing import Any

import pytest

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts import LayoutOptions
from paretune.comparisons.layouts.shared import choose_pairs
from paretune.errors import InputError
from paretune.objectives import Objective

SCORES = {
    "prompt": "p", "responses": ["r0", "r1", "r2", "r3"],
    "scores": {"helpful": [1, 2, 3, 3], "concise": [4, None, 1, 0.5]}, "id": "x",
}  # fmt: skip


def pairs_of(data: Any, **options: Any) -> dict[tuple[str, str], dict[str, float | None]]:
    rows, _ = read_comparisons(data, **options)
    return {(row["response_a"], row["response_b"]): row["preferences"] for row in rows}


def test_all_pairs_are_labelled_by_score_difference() -> None:
    assert pairs_of([SCORES]) == {
        ("r0", "r1"): {"helpful": 0.0, "concise": None},
        ("r0", "r2"): {"helpful": 0.0, "concise": 1.0},
        ("r0", "r3"): {"helpful": 0.0, "concise": 1.0},
        ("r1", "r2"): {"helpful": 0.0, "concise": None},
        ("r1", "r3"): {"helpful": 0.0, "concise": None},
        ("r2", "r3"): {"helpful": 0.5, "concise": 1.0},
    }
    assert read_comparisons([SCORES])[0]["id"][0] == "x:0-1"


@pytest.mark.parametrize(
    ("how", "pairs"),
    [
        ("best-worst", {("r0", "r2"), ("r0", "r3")}),  # helpful: r2 over r0; concise: r0 over r3
        ("conflict", {("r0", "r2"), ("r0", "r3")}),
        ("pareto", {("r2", "r3")}),  # who is better of the others is not known for concise
    ],
)
def test_kinds_of_pairs(how: str, pairs: set[tuple[str, str]]) -> None:
    assert set(pairs_of([SCORES], pairs=how)) == pairs


def test_a_cap_keeps_rare_kinds_and_is_the_same_every_time() -> None:
    # 45 pairs, of which only those with r0 (9) are in conflict
    record = {"prompt": "p", "responses": [f"r{i}" for i in range(10)]}
    record["scores"] = {"x": list(range(10)), "y": [99, *range(1, 10)]}
    made = pairs_of([record], max_pairs=6)
    assert len(made) == 6 and made == pairs_of([record], max_pairs=6)
    assert sum(labels == {"x": 0.0, "y": 1.0} for labels in made.values()) == 3
    assert set(made) != set(pairs_of([record], max_pairs=6, seed=1))
    assert read_comparisons([record], max_pairs=6)[1].facts["pairs left out by max_pairs"] == 39


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"responses": ["only"], "scores": {"x": [1]}}, "too few responses"),
        ({"scores": {"x": [1, 2]}}, "scores do not fit the responses (field 'scores.x')"),
        ({"scores": {"x": [1, 2, 3, "high"]}}, "bad score (field 'scores.x[3]')"),
        ({"scores": None}, "missing field (field 'scores')"),
        ({"responses": ["a", "", "b", "c"]}, "empty response (field 'responses[1]')"),
    ],
)
def test_scores_refuse(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_comparisons([{**SCORES, **change}])
    assert said in str(caught.value)


def completion(response: str, **ratings: str) -> dict[str, Any]:
    annotations = {aspect: {"Rating": rating, "Rationale": "because"} for aspect, rating in ratings.items()}
    return {"model": "m", "response": response, "annotations": annotations, "overall_score": len(response)}


def test_ultrafeedback() -> None:
    completions = [completion("r", helpfulness="4", honesty="N/A"), completion("s!", helpfulness="5", honesty="2")]
    record = {"source": "s", "instruction": "do it", "models": ["m", "m"], "completions": completions}
    made, report = read_comparisons([record])
    assert report.sources[0]["format"] == "ultrafeedback" and made[0]["prompt"] == "do it"
    assert made[0]["preferences"] == {"helpfulness": 0.0, "honesty": None}
    asked = [Objective("useful", labels="helpfulness"), Objective("overall", labels="overall_score")]
    assert pairs_of([record], objectives=asked) == {("r", "s!"): {"useful": 0.0, "overall": 0.0}}


def test_ultrafeedback_skips_prompts_without_two_completions() -> None:
    full = {"instruction": "q", "completions": [completion("r", honesty="1"), completion("s", honesty="2")]}
    rows, report = read_comparisons([{"instruction": "p", "completions": [completion("r", honesty="4")]}, full])
    assert len(rows) == 1 and report.facts["prompts with fewer than two responses"] == 1
    record = {"instruction": "p", "completions": [completion("r", honesty="4"), {"response": ""}]}
    with pytest.raises(InputError, match=r"completions\[1\]\.response"):
        read_comparisons([record])


def test_ultrafeedback_binarized() -> None:
    def record(prompt: str, better: float, worse: float) -> dict[str, Any]:
        ask = {"role": "user", "content": prompt}
        sides = {
            side: [ask, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")
        }  # fmt: skip
        return {"prompt": prompt, "prompt_id": "h", **sides, "score_chosen": better, "score_rejected": worse}

    rows, report = read_comparisons([record("p", 8.0, 5.0), record("q", 6.0, 6.0)], objectives=[Objective("good")])
    assert report.sources[0]["format"] == "ultrafeedback"
    assert rows["preferences"][:] == [{"good": 1.0}, {"good": 0.5}]
    assert rows[0]["prompt"] == [{"role": "user", "content": "p"}]
    assert report.ties == {"good": 1}


def helpsteer(prompt: str, response: str, *values: int | None) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response, **dict(zip(names, values, strict=True))}


def test_helpsteer2_pairs_the_records_of_a_prompt() -> None:
    records = [
        helpsteer("p", "r0", 3, 4, 4, 2, 2), helpsteer("p", "r1", 4, 4, 3, 2, 1),
        helpsteer("alone", "r", 1, 1, 1, 1, 1),
        helpsteer("q", "r0", 0, 1, 2, 3, 4), helpsteer("q", "r1", 4, 3, 2, 1, None),
    ]  # fmt: skip
    rows, report = read_comparisons(records)
    assert report.sources[0]["format"] == "helpsteer2" and rows["prompt"][:] == ["p", "q"]
    first = {"helpfulness": 0.0, "correctness": 0.5, "coherence": 1.0, "complexity": 0.5, "verbosity": 1.0}
    second = {"helpfulness": 0.0, "correctness": 0.0, "coherence": 0.5, "complexity": 1.0, "verbosity": None}
    assert rows["preferences"][:] == [first, second]
    assert report.facts["prompts with fewer than two responses"] == 1


def test_helpsteer2_skips_a_bad_record_within_a_run() -> None:
    good = [helpsteer("p", f"r{i}", i, 0, 0, 0, 0) for i in range(2)]
    bad = {**good[0], "response": None}
    rows, report = read_comparisons([good[0], bad, good[1]], on_bad_row="skip")
    assert len(rows) == 1 and report.skipped == 1
    with pytest.raises(InputError, match="row 2: missing field"):
        read_comparisons([good[0], bad, good[1]])


def thumb(prompt: str, text: str, up: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completion": text, "label": up}


def test_thumbs_are_paired_within_a_prompt() -> None:
    records = [
        thumb("p", "good", True), thumb("q", "alone", True), thumb("p", "bad", False), thumb("p", "fine", True),
    ]  # fmt: skip
    rows, report = read_comparisons(records, objectives=[Objective("helpful")])
    assert report.sources[0]["format"] == "thumbs"
    assert {(row["response_a"], row["response_b"]): row["preferences"]["helpful"] for row in rows} == {
        ("good", "bad"): 1.0, ("fine", "bad"): 1.0,
    }  # fmt: skip
    assert report.facts["prompts without both a liked and a disliked completion"] == 1
    with pytest.raises(InputError, match="both a liked and a disliked"):
        read_comparisons([thumb("p", "a", True), thumb("q", "b", False)])
    with pytest.raises(InputError, match="true or false"):
        read_comparisons([{**thumb("p", "a", True), "label": "yes"}])


def test_overall_best_and_worst_by_mean_rank() -> None:
    """Ranks, so that an objective with large numbers does not decide alone; unknown scores have no say."""
    scores = {"x": [1.0, 2.0, 3.0, 4.0], "y": [900.0, 100.0, 800.0, 1.0], "z": [None, None, 5.0, 5.0]}
    options = LayoutOptions(pairs="overall-best-worst")
    # mean ranks: (0 + 1)/2, (1/3 + 1/3)/2, (2/3 + 2/3 + 1/2)/3, (1 + 0 + 1/2)/3
    assert choose_pairs(scores, 4, options, "p") == [(1, 2)]
    assert choose_pairs({"x": [1.0, 1.0]}, 2, options, "p") == []
    assert choose_pairs({"x": [1.0, 3.0, 1.0, 3.0]}, 4, options, "p") == [(1, 2)]


def test_pairs_by_labels_that_are_given() -> None:
    """A judge's labels or thresholds say which pairs conflict, whatever the scores' differences are."""
    scores = {"x": [1.0, 2.0, 3.0], "y": [3.0, 2.0, 1.0]}
    labels = {"x": {(0, 1): 0.5, (0, 2): 0.1}, "y": {(0, 1): 1.0, (0, 2): 0.9, (1, 2): 1.0}}
    for pairs, expected in (("conflict", [(0, 2)]), ("pareto", [(0, 1)]), ("best-worst", [(0, 2)])):
        assert choose_pairs(scores, 3, LayoutOptions(pairs=pairs), "p", labels) == expected
