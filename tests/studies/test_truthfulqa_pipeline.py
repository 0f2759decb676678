"""What the study's figures rest on: the split, the choice of pairs, the baselines, and how pairs are counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.truthfulqa_pipeline.baselines import (
    fit,
    fit_best,
    length_features,
    vocabulary,
    weighted_loss,
    word_features,
)
from studies.truthfulqa_pipeline.measure import Part, against, figures
from studies.truthfulqa_pipeline.pairs import KINDS, PER_QUESTION, choose, kind_of, split_questions

LABELS = {"conflict": (1.0, 0.0), "agree": (1.0, 1.0), "truth": (1.0, None), "info": (None, 1.0)}


def made_pairs(questions: int, of_each: int = 3) -> list[dict[str, Any]]:
    """Pairs of every kind; what objective i prefers in a pair is written in its text: "good0", "good1"."""
    rows = []
    for question in range(questions):
        for kind, (truthful, informative) in LABELS.items():
            for n in range(of_each):
                words = [f"good{i}" for i, label in enumerate((truthful, informative)) if label == 1.0]
                rows.append(
                    {
                        "prompt": f"Q: {question}\nA:",
                        "response_a": f" {kind}{n} {' '.join(words)}",
                        "response_b": f" {kind}{n}" + (" good1" if kind == "conflict" else ""),
                        "preferences": {"truthful": truthful, "informative": informative},
                        "group": str(question),
                    }
                )
    return rows


def test_the_kind_is_which_labels_differ() -> None:
    for kind, (truthful, informative) in LABELS.items():
        assert kind_of({"truthful": truthful, "informative": informative}) == kind
    assert kind_of({"truthful": 0.0, "informative": 1.0}) == "conflict"


def test_a_question_is_in_one_part_whatever_the_order_of_rows() -> None:
    questions = [str(n) for n in range(1000)]
    parts = split_questions(questions * 2, seed=0)
    assert Counter(parts.values()) == {"train": 700, "validation": 100, "test": 200}
    assert split_questions(reversed(questions), seed=0) == parts != split_questions(questions, seed=1)


def test_chosen_pairs_keep_their_meaning_when_swapped_and_their_limits() -> None:
    rows = made_pairs(20)
    chosen = choose(rows, most=30, seed=0)
    assert Counter(kind_of(row["preferences"]) for row in chosen) == dict.fromkeys(KINDS, 30)
    each = Counter((kind_of(row["preferences"]), row["group"]) for row in chosen)
    assert max(each.values()) == PER_QUESTION
    swapped = 0
    for row in chosen:
        for i, label in enumerate(row["preferences"].values()):
            if label is not None:
                assert ((f"good{i}" in row["response_a"]) > (f"good{i}" in row["response_b"])) == (label == 1.0)
        swapped += 0.0 in row["preferences"].values() and kind_of(row["preferences"]) != "conflict"
    assert 20 < swapped < 70, "about half of the 90 pairs that do not conflict"


def test_a_free_form_function_of_length_finds_what_no_rule_does() -> None:
    """Preferred are the answers of exactly seven tokens, neither the longer nor the shorter ones."""
    rng = np.random.default_rng(0)
    other = rng.integers(3, 12, 400)
    other[other == 7] = 2
    a = np.where(np.arange(400) % 2, 7, other)
    b = np.where(np.arange(400) % 2, other, 7)
    features = length_features(a, b)
    preferences = torch.tensor(a == 7).double()[:, None]
    scores = features @ fit_best((features, preferences), (features, preferences), torch.ones(1, dtype=torch.float64))
    assert ((scores > 0) == (preferences[:, 0] > 0.5)).all()
    assert length_features(np.array([500]), np.array([60])).abs().sum() == 0, "lengths above the longest are one"


def test_words_are_fitted_with_the_weights_of_the_objectives() -> None:
    rows = choose(made_pairs(30), most=60, seed=0)
    known = vocabulary(rows)
    features = word_features(rows, known)
    preferences = torch.tensor([[np.nan if v is None else v for v in row["preferences"].values()] for row in rows])
    preferences = preferences.double()
    conflict = [i for i, row in enumerate(rows) if kind_of(row["preferences"]) == "conflict"]
    for weights, prefers in (((0.9, 0.1), 0), ((0.1, 0.9), 1)):
        scores = features[conflict] @ fit(features, preferences, torch.tensor(weights).double(), ridge=1e-3)
        assert ((scores > 0) == (preferences[conflict, prefers] > 0.5)).all()


def test_the_weighted_loss_is_a_mean_over_labels_per_objective() -> None:
    nan = float("nan")
    preferences = torch.tensor([[1.0, nan], [0.0, 1.0], [nan, 0.0]], dtype=torch.float64)
    scores, weights = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.25, 0.75]).double()
    softplus = [float(torch.nn.functional.softplus(torch.tensor(x))) for x in (-1.0, 2.0, -2.0, 3.0)]
    expected = 0.25 * (softplus[0] + softplus[1]) / 2 + 0.75 * (softplus[2] + softplus[3]) / 2
    assert float(weighted_loss(scores, preferences, weights)) == pytest.approx(expected)


def test_figures_count_pairs_and_conflicting_ones_are_shared(tmp_path: Path) -> None:
    rows = choose(made_pairs(12), most=24, seed=0)
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = random.Random(0)
    tokens = np.array([rng.randint(3, 20) for _ in rows])
    part = Part(path, (tokens, tokens + 1))
    truthful = (part.sign[0] + 0.1 * part.sign[1]) * (1 + part.question % 3)  # right wherever truth has a label
    found = figures([truthful, -truthful], part)
    assert (
        found["all"]["truthful"]["accuracy"]["seeds"] == [1.0, 0.0] and found["all"]["truthful"]["accuracy"]["n"] == 72
    )
    one = figures([truthful], part)
    accuracies = {name: one[name]["truthful"]["accuracy"]["value"] for name in ("all", "conflict", "truth", "agree")}
    assert set(accuracies.values()) == {1.0} and "truthful" not in one["info"]
    assert one["conflict"]["informative"]["accuracy"]["value"] == 0.0
    assert one["equal length"]["truthful"]["accuracy"]["n"] == 72
    margin = one["conflict"]["truthful"]["margin"]
    assert margin["low"] < margin["value"] < margin["high"], "margins differ between questions"
    beside = against([truthful], np.zeros(len(rows)), part)["truthful"]
    assert beside["gain"]["value"] == 0.5 and beside["explained"] == 0.0 and beside["where_wrong"] is None
