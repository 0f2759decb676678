"""Dealing by length: every row once, equal shares, and the padding that remains is that of the batches themselves."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from paretune.comparisons.batches import Layout, collate
from paretune.comparisons.lengths import batches_by_length, computed_tokens, extents, part_lengths, rank_share
from tests.comparisons_made import made_comparisons


def ragged(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, 3) lengths whose parts do not go together: long prompts with short responses and the reverse."""
    drawn = np.random.default_rng(seed).normal((5.0, 4.5, 4.5), 0.8, (rows, 3))
    return np.exp(drawn).clip(4, 1500).astype(np.int64)


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_extents_say_what_collate_makes(layout: Layout) -> None:
    rows = made_comparisons(9, 2)
    lengths = part_lengths(Dataset.from_list(rows))
    assert lengths.tolist() == [[len(row[part]) for part in ("prefix_ids", "a_ids", "b_ids")] for row in rows]
    for batch in (range(9), range(3), [4], [8, 1, 5]):
        made = collate([rows[i] for i in batch], layout=layout, pad_id=0)["input_ids"]
        assert computed_tokens(extents(lengths, layout)[list(batch)]) == made.numel()


def test_lengths_follow_a_table_that_was_selected_from() -> None:
    rows = Dataset.from_list(made_comparisons(9, 2))
    assert part_lengths(rows.select([7, 0, 3])).tolist() == part_lengths(rows)[[7, 0, 3]].tolist()
    assert part_lengths(rows.select([])).shape == (0, 3)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 31, 64])
@pytest.mark.parametrize(("size", "multiple"), [(1, 1), (4, 1), (4, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_every_row_is_in_one_batch(rows: int, size: int, multiple: int, layout: Layout) -> None:
    taken = extents(ragged(rows), layout)
    batches = batches_by_length(taken, size, multiple)
    assert sorted(np.concatenate([*batches, np.zeros(0, dtype=int)]).tolist()) == list(range(rows))
    sizes = [len(batch) for batch in batches]
    assert all(0 < n <= size for n in sizes) and (not sizes or max(sizes) - min(sizes) <= 1)
    assert len(batches) == min(rows, -(-rows // (size * multiple)) * multiple)
    cost = [computed_tokens(taken[batch]) for batch in batches]
    assert cost == sorted(cost, reverse=True)
    shares = [rank_share(batches, rank, multiple) for rank in range(multiple)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for batch in share for i in batch.tolist()) == list(range(rows))


@pytest.mark.parametrize(("layout", "most"), [("shared", 1.45), ("flat", 1.2)])
def test_little_is_padded(layout: Layout, most: float) -> None:
    taken = extents(ragged(256), layout)
    real = taken.sum()
    by_length = sum(computed_tokens(taken[batch]) for batch in batches_by_length(taken, 8))
    as_drawn = sum(computed_tokens(taken[i : i + 8]) for i in range(0, 256, 8))
    assert by_length < most * real < as_drawn / 1.5
    by_sum = np.argsort(taken.sum(axis=1), kind="stable")
    if layout == "shared":  # the reason for halving: one order does not serve three parts
        assert by_length < 0.85 * sum(computed_tokens(taken[by_sum[i : i + 8]]) for i in range(0, 256, 8))


def test_rows_that_differ_in_one_part_are_sorted() -> None:
    lengths = np.array([[5, 5, n] for n in (9, 2, 7, 4, 8, 1, 3, 6)])
    assert [batch.tolist() for batch in batches_by_length(lengths, 2)] == [[0, 4], [2, 7], [3, 6], [1, 5]]


def test_ranks_work_equally_long() -> None:
    """Side by side and over the whole: what one rank waits for another stays below a few percent."""
    taken = extents(ragged(512), "shared")
    batches = batches_by_length(taken, 4, 4)
    costs = np.array([[computed_tokens(taken[b]) for b in rank_share(batches, rank, 4)] for rank in range(4)])
    assert (costs.max(0) - costs.min(0)).sum() < 0.1 * costs.max(0).sum()
    assert costs.sum(1).max() < 1.06 * costs.sum(1).min()
