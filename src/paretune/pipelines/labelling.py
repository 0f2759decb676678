"""`paretune label`: candidates in, rows with one label per objective out, and a report about the labels."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.comparisons.layouts import PAIR_CHOICES, LayoutOptions
from paretune.comparisons.rows import text_of
from paretune.errors import InputError
from paretune.evaluation.hacking import taste_for_length
from paretune.files import write_text
from paretune.preferences.answers import AnswerStore
from paretune.preferences.candidates import Candidates
from paretune.preferences.labels import Labels
from paretune.preferences.pairing import rows_of
from paretune.preferences.source import Pair, Verdict
from paretune.preferences.specs import Labeller
from paretune.preferences.verdicts import Heard, hear, open_numbers, opinions, plan

logger = logging.getLogger(__name__)


class NothingLabelled(InputError):
    """No chosen pair has a label; `failed`: a source failed on something, so that another try may find one."""

    def __init__(self, found: str, fix: str, *, failed: bool):
        super().__init__("no row could be labelled", expected="at least one", found=found, fix=fix)
        self.failed = failed


@dataclass
class LabelReport:
    """What labelling found: plain values for JSON.

    Attributes:
        counts: rows read, prompts, responses, rows written, and what was left out, by reason.
        objectives: per objective its labels, ties and missing ones among the rows written; the share of labels that
            people gave and that the source gave; `length_correlation`, Spearman's, of its score differences with
            differences in words, over all pairs of a prompt; of a choice of sources `no_case_fits`, the prompts among
            those to be labelled that no case fits.
        sources: per source the items asked, found and failed among these, seconds, rate, usage; of comparisons also the
            share of pairs whose orders disagree (`inconsistent`), the mean of P(i first) + P(j first) - 1
            (`first_slot_excess`), and those with a reference that a row lacks (`unasked`).
        agreement: "a~b" -> pairs that both objectives label without a tie, and the share on which they agree.
        warnings: what a person should know, one sentence each.
    """

    counts: dict[str, int] = field(default_factory=dict)
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def announce(planned: Mapping[str, tuple[int, int]], labellers: Sequence[Labeller]) -> list[str]:
    """One line per source whose answers are kept: how many calls it will take at most."""
    kept = {source.name for labeller in labellers for source in labeller.sources() if source.cached}
    return [
        f"{name}: {total - found:,} calls to make"
        + (f" ({found:,} of {total:,} were answered before)" if found else "")
        for name, (total, found) in planned.items()
        if name in kept
    ]


def label_candidates(
    candidates: Sequence[Candidates],
    labellers: Sequence[Labeller],
    store: AnswerStore | None,
    *,
    pairs: str = "all",
    max_pairs: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    read: Mapping[str, int] | None = None,
) -> tuple[list[dict[str, Any]], LabelReport]:
    """Asks all sources, makes the pairs, labels them.

    The number of calls is logged before the first one. The rows are a function of the candidates, the answers and the
    seed alone.

    Args:
        store: where answers are found and kept; None keeps none.
        pairs, max_pairs: which pairs of a prompt's responses become rows (`choose_pairs`).
        read: counts of reading, for the report.

    Raises:
        InputError: bad options, bad answers, no row left; and whatever a source raises.
    """
    if pairs not in PAIR_CHOICES:
        raise InputError("bad pairs", expected=f"one of {', '.join(PAIR_CHOICES)}", found=pairs)
    if max_pairs is not None and max_pairs < 1:
        raise InputError("bad max_pairs", expected="a positive whole number", found=max_pairs)
    planned = plan(labellers, candidates, store, seed=seed, retry_failed=retry_failed)
    for line in announce(planned, labellers):
        logger.info("%s", line)
    heard = hear(labellers, candidates, store, seed=seed, retry_failed=retry_failed, planned=planned)

    options = LayoutOptions(pairs=pairs, max_pairs=max_pairs, seed=seed)
    counts: Counter[str] = Counter(read or {})
    given = [name for one in candidates for name in one.given]
    names = list(dict.fromkeys([labeller.name for labeller in labellers] + given))
    figures = _Figures(names)
    rows: list[dict[str, Any]] = []
    for n, one in enumerate(candidates):
        verdicts, labels = opinions(labellers, n, one, heard)
        made = rows_of(one, verdicts, labels, names, options, counts)
        figures.add(one, verdicts, labels, made)
        rows += made.values()
    counts.update({"prompts": len(candidates), "responses": sum(len(one.responses) for one in candidates)})
    counts.update({**options.facts, "rows written": len(rows)})
    report = LabelReport(counts=dict(counts), objectives=figures.objectives(), agreement=figures.agreement())
    for labeller in labellers:
        if labeller.chooses():
            asked = [candidates[n].columns for n in open_numbers(labeller.name, candidates)]
            report.objectives[labeller.name]["no_case_fits"] = sum(map(labeller.lacks_case, asked))
    report.sources = {name: _source_figures(one) for name, one in heard.items()}
    report.warnings = _warnings(report)
    if not rows:
        found = "; ".join(f"{count} x {what}" for what, count in report.counts.items())
        fix = "pairs: all takes every pair." if pairs != "all" else " ".join(report.warnings)
        raise NothingLabelled(found, fix, failed=any(one.tally.failed for one in heard.values()))
    return rows, report


class _Figures:
    """Counts over all candidates, filled one by one."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.counts = {name: Counter[str]() for name in names}
        self.differences: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self.same = {pair: [0, 0] for pair in itertools.combinations(names, 2)}  # agreeing, both with an opinion

    def add(
        self,
        one: Candidates,
        verdicts: Mapping[str, Verdict],
        labels: Mapping[str, Labels],
        rows: Mapping[Pair, Mapping[str, Any]],
    ) -> None:
        words = [len(text_of(response).split()) for response in one.responses]
        for name in self.names:
            counts, given = self.counts[name], one.given.get(name, {})
            for pair, row in rows.items():
                label = row["preferences"][name]
                counts["missing" if label is None else "labels"] += 1
                counts["ties"] += label == 0.5
                if label is not None:
                    counts["people" if pair in given else "source"] += 1
            for i, j in itertools.combinations(range(len(words)), 2):
                difference = _difference(verdicts.get(name), labels.get(name, {}), (i, j))
                if difference is not None:
                    self.differences[name].append((difference, words[i] - words[j]))
        for (a, b), same in self.same.items():
            for pair in labels.get(a, {}).keys() & labels.get(b, {}).keys():
                p, q = labels[a][pair], labels[b][pair]
                if p != 0.5 and q != 0.5:
                    same[0] += (p > 0.5) == (q > 0.5)
                    same[1] += 1

    def objectives(self) -> dict[str, dict[str, Any]]:
        """Figures per objective."""
        figures: dict[str, dict[str, Any]] = {}
        for name, counts in self.counts.items():
            labelled = counts["labels"]
            shares = {key: counts[key] / labelled if labelled else None for key in ("people", "source")}
            differences = np.array(self.differences[name]).reshape(-1, 2).T
            correlation = taste_for_length(*differences)
            figures[name] = {key: counts[key] for key in ("labels", "ties", "missing")}
            figures[name] |= {"share": shares, "length_correlation": correlation}
        return figures

    def agreement(self) -> dict[str, dict[str, Any]]:
        """Figures per pair of objectives."""
        return {
            f"{a}~{b}": {"objectives": [a, b], "pairs": both, "agree": same / both if both else None}
            for (a, b), (same, both) in self.same.items()
        }


