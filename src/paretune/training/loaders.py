"""This rank's batches, in training and in evaluation: rows of similar length together, each row once over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from paretune.comparisons.batches import Layout, collate
from paretune.comparisons.lengths import batches_by_length, extents, part_lengths, rank_share
from paretune.training.config import RACOConfig
from paretune.training.data import TokenizedData
from paretune.training.sampler import StepDataset, StepLoader, StepSampler, unlabelled

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def collate_rows(rows: list[dict[str, Any]], *, layout: Layout, pad_id: int) -> dict[str, Tensor]:
    """A batch of tokenized rows, with the columns that only training has: a scored reference, counts without labels."""
    batch = collate(rows, layout=layout, pad_id=pad_id)
    for key in ("ref_a", "ref_b"):
        if key in rows[0]:
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.float64)
    if "count_only" in rows[0]:
        batch["count_only"] = torch.tensor([row["count_only"] for row in rows])
    return batch


def train_loader(
    dataset: StepDataset, data: TokenizedData, layout: Layout, collate: Collate, args: RACOConfig
) -> DataLoader:
    """This rank's micro-batches; the step, not the rank, decides which rows it sees."""
    sampler = StepSampler(
        data.labelled,
        extents(part_lengths(data.rows), layout),
        micro_batch=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        rank=args.process_index,
        world=args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
    return StepLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers,
    )


def eval_loader(
    dataset: StepDataset, layout: Layout, collate: Collate, args: RACOConfig, *, filled: bool = False
) -> DataLoader:
    """This rank's share of the rows, each once, those of one length together.

    Args:
        filled: a rank whose share is a batch short gets one row without labels: ranks of a sharded model take every
            forward pass together.
    """
    taken = extents(part_lengths(dataset.rows), layout)
    batches = batches_by_length(taken, args.eval_batch_size, args.world_size)
    filler = [unlabelled(int(taken.sum(axis=1).argmin()))] if filled else []
    share = [batch.tolist() or filler for batch in rank_share(batches, args.process_index, args.world_size)]
    share = [batch for batch in share if batch]
    return DataLoader(dataset, batch_sampler=share, collate_fn=collate)
