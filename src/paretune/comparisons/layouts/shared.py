"""What every layout uses: its options, one record at a time, and the choice of pairs among scored responses."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import Item

PAIR_CHOICES = ("all", "best-worst", "overall-best-worst", "pareto", "conflict")
MOST_PAIRS = 200_000  # of one prompt: K responses make K²/2, and a line of a megabyte holds 100,000
CHOSEN = "chosen"  # the label of a layout that only says which response is the better one


@dataclass
class LayoutOptions:
    """What a layout may be told.

    Attributes:
        columns: label fields asked for by objectives, beyond those the layout knows.
        needs_labels: False when every objective is a rule, so that rows without preferences are fine.
        conversational: the caller will turn plain text into messages; a layout then leaves its text markers out.
        ties: what no difference means where it may also mean "no opinion": "missing", "equal" or "release".
        pairs: which pairs of K scored responses become rows, one of `PAIR_CHOICES`.
        max_pairs: most pairs per prompt, kinds kept; None is no limit.
        seed: decides which pairs stay under `max_pairs`.
        facts: counts that the layout adds for the report.
    """

    columns: frozenset[str] = frozenset()
    needs_labels: bool = True
    conversational: bool = False
    ties: str = "missing"
    pairs: str = "all"
    max_pairs: int | None = None
    seed: int = 0
    facts: Counter[str] = field(default_factory=Counter)


def each(records: Iterator[Item], make: Callable[[dict[str, Any]], Sequence[dict[str, Any]]]) -> Iterator[Item]:
    """The rows that `make` builds from each record alone; findings pass through."""
    for where, record in records:
        if isinstance(record, BadRow):
            yield where, record
            continue
        try:
            rows = make(record)
        except BadRow as bad:
            yield where, bad
        else:
            yield from ((where, row) for row in rows)


def paired(where: str, make: Callable[[], Sequence[dict[str, Any]]]) -> Iterator[Item]:
    """The rows made of responses that several records brought, or the finding that there are too many."""
    try:
        rows = make()
    except BadRow as bad:
        yield where, bad
    else:
        yield from ((where, row) for row in rows)


def need(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """A field that must be there with one of these types, else a finding that names it."""
    if record.get(name) is None:
        raise BadRow("missing field", field=name, expected=expected, found=sorted(record))
    if not isinstance(record[name], kind) or isinstance(record[name], bool):
        raise BadRow("wrong type", field=name, expected=expected, found=record[name])
    return record[name]


def number_or_none(value: Any, name: str) -> float | None:
    """A score; None, NaN and the text "N/A" are missing.

    Raises:
        BadRow: neither a number nor text that spells one.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "n/a", "na", "none")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # the last: an integer beyond the floats
        number = math.inf
    if math.isinf(number) or isinstance(value, bool):
        raise BadRow("bad score", field=name, expected="a finite number or null", found=value)
    return None if math.isnan(number) else number


def carried(record: Mapping[str, Any]) -> dict[str, Any]:
    """The optional fields that a row keeps as they are."""
    return {name: record[name] for name in ("id", "group", "reference") if record.get(name) is not None}


def preference(score_a: float | None, score_b: float | None) -> float | None:
    """A hard label from two scores: 1, 0, 0.5 when they are equal, None when one is missing."""
    if score_a is None or score_b is None:
        return None
    return 0.5 if score_a == score_b else float(score_a > score_b)


