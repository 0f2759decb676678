"""Good rows into one Arrow table: labels resolved to the objectives, duplicates found, everything counted.

Texts go to Arrow in chunks and are then forgotten (`spool` says what stays), labels to one array per
objective; so the objectives may turn up, and an earlier row gain a label, while a data set is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.comparisons.layouts import CHOSEN, label_name
from paretune.comparisons.report import CONTRADICTION, DUPLICATE, HARMLESS, IDENTICAL, UNLABELLED, DataReport
from paretune.comparisons.rows import BadRow, Words, text_of
from paretune.comparisons.spool import Digests, Places, Spool
from paretune.objectives import Objective
from paretune.preferences.rules import RULES

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 4 << 20  # bytes of text that are held as Python's strings, then as one record batch
_TEXTS = ("prompt", "response_a", "response_b")
_OPTIONAL = ("id", "group", "reference")
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


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
        self.count_only: dict[str, bytearray] = {}  # objective -> a flag per row, as long as its last one
        self.found: dict[str, None] = {}
        self.seen, self.swapped, self.places = Digests(), bytearray(), Places()  # by row
        self.groups = Digests()
        self.present: set[str] = set()
        self.digest = hashlib.blake2b(digest_size=16)
        self.rows = 0
        self.conversational: bool | None = None
        self.pending: dict[str, list[Any]] = {name: [] for name in (*_TEXTS, *_OPTIONAL)}
        self.pending_size = 0
        self.spool = Spool()
        self.first_bad: tuple[str, BadRow] | None = None

    def reject(self, where: str, bad: BadRow) -> None:
        """Counts what is left out; remembers the first of it that is a fault."""
        self.report.skip(where, bad)
        if self.first_bad is None and bad.problem not in HARMLESS:
            self.first_bad = (where, bad)

    def count(self, name: str) -> int:
        """Rows that an objective's mean counts so far."""
        labels = self.labels.get(name, array("d"))
        return int((~np.isnan(np.asarray(labels))).sum()) + sum(self.count_only.get(name, b""))

    def add(self, where: str, row: dict[str, Any], plan: LabelPlan) -> None:
        """Keeps a row, or lets an earlier row of the same pair have its labels.

        Raises:
            BadRow: a duplicate, identical responses, no label, or plain text among messages.
        """
        for name in row["preferences"]:
            self.found[name] = None
        given = plan.resolve(row["preferences"])
        only = row["count_only"] and plan.resolve(dict.fromkeys(row["count_only"], True))
        only = [name for name in only if given.get(name) is None]
        self._same_kind(row)
        if row["response_a"] == row["response_b"]:
            expected = "another text than response_a"
            raise BadRow(IDENTICAL, field="response_b", expected=expected, found=row["response_b"])
        texts = [_canonical(row[name]) for name in _TEXTS]
        key, swapped = _pair_key(*texts)
        earlier = self.seen.find(key)
        if earlier >= 0:
            self._merge(earlier, swapped, given, only)
            return
        if plan.rules:
            a, b = text_of(row["response_a"]), text_of(row["response_b"])
            given |= {name: rule(a, b) for name, rule in plan.rules.items()}
        if not only and all(label is None for label in given.values()):
            raise BadRow(UNLABELLED, field="preferences", expected="at least one label")
        self.seen.append(key)
        self.swapped.append(swapped)
        self.places.append(where)
        for name, label in given.items():
            self._put(self.rows, name, label)
        for name in only:
            self._flag(self.rows, name)
        self._keep(row, texts)
        self.rows += 1
        self.pending_size += sum(map(len, texts))
        if self.pending_size >= _CHUNK:
            self._flush()

    def _keep(self, row: dict[str, Any], texts: list[bytes]) -> None:
        """The row's words into the pending chunk and the fingerprint: as one JSON object with sorted keys."""
        for name in _TEXTS:
            self.pending[name].append(row[name])
        optional = {}
        for name in _OPTIONAL:
            value = row[name]
            self.pending[name].append(value)
            optional[name] = b"null" if value is None else _canonical(value)
            if value is not None:
                self.present.add(name)
        if row["group"] is not None:
            self.groups.add(hashlib.blake2b(row["group"].encode(), digest_size=16).digest())
        prompt, a, b = texts
        head = b'{"group": %b, "id": %b, "prompt": ' % (optional["group"], optional["id"])
        middle = b', "reference": %b, "response_a": ' % optional["reference"]
        self.digest.update(b"".join((head, prompt, middle, a, b', "response_b": ', b, b"}")))

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

    def _merge(self, index: int, swapped: bool, given: dict[str, Any], only: list[str]) -> None:
        other_way = swapped != self.swapped[index]
        turned = {n: 1.0 - v if v is not None and other_way else v for n, v in given.items()}
        new = {name: label for name, label in turned.items() if label is not None}
        old = {name: self._get(index, name) for name in [*new, *only]}
        if not (new or only) or any(label is not None or self._flagged(index, name) for name, label in old.items()):
            differs = any(old[name] is not None and old[name] != label for name, label in new.items())
            raise BadRow(
                CONTRADICTION if differs else DUPLICATE,
                field="prompt, response_a, response_b",
                expected="each pair once, in either order",
                found=Words(f"the pair of {self.places[index]} again"),
            )
        for name, label in new.items():
            self._put(index, name, label)
        for name in only:
            self._flag(index, name)
        self.report.merged += 1

    def _put(self, index: int, name: str, label: float | None) -> None:
        column = self.labels.setdefault(name, array("d"))
        if index >= len(column):
            column.extend([math.nan] * (index - len(column)))
            column.append(math.nan if label is None else label)
        elif label is not None:
            column[index] = label

    def _get(self, index: int, name: str) -> float | None:
        column = self.labels.get(name, ())
        return None if index >= len(column) or math.isnan(column[index]) else column[index]

    def _flag(self, index: int, name: str) -> None:
        flags = self.count_only.setdefault(name, bytearray())
        flags.extend(bytes(max(index + 1 - len(flags), 0)))
        flags[index] = 1

    def _flagged(self, index: int, name: str) -> bool:
        flags = self.count_only.get(name, b"")
        return index < len(flags) and flags[index] == 1

    def _flush(self) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        text = pa.list_(message) if self.conversational else pa.string()
        columns = {n: pa.array(v, type=text if n in _TEXTS else pa.string()) for n, v in self.pending.items()}
        self.spool.write(pa.RecordBatch.from_pydict(columns))
        for values in self.pending.values():
            values.clear()
        self.pending_size = 0

    def finish(self) -> Dataset:
        """The data set, with the columns of the row and no others; the report's counts are filled in."""
        import datasets
        import pyarrow as pa
        from datasets.table import ConcatenationTable, InMemoryTable

        self._flush()
        report, names = self.report, list(self.labels)
        for column in self.labels.values():
            column.extend([math.nan] * (self.rows - len(column)))
        labels = {name: np.asarray(self.labels[name]) for name in names}
        flags = {name: np.zeros(self.rows, dtype=bool) for name in self.count_only}
        for name, given in self.count_only.items():
            flags[name][: len(given)] = np.frombuffer(given, dtype=bool)
        texts = self.spool.table()
        missing = [name for name in _OPTIONAL if name not in self.present]
        texts = texts.drop(missing) if missing else texts
        values = [pa.array(labels[name], from_pandas=True) for name in names]  # NaN: null
        more = {"preferences": pa.StructArray.from_arrays(values, names=names)}
        if flags:
            more["count_only"] = _name_lists(flags)
        table = ConcatenationTable.from_tables([texts, InMemoryTable(pa.table(more))], axis=1)
        for name in sorted(names):
            self.digest.update(_canonical(name) + labels[name].tobytes())
        counted = {name: hashlib.blake2b(flags[name].tobytes(), digest_size=16).hexdigest() for name in flags}
        self.digest.update(_canonical(counted))
        report.kept, report.objectives, report.objectives_found = self.rows, names, list(self.found)
        report.conversational, report.groups = bool(self.conversational), len(self.groups)
        for name in names:
            report.labels[name] = int((~np.isnan(labels[name])).sum())
            report.ties[name] = int((labels[name] == 0.5).sum())
            report.count_only[name] = int(flags[name].sum()) if name in flags else 0
        report.fingerprint = self.digest.hexdigest()
        return datasets.Dataset(table, fingerprint=report.fingerprint[:16])


def _name_lists(flags: dict[str, np.ndarray]) -> Any:
    """An Arrow list of names per row: those whose flag is set."""
    import pyarrow as pa

    given = np.stack(list(flags.values()), axis=1)
    offsets = np.concatenate([[0], np.cumsum(given.sum(1))])
    names = pa.array(list(flags)).take(pa.array(np.nonzero(given)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), names)


def _canonical(value: Any) -> bytes:
    return _encode(value).encode("utf-8", "surrogatepass")


def _pair_key(prompt: bytes, a: bytes, b: bytes) -> tuple[bytes, bool]:
    """A hash of prompt and both responses that does not depend on their order, and whether they were swapped for it."""
    parts = (prompt, b, a) if b < a else (prompt, a, b)
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest(), b < a
