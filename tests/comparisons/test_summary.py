"""What a data set holds, on rows whose figures are counted by hand, and how it is drawn."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from paretune.comparisons.drawing import bar, render, stacked
from paretune.comparisons.report import DataReport
from paretune.comparisons.summary import BINS, DataSummary, lengths_of, summarize
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.errors import InputError
from tests.tokenizers_made import chatml, metaspace

# prompt, a, b, and labels of "good" and "short"
ROWS = [
    ("p", "aaaa", "bb", 1.0, 0.0),  # conflict; good prefers the longer, short the shorter
    ("p", "bb", "aaaa", 1.0, 1.0),  # the same pair the other way round; agree; both prefer the shorter
    ("q", "aaa", "bbb", 0.2, 0.5),  # soft; short judges a tie; responses as long as each other
    ("q", "a", "bbbbbb", None, 0.9),  # short, soft, prefers the shorter
    ("r", "c", "c", 0.0, None),  # equal responses
]


def dataset(rows: list[tuple[Any, ...]] = ROWS, groups: list[str | None] | None = None) -> Dataset:
    keys = ("prompt", "response_a", "response_b")
    made = [dict(zip(keys, row[:3], strict=True)) | {"preferences": {"good": row[3], "short": row[4]}} for row in rows]
    if groups is not None:
        made = [row | {"group": group} for row, group in zip(made, groups, strict=True)]
    return Dataset.from_list(made)


def test_labels_are_counted() -> None:
    good, short = summarize(dataset(), ["good", "short"]).labels
    assert (good.labelled, good.missing, good.prefers_a, good.tied, good.prefers_b, good.soft) == (4, 1, 2, 0, 2, 1)
    assert (short.labelled, short.missing, short.prefers_a, short.tied, short.prefers_b, short.soft) == (
        4,
        1,
        2,
        1,
        1,
        1,
    )


def test_length_alone() -> None:
    good, short = summarize(dataset(), ["good", "short"]).labels
    assert (good.shorter_rows, good.shorter) == (2, 0.5)
    assert (short.shorter_rows, short.shorter) == (3, 1.0)
    (none, _) = summarize(dataset(ROWS[2:3]), ["good", "short"]).labels
    assert none.shorter_rows == 0 and math.isnan(none.shorter)


def test_agreement_and_conflict_count_rows_that_both_decide() -> None:
    summary = summarize(dataset(), ["good", "short"])
    assert summary.decided == [[4, 2], [2, 3]]
    assert summary.agreement == [[1.0, 0.5], [0.5, 1.0]]
    assert (summary.comparable, summary.conflicting) == (2, 1)
    assert summary.labels_per_row == [0, 2, 3]


@given(
    st.lists(st.lists(st.sampled_from([None, 0.0, 0.3, 0.5, 0.8, 1.0]), min_size=3, max_size=3), min_size=1, max_size=9)
)
def test_agreement_of_three_objectives_is_the_plain_count(labels: list[list[float | None]]) -> None:
    names = ["x", "y", "z"]
    made = [
        {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": dict(zip(names, row, strict=True))}
        for row in labels
    ]
    made.append(made[0] | {"preferences": dict.fromkeys(names, 1.0)})  # so that every column is of numbers
    summary = summarize(Dataset.from_list(made), names)
    rows = [[0 if p is None else (p > 0.5) - (p < 0.5) for p in row] for row in [*labels, [1.0] * 3]]
    for i in range(3):
        for j in range(3):
            both = [row[i] == row[j] for row in rows if row[i] and row[j]]
            assert summary.decided[i][j] == len(both)
            assert summary.agreement[i][j] == pytest.approx(sum(both) / len(both))
    assert summary.conflicting == sum({-1, 1} <= set(row) for row in rows)


def test_prompts_groups_and_repeats() -> None:
    summary = summarize(dataset(), ["good", "short"])
    assert (summary.rows, summary.prompts, summary.groups) == (5, 3, 3)
    assert (summary.repeated, summary.identical, summary.conversational) == (1, 1, False)
    assert (
        summarize(dataset(groups=["g", "h", "h", "g", None]), ["good"]).groups == 3
    )  # g, h and the prompt of the last


def test_lengths_in_characters_and_tokens() -> None:
    rows = dataset()
    tokenized, tokens = tokenize_comparisons(rows, metaspace(), ["good", "short"], max_length=None)
    summary = summarize(rows, ["good", "short"], tokenized)
    prompt, response, prompt_tokens, response_tokens, longest = summary.lengths
    assert (prompt.min, prompt.max, response.min, response.max, response.median) == (1, 1, 1, 6, 2.5)
    assert response.mean == pytest.approx((4 + 2 + 2 + 4 + 3 + 3 + 1 + 6 + 1 + 1) / 10)
    assert sum(prompt.counts) == sum(prompt_tokens.counts) == 5 and sum(response.counts) == 10
    assert response_tokens.max == tokens.response["max"] and response_tokens.mean == pytest.approx(
        tokens.response["mean"]
    )
    assert longest.max == tokens.longest


def test_conversations_are_measured_by_their_words() -> None:
    message = {"role": "user", "content": "Hello"}
    sides = {f"response_{side}": [{"role": "assistant", "content": side * n}] for side, n in (("a", 3), ("b", 9))}
    summary = summarize(Dataset.from_list([{"prompt": [message], **sides, "preferences": {"x": 1.0}}]), ["x"])
    assert summary.conversational and summary.lengths[0].max == 5 and summary.lengths[1].max == 9
    assert summary.labels[0].shorter == 1.0 and "conversations" in render(summary)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=60))
def test_histograms_hold_every_value_in_bins_with_round_edges(values: list[int]) -> None:
    found = lengths_of("x", np.array(values))
    assert sum(found.counts) == len(values) and 1 <= len(found.edges) <= BINS
    assert (found.min, found.max) == (min(values), max(values)) and found.edges[0] <= found.min
    ends = [*found.edges[1:], math.inf]
    plain = [sum(low <= v < high for v in values) for low, high in zip(found.edges, ends, strict=True)]
    assert found.counts == plain
    assert len({high - low for low, high in zip(found.edges, found.edges[1:], strict=False)}) <= 1


def test_one_very_long_text_does_not_squeeze_the_rest() -> None:
    found = lengths_of("x", np.array([*range(1, 100), 100_000]))
    assert sum(count > 0 for count in found.counts) >= 9


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="no rows"):
        summarize(dataset().select([]), ["good"])
    with pytest.raises(InputError, match="unknown objective 'gone'; expected one of good, short"):
        summarize(dataset(), ["gone"])


def test_json_has_no_nan() -> None:
    summary = summarize(dataset(ROWS[2:3]), ["good", "short"])
    plain = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert plain["labels"][0]["shorter"] is None and plain["agreement"][0][1] is None
    assert plain["labels"][0]["labelled"] == 1


def drawn(summary: DataSummary, *more: Any, width: int = 80) -> list[str]:
    text = render(summary, *more, width=width)
    assert text.endswith("\n") and "nan" not in text
    return text.splitlines()


def test_the_drawing_shows_the_figures() -> None:
    rows = dataset()
    tokenized, tokens = tokenize_comparisons(rows, chatml(), ["good", "short"], max_length=None)
    report = DataReport(read=7, kept=5, skipped=2, warnings=["two answers contradict each other"])
    lines = drawn(summarize(rows, ["good", "short"], tokenized), report, tokens)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "5 comparisons (plain text), 3 prompts, 3 groups"
    assert "read 7 records: 2 left out, 0 merged into others" in text
    (good,) = [line for line in lines if line.startswith("good") and "·" in line]
    assert good.split()[2:] == ["4", "20.0%", "0.0%", "25.0%"]
    bar_of_good = good.split()[1]
    for fill, share in (("█", 0.4), ("▒", 0.0), ("░", 0.4), ("·", 0.2)):
        assert bar_of_good.count(fill) == pytest.approx(share * len(bar_of_good), abs=1 if share else 0)
    assert "  1 good                       -  ▒▒   50%" in text and "conflicting rows: 1 of 2" in text
    assert "100.0%  shorter 100.0%" in text
    assert f"{tokens.tokens_flat} tokens an epoch, {tokens.tokens_shared} with shared prefixes" in text
    assert "- two answers contradict each other" in lines and "sides end: 10 with <|im_end|>" in lines


@pytest.mark.parametrize("m", [1, 2, 5, 6, 12])
@pytest.mark.parametrize("width", [72, 80, 100])
def test_the_drawing_fits_for_any_number_of_objectives(m: int, width: int) -> None:
    names = [f"objective number {j} with a long name" for j in range(m)]
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 0.5, 1.0], size=(40, m)).tolist()
    rows = Dataset.from_list(
        [
            {
                "prompt": "p" * int(k),
                "response_a": "a" * k,
                "response_b": "b" * 3000,
                "preferences": dict(zip(names, row, strict=True)),
            }
            for k, row in enumerate(labels, 1)
        ]
    )
    summary = summarize(rows, names)
    lines = drawn(summary, width=width)
    assert max(map(len, lines)) <= width
    assert any(line.startswith("Agreement") for line in lines) == (m > 1)
    if m > 1:  # every pair's agreement stands somewhere
        pairs = sum(line.count("%") for line in lines if line[:3].strip().isdigit() and line[4:13] == "objective")
        assert pairs == m * (m - 1) / 2


def test_an_objective_without_labels_is_drawn_and_noted() -> None:
    rows = dataset([("p", "a", "bb", 1.0, None)])
    rows = rows.cast_column(
        "preferences", {"good": rows.features["preferences"]["good"], "short": rows.features["preferences"]["good"]}
    )
    text = "\n".join(drawn(summarize(rows, ["good", "short"])))
    assert "- short has no label at all" in text and "none" in text and "no decided row" in text


def test_bars() -> None:
    assert bar(0.5, 4) == "██  " and bar(1.0, 4) == "████" and bar(0.0, 4) == "    "
    assert bar(1e-9, 4) == "▏   " and bar(0.28125, 4) == "█▏  " and bar(2.0, 2) == "██"
    assert stacked([1, 1, 2], "ab.", 8) == "aabb...." and stacked([0, 0], "ab", 3) == "   "
    assert stacked([1, 1, 1], "abc", 10) == "aaabbbbccc"
