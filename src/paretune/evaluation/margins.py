"""Held-out losses, margins and accuracies per objective, with intervals, beside a baseline that only reads lengths.

Suffixes: M objectives, N comparisons, G groups, B bootstrap draws. Figures are means over an objective's labelled
comparisons; intervals come from drawing whole groups anew (rows of one prompt are not independent of each other).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn

from paretune.comparisons.batches import collate, to_device
from paretune.comparisons.lengths import batches_by_length, extents, part_lengths
from paretune.losses import LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.policy.logprobs import Scorer, response_logprobs
from paretune.policy.reference import Reference, frozen, reference_logprobs


@dataclass(frozen=True)
class Margins:
    """What a model makes of N comparisons under M objectives; float64.

    Args:
        losses: (M, N), each objective's loss of each comparison.
        reward_a, reward_b: (M, N) implicit rewards: beta times what the objective compares of each side.
        preferences: (M, N) labels, NaN where there is none.
        tokens_a, tokens_b: (N,) scored tokens of each side.
        index: (N,) row numbers in the data that was tokenized.
    """

    losses: np.ndarray
    reward_a: np.ndarray
    reward_b: np.ndarray
    preferences: np.ndarray
    tokens_a: np.ndarray
    tokens_b: np.ndarray
    index: np.ndarray

    def select(self, index: np.ndarray) -> Margins:
        """The comparisons with these row numbers, in their order; all of them must be there."""
        place = {int(row): i for i, row in enumerate(self.index)}
        at = np.array([place[int(row)] for row in index], dtype=np.int64)
        return Margins(*(value[..., at] for value in vars(self).values()))


def evaluate_margins(
    model: nn.Module,
    scorer: Scorer,
    reference: Reference,
    data: Dataset,
    objectives: Sequence[Objective],
    beta: float,
    *,
    pad_id: int,
    batch_size: int = 16,
) -> Margins:
    """Scores every comparison of a tokenized data set, without gradients.

    Args:
        model: the policy, on its device.
        scorer: how it scores (`prepare_scorer`).
        reference: what its log-probabilities are compared to.
        data: rows of `tokenize_comparisons`, with the objectives' preferences in their order.
        objectives: M of them.
        beta: for objectives without one of their own.
        pad_id: token that fills padding.
        batch_size: comparisons per forward pass.
    """
    device = next(model.parameters()).device
    batches = batches_by_length(extents(part_lengths(data), scorer.layout), batch_size)
    parts: list[list[np.ndarray]] = []
    with frozen(model):
        for places in batches:
            rows = data.__getitems__(places.tolist())
            batch = to_device(collate(rows, layout=scorer.layout, pad_id=pad_id), device)
            parts.append([value.cpu().numpy() for value in _score(model, scorer, reference, batch, objectives, beta)])
    columns = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
    back = np.argsort(np.concatenate(batches), kind="stable")
    return Margins(*(column[..., back] for column in columns))


def _score(
    model: nn.Module,
    scorer: Scorer,
    reference: Reference,
    batch: dict[str, Any],
    objectives: Sequence[Objective],
    beta: float,
) -> list[Tensor]:
    ref = reference_logprobs(reference, batch)
    scores = response_logprobs(model, batch, scorer)
    ref_a, ref_b = (None, None) if ref is None else (ref[0].double(), ref[1].double())
    logps = LogProbs(scores.logp_a.double(), scores.logp_b.double(), ref_a, ref_b, batch["a_tokens"], batch["b_tokens"])
    losses = batch_losses(objectives, beta, logps, batch["preferences"])
    tokens = [batch["a_tokens"], batch["b_tokens"]]
    return [losses.values, losses.reward_a, losses.reward_b, batch["preferences"].T, *tokens, batch["index"]]


# ---- figures ----


def figures(margins: Margins) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of a figure -> its value of each comparison and where it counts, both (M, N).

    Losses count wherever there is a label, the others where it decides for a side. Equal rewards are half right: a
    model compared with itself then has an accuracy of 1/2.
    """
    labelled = ~np.isnan(margins.preferences)
    decided = labelled & (margins.preferences != 0.5)
    for_a = margins.preferences > 0.5
    chosen = np.where(for_a, margins.reward_a, margins.reward_b)
    rejected = np.where(for_a, margins.reward_b, margins.reward_a)
    margin = chosen - rejected
    return {
        "loss": (margins.losses, labelled),
        "margin": (margin, decided),
        "accuracy": (0.5 + 0.5 * np.sign(margin), decided),
        "chosen": (chosen, decided),
        "rejected": (rejected, decided),
    }