def _difference(verdict: Verdict | None, labels: Labels, pair: Pair) -> float | None:
    """Of scores where there are some, else what the label says."""
    if verdict is not None and verdict.pairs is None and pair not in verdict.missing:
        difference = verdict.scores[pair[0]] - verdict.scores[pair[1]]
        return None if math.isnan(difference) else difference
    return 2 * labels[pair] - 1 if pair in labels else None


def _source_figures(heard: Heard) -> dict[str, Any]:
    figures = heard.tally.to_dict()
    if heard.unasked:
        figures["unasked"] = heard.unasked
    if heard.answers:
        pairs = [
            (answers[i, j], answers[j, i])
            for answers in heard.answers.values()
            for i, j in answers
            if i < j and (j, i) in answers and not math.isnan(answers[i, j] + answers[j, i])
        ]
        disagree = [min(p, 1 - q) < 0.5 < max(p, 1 - q) for p, q in pairs]
        figures["pairs_in_both_orders"] = len(pairs)
        figures["inconsistent"] = sum(disagree) / len(pairs) if pairs else None
        figures["first_slot_excess"] = sum(p + q - 1 for p, q in pairs) / len(pairs) if pairs else None
    return figures


# what judges count of answers that they did not get
_WHY_FAILED = ("too_long", "without reference", "unreadable", "failed requests")


def _warnings(report: LabelReport) -> list[str]:
    warnings = []
    for name, figures in report.sources.items():
        total = figures["asked"] + figures["found"]
        if figures["failed"]:
            why = ", ".join(f"{count:g} {what}" for what, count in figures["usage"].items() if what in _WHY_FAILED)
            known = f" ({why})" if why else ""
            warnings.append(f"{name}: {figures['failed']} of {total} answers failed{known}: missing labels, not votes.")
        if figures.get("unasked"):
            lacking = f"{figures['unasked']} comparisons with a reference that the row lacks were not asked"
            warnings.append(f"{name}: {lacking}: missing labels, not votes.")
        excess = figures.get("first_slot_excess")
        if excess is not None and abs(excess) > 0.1:
            slot = "first" if excess > 0 else "second"
            warnings.append(f"{name} prefers the {slot} slot by {abs(excess):.2f}; labels average both orders.")
    for name, figures in report.objectives.items():
        if not figures["labels"]:
            warnings.append(f"Objective {name!r} has no label in any row.")
        elif figures["ties"] == figures["labels"]:
            warnings.append(f"All labels of objective {name!r} are ties.")
        if figures.get("no_case_fits"):
            warnings.append(f"{name}: no case fits {figures['no_case_fits']} prompts, which have no label of it.")
    for figures in report.agreement.values():
        if figures["agree"] in (0.0, 1.0) and figures["pairs"] >= 20:
            a, b = figures["objectives"]
            what = "the same" if figures["agree"] else "exactly opposite"
            warnings.append(f"{a} and {b} want {what} on all {figures['pairs']} pairs.")
    return warnings


def write_labelled(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any], out: Path) -> Path:
    """Writes the rows to `out` and the report beside it, each whole or not at all; returns the report's path."""
    beside = report_path(out)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for path, text in ((out, lines), (beside, json.dumps(report, indent=2, ensure_ascii=False) + "\n")):
        write_text(path, text)
    return beside


def report_path(out: Path) -> Path:
    """train.jsonl -> train.labels.json"""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.labels.json")
