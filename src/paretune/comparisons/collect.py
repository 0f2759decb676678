"""Good rows into one Arrow table: labels resolved to the objectives, duplicates found, everything counted.

Texts go to Arrow in chunks as they come and are then forgotten, labels to one array per objective; so a data set is
held once, and the objectives may turn up, and an earlier row gain a label, while it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paretune.comparisons.layouts import CHOSEN, label_name
from paretune.comparisons.report import CONTRADICTION, DUPLICATE, HARMLESS, IDENTICAL, UNLABELLED, DataReport
from paretune.comparisons.rows import BadRow, Words, text_of
from paretune.objectives import Objective
from paretune.preferences.rules import RULES

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1000
_OPTIONAL = ("id", "group", "reference")


class LabelPlan:
    """Which label of a source's rows belongs to which objective.

    Args:
        objectives: what the user asked for; None takes every label under its own name.
        given: the source's own `objectives`: None, a name, a list of names, or {name: field}.
        layout: the source's layout, which knows its fields by other names too.

    Attributes:
        fields: objective -> label to take; None where the row's only label is meant.
        rules: objective -> rule.
    """

    def __init__(self, objectives: list[Objective] | None, given: Any, layout: str):
        named: dict[str, str | None] = {}
        if isinstance(given, Mapping):
            named = {str(name): None if field is None else str(field) for name, field in given.items()}
        elif given is not None:
            named = dict.fromkeys([given] if isinstance(given, str) else [str(name) for name in given])
        self.rules = {o.name: RULES[o.rule] for o in objectives or () if o.rule is not None}
        labels = {o.name: o.labels for o in objectives or () if o.rule is None}
        wanted = {name: field or labels.get(name) for name, field in named.items() if name not in self.rules}
        self.everything = objectives is None and given is None
        fields = wanted if given is not None else labels
        self.fields = {name: None if f is None else label_name(layout, f) for name, f in fields.items()}
        self.columns = frozenset(f for f in [*named.values(), *labels.values()] if f is not None)
        open_names = [name for name, field in self.fields.items() if field is None]
        self._only = open_names[0] if len(open_names) == 1 else None

    def resolve(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Labels by objective, absent where the row has none. CHOSEN alone goes to the one objective it can mean."""
        if self.everything:
            return dict(labels)
        resolved = {}
        for name, field in self.fields.items():
            source = name if field is None else field
            if source not in labels and field is None and name == self._only and CHOSEN in labels:
                source = CHOSEN
            if source in labels:
                resolved[name] = labels[source]
        return resolved