def length_baseline(margins: Margins) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How often "the shorter response is preferred" is right, in the form of `figures`; equal lengths are half right.

    Its complement is "the longer one". A policy that does no better than the better of the two may have learnt lengths.
    """
    decided = ~np.isnan(margins.preferences) & (margins.preferences != 0.5)
    for_a = np.where(margins.preferences > 0.5, 1, -1)
    shorter = np.sign(margins.tokens_b - margins.tokens_a)[None]
    return {"shorter": (0.5 + 0.5 * for_a * shorter, decided)}


def bootstrap(values: np.ndarray, counted: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(M, B) means over the counted comparisons, each of whole groups drawn anew with replacement; NaN of one group.

    The same groups, draws and seed give the same draws, so differences of two such arrays are paired.

    Args:
        values: (M, N).
        counted: (M, N) bool.
        groups: (N,) group of each comparison, 0 to G - 1.
        draws: B.
        seed: of the draws.
    """
    count = int(groups.max()) + 1
    if count < 2:  # one group says nothing about others
        return np.full((len(values), draws), np.nan)
    sums, sizes = (np.zeros((len(values), count)) for _ in range(2))
    for i, row in enumerate(np.where(counted, values, 0.0)):
        sums[i] = np.bincount(groups, row, count)
        sizes[i] = np.bincount(groups, counted[i], count)
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, draws, 100):  # draws of many groups at once would fill the memory
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(100, draws - start)).T.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((sums @ times) / (sizes @ times))
    return np.concatenate(parts, axis=1)


def interval(value: np.ndarray, draws: np.ndarray, count: np.ndarray) -> list[dict[str, Any]]:
    """Per objective {value, low, high, n}: the mean, its 95 % percentile interval, and how many comparisons it is of.

    Args:
        value: (M,) means; NaN where nothing counts.
        draws: (M, B) of `bootstrap`.
        count: (M,) comparisons.
    """
    found: list[dict[str, Any]] = []
    for mean, drawn, n in zip(value, draws, count, strict=True):
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        entry = {"value": mean, "low": low, "high": high}
        found.append({**{k: None if np.isnan(v) else float(v) for k, v in entry.items()}, "n": int(n)})
    return found


def mean_with_interval(values: np.ndarray, groups: np.ndarray, *, draws: int, seed: int) -> dict[str, Any]:
    """{value, low, high, n} of the mean of values (N,), whose groups (N,), 0 to G - 1, are drawn anew as wholes."""
    row, counted = values[None], np.ones((1, len(values)), dtype=bool)
    return interval(_mean(row, counted), bootstrap(row, counted, groups, draws, seed), counted.sum(1))[0]


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0.0).sum(1) / counted.sum(1)


def compare(
    models: Sequence[Margins], groups: Sequence[str], objectives: Sequence[Objective], *, draws: int, seed: int
) -> dict[str, Any]:
    """The figures of one or several models on the same comparisons, with intervals.

    Args:
        models: their margins, of the same rows in the same order.
        groups: (N,) what each comparison's rows were drawn together with.
        objectives: M of them.
        draws, seed: of the bootstrap.

    Returns:
        `models`: per model {objective: {figure: {value, low, high, n}}}; `differences`: the same of every model after
        the first minus the first, paired; `baseline`: {objective: {"shorter": {…}}}.
    """
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)

    def drawn(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {
            name: (_mean(values, counted), bootstrap(values, counted, group, draws, seed), counted.sum(1))
            for name, (values, counted) in found.items()
        }

    def by_objective(found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
        columns = {name: interval(*parts) for name, parts in found.items()}
        return {o.name: {name: column[i] for name, column in columns.items()} for i, o in enumerate(objectives)}

    every = [drawn(figures(margins)) for margins in models]
    first = every[0]
    differences = [
        {name: (parts[0] - first[name][0], parts[1] - first[name][1], parts[2]) for name, parts in found.items()}
        for found in every[1:]
    ]
    return {
        "comparisons": len(group),
        "groups": len(numbers),
        "models": [by_objective(found) for found in every],
        "differences": [by_objective(found) for found in differences],
        "baseline": by_objective(drawn(length_baseline(models[0]))),
    }
