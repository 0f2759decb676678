"""Per-pair margins of the trained models -> accuracies and margins per objective and kind, beside the baselines.

Suffixes: M objectives, N pairs, S seeds. A correct pair counts 1, equal scores 1/2. Intervals are 95 % percentile
intervals over questions drawn anew; what several seeds made of a pair is averaged first, and their spread is separate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.evaluation.margins import bootstrap, evaluate_margins, interval
from paretune.objectives import Objective
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference
from studies.truthfulqa_pipeline.baselines import fit_best, length_features, vocabulary, word_features
from studies.truthfulqa_pipeline.pairs import KINDS, OBJECTIVES, kind_of, read_part

DRAWS = 2000
NEAR = 2  # tokens by which two answers differ at most to count as equally long


def tokenized(part: Path, base: str, max_length: int) -> Any:
    """The part's pairs in the columns of `tokenize_comparisons`, all of them, in their order."""
    rows, _ = read_comparisons(str(part), objectives=[Objective(name) for name in OBJECTIVES])
    data, report = tokenize_comparisons(rows, load_tokenizer(base), list(OBJECTIVES), max_length=max_length)
    if list(data["index"]) != list(range(len(read_part(part)))):
        raise ValueError(f"not all pairs of {part} were kept in order: {report}")
    return data


def token_counts(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) scored tokens of each side, its end included."""
    sides = []
    for side in ("a", "b"):
        sides.append(
            np.array([len(row["prefix_ids"]) + len(row[f"{side}_ids"]) - row[f"{side}_start"] for row in data])
        )
    return sides[0], sides[1]


def log_ratios(model: str, data: Any, base: str) -> np.ndarray:
    """(N,) log pi(a) - log pi(b) in nats of the model in a directory, an adapter with its base or a full model.

    A policy's margin is beta times its log-ratio less the reference's, which is thus scored once for all policies.
    """
    free = [Objective(name, beta=1.0, reference_free=True) for name in OBJECTIVES]
    policy = load_scored(model)
    pad = pad_id(load_tokenizer(base))
    found = evaluate_margins(policy, prepare_scorer(policy), Reference("none"), data, free, 1.0, pad_id=pad)
    return (found.reward_a - found.reward_b)[0]


class Part:
    """The pairs of a part as arrays: preferences (N, M), question numbers (N,), kinds (N,), token counts (N,)."""

    def __init__(self, path: Path, tokens: tuple[np.ndarray, np.ndarray]):
        self.rows = read_part(path)
        self.preferences = np.array(
            [[np.nan if (v := row["preferences"][name]) is None else v for name in OBJECTIVES] for row in self.rows]
        )
        numbers: dict[str, int] = {}
        self.question = np.array([numbers.setdefault(row["group"], len(numbers)) for row in self.rows])
        self.kind = np.array([kind_of(row["preferences"]) for row in self.rows])
        self.tokens_a, self.tokens_b = tokens
        self.sign = np.where(np.isnan(self.preferences), 0.0, 2 * self.preferences - 1).T  # (M, N)

    def subsets(self) -> dict[str, np.ndarray]:
        """Name -> (N,) bool: all pairs, each kind, and pairs of nearly equal length."""
        every = {"all": np.ones(len(self.rows), dtype=bool)} | {kind: self.kind == kind for kind in KINDS}
        return every | {"equal length": np.abs(self.tokens_a - self.tokens_b) <= NEAR}


def right(scores: np.ndarray, part: Part) -> np.ndarray:
    """(M, N): 1 where the preferred answer has the higher score, 1/2 for equal ones. `scores` is (N,), of a minus b."""
    return 0.5 + 0.5 * np.sign(part.sign * scores)


def figures(scores: Sequence[np.ndarray], part: Part) -> dict[str, Any]:
    """Accuracies, margins and logistic losses of one method's S seeds: {subset: {objective: {figure: …}}}.

    Each figure holds value, low, high, n, and over the seeds their standard deviation and values.
    """
    per_seed = {
        "accuracy": np.stack([right(score, part) for score in scores]),
        "margin": np.stack([part.sign * score for score in scores]),
        "loss": np.stack([np.logaddexp(0.0, -part.sign * score) for score in scores]),
    }
    found: dict[str, Any] = {}
    for name, inside in part.subsets().items():
        counted = inside[None] & (part.sign != 0)
        found[name] = {o: {} for i, o in enumerate(OBJECTIVES) if counted[i].any()}
        for figure, values in per_seed.items():
            entries = _summary(values, counted, part.question)
            for objective, entry in zip(OBJECTIVES, entries, strict=True):
                if objective in found[name]:
                    found[name][objective][figure] = entry
    return found


def _summary(values: np.ndarray, counted: np.ndarray, question: np.ndarray) -> list[dict[str, Any]]:
    """Per objective the mean with its interval; `values` is (S, M, N)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = (values * counted).sum(2) / counted.sum(1)  # (S, M)
    mean = values.mean(0)
    entries = interval(each.mean(0), bootstrap(mean, counted, question, DRAWS, seed=0), counted.sum(1))
    if len(values) > 1:
        for i, entry in enumerate(entries):
            entry["seeds"] = [round(float(v), 4) for v in each[:, i]]
            entry["sd"] = float(each[:, i].std(ddof=1))
    return entries