class Collector:
    """Takes clean rows one by one; `finish` gives the data set and completes the report."""

    def __init__(self, report: DataReport, names: list[str] | None):
        self.report = report
        self.fixed = names is not None
        self.labels: dict[str, array[float]] = {name: array("d") for name in names or ()}
        self.count_only: dict[int, list[str]] = {}
        self.found: dict[str, None] = {}
        self.seen: dict[bytes, tuple[int, bool, str]] = {}
        self.groups: set[bytes] = set()
        self.present: set[str] = set()
        self.digest = hashlib.blake2b(digest_size=16)
        self.rows = 0
        self.conversational: bool | None = None
        self.pending: list[dict[str, Any]] = []
        self.batches: list[Any] = []
        self.first_bad: tuple[str, BadRow] | None = None

    def reject(self, where: str, bad: BadRow) -> None:
        """Counts what is left out; remembers the first of it that is a fault."""
        self.report.skip(where, bad)
        if self.first_bad is None and bad.problem not in HARMLESS:
            self.first_bad = (where, bad)

    def count(self, name: str) -> int:
        """Rows that an objective's mean counts so far."""
        labelled = sum(not math.isnan(label) for label in self.labels.get(name, ()))
        return labelled + sum(name in only for only in self.count_only.values())

    def add(self, where: str, row: dict[str, Any], plan: LabelPlan) -> None:
        """Keeps a row, or lets an earlier row of the same pair have its labels.

        Raises:
            BadRow: a duplicate, identical responses, no label, or plain text among messages.
        """
        self.found.update(dict.fromkeys(row["preferences"]))
        given = plan.resolve(row["preferences"])
        only = [name for name in plan.resolve(dict.fromkeys(row["count_only"], True)) if given.get(name) is None]
        self._same_kind(row)
        if row["response_a"] == row["response_b"]:
            expected = "another text than response_a"
            raise BadRow(IDENTICAL, field="response_b", expected=expected, found=row["response_b"])
        key, swapped = _pair_key(row)
        if key in self.seen:
            self._merge(key, swapped, given, only)
            return
        a, b = text_of(row["response_a"]), text_of(row["response_b"])
        ruled = {name: rule(a, b) for name, rule in plan.rules.items()}
        if not only and all(label is None for label in [*given.values(), *ruled.values()]):
            raise BadRow(UNLABELLED, field="preferences", expected="at least one label")
        self.seen[key] = (self.rows, swapped, where)
        for name, label in {**given, **ruled}.items():
            self._put(self.rows, name, label)
        if only:
            self.count_only[self.rows] = only
        texts = {name: row[name] for name in ("prompt", "response_a", "response_b", *_OPTIONAL)}
        self.present.update(name for name in _OPTIONAL if row[name] is not None)
        if row["group"] is not None:
            self.groups.add(hashlib.blake2b(row["group"].encode(), digest_size=16).digest())
        self.digest.update(_canonical(texts))
        self.pending.append(texts)
        self.rows += 1
        if len(self.pending) == _CHUNK:
            self._flush()

    def _same_kind(self, row: dict[str, Any]) -> None:
        conversational = isinstance(row["prompt"], list)
        if self.conversational is None:
            self.conversational = conversational
        elif self.conversational != conversational:
            kinds = Words("plain text"), Words("messages")
            raise BadRow(
                "plain text and messages are mixed",
                field="prompt",
                found=kinds[conversational],
                expected=f"{kinds[self.conversational]}, as in the rows before",
                fix="With conversational: true plain text becomes messages too.",
            )

    def _merge(self, key: bytes, swapped: bool, given: dict[str, Any], only: list[str]) -> None:
        index, first_swapped, first = self.seen[key]
        turned = {n: 1.0 - v if v is not None and swapped != first_swapped else v for n, v in given.items()}
        new = {name: label for name, label in turned.items() if label is not None}
        old = {name: self._get(index, name) for name in [*new, *only]}
        counted = set(self.count_only.get(index, ()))
        if not (new or only) or any(label is not None or name in counted for name, label in old.items()):
            differs = any(old[name] is not None and old[name] != label for name, label in new.items())
            raise BadRow(
                CONTRADICTION if differs else DUPLICATE,
                field="prompt, response_a, response_b",
                expected="each pair once, in either order",
                found=Words(f"the pair of {first} again"),
            )
        for name, label in new.items():
            self._put(index, name, label)
        if only:
            self.count_only.setdefault(index, []).extend(only)
        self.report.merged += 1

    def _put(self, index: int, name: str, label: float | None) -> None:
        column = self.labels.setdefault(name, array("d"))
        column.extend([math.nan] * (index + 1 - len(column)))
        if label is not None:
            column[index] = label

    def _get(self, index: int, name: str) -> float | None:
        column = self.labels.get(name, ())
        return None if index >= len(column) or math.isnan(column[index]) else column[index]

    def _flush(self) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        text = pa.list_(message) if self.conversational else pa.string()
        schema = pa.schema(
            [(n, text) for n in ("prompt", "response_a", "response_b")] + [(n, pa.string()) for n in _OPTIONAL]
        )
        self.batches.append(pa.RecordBatch.from_pylist(self.pending, schema=schema))
        self.pending = []

    def finish(self) -> Dataset:
        """The data set, with the columns of the row and no others; the report's counts are filled in."""
        import datasets
        import pyarrow as pa
        from datasets.table import InMemoryTable

        self._flush()
        report, names = self.report, list(self.labels)
        for column in self.labels.values():
            column.extend([math.nan] * (self.rows - len(column)))
        values = [pa.array(self.labels[name], type=pa.float64(), from_pandas=True) for name in names]  # NaN: null
        table = pa.Table.from_batches(self.batches)
        table = table.drop_columns([name for name in _OPTIONAL if name not in self.present])
        table = table.append_column("preferences", pa.StructArray.from_arrays(values, names=names))
        if self.count_only:
            lists = [self.count_only.get(index, []) for index in range(self.rows)]
            table = table.append_column("count_only", pa.array(lists, type=pa.list_(pa.string())))
        for name in sorted(names):
            self.digest.update(_canonical(name) + self.labels[name].tobytes())
        self.digest.update(_canonical({str(index): sorted(only) for index, only in self.count_only.items()}))
        report.kept, report.objectives, report.objectives_found = self.rows, names, list(self.found)
        report.conversational, report.groups = bool(self.conversational), len(self.groups)
        for name in names:
            report.labels[name] = sum(not math.isnan(label) for label in self.labels[name])
            report.ties[name] = sum(label == 0.5 for label in self.labels[name])
            report.count_only[name] = sum(name in only for only in self.count_only.values())
        report.fingerprint = self.digest.hexdigest()
        return datasets.Dataset(InMemoryTable(table), fingerprint=report.fingerprint[:16])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _pair_key(row: Mapping[str, Any]) -> tuple[bytes, bool]:
    """A hash of prompt and both responses that does not depend on their order, and whether they were swapped for it."""
    a, b = _canonical(row["response_a"]), _canonical(row["response_b"])
    parts = [_canonical(row["prompt"]), *((b, a) if b < a else (a, b))]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest(), b < a
