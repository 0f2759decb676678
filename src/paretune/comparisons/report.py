"""What reading a data set found: returned beside the rows, logged once by the caller and kept in the run's record."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.comparisons.columns import absorb, digests, labels, named, stretches
from paretune.comparisons.rows import BadRow

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class DataReport:
    """Facts about a data set, filled while it is read.

    Attributes:
        sources: per source its path, the resolved format, its objectives and fraction, records read and rows kept.
        read: records read (lines of a file); one record can make several rows, or many records one row.
        made: rows the layouts made of them, good or bad; kept: rows in the data set; skipped: records and rows left
            out, each counted once under its reason in `skips`.
        skips: reason -> {"count", "first": {where, field, expected, found}}.
        merged: rows whose labels joined an earlier row of the same pair (files that label different objectives).
        objectives: the columns of `preferences`, in order; objectives_found: every label the data holds.
        labels, ties, count_only: per objective the rows with a label, those of them at exactly 0.5, and the rows that
            are only counted in its mean.
        conversational: texts are lists of messages; groups: distinct groups, 0 where rows have none.
        facts: counts a layout adds about its own data (contradictory answers, prompts with one response).
        fingerprint: hash of the rows' content in order, equal for equal data on any machine.
        part_of: of a part that was split off, the fingerprint of the whole, which read, made, skipped, sources, facts
            and warnings are still about; empty otherwise.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    made: int = 0
    kept: int = 0
    skipped: int = 0
    skips: dict[str, dict[str, Any]] = field(default_factory=dict)
    merged: int = 0
    objectives: list[str] = field(default_factory=list)
    objectives_found: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    ties: dict[str, int] = field(default_factory=dict)
    count_only: dict[str, int] = field(default_factory=dict)
    conversational: bool = False
    groups: int = 0
    facts: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    fingerprint: str = ""
    part_of: str = ""

    @property
    def has_groups(self) -> bool:
        return self.groups > 0

    @property
    def duplicates(self) -> int:
        """Rows left out because their pair was there before with the same objectives labelled."""
        return sum(self.skips[reason]["count"] for reason in (DUPLICATE, CONTRADICTION) if reason in self.skips)

    def skip(self, where: str, bad: BadRow) -> None:
        """Counts a record or row that is left out, and keeps the first of its reason as an example."""
        self.skipped += 1
        entry = self.skips.setdefault(bad.problem, {"count": 0, "first": None})
        entry["count"] += 1
        if entry["first"] is None:
            entry["first"] = {"where": where, "field": bad.field, "expected": bad.expected, "found": bad.found}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {**asdict(self), "facts": dict(self.facts), "duplicates": self.duplicates}


def part_report(whole: DataReport, rows: Dataset) -> DataReport:
    """The report of a part of the rows: what it holds is counted anew, what reading found stays the whole's.

    Args:
        whole: of all rows.
        rows: the part, with the columns of `read_comparisons`.
    """
    names, m = whole.objectives, len(whole.objectives)
    labelled, tied, only = (np.zeros(m, dtype=np.int64) for _ in range(3))
    groups: set[bytes] = set()
    digest = hashlib.blake2b(digest_size=16)
    columns = ("prompt", "response_a", "response_b", "preferences", "group", "count_only")
    for part in stretches(rows, [c for c in columns if c in rows.column_names]):
        found = labels(part["preferences"], names)
        labelled += (~np.isnan(found)).sum(0)
        tied += (found == 0.5).sum(0)
        for column in ("prompt", "response_a", "response_b"):
            absorb(digest, part[column])
        digest.update(found.tobytes())
        if "count_only" in part:
            counted = named(part["count_only"], names)
            only += counted.sum(0)
            digest.update(counted.tobytes())
        if "group" in part:
            groups.update(digests(part["group"].drop_null(), 8))
    return replace(
        whole,
        kept=len(rows),
        labels=dict(zip(names, labelled.tolist(), strict=True)),
        ties=dict(zip(names, tied.tolist(), strict=True)),
        count_only=dict(zip(names, only.tolist(), strict=True)),
        groups=len(groups),
        fingerprint=digest.hexdigest(),
        part_of=whole.fingerprint,
    )


DUPLICATE = "duplicated row"
CONTRADICTION = "duplicated row with another label"
IDENTICAL = "identical responses"
UNLABELLED = "no label for any objective"
# Rows that carry no information, which public sets contain: left out and said, never an error.
HARMLESS = (IDENTICAL, UNLABELLED)
