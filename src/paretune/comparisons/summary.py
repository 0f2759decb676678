"""What a data set holds: labels per objective, where objectives agree and conflict, lengths, repeated rows.

`summarize` counts; `render` in `drawing` draws the counts as text.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from paretune.comparisons.columns import characters, digests, numbers, stretches
from paretune.comparisons.columns import labels as labels_of
from paretune.comparisons.token_report import list_lengths
from paretune.errors import InputError

BINS = 10  # most bars of a histogram


@dataclass(frozen=True)
class Labels:
    """The labels of one objective: numbers of rows.

    Args:
        labelled, missing: rows with and without an opinion; they add up to all rows.
        prefers_a, tied, prefers_b: above, at and below 0.5; they add up to `labelled`.
        soft: labels that are neither 0, 0.5 nor 1.
        shorter: share of decided rows (not tied, responses of different length in characters) that prefer the shorter
            one: what a length-only guess gets right, or wrong. NaN where no row is decided.
        shorter_rows: number of those rows.
    """

    name: str
    labelled: int
    missing: int
    prefers_a: int
    tied: int
    prefers_b: int
    soft: int
    shorter: float
    shorter_rows: int


@dataclass(frozen=True)
class Lengths:
    """One quantity's distribution. `counts[k]` is of [edges[k], edges[k+1]); the last bin has no upper end."""

    name: str
    min: int
    median: float
    mean: float
    p95: float
    max: int
    edges: list[int]
    counts: list[int]


@dataclass(frozen=True)
class DataSummary:
    """What a data set holds.

    Args:
        labels_per_row: `labels_per_row[k]` rows have k labels.
        agreement: (m, m), share of rows decided by both objectives on which they agree; NaN without such a row.
        decided: (m, m), number of those rows; on the diagonal, the rows that the objective decides.
        comparable: rows decided by at least two objectives; `conflicting`, those of them with opposite preferences.
        prompts, groups: distinct prompts, and distinct groups where rows name one (their prompt stands in elsewhere).
        repeated: rows whose prompt and pair of responses, in either order, stood in an earlier row.
        identical: rows with two equal responses.
        lengths: of prompts and responses in characters; in tokens, with the longer
            side of each row, where a tokenizer was given.
    """

    rows: int
    conversational: bool
    labels: list[Labels]
    labels_per_row: list[int]
    agreement: list[list[float]]
    decided: list[list[int]]
    comparable: int
    conflicting: int
    prompts: int
    groups: int
    repeated: int
    identical: int
    lengths: list[Lengths]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN, which JSON has not, is None."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def summarize(rows: Dataset, objective_names: list[str], tokenized: Dataset | None = None) -> DataSummary:
    """Counts what a data set holds, in one pass over its rows.

    Args:
        rows: a data set of `read_comparisons`.
        objective_names: which of its labels, in which order.
        tokenized: the same rows from `tokenize_comparisons`, for lengths in tokens.

    Raises:
        InputError: no rows, or an objective the rows do not have.
    """
    if len(rows) == 0:
        raise InputError("no rows to summarize", expected="at least one comparison")
    known = list(rows.features["preferences"])
    for name in objective_names:
        if name not in known:
            raise InputError(f"unknown objective {name!r}", where="preferences", expected=f"one of {', '.join(known)}")
    n = len(rows)
    texts = _texts(rows, objective_names)
    labels_RM, prompt_R, a_R, b_R = texts.labels, texts.prompt, texts.a, texts.b
    lengths = [lengths_of("prompt, characters", prompt_R)]
    lengths.append(lengths_of("response, characters", np.concatenate([a_R, b_R])))
    if tokenized is not None:
        lengths += _token_lengths(tokenized)
    side_RM = np.sign(np.nan_to_num(labels_RM - 0.5))  # 1 a, -1 b, 0 tied or missing
    agreement, decided = _agreement(side_RM)
    return DataSummary(
        rows=n,
        conversational=not isinstance(rows[0]["prompt"], str),
        labels=[
            _labels(name, labels_RM[:, j], np.sign(b_R - a_R)) for j, name in enumerate(objective_names)
        ],  # b longer: a is the shorter
        labels_per_row=np.bincount((~np.isnan(labels_RM)).sum(1), minlength=len(objective_names) + 1).tolist(),
        agreement=agreement,
        decided=decided,
        comparable=int(((side_RM != 0).sum(1) >= 2).sum()),
        conflicting=int(((side_RM > 0).any(1) & (side_RM < 0).any(1)).sum()),
        prompts=texts.prompts,
        groups=texts.groups,
        repeated=texts.repeated,
        identical=texts.identical,
        lengths=lengths,
    )


@dataclass
class _Texts:
    """What the pass over the rows gathers: labels, lengths in characters, counts of distinct texts."""

    labels: np.ndarray  # (R, m)
    prompt: np.ndarray  # (R,), as the two below
    a: np.ndarray
    b: np.ndarray
    prompts: int
    groups: int
    repeated: int
    identical: int