def scored_rows(
    prompt: Any,
    responses: Sequence[Any],
    scores: Mapping[str, Sequence[float | None]],
    options: LayoutOptions,
    extra: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows of one prompt from K responses with one score per objective: the chosen pairs, labelled by difference.

    The scores of both sides stay with the row as `ratings`, for those who read layouts themselves (`ratings.py`).
    """
    rows = []
    for i, j in choose_pairs(scores, len(responses), options, key=prompt):
        labels = {name: preference(values[i], values[j]) for name, values in scores.items()}
        row = {"prompt": prompt, "response_a": responses[i], "response_b": responses[j], "preferences": labels, **extra}
        row["ratings"] = {name: [values[i], values[j]] for name, values in scores.items()}
        if "id" in row:
            row["id"] = f"{row['id']}:{i}-{j}"
        rows.append(row)
    return rows


def choose_pairs(
    scores: Mapping[str, Sequence[float | None]],
    count: int,
    options: LayoutOptions,
    key: Any,
    labels: Mapping[str, Mapping[tuple[int, int], float]] | None = None,
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of `count` responses.

    all: every pair. best-worst: for each objective its best against its worst. overall-best-worst: the best against the
    worst by the mean over objectives of the rank that each gives a response. pareto: one response is at least as good
    for every objective, each of which has a label, and better for one. conflict: two objectives disagree about the
    pair. Of equally good responses the first is the best, of equally bad ones the last the worst.

    Args:
        labels: {objective: {pair: probability that i is preferred}}; None: they follow from the scores' differences.
    """

    def said(pair: tuple[int, int]) -> list[float | None]:
        if labels is None:
            return [preference(values[pair[0]], values[pair[1]]) for values in scores.values()]
        return [given.get(pair) for given in labels.values()]

    def signs(pair: tuple[int, int]) -> tuple[float, ...]:
        return tuple(0.0 if p is None or p == 0.5 else math.copysign(1.0, p - 0.5) for p in said(pair))

    pairs = every_pair(count)
    if options.pairs in ("best-worst", "overall-best-worst"):
        columns = list(scores.values()) if options.pairs == "best-worst" else [_mean_ranks(scores, count)]
        wanted = {_best_worst(values) for values in columns}
        pairs = [pair for pair in pairs if pair in wanted]
    elif options.pairs == "pareto":
        pairs = [pair for pair in pairs if None not in said(pair) and len(set(signs(pair)) - {0.0}) == 1]
    elif options.pairs == "conflict":
        pairs = [pair for pair in pairs if {1.0, -1.0} <= set(signs(pair))]
    return cap_pairs(pairs, signs, options, key)


def check_count(count: int) -> None:
    """Raises BadRow for more responses to one prompt than can be paired."""
    if count * (count - 1) // 2 > MOST_PAIRS:
        expected = f"at most {MOST_PAIRS:,} pairs of one prompt"
        raise BadRow("too many responses to one prompt", field="prompt", expected=expected, found=count)


def every_pair(count: int) -> list[tuple[int, int]]:
    """All pairs (i, j), i < j.

    Raises:
        BadRow: more than `MOST_PAIRS`.
    """
    check_count(count)
    return list(itertools.combinations(range(count), 2))


def _best_worst(values: Sequence[float | None]) -> tuple[int, int] | None:
    """The pair of the best and the worst; None where all are equal or unknown."""
    known = [(value, -index) for index, value in enumerate(values) if value is not None]
    if not known or max(known)[0] == min(known)[0]:
        return None
    best, worst = -max(known)[1], -min(known)[1]
    return min(best, worst), max(best, worst)


def _mean_ranks(scores: Mapping[str, Sequence[float | None]], count: int) -> list[float | None]:
    """(count,) the mean over objectives of each response's share of the others that it beats (ties half)."""
    ranks: list[list[float]] = [[] for _ in range(count)]
    for values in scores.values():
        known = [value for value in values if value is not None]
        for rank, value in zip(ranks, values, strict=True):
            if value is not None and len(known) > 1:
                below = sum(other < value for other in known) + (known.count(value) - 1) / 2
                rank.append(below / (len(known) - 1))
    return [sum(rank) / len(rank) if rank else None for rank in ranks]


def cap_pairs(
    pairs: list[tuple[int, int]], kind: Callable[[tuple[int, int]], Hashable], options: LayoutOptions, key: Any
) -> list[tuple[int, int]]:
    """At most `max_pairs` of them, taken in turn from each kind, so that a rare kind is not crowded out.

    A function of the pairs, `options.seed` and `key` (the prompt) alone.
    """
    if options.max_pairs is None or len(pairs) <= options.max_pairs:
        return pairs
    name = key if isinstance(key, str) else json.dumps(key, sort_keys=True, default=str)
    shuffled = pairs.copy()
    random.Random(f"{options.seed} {name}").shuffle(shuffled)  # a text seed is hashed alike on every machine
    piles: dict[Hashable, list[tuple[int, int]]] = {}
    for pair in shuffled:
        piles.setdefault(kind(pair), []).append(pair)
    turns = itertools.zip_longest(*piles.values())
    kept = [pair for turn in turns for pair in turn if pair is not None][: options.max_pairs]
    options.facts["pairs left out by max_pairs"] += len(pairs) - len(kept)
    return sorted(kept)
