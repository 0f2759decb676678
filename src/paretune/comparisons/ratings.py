"""Comparisons whose responses carry ratings: what methods need that ask for how good, not for which is better.

    {"prompt": …, "response_a": …, "response_b": …, "ratings": {"helpful": [4, 2], "honest": [null, 5]}}

That is a native row with `ratings`, a's first; every layout of scored responses gives the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts import LAYOUTS, LayoutOptions, recognise
from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import list_sources, open_source
from paretune.errors import InputError
from paretune.objectives import Objective


@dataclass(frozen=True)
class Rated:
    """N pairs and their ratings.

    Args:
        rows: prompt, response_a, response_b, and id, group where they were given.
        ratings: (N, 2, M) float64, of a and of b; NaN where there is none.
    """

    rows: list[dict[str, Any]]
    ratings: np.ndarray


_KEPT = ("prompt", "response_a", "response_b", "id", "group")


def read_rated(data: Any, objectives: Sequence[Objective], options: Mapping[str, Any]) -> Rated:
    """Pairs with the ratings of each response, from native rows with `ratings` or layouts of scored responses.

    Args:
        objectives: their ratings are taken, by `labels` or by name.
        options: of `read_comparisons`: `format`, `pairs`, `max_pairs`, `take`, `split`, `streaming`, `conversational`
            and `on_bad_row` count here.

    Raises:
        InputError: an objective that is a rule, a layout without ratings, a bad row, an objective that nothing rates.
    """
    for objective in objectives:
        if objective.rule is not None:
            raise InputError("a rule compares and does not rate", where=f"objective {objective.name!r}", fix=_FIX)
    fields = [objective.labels or objective.name for objective in objectives]
    rows: list[dict[str, Any]] = []
    ratings: list[list[list[float]]] = []
    for where, row in rated_rows(data, fields, options):
        ratings.append([rating_pair(row["ratings"].get(field), f"ratings.{field}", where) for field in fields])
        rows.append({key: row[key] for key in _KEPT if row.get(key) is not None})
    if not rows:
        raise InputError("no pair to rate", where="data", expected="at least one")
    table = np.array(ratings).swapaxes(1, 2)
    for objective, known in zip(objectives, ~np.isnan(table).all((0, 1)), strict=True):
        if not known:
            raise InputError(f"nothing rates {objective.name!r}", where="data", expected=_EXPECTED, fix=_FIX)
    return Rated(rows, table)


def rated_rows(data: Any, fields: Iterable[str], options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each pair stands, and its row as its layout gives it, with `ratings: {field: [of a, of b]}`.

    Args:
        fields: columns that are ratings although they do not look like it.
        options: as `read_rated`.

    Raises:
        InputError: a layout without ratings, a bad row.
    """
    layouts = LayoutOptions(
        columns=frozenset(fields),
        needs_labels=False,
        conversational=bool(options.get("conversational")),
        pairs=options.get("pairs", "all"),
        max_pairs=options.get("max_pairs"),
    )
    for source in list_sources(data, options.get("format", "auto")):
        if source.objectives is not None or source.fraction != 1:
            fix = "Name the objectives' fields by their labels, and give whole sources."
            raise InputError("sources of rated data take no objectives and no fraction", where=source.label, fix=fix)
        records = open_source(source, split=options.get("split", "train"), streaming=options.get("streaming", False))
        records, layout = _peeked(records, source.format)
        for number, (where, row) in enumerate(LAYOUTS[layout].read(records, layouts)):
            if options.get("take") is not None and number >= options["take"]:
                break
            if isinstance(row, BadRow):
                if options.get("on_bad_row") == "skip":
                    continue
                raise row.to_input_error(where)
            if not isinstance(row.get("ratings"), Mapping):
                found = f"{layout} rows without ratings"
                raise InputError(
                    "the responses have no ratings", where=where, expected=_EXPECTED, found=found, fix=_FIX
                )
            yield where, row


_EXPECTED = "ratings: {objective: [of a, of b]}, or responses with scores"
_LARGEST = sys.float_info.max  # an integer beyond it is no float, infinity neither; NaN is no rating
_FIX = "Give scored data, or let a preference stand for a rating of 1 against 0 (from_preferences: true)."


def _peeked(records: Any, format: str) -> tuple[Any, str]:
    """The records and their layout, which the first one tells."""
    if format != "auto":
        return records, format
    first = next(records, None)
    if first is None:
        return iter(()), "native"
    layout = "native" if isinstance(first[1], BadRow) else recognise(first[1], first[0])

    def all_of_them() -> Any:
        yield first
        yield from records

    return all_of_them(), layout


def rating_pair(given: Any, field: str, where: str) -> list[float]:
    """The ratings of a and b; NaN for none."""
    values = [None, None] if given is None else given
    good = isinstance(values, Sequence) and len(values) == 2
    good = good and all(
        v is None or (isinstance(v, int | float) and not isinstance(v, bool) and not abs(v) > _LARGEST) for v in values
    )
    if not good:
        raise InputError(f"bad ratings (field {field!r})", where=where, expected="[of a, of b], numbers", found=given)
    return [math.nan if v is None else float(v) for v in values]


def rated_by_preference(data: Any, objectives: Sequence[Objective], options: Mapping[str, Any]) -> Rated:
    """Pairs of any layout, with each label as a rating: its probability for a, and the rest for b.

    A makeshift: the better of two bad responses is then as good as the better of two good ones.
    """
    table, _ = read_comparisons(data, objectives=list(objectives), **options)
    rows, ratings = [], []
    for row in table:
        labels = [row["preferences"][o.name] for o in objectives]
        ratings.append(
            [[math.nan if p is None else p for p in labels], [math.nan if p is None else 1 - p for p in labels]]
        )
        rows.append({key: row[key] for key in _KEPT if row.get(key) is not None})
    return Rated(rows, np.array(ratings, dtype=np.float64))
