"""Reading comparisons: data in any public layout -> one checked `datasets.Dataset` of rows, and a report about it.

    rows, report = read_comparisons("data/train.jsonl")

Everything is checked here, before any model is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paretune.comparisons.collect import Collector, LabelPlan
from paretune.comparisons.layouts import LAYOUTS, PAIR_CHOICES, LayoutOptions, check_format, recognise
from paretune.comparisons.progress import Progress
from paretune.comparisons.report import HARMLESS, DataReport
from paretune.comparisons.rows import BadRow, clean_row, group_of
from paretune.comparisons.sources import Item, Source, list_sources, open_source
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.preferences.rules import RULES

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_comparisons(data: Any, **options: Any) -> Dataset:
    """The rows of `read_comparisons`, with its arguments; the report's warnings are logged."""
    rows, report = read_comparisons(data, **options)
    for warning in report.warnings:
        logger.warning(warning)
    return rows


def read_comparisons(
    data: Any,
    *,
    format: str = "auto",
    objectives: Sequence[Objective] | None = None,
    ties: str = "missing",
    pairs: str = "all",
    on_bad_row: str = "error",
    split: str = "train",
    streaming: bool = False,
    take: int | None = None,
    conversational: bool = False,
    max_pairs: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, DataReport]:
    """Reads comparisons in any known layout, checks every row, and says what it found.

    Args:
        data: a path (.jsonl, .json, either .gz, .parquet, .csv), a hub id, a list of paths or of {path, format,
            objectives, fraction, split, name, data_dir}, a list of rows, or a `datasets` object. A streamed set is read
            to its end: label counts, duplicates and stratified steps need all of it; `take` bounds it.
        format: a key of `LAYOUTS`, or "auto" to recognise it by the first record's fields.
        objectives: their labels are taken (by `labels`, by name, or the file's only label) and their rules applied;
            None takes every label found.
        ties: what a 0 of the raco layout, or equal labels of truthfulqa, mean: "missing" (no opinion), "equal" (0.5)
            or, raco only, "release" (counted in the mean without a gradient). Equal scores are always 0.5.
        pairs: which pairs of K scored responses become rows: all, best-worst (of each objective),
            overall-best-worst, pareto or conflict.
        on_bad_row: "error" stops at the end of the data with the first bad row and the number of others; "skip" leaves
            them out and counts them.
        split: of hub data sets and folders; streaming: read a hub data set without downloading it whole.
        take: at most this many rows of each source.
        conversational: turn plain text into a user and an assistant message, so that a chat template applies.
        max_pairs: most pairs that layouts with several responses make of one prompt; kinds are kept, the choice is a
            function of `seed`.
        seed: also decides which groups a source's `fraction` keeps.

    Returns:
        rows, in memory or mapped from a file of this process (`spool`), with the columns prompt, response_a,
        response_b, preferences {objective: float or None}, and id, group, reference, count_only where any row has
        them; and the report.

    Raises:
        InputError: data that cannot be read, a bad row (with "error"), an objective without labels, no row left.
    """
    wanted = None if objectives is None else list(objectives)
    _check_options(wanted, format=format, ties=ties, pairs=pairs, on_bad_row=on_bad_row, take=take, max_pairs=max_pairs)
    report = DataReport()
    collector = Collector(report, None if wanted is None else [o.name for o in wanted])
    options = LayoutOptions(
        needs_labels=wanted is None or any(o.rule is None for o in wanted),
        conversational=conversational,
        ties=ties,
        pairs=pairs,
        max_pairs=max_pairs,
        seed=seed,
        facts=report.facts,
    )
    failure: InputError | None = None
    try:
        for stream in _streams(list_sources(data, format), split, streaming):
            _read_stream(stream, wanted, options, collector, take)
    except InputError as error:  # a layout may find its whole source useless because of the rows that were bad
        failure = error
    if collector.first_bad is not None and on_bad_row == "error":
        where, bad = collector.first_bad
        others = sum(entry["count"] for reason, entry in report.skips.items() if reason not in HARMLESS) - 1
        more = f"{others} more bad row{'s' * (others != 1)}. " if others else ""
        raise bad.to_input_error(where, f"{more}(on_bad_row: skip leaves bad rows out and counts them.)")
    if failure is not None:
        raise failure
    _check_labels(collector, wanted, pairs)
    rows = collector.finish()
    report.warnings = _warnings(report)
    if collector.spool.kept_in_memory:
        report.warnings.append(f"The rows are held in memory: {collector.spool.kept_in_memory}.")
    return rows, report


@dataclass
class _Stream:
    """Records that one layout reads together: one source, or the files of TruthfulQA."""

    sources: list[Source]
    layout: str
    records: Iterator[Item]
    counts: list[_Counted]


def _check_options(wanted: list[Objective] | None, **options: Any) -> None:
    check_format(options["format"])
    choices = {"ties": ("missing", "equal", "release"), "pairs": PAIR_CHOICES, "on_bad_row": ("error", "skip")}
    for key, allowed in choices.items():
        _one_of(key, options[key], allowed)
    for key in ("take", "max_pairs"):
        value = options[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"bad {key}", expected="a positive whole number", found=value)
    for objective in wanted or ():
        if objective.rule is not None:
            _one_of("rule", objective.rule, tuple(RULES), f"objective {objective.name!r}")


def _one_of(key: str, value: Any, allowed: Sequence[str], where: str = "") -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown {key}", where=where, expected=f"one of {', '.join(allowed)}", found=value, fix=fix)


