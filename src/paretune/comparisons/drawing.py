"""A data set's summary as text: tables, bars and a shaded matrix, at 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from paretune.comparisons.report import DataReport
from paretune.comparisons.summary import DataSummary, Labels, Lengths
from paretune.comparisons.token_report import TokenReport

NAME = 18  # columns of an objective's name
SHADES = "·░▒▓█"  # agreement from 0 to 1
EIGHTHS = " ▏▎▍▌▋▊▉█"


def render(
    summary: DataSummary, report: DataReport | None = None, tokens: TokenReport | None = None, *, width: int = 80
) -> str:
    """The whole picture, ending in a newline.

    Args:
        summary: of `summarize`.
        report: of `read_comparisons`: what was left out, and its warnings.
        tokens: of `tokenize_comparisons`.
        width: columns of the terminal, at least 72.
    """
    width = max(width, 72)
    blocks = [
        _head(summary, report),
        _labels(summary, width),
        _agreement(summary, width) if len(summary.labels) > 1 else [],
        _baseline(summary, width),
        _lengths(summary.lengths, width),
        _tokens(tokens) if tokens is not None else [],
        _notes(summary, report, tokens, width),
    ]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks if block) + "\n"


def bar(share: float, width: int) -> str:
    """`share` of `width` columns filled, to an eighth of a column; anything above 0 is seen."""
    eighths = max(round(share * width * 8), int(share > 0))
    full, rest = divmod(min(eighths, width * 8), 8)
    return (EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def stacked(parts: Sequence[int], fills: str, width: int) -> str:
    """One bar of whole columns shared out among `parts`, each drawn with its character of `fills`."""
    total = sum(parts)
    ends = [round(width * sum(parts[: k + 1]) / total) if total else 0 for k in range(len(parts))]
    return "".join(fill * (end - start) for fill, start, end in zip(fills, [0, *ends], ends, strict=False)).ljust(width)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _cut(name: str, width: int) -> str:
    return (name if len(name) <= width else name[: width - 1] + "…").ljust(width)


def _head(summary: DataSummary, report: DataReport | None) -> list[str]:
    kind = "conversations" if summary.conversational else "plain text"
    lines = [f"{summary.rows:,} comparisons ({kind}), {summary.prompts:,} prompts, {summary.groups:,} groups"]
    if report is not None and (report.skipped or report.merged):
        lines.append(f"read {report.read:,} records: {report.skipped:,} left out, {report.merged:,} merged into others")
    if summary.repeated or summary.identical:
        lines.append(f"{summary.repeated:,} repeated comparisons, {summary.identical:,} with two equal responses")
    return lines


def _labels(summary: DataSummary, width: int) -> list[str]:
    size = width - NAME - 36
    lines = ["Labels per objective   (█ prefers a  ▒ tied  ░ prefers b  · missing)"]
    lines.append(f"{'':{NAME}} {'':{size}} {'labels':>9}{'missing':>9}{'tied':>8}{'soft':>8}")
    for one in summary.labels:
        drawn = stacked([one.prefers_a, one.tied, one.prefers_b, one.missing], "█▒░·", size)
        lines.append(
            f"{_cut(one.name, NAME)} {drawn} {one.labelled:>9,}{_percent(one.missing, summary.rows):>9}"
            f"{_percent(one.tied, one.labelled):>8}{_percent(one.soft, one.labelled):>8}"
        )
    if len(summary.labels) > 1:
        counts = [f"{count:,} with {k}" for k, count in enumerate(summary.labels_per_row) if count]
        lines.append(f"labels in a row: {', '.join(counts)}")
    return lines


def _agreement(summary: DataSummary, width: int) -> list[str]:
    """Agreement above the diagonal, the rows it rests on below; as many columns at a time as fit."""
    cell = 10
    m, fit = len(summary.labels), (width - NAME - 4) // cell
    lines = [
        "Agreement of objectives   (of rows decided by both: upper right",
        "the share that agrees, lower left their number)",
    ]
    for first in range(0, m, fit):
        columns = range(first, min(first + fit, m))
        lines.append(" " * (NAME + 4) + "".join(f"{j + 1:>{cell}}" for j in columns))
        for i, one in enumerate(summary.labels):
            cells = "".join(f"{_cell(summary, i, j):>{cell}}" for j in columns)
            lines.append(f"{i + 1:>3} {_cut(one.name, NAME)}{cells}")
    lines.append(
        f"conflicting rows: {summary.conflicting:,} of {summary.comparable:,} decided by two or more "
        f"({_percent(summary.conflicting, summary.comparable)})"
    )
    share = summary.conflicting / summary.comparable if summary.comparable else 0.0
    lines.append(f"{stacked([round(1000 * share), round(1000 * (1 - share))], '█·', width)}")
    return lines


def _cell(summary: DataSummary, i: int, j: int) -> str:
    if i == j:
        return "-"
    if i > j:
        return f"{summary.decided[i][j]:,}"
    share = summary.agreement[i][j]
    return "none" if math.isnan(share) else f"{SHADES[min(4, int(share * 5))] * 2} {100 * share:>4.0f}%"


def _baseline(summary: DataSummary, width: int) -> list[str]:
    """How far lengths alone predict each objective: far from half, its labels say little that lengths do not."""
    size = width - NAME - 26
    lines = ["Length-only baseline   (how often the shorter response is preferred)"]
    lines.append(f"{'':{NAME}} {'':{size}}{'shorter':>9}{'best guess':>16}")
    lines += [f"{_cut(one.name, NAME)} {_beside_half(one, size)}" for one in summary.labels]
    return lines


def _beside_half(one: Labels, size: int) -> str:
    if not one.shorter_rows:
        return "no decided row with responses of different length"
    filled = bar(one.shorter, size)
    half = size // 2
    marked = filled[:half] + (filled[half] if filled[half] != " " else "|") + filled[half + 1 :]
    guess = f"{'shorter' if one.shorter >= 0.5 else 'longer'} {_percent(max(one.shorter, 1 - one.shorter), 1)}"
    return f"{marked}{_percent(one.shorter, 1):>9}{guess:>16}"


def _lengths(lengths: list[Lengths], width: int) -> list[str]:
    """The figures of all quantities, then their histograms two by two."""
    size = width - 45
    lines = [f"{'Lengths':{size}}" + "".join(f"{word:>9}" for word in ("min", "median", "mean", "95%", "max"))]
    for one in lengths:
        figures = (one.min, one.median, one.mean, one.p95, one.max)
        lines.append(f"{one.name:{size}}" + "".join(f"{figure:>9,.0f}" for figure in figures))
    column = (width - 2) // 2
    for k in range(0, len(lengths), 2):
        left, right = (_histogram(one, column) for one in (lengths[k : k + 2] * 2)[:2])
        right = right if k + 1 < len(lengths) else []
        lines.append("")
        for row in range(max(len(left), len(right))):
            first, second = (side[row] if row < len(side) else "" for side in (left, right))
            lines.append(f"{first:{column}}  {second}")
    return lines


def _histogram(one: Lengths, width: int) -> list[str]:
    last = len(one.edges) - 1
    ends = [one.edges[k + 1] - 1 if k < last else one.max for k in range(last + 1)]
    names = [f"{low:,}" if low == end else f"{low:,}-{end:,}" for low, end in zip(one.edges, ends, strict=True)]
    label, count = max(map(len, names)), max(len(f"{c:,}") for c in one.counts)
    size = max(1, width - label - count - 2)
    top = max(one.counts)
    drawn = [
        f"{name:>{label}} {bar(value / top, size)} {value:>{count},}"
        for name, value in zip(names, one.counts, strict=True)
    ]
    return [one.name, *drawn]


def _tokens(tokens: TokenReport) -> list[str]:
    ends = ", ".join(f"{count:,} with {token or 'no end token'}" for token, count in tokens.ends.items())
    saved = _percent(tokens.tokens_flat - tokens.tokens_shared, tokens.tokens_flat)
    return [
        "Tokens",
        f"{tokens.kept:,} of {tokens.rows:,} comparisons fit, longest side {tokens.longest:,}"
        + (f" of max_length {tokens.max_length:,}" if tokens.max_length else ""),
        f"{tokens.tokens_flat:,} tokens an epoch, {tokens.tokens_shared:,} with shared prefixes ({saved} less)",
        f"sides end: {ends}",
    ]


def _notes(summary: DataSummary, report: DataReport | None, tokens: TokenReport | None, width: int) -> list[str]:
    notes = list(report.warnings) if report is not None else []
    notes += tokens.warnings if tokens is not None else []
    notes += [f"{one.name} has no label at all" for one in summary.labels if not one.labelled]
    lines = ["Notes"] if notes else []
    for note in notes:
        lines += _wrapped(note, width)
    return lines


def _wrapped(note: str, width: int) -> list[str]:
    return textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
