"""What reading a data set found: returned beside the rows, logged once by the caller and kept in the run's record."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from paretune.comparisons.rows import BadRow


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


DUPLICATE = "duplicated row"
CONTRADICTION = "duplicated row with another label"
IDENTICAL = "identical responses"
UNLABELLED = "no label for any objective"
# Rows that carry no information, which public sets contain: left out and said, never an error.
HARMLESS = (IDENTICAL, UNLABELLED)
