"""Collation: what a batch says about its comparisons, read back from its tensors alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paretune.comparisons.batches import collate
from paretune.errors import InputError

PAD = 999


def row(prefix: list[int], a: list[int], b: list[int], a_start: int, b_start: int, **more: Any) -> dict[str, Any]:
    return {
        "prefix_ids": prefix,
        "a_ids": a,
        "b_ids": b,
        "a_start": a_start,
        "b_start": b_start,
        "preferences": [1.0, math.nan],
        "index": 0,
    } | more


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    tokens = st.integers(1, 50)
    made = []
    for index in range(draw(st.integers(1, 4))):
        prefix, a, b = (draw(st.lists(tokens, min_size=1, max_size=6)) for _ in range(3))
        a_start = draw(st.integers(1, len(prefix) + len(a) - 1))
        b_start = draw(st.integers(1, len(prefix) + len(b) - 1))
        made.append(row(prefix, a, b, a_start, b_start, index=7 - index))
    return made


def full(comparison: dict[str, Any], side: str) -> list[int]:
    return comparison["prefix_ids"] + comparison[f"{side}_ids"]


def scored(batch: dict[str, Tensor], at: int, side: str) -> list[tuple[int, int, int]]:
    """(target, token at the predicting column, its position) of every entry of a row that counts for a side."""
    counted = batch[f"score_{side}"][at]
    columns = batch["score_positions"][at][counted]
    seen = batch["input_ids"][at][columns], batch["position_ids"][at][columns]
    return list(zip(batch["score_targets"][at][counted].tolist(), *(part.tolist() for part in seen), strict=True))


def expected(comparison: dict[str, Any], side: str) -> list[tuple[int, int, int]]:
    sequence = full(comparison, side)
    return [(sequence[t], sequence[t - 1], t - 1) for t in range(comparison[f"{side}_start"], len(sequence))]


@settings(max_examples=150, deadline=None)
@given(rows())
def test_every_scored_token_is_read_at_its_predecessor(comparisons: list[dict[str, Any]]) -> None:
    shared = collate(comparisons, layout="shared", pad_id=PAD)
    flat = collate(comparisons, layout="flat", pad_id=PAD)
    count = len(comparisons)
    for index, comparison in enumerate(comparisons):
        for side, offset in (("a", 0), ("b", count)):
            other = "b" if side == "a" else "a"
            assert scored(shared, index, side) == expected(comparison, side)
            assert scored(flat, index + offset, side) == expected(comparison, side)
            assert not flat[f"score_{other}"][index + offset].any()
    for batch in (shared, flat):
        assert batch["a_tokens"].tolist() == [len(expected(comparison, "a")) for comparison in comparisons]
        assert batch["b_tokens"].tolist() == [len(expected(comparison, "b")) for comparison in comparisons]
        assert batch["index"].tolist() == [comparison["index"] for comparison in comparisons]


@settings(max_examples=100, deadline=None)
@given(rows())
def test_rows_hold_their_tokens_then_padding(comparisons: list[dict[str, Any]]) -> None:
    shared = collate(comparisons, layout="shared", pad_id=PAD)
    flat = collate(comparisons, layout="flat", pad_id=PAD)
    widths = shared["block_widths"]
    wanted = [[c["prefix_ids"], *sorted((c["a_ids"], c["b_ids"]), key=len, reverse=True)] for c in comparisons]
    for part, lengths in enumerate(("prefix_lengths", "first_lengths", "second_lengths")):
        assert widths[part] == max(len(row[part]) for row in wanted)
        assert shared[lengths].tolist() == [len(row[part]) for row in wanted]
    assert flat["input_ids"].shape[1] == max(len(full(comparison, side)) for comparison in comparisons for side in "ab")
    for index, comparison in enumerate(comparisons):
        parts = shared["input_ids"][index].split(widths)
        for part, ids in zip(parts, wanted[index], strict=True):
            assert part.tolist() == ids + [PAD] * (len(part) - len(ids))
        for side, offset in (("a", 0), ("b", len(comparisons))):
            ids = full(comparison, side)
            real = flat["attention_mask"][index + offset].bool()
            assert flat["input_ids"][index + offset][real].tolist() == ids
            assert real.tolist() == [True] * len(ids) + [False] * (len(real) - len(ids))
    # A learned position table is as long as the longest sequence may be, so padding must not point beyond it.
    longest = max(len(full(comparison, side)) for comparison in comparisons for side in "ab")
    assert shared["position_ids"].max() < longest


def test_a_shared_batch_written_out() -> None:
    batch = collate(
        [row([1, 2, 3], [4, 5], [6], 2, 3, index=4), row([7, 8], [9], [10, 11, 12], 2, 3, preferences=[0.0, 0.5])],
        layout="shared",
        pad_id=0,
    )
    assert batch["block_widths"] == (3, 3, 1)
    # the longer side first: a in row 0, b in row 1
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 6], [7, 8, 0, 10, 11, 12, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 3], [0, 1, 1, 2, 3, 4, 2]]
    # Row 0: token 3 (in the prefix) for a only, a's 4 and 5, b's 6. Row 1: a's 9; b's first token is not scored.
    assert batch["score_positions"].tolist() == [[1, 2, 3, 2], [1, 3, 4, 0]]
    assert batch["score_targets"].tolist() == [[3, 4, 5, 6], [9, 11, 12, 0]]
    assert batch["score_a"].tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch["score_b"].tolist() == [[False, False, False, True], [False, True, True, False]]
    assert batch["preferences"].dtype == torch.float64
    assert torch.equal(torch.nan_to_num(batch["preferences"], -1.0), torch.tensor([[1.0, -1], [0, 0.5]]).double())


def test_a_common_beginning_is_one_entry_for_both_sides() -> None:
    batch = collate([row([1, 2, 3, 4], [5], [6], 2, 3)], layout="shared", pad_id=0)
    both = batch["score_a"] & batch["score_b"]
    assert batch["score_targets"][both].tolist() == [4]
    assert (batch["a_tokens"], batch["b_tokens"]) == (torch.tensor([3]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "empty batch"),
        ([row([], [1], [2], 1, 1, index=3)], "comparison 3: prefix_ids is empty"),
        ([row([1], [], [2], 1, 1)], "a_ids is empty"),
        ([row([1], [2], [3], 0, 1)], "a_start leaves no token to score; expected 1 to 1; found 0"),
        ([row([1], [2], [3, 4], 1, 3)], "b_start leaves no token to score; expected 1 to 2; found 3"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        collate(rows, layout="shared", pad_id=0)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(InputError, match="'shared' or 'flat'"):
        collate([row([1], [2], [3], 1, 1)], layout="packed", pad_id=0)  # type: ignore[arg-type]
