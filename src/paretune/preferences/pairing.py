"""Labelled candidates to the rows that `paretune train` reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paretune.comparisons.layouts import LayoutOptions
from paretune.comparisons.layouts.shared import choose_pairs
from paretune.preferences.candidates import Candidates
from paretune.preferences.labels import Labels
from paretune.preferences.similarity import references_of
from paretune.preferences.source import Pair, Verdict
from paretune.preferences.text_rules import Question

UNLABELLED = "chosen pairs without any label, left out"


def rows_of(
    one: Candidates,
    verdicts: Mapping[str, Verdict],
    labels: Mapping[str, Labels],
    names: Sequence[str],
    options: LayoutOptions,
    counts: Counter[str],
) -> dict[Pair, dict[str, Any]]:
    """The rows of one prompt by their pairs, the chosen ones, each with one label or null per objective.

    Args:
        verdicts, labels: by objective, of those that people or a source were asked about; they say which pairs.
        names: the objectives of all rows.
        options: which pairs, how many at most, and the seed that decides which these are.
        counts: what is left out is added here.

    Returns:
        {prompt, response_a, response_b, preferences} and the other columns; an id gets the pair's numbers, and a
        reference of several texts is its first that is not empty.
    """
    if one.is_pair:
        pairs = [(0, 1)]
    else:
        scores = {name: [None if math.isnan(s) else s for s in verdict.scores] for name, verdict in verdicts.items()}
        pairs = choose_pairs(scores, len(one.responses), options, one.prompt, labels)
    rows = {}
    for i, j in pairs:
        preferences = {name: labels.get(name, {}).get((i, j)) for name in names}
        if all(label is None for label in preferences.values()):
            counts[UNLABELLED] += 1
            continue
        row: dict[str, Any] = {"prompt": one.prompt, "response_a": one.responses[i], "response_b": one.responses[j]}
        row |= {"preferences": preferences, **_carried(one.columns)}
        if row.get("id") is not None and not one.is_pair:
            row["id"] = f"{row['id']}:{i}-{j}"
        if one.scores:  # as the layout keeps them, for methods that ask how good
            row["ratings"] = {name: [values[i], values[j]] for name, values in one.scores.items()}
        rows[i, j] = row
    return rows


def _carried(columns: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in columns.items() if name not in _TAKEN}
    if "reference" in kept:
        kept["reference"] = next(iter(references_of(Question("", "", kept), "reference")), None)
    return kept


# Columns that would make another layout of the row.
_TAKEN = ("prompt", "response_a", "response_b", "preferences", "responses", "scores", "chosen", "rejected", "messages")