def _texts(rows: Dataset, objective_names: list[str]) -> _Texts:
    """Texts are compared by digests of 8 bytes: what is only counted needs no more, and a million take 32 MB."""
    grouped = "group" in rows.column_names
    columns = ["prompt", "response_a", "response_b", "preferences", *(["group"] if grouped else [])]
    labels, lengths, keys, named = [], [], [], []
    for part in stretches(rows, columns):
        sides = [part[name] for name in ("prompt", "response_a", "response_b")]
        labels.append(labels_of(part["preferences"], objective_names))
        lengths.append(np.stack([characters(side) for side in sides]))
        keys.append(np.stack([numbers(digests(side, 8)) for side in sides]))
        named.append(_named_groups(part["group"]) if grouped else np.zeros((2, len(sides[0])), dtype=np.uint64))
    (prompt_R, a_R, b_R), (group_R, given_R) = np.concatenate(keys, axis=1), np.concatenate(named, axis=1)
    given_R = given_R > 0
    prompt, a, b = np.concatenate(lengths, axis=1)
    # The pair in either order. Sums of products with odd constants keep apart what random digests hold apart.
    low_R, high_R = np.minimum(a_R, b_R), np.maximum(a_R, b_R)
    with np.errstate(over="ignore"):
        pair_R = prompt_R + low_R * np.uint64(0x9E3779B97F4A7C15) + high_R * np.uint64(0xC2B2AE3D27D4EB4F)
    return _Texts(
        np.concatenate(labels),
        prompt=prompt,
        a=a,
        b=b,
        prompts=len(np.unique(prompt_R)),
        # a row without a group is in that of its prompt
        groups=len(np.unique(group_R[given_R])) + len(np.unique(prompt_R[~given_R])),
        repeated=len(rows) - len(np.unique(pair_R)),
        identical=int((a_R == b_R).sum()),
    )


def _named_groups(column: Any) -> np.ndarray:
    """(2, rows): digests of groups, and 1 where a row names one."""
    given = np.asarray(column.is_valid()).astype(np.uint64)
    return np.stack([numbers(digests(column, 8)), given])


def _labels(name: str, labels_R: np.ndarray, shorter_R: np.ndarray) -> Labels:
    """`shorter_R`: 1 where a is the shorter response, -1 where b is, 0 where they are as long."""
    given = labels_R[~np.isnan(labels_R)]
    side_R = np.sign(np.nan_to_num(labels_R - 0.5))
    both = side_R * shorter_R
    compared = int((both != 0).sum())
    return Labels(
        name=name,
        labelled=len(given),
        missing=len(labels_R) - len(given),
        prefers_a=int((given > 0.5).sum()),
        tied=int((given == 0.5).sum()),
        prefers_b=int((given < 0.5).sum()),
        soft=int((~np.isin(given, (0.0, 0.5, 1.0))).sum()),
        shorter=float((both > 0).sum() / compared) if compared else math.nan,
        shorter_rows=compared,
    )


def _agreement(side_RM: np.ndarray) -> tuple[list[list[float]], list[list[int]]]:
    """Share of rows on the same side among those decided by both, and their number; each (m, m)."""
    decided_RM = (side_RM != 0).astype(np.float64)
    both_MM = decided_RM.T @ decided_RM
    same_MM = (
        both_MM + side_RM.T @ side_RM
    ) / 2  # products are 1 where they agree, -1 where not, 0 where not both decide
    with np.errstate(invalid="ignore"):
        share_MM = np.where(both_MM > 0, same_MM / both_MM, np.nan)
    return share_MM.tolist(), both_MM.astype(int).tolist()


def _token_lengths(tokenized: Dataset) -> list[Lengths]:
    table = tokenized.with_format("arrow")[:]
    prefix_R, a_R, b_R = (list_lengths(table[name]) for name in ("prefix_ids", "a_ids", "b_ids"))
    start_a_R, start_b_R = (np.asarray(table[name]) for name in ("a_start", "b_start"))
    named = {
        "prompt, tokens": np.minimum(start_a_R, start_b_R),
        "response, tokens": np.concatenate([prefix_R + a_R - start_a_R, prefix_R + b_R - start_b_R]),
        "prompt + response, tokens": prefix_R + np.maximum(a_R, b_R),
    }
    return [lengths_of(name, values) for name, values in named.items()]


def lengths_of(name: str, values: np.ndarray) -> Lengths:
    """The distribution of whole numbers, in at most `BINS` bins with round edges; the last one takes the long tail.

    The bins span what all but 2% of the values reach: one very long text does not squeeze the rest into one bar.
    """
    top = max(1, math.ceil(np.quantile(values, 0.98)))
    low = int(values.min())
    step = _round_up((top - low + 1) / BINS)
    first = low // step * step
    edges = [first + step * k for k in range((top - first) // step + 1)]
    if len(edges) > BINS:
        edges = edges[:BINS]
    counts = np.bincount(np.minimum((values - first) // step, len(edges) - 1), minlength=len(edges))
    p50, p95 = (float(q) for q in np.quantile(values, (0.5, 0.95)))
    extremes = int(values.min()), int(values.max())
    return Lengths(name, extremes[0], p50, float(values.mean()), p95, extremes[1], edges, counts.tolist())


def _round_up(step: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** max(0, math.floor(math.log10(max(step, 1))))
    return next(int(power * k) for k in (1, 2, 5, 10) if power * k >= step)
