"""Which comparisons an optimizer step sees: a function of (seed, epoch), whatever the ranks and micro-batches.

transformers and accelerate split an epoch by rank and repeat rows to fill the last batch. Here the step is the unit:
its rows are drawn first, then dealt to micro-batches and ranks by length, so that little is padded; where the last step
has no row left for a micro-batch, that is one row without labels, which costs no pass. So a run on eight ranks, or with
another split into micro-batches, sees the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from paretune.comparisons.lengths import batches_by_length, rank_share


def stratified_order(labelled: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A shuffled order of the rows in which every stretch holds each kind of row in proportion.

    Rows are of one kind when they carry labels of the same objectives. Row j of a kind of n rows, shuffled, takes the
    place (j + u)/n with u uniform per row: a stretch of B rows then holds its share of every kind, so labels of every
    objective reach each step wherever there are enough of them. With a single kind this is a plain shuffle.

    Args:
        labelled: (rows, m) bool, where each row has labels.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        (rows,) row numbers.
    """
    rng = np.random.default_rng((seed, epoch))
    place = np.empty(len(labelled))
    _, kinds = np.unique(labelled, axis=0, return_inverse=True)
    for kind in range(kinds.max() + 1 if len(labelled) else 0):
        members = rng.permutation(np.flatnonzero(kinds.reshape(-1) == kind))
        place[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(place, kind="stable")


def unlabelled(index: int) -> int:
    """The sampler's name for a copy of row `index` without its labels, and back; see `StepDataset`."""
    return -index - 1


class StepSampler(Sampler[list[int]]):
    """Yields this rank's micro-batches of row numbers, step after step.

    Which rows a step holds is drawn without a look at their lengths; only how they are dealt to its micro-batches goes
    by length (`batches_by_length`). A step's gradients are means over all of its rows, so dealing changes them by no
    more than rounding.

    Args:
        labelled: (rows, m) bool, where each row has labels.
        extents: (rows, K), what each row takes in a batch (`comparisons/lengths.py`).
        micro_batch: comparisons per rank and micro-batch, at most.
        accumulation: micro-batches per optimizer step.
        rank, world: this process among how many.
        seed: of the run.
    """

    def __init__(
        self,
        labelled: np.ndarray,
        extents: np.ndarray,
        *,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world: int,
        seed: int,
    ):
        self.labelled, self.extents, self.micro_batch, self.accumulation = labelled, extents, micro_batch, accumulation
        self.rank, self.world, self.seed, self.epoch = rank, world, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; the last step has all of its micro-batches."""
        step = self.micro_batch * self.accumulation * self.world
        return -(-len(self.labelled) // step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = stratified_order(self.labelled, self.seed, self.epoch)
        step = self.micro_batch * self.accumulation * self.world
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            batches = batches_by_length(self.extents[rows], self.micro_batch, self.world)
            share = [rows[batch].tolist() for batch in rank_share(batches, self.rank, self.world)]
            share += [[]] * (self.accumulation - len(share))
            filler = [unlabelled(int(self.extents.sum(axis=1).argmin()))] if [] in share else []
            yield from (batch or filler for batch in share)


class StepDataset(Dataset[dict[str, Any]]):
    """Tokenized comparisons by row number; `unlabelled(i)` gives row i with every preference missing."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch of rows in one look into the table: the DataLoader asks for this where it is there."""
        places = [index if index >= 0 else unlabelled(index) for index in indices]
        rows = self.rows.__getitems__(places)
        return [row if index >= 0 else _blank(row) for row, index in zip(rows, indices, strict=True)]


def _blank(row: dict[str, Any]) -> dict[str, Any]:
    blank = {"preferences": [float("nan")] * len(row["preferences"])}
    if "count_only" in row:
        blank["count_only"] = [False] * len(row["preferences"])
    return {**row, **blank}


class StepLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose epoch reaches the sampler: the trainer sets it through `set_epoch`."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def count_labels(batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(m,) float64: comparisons that each objective's mean is over, in a step's micro-batches of this rank."""
    counts = []
    for batch in batches:
        counted = ~batch["preferences"].isnan()
        if "count_only" in batch:
            counted = counted | batch["count_only"]
        counts.append(counted.sum(0).double())
    return torch.stack(counts).sum(0)
