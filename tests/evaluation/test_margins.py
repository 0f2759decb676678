"""Held-out figures: against formulas written out, and intervals against drawing groups one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from paretune.evaluation.margins import (
    Margins,
    bootstrap,
    compare,
    evaluate_margins,
    figures,
    interval,
    length_baseline,
)
from paretune.objectives import Objective
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference
from tests.comparisons_made import made_comparisons
from tests.models_made import make_model

NAN = float("nan")
OBJECTIVES = [Objective("x", beta=0.3), Objective("y", loss="ipo", reference_free=True, length_normalized=True)]


def made(reward_a: list[float], reward_b: list[float], preferences: list[float], tokens: list[int]) -> Margins:
    """One objective; side b always has 5 tokens."""
    a, b, p = (np.array([values], dtype=float) for values in (reward_a, reward_b, preferences))
    n = len(tokens)
    return Margins(a - b, a, b, p, np.array(tokens), np.full(n, 5), np.arange(n))


def logprob(model: torch.nn.Module, ids: list[int], start: int) -> float:
    """log pi of ids[start:], from the model's own logits."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(table[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_against_the_models_own_logits(layout: str) -> None:
    model, reference = make_model("qwen3"), make_model("qwen3", seed=1)
    rows = made_comparisons(9, 2)
    scorer = prepare_scorer(model, layout)
    other = Reference("copy", reference, prepare_scorer(reference, layout))
    found = evaluate_margins(model, scorer, other, Dataset.from_list(rows), OBJECTIVES, 0.2, pad_id=0, batch_size=4)
    for n, row in enumerate(rows):
        sides = {}
        for side in "ab":
            ids, start = row["prefix_ids"] + row[f"{side}_ids"], row[f"{side}_start"]
            policy, ref = (logprob(each.eval(), ids, start) for each in (model, reference))
            sides[side] = (0.3 * (policy - ref), 0.2 * policy / (len(ids) - start))
        assert found.index[n] == n
        assert found.reward_a[:, n] == pytest.approx(sides["a"], rel=1e-4, abs=1e-4)
        assert found.reward_b[:, n] == pytest.approx(sides["b"], rel=1e-4, abs=1e-4)
        p, z = row["preferences"][0], sides["a"][0] - sides["b"][0]
        if not math.isnan(p):
            loss = p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z))
            assert found.losses[0, n] == pytest.approx(loss, rel=1e-4, abs=1e-4)


def test_a_model_against_itself_is_at_a_half() -> None:
    model = make_model("llama")
    scorer = prepare_scorer(model)
    rows = Dataset.from_list(made_comparisons(6, 1))
    found = evaluate_margins(model, scorer, Reference("copy", model, scorer), rows, OBJECTIVES[:1], 0.2, pad_id=0)
    result = compare([found], [str(i) for i in range(6)], OBJECTIVES[:1], draws=10, seed=0)["models"][0]["x"]
    assert (result["accuracy"]["value"], result["margin"]["value"]) == (0.5, 0.0)
    assert result["loss"]["value"] == pytest.approx(math.log(2))


def test_figures_count_what_they_should() -> None:
    margins = made([1, 2, 0, 4, 1], [0, 3, 0, 1, 9], [1, 0.2, 0.9, 0.5, NAN], [3, 5, 9, 1, 1])
    found = {name: (values[counted].tolist()) for name, (values, counted) in figures(margins).items()}
    assert found["loss"] == [1, -1, 0, 3]  # every label, ties too
    assert found["margin"] == [1, 1, 0]
    assert found["accuracy"] == [1, 1, 0.5]
    assert (found["chosen"], found["rejected"]) == ([1, 3, 0], [0, 2, 0])
    values, counted = length_baseline(margins)["shorter"]
    assert values[counted].tolist() == [1, 0.5, 0]


def test_the_bootstrap_draws_whole_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 6, size=12))
    values = rng.normal(size=(1, len(groups))) + rng.normal(size=12)[groups]
    counted = rng.random((1, len(groups))) < 0.8
    drawn = bootstrap(values, counted, groups, draws=4000, seed=1)[0]
    by_hand = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, 12, size=12)])
        rows = rows[counted[0, rows]]
        by_hand.append(values[0, rows].mean())
    assert np.percentile(drawn, [2.5, 50, 97.5]) == pytest.approx(np.percentile(by_hand, [2.5, 50, 97.5]), abs=0.05)
    assert drawn.std() == pytest.approx(np.std(by_hand), rel=0.08)


def test_rows_of_one_group_do_not_narrow_the_interval() -> None:
    values, counted = np.array([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]]), np.ones((1, 6), dtype=bool)
    once = bootstrap(values, counted, np.arange(6), 2000, 0)
    often = bootstrap(np.tile(values, 50), np.tile(counted, 50), np.tile(np.arange(6), 50), 2000, 0)
    assert np.array_equal(once, often)


def test_one_group_has_no_interval_and_no_label_no_figure() -> None:
    margins = made([1, 2], [0, 0], [1, NAN], [1, 2])
    found = compare([margins], ["g", "g"], OBJECTIVES[:1], draws=50, seed=0)["models"][0]["x"]["margin"]
    assert found == {"value": 1.0, "low": None, "high": None, "n": 1}
    nothing = interval(np.array([NAN]), np.full((1, 5), NAN), np.array([0]))
    assert nothing == [{"value": None, "low": None, "high": None, "n": 0}]


def test_differences_are_paired() -> None:
    """Two models that differ by a constant: each interval is wide, that of their difference has no width."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=40).tolist()
    one = made(a, [0] * 40, [1] * 40, [1] * 40)
    two = made([value + 0.25 for value in a], [0] * 40, [1] * 40, [1] * 40)
    found = compare([one, two], [str(i) for i in range(40)], OBJECTIVES[:1], draws=500, seed=0)
    own, difference = found["models"][0]["x"]["margin"], found["differences"][0]["x"]["margin"]
    assert own["high"] - own["low"] > 0.3
    assert [difference[k] for k in ("value", "low", "high")] == pytest.approx([0.25] * 3)


def test_rows_are_matched_by_number() -> None:
    margins = made([1, 2, 3], [0, 0, 0], [1, 1, 1], [1, 2, 3])
    chosen = margins.select(np.array([2, 0]))
    assert (
        chosen.reward_a.tolist() == [[3, 1]] and chosen.tokens_a.tolist() == [3, 1] and chosen.index.tolist() == [2, 0]
    )
