"""Batches that cost little padding: token lengths of tokenized rows, what a batch is padded to, and how rows are dealt.

Shape suffixes: N comparisons, K numbers that each are padded to the largest of the batch (`extents`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

from paretune.comparisons.batches import Layout
from paretune.comparisons.columns import stretches

PARTS = ["prefix_ids", "a_ids", "b_ids"]


def part_lengths(rows: Dataset) -> np.ndarray:
    """(N, 3) int64: tokens of prefix, side a and side b of each row, from the table's offsets (no row is built)."""
    lengths = [np.zeros((0, len(PARTS)), dtype=np.int64)]
    for columns in stretches(rows, PARTS):
        lengths.append(np.stack([np.asarray(pc.list_value_length(columns[part])) for part in PARTS], axis=1))
    return np.concatenate(lengths).astype(np.int64)


def extents(lengths: np.ndarray, layout: Layout) -> np.ndarray:
    """What rows take in a batch: B of them are computed as B times the sum of the largest in each column.

    Args:
        lengths: (N, 3), of `part_lengths`.
        layout: of `collate`. Shared rows pad prefix, longer and shorter side each on its own (K = 3); flat ones are
            two sequences as long as the longer of all (K = 1).

    Returns:
        (N, K) int64.
    """
    if layout == "shared":
        return np.concatenate([lengths[:, :1], -np.sort(-lengths[:, 1:], axis=1)], axis=1)
    return 2 * (lengths[:, :1] + lengths[:, 1:].max(axis=1, keepdims=True))


def computed_tokens(batch: np.ndarray) -> int:
    """Tokens that a batch of rows with these (B, K) extents is computed as, its padding included."""
    return len(batch) * int(batch.max(axis=0).sum())


def batches_by_length(extents: np.ndarray, size: int, multiple: int = 1) -> list[np.ndarray]:
    """Every row in one batch of at most `size` rows, such that little is padded; the batches that cost most come first.

    The rows are halved again and again, each time by the order (one of the extents, or their sum) whose halves cost
    least. Sorting by the sum alone leaves much padding in shared rows: a long prompt with short responses is padded to
    the long responses of a row that is equally long in all (decision note 0010 has figures). The first batch being the
    largest, a run that does not fit into memory shows it at once, and an allocator's blocks serve all that follow.

    Args:
        extents: (N, K).
        size: most rows of a batch; their sizes differ by one at most.
        multiple: the number of batches is a multiple of it, as long as there is a row for each (ranks that work side by
            side then have equal shares).

    Returns:
        Arrays of row numbers: a function of the arguments alone, the same on every machine.
    """
    rows = len(extents)
    count = min(rows, -(-rows // (size * multiple)) * multiple)
    sizes = np.full(count, rows // max(1, count))
    sizes[: rows - sizes.sum()] += 1
    batches = list(_halved(extents, np.arange(rows), sizes))
    cost = [-computed_tokens(extents[batch]) for batch in batches]
    return [batches[i] for i in np.argsort(cost, kind="stable")]


def _halved(extents: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    if len(sizes) < 2:
        yield from [rows] * len(sizes)
        return
    left = len(sizes) // 2
    cut = int(sizes[:left].sum())
    of_rows = extents[rows]
    keys = [of_rows.sum(axis=1), *of_rows.T] if of_rows.shape[1] > 1 else list(of_rows.T)
    orders = [np.argsort(-key, kind="stable") for key in keys]
    costs = [computed_tokens(of_rows[order[:cut]]) + computed_tokens(of_rows[order[cut:]]) for order in orders]
    order = orders[int(np.argmin(costs))]
    yield from _halved(extents, rows[order[:cut]], sizes[:left])
    yield from _halved(extents, rows[order[cut:]], sizes[left:])


def rank_share(batches: list[np.ndarray], rank: int, world: int) -> list[np.ndarray]:
    """This rank's batches, one of each `world` neighbours; empty where they run out, so every rank has equally many.

    Neighbours in `batches` cost nearly the same, so ranks that run side by side take equally long. Which of them a rank
    gets turns round every time, so that no rank always gets the longest.
    """
    share = []
    for start in range(0, len(batches), world):
        turn = rank if start // world % 2 == 0 else world - 1 - rank
        share.append(batches[start + turn] if start + turn < len(batches) else np.zeros(0, dtype=np.int64))
    return share