def _streams(sources: list[Source], split: str, streaming: bool) -> Iterator[_Stream]:
    """Each source with its layout; TruthfulQA's files, which say something only together, as one."""
    joined: list[_Stream] = []
    for source in sources:
        check_format(source.format)
        counted = _Counted(open_source(source, split=split, streaming=streaming))
        layout, records = (source.format, iter(counted)) if source.format != "auto" else _recognise(iter(counted))
        stream = _Stream([source], layout, records, [counted])
        if layout == "truthfulqa":
            joined.append(stream)
        else:
            yield stream
    if joined:
        files = [source for stream in joined for source in stream.sources]
        records = itertools.chain.from_iterable(stream.records for stream in joined)
        yield _Stream(files, "truthfulqa", records, [count for stream in joined for count in stream.counts])


class _Counted:
    """Records, and how many were read so far."""

    def __init__(self, records: Iterator[Item]):
        self.records, self.read = records, 0

    def __iter__(self) -> Iterator[Item]:
        for item in self.records:
            self.read += 1
            yield item


def _recognise(records: Iterator[Item]) -> tuple[str, Iterator[Item]]:
    """The layout of the first record that is one, and all records again."""
    seen = []
    for where, record in records:
        seen.append((where, record))
        if not isinstance(record, BadRow):
            return recognise(record, where), itertools.chain(seen, records)
    return "native", iter(seen)  # nothing but findings, which any layout passes on


def _read_stream(
    stream: _Stream, wanted: list[Objective] | None, options: LayoutOptions, collector: Collector, take: int | None
) -> None:
    source, report = stream.sources[0], collector.report
    where = ", ".join(each.label for each in stream.sources)
    if options.ties == "release" and stream.layout != "raco":
        expected = "the raco layout, whose authors count ties so"
        raise InputError("ties: release does not apply", where=where, expected=expected, found=stream.layout)
    plan = LabelPlan(wanted, source.objectives, stream.layout)
    for name in plan.fields:
        if wanted is not None:
            _one_of("objective", name, [o.name for o in wanted], where)
    before, left_out = collector.rows, 0
    rows = LAYOUTS[stream.layout].read(stream.records, replace(options, columns=plan.columns))
    progress, made = Progress(f"{where}: rows read and checked"), report.made
    for place, row in rows:
        report.made += 1
        if not report.made & 0xFFF:
            progress.at(report.made - made)
        try:
            if isinstance(row, BadRow):
                raise row
            cleaned = clean_row(row, conversational=options.conversational)
            if source.fraction < 1.0 and _share(group_of(cleaned), options.seed) >= source.fraction:
                left_out += 1
                continue
            collector.add(place, cleaned, plan)
        except BadRow as bad:
            collector.reject(place, bad)
        if take is not None and collector.rows - before >= take:
            break
    progress.end(report.made - made)
    facts = {"path": where, "format": stream.layout, "objectives": list(plan.fields) or None}
    read = sum(count.read for count in stream.counts)
    counts = {"fraction": source.fraction, "read": read, "left_out": left_out, "kept": collector.rows - before}
    report.sources.append({**facts, **counts})
    report.read += read


def _share(group: str, seed: int) -> float:
    """A number in [0, 1) that a group keeps on every machine: below a source's fraction the group stays."""
    digest = hashlib.blake2b(f"{seed} {group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _check_labels(collector: Collector, wanted: list[Objective] | None, pairs: str) -> None:
    report = collector.report
    where = ", ".join(str(source["path"]) for source in report.sources)
    names = [o.name for o in wanted or () if o.rule is None]
    missing = [name for name in names if not collector.count(name)]
    if missing and collector.found:
        label = next(o.labels for o in wanted or () if o.name == missing[0])
        near = difflib.get_close_matches(label or missing[0], collector.found, n=1)
        hint = f"Did you mean {near[0]!r}?" if near and near[0] not in names else ""
        fix = hint or "An objective takes another label with labels: NAME, or gets its own with rule: NAME."
        expected = f"labels named {label or missing[0]!r}"
        raise InputError(
            f"objective {missing[0]!r} has no label in any row",
            where=where,
            expected=expected,
            found=f"labels for {', '.join(collector.found)}",
            fix=fix,
        )
    if collector.rows == 0:
        reasons = [f"{entry['count']} x {reason}" for reason, entry in report.skips.items()]
        reasons += [f"{count} x {fact}" for fact, count in report.facts.items() if count]
        fix = ""
        if report.read and not report.made:
            reasons.insert(0, f"no pair in {report.read} records (pairs: {pairs})")
            fix = "pairs: all takes every pair." if pairs != "all" else ""
        found = "; ".join(reasons) or "no row at all"
        raise InputError("no usable row", where=where, expected="at least one", found=found, fix=fix)


def _warnings(report: DataReport) -> list[str]:
    """What a person should know about the data, one sentence each."""
    warnings = []
    for reason, entry in report.skips.items():
        first = entry["first"]["where"]
        warnings.append(f"{entry['count']} rows left out: {reason} (first: {first}).")
    for fact, count in report.facts.items():
        if count:
            warnings.append(f"Noted: {count} {fact}.")
    for name, count in report.labels.items():
        if count == 0 and not report.count_only[name]:
            warnings.append(f"Objective {name!r} has no label in any row.")
    left_out = sum(source["left_out"] for source in report.sources)
    if left_out:
        warnings.append(f"{left_out} rows left out by fraction.")
    return warnings
