"""The reference's log-probabilities of a whole data set, before training: all ranks share the work, the disk keeps it.

Every rank scores its share of the same batches and writes what it has about once a minute. Which rows make a batch
depends on the data alone, so a run that was killed, or that goes on with more ranks, gets the same numbers bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from paretune.comparisons.batches import to_device
from paretune.comparisons.lengths import batches_by_length, extents, part_lengths, rank_share
from paretune.errors import InputError
from paretune.policy.reference import Reference, reference_logprobs
from paretune.policy.reference_cache import WHOLE, cache_folder, model_fingerprint, read_parts, write_part, write_whole
from paretune.training.config import RACOConfig
from paretune.training.data import TokenizedData
from paretune.training.sampler import StepDataset

FLUSH_SECONDS = 60.0  # of work that a killed run loses at most; a part is written in milliseconds
COLUMNS = ["ref_a", "ref_b"]


def with_reference(
    data: TokenizedData,
    reference: Reference,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    args: RACOConfig,
    autocast: Callable[[], Any],
    say: Callable[[str], None],
    name: str,
) -> Dataset:
    """The rows with columns ref_a and ref_b (nats, float64), from the cache on disk as far as it has them.

    The cache is keyed by the reference's weights and configuration, the tokens and their order, the layout, and the
    precision they are scored in.

    Args:
        data: tokenized comparisons.
        reference: of kind "adapter" or "copy"; for any other the rows are returned as they are.
        collate: rows to a batch.
        args: of the run (`eval_batch_size`, ranks, device, `disable_tqdm`, workers).
        autocast: entered around each forward pass.
        say: takes what has to be said once.
        name: of the data set, for the progress bar.

    Raises:
        InputError: a cache that cannot be written, or log-probabilities that are not finite.
    """
    if reference.model is None or reference.scorer is None:
        return data.rows
    rows = data.rows.remove_columns([c for c in COLUMNS if c in data.rows.column_names])
    folder = cache_folder(_settings(data, reference, args, autocast))
    values, damaged = read_parts(folder, len(rows))
    if damaged:
        say(f"{name} data: damaged parts of the reference cache were removed, their rows are scored again ({folder})")
    values = over_ranks(values, args.device)
    taken = extents(part_lengths(rows), reference.scorer.layout)
    missing = values.isnan().any(dim=0).numpy()
    todo = [batch for batch in batches_by_length(taken, args.eval_batch_size) if missing[batch].any()]
    if todo:
        computed = _score(rows, todo, reference, collate, args, autocast, folder, name)
        values = over_ranks(torch.where(computed.isnan(), values, computed), args.device)
    if args.local_process_index == 0 and [path.name for path in folder.glob("*.safetensors")] != [WHOLE]:
        write_whole(folder, values)
    for column, side in zip(COLUMNS, values.numpy(), strict=True):
        rows = rows.add_column(column, side)
    return rows


def _settings(
    data: TokenizedData, reference: Reference, args: RACOConfig, autocast: Callable[[], Any]
) -> dict[str, Any]:
    model: Any = reference.model
    kind = args.device.type
    with autocast():
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "plain"
    own = reference.kind == "copy"
    return {
        "model": model_fingerprint(model if own else model.get_base_model(), adapters=own),
        "data": data.fingerprint,
        "precision": [precision, torch.get_float32_matmul_precision()],
        "layout": reference.scorer.layout if reference.scorer else None,
    }


def _score(
    rows: Dataset,
    todo: list[np.ndarray],
    reference: Reference,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    args: RACOConfig,
    autocast: Callable[[], Any],
    folder: Any,
    name: str,
) -> Tensor:
    """(2, rows) float64, what this rank computed of these batches, which is on disk too; NaN elsewhere."""
    values = torch.full((2, len(rows)), float("nan"), dtype=torch.float64)
    world = args.world_size
    share = rank_share(todo, args.process_index, world)
    at_once = [sum(map(len, todo[i : i + world])) for i in range(0, len(todo), world)]  # rows of all ranks
    loader = DataLoader(
        StepDataset(rows),
        batch_sampler=[batch.tolist() for batch in share if len(batch)],
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )
    pending: list[tuple[np.ndarray, Tensor]] = []
    written = -FLUSH_SECONDS  # the first batch at once: a cache that cannot be written shows before the work is done
    with tqdm(
        desc=f"reference of {name} data",
        total=len(rows),
        initial=len(rows) - sum(at_once),
        unit=" rows",
        dynamic_ncols=True,
        disable=bool(args.disable_tqdm) or args.process_index != 0,
    ) as bar:
        for batch, places, count in zip(loader, share, at_once, strict=False):
            with autocast():
                scores = reference_logprobs(reference, to_device(batch, args.device))
            if scores is None:
                raise ValueError("nothing to precompute without a reference")
            pending.append((places, torch.stack(scores)))  # stays on the device: asking for it would wait for it
            bar.update(count)
            if time.monotonic() - written >= FLUSH_SECONDS:
                _keep(pending, values, folder)
                pending, written = [], time.monotonic()
        _keep(pending, values, folder)
        bar.update(len(rows) - bar.n)
    return values


def _keep(pending: list[tuple[np.ndarray, Tensor]], values: Tensor, folder: Any) -> None:
    """Puts what was computed since the last time into `values` and on disk."""
    if not pending:
        return
    position = torch.from_numpy(np.concatenate([places for places, _ in pending]))
    part = torch.cat([scores.double() for _, scores in pending], dim=1).cpu()
    broken = ~part.isfinite().all(dim=0)
    if bool(broken.any()):
        raise InputError(
            "the reference gives log-probabilities that are not finite",
            where=f"row {int(position[broken][0])} and {int(broken.sum()) - 1} more",
            fix="Its weights, or its dtype: bfloat16 has the range that float16 lacks.",
        )
    values[:, position] = part
    write_part(folder, position, part)


def over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The values that any rank has, NaN where none has one; the same tensor on every rank."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    known = values.nan_to_num(nan=-torch.inf).to(device)
    dist.all_reduce(known, op=dist.ReduceOp.MAX)
    return torch.where(known == -torch.inf, torch.nan, known).cpu()