def against(scores: Sequence[np.ndarray], other: np.ndarray, part: Part) -> dict[str, Any]:
    """The method beside a baseline on the same pairs, per objective.

    gain: accuracy of the method minus the baseline's, paired. explained: the baseline's accuracy above chance over the
    method's (a share; empty where the method is not above chance by 0.02). where_right, where_wrong: the method's
    accuracy on pairs that the baseline has right and wrong. agreement: how often both rank a pair alike.
    """
    mine, theirs = np.stack([right(score, part) for score in scores]), right(other, part)
    counted = part.sign != 0
    gains = _summary(mine - theirs, counted, part.question)
    found: dict[str, Any] = {}
    for i, objective in enumerate(OBJECTIVES):
        inside = counted[i]
        accuracy, base = mine[:, i, inside].mean(), theirs[i, inside].mean()
        found[objective] = {
            "gain": gains[i],
            "explained": float((base - 0.5) / (accuracy - 0.5)) if accuracy > 0.52 else None,
            "where_right": _mean(mine[:, i, inside & (theirs[i] > 0.5)]),
            "where_wrong": _mean(mine[:, i, inside & (theirs[i] < 0.5)]),
        }
    found["agreement"] = float(np.mean([np.sign(score) == np.sign(other) for score in scores]))
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def baseline_scores(parts: Mapping[str, Part], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Name -> (N,) scores of the test pairs, a minus b, of baselines fitted with these weights to training pairs."""
    known = vocabulary(parts["train"].rows)
    features = {
        "length": {name: length_features(part.tokens_a, part.tokens_b) for name, part in parts.items()},
        "words": {name: word_features(part.rows, known) for name, part in parts.items()},
    }
    labels = {name: torch.from_numpy(part.preferences) for name, part in parts.items()}
    weight = torch.tensor(weights, dtype=torch.float64)
    found = {}
    for name, of in features.items():
        fitted = fit_best((of["train"], labels["train"]), (of["validation"], labels["validation"]), weight)
        found[name] = (of["test"] @ fitted).numpy()
    # the one-line rule: longer or shorter, whichever has the less loss (more weighted accuracy) on the training pairs
    train, test = parts["train"], parts["test"]
    longer = right(train.tokens_a - train.tokens_b, train)
    share = sum(w * longer[i][train.sign[i] != 0].mean() for i, w in enumerate(weights)) / sum(weights)
    found["longer" if share >= 0.5 else "shorter"] = (1 if share >= 0.5 else -1) * (test.tokens_a - test.tokens_b) * 1.0
    return found
