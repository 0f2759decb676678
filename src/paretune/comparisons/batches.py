"""Collation: tokenized comparisons in, one padded batch out, in the prompt-shared or the flat layout.

Shape suffixes: R rows of the model input, N comparisons, T columns, K scored entries per row, m objectives.

Shared (R = N): a row is `[0:P) prefix | [P:P+A) one side | [P+A:P+A+B) the other`, each part padded on its right;
positions of both sides go on where the row's own prefix ended, so the last looks as if the one before were not there.
The side with more tokens comes first, whichever it is: long sides are padded to long ones, short ones to short. Flat
(R = 2N): rows 0..N-1 are the whole sequences of side a, rows N..2N-1 those of side b, padded on the right.

A *scored entry* is (column, target): the hidden state at `column` predicts `target`. The last prefix column predicts
the first token of both sides, so in the shared layout one column may appear in two entries; a token that both responses
begin with lies in the prefix and is one entry that counts for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError

Layout = Literal["shared", "flat"]


class Entry(NamedTuple):
    """One scored token: where its prediction is read, which token it is, for which sides it counts."""

    column: int
    target: int
    a: bool
    b: bool


def collate(rows: Sequence[dict[str, Any]], *, layout: Layout, pad_id: int) -> dict[str, Any]:
    """Pads N tokenized comparisons to the longest of the batch.

    Args:
        rows: outputs of `tokenize_comparisons`: prefix_ids, a_ids, b_ids, a_start, b_start, preferences, index.
        layout: "shared" or "flat".
        pad_id: token written into padding; it is never attended to by a scored token nor scored.

    Returns:
        Both layouts: input_ids, position_ids (R, T) int64; score_positions, score_targets (R, K) int64; score_a,
        score_b (R, K) bool; preferences (N, m) float64, NaN = missing, and offsets, the same, where rows have them;
        index, a_tokens, b_tokens (N,) int64, the latter two in scored tokens. Flat adds attention_mask (R, T) int64;
        shared adds prefix_lengths, first_lengths, second_lengths (R,) int64. And plain numbers, known before the batch
        moves to a device, so that nobody has to wait for one: real_tokens, those that are not padding; shared adds
        block_widths = (P, A, B) and shortest_prefix.

    Raises:
        InputError: no rows, an empty part, or a side without a scored token.
    """
    if not rows:
        raise InputError("an empty batch", expected="at least one comparison")
    for row in rows:
        _check(row)
    if layout == "shared":
        batch, entries = _shared(rows, pad_id)
    elif layout == "flat":
        batch, entries = _flat(rows, pad_id)
    else:
        raise InputError("unknown layout", expected="'shared' or 'flat'", found=layout)
    batch["real_tokens"] = _real_tokens(batch)
    batch.update(_scores(entries))
    batch["preferences"] = torch.tensor([list(row["preferences"]) for row in rows], dtype=torch.float64)
    for column in {"offsets", "weights"} & rows[0].keys():
        batch[column] = torch.tensor([list(row[column]) for row in rows], dtype=torch.float64)
    batch["index"] = _integers([row["index"] for row in rows])
    batch["a_tokens"] = _integers([_length(row, "a") - row["a_start"] for row in rows])
    batch["b_tokens"] = _integers([_length(row, "b") - row["b_start"] for row in rows])
    return batch


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors there, without waiting for it; numbers stay as they are."""
    ahead = device.type == "cuda"  # other devices do not order a copy before what uses it
    return {n: part.to(device, non_blocking=ahead) if isinstance(part, Tensor) else part for n, part in batch.items()}


def _real_tokens(batch: dict[str, Any]) -> int:
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(sum(batch[key].sum() for key in ("prefix_lengths", "first_lengths", "second_lengths")))


def _check(row: dict[str, Any]) -> None:
    where = f"comparison {row.get('index')}"
    for part in ("prefix_ids", "a_ids", "b_ids"):
        if len(row[part]) == 0:
            raise InputError(f"{part} is empty", where=where, expected="at least one token")
    for side in ("a", "b"):
        start, length = row[f"{side}_start"], _length(row, side)
        if not 1 <= start < length:
            raise InputError(
                f"{side}_start leaves no token to score", where=where, expected=f"1 to {length - 1}", found=start
            )


def _length(row: dict[str, Any], side: str) -> int:
    return len(row["prefix_ids"]) + len(row[f"{side}_ids"])


def _integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _padded(sequences: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(R, longest) int64, right padded."""
    width = max(len(sequence) for sequence in sequences)
    return _integers([[*sequence, *[pad] * (width - len(sequence))] for sequence in sequences])


def _shared(rows: Sequence[dict[str, Any]], pad_id: int) -> tuple[dict[str, Any], list[list[Entry]]]:
    orders = [("a", "b") if len(row["a_ids"]) >= len(row["b_ids"]) else ("b", "a") for row in rows]
    ids = [[row["prefix_ids"] for row in rows]]
    ids += [[row[f"{order[place]}_ids"] for row, order in zip(rows, orders, strict=True)] for place in (0, 1)]
    parts = [_padded(part, pad_id) for part in ids]
    lengths = [_integers([len(sequence) for sequence in part]) for part in ids]
    widths = [part.shape[1] for part in parts]
    # Positions run on into the padding; they stay below the longest prefix + the longest response, but that can exceed
    # the longest real sequence, and a learned position table with it: hence the clamp to each part's own last position.
    ramps = [_ramp(width, part) for width, part in zip(widths, lengths, strict=True)]
    batch: dict[str, Any] = {
        "input_ids": torch.cat(parts, dim=1),
        "position_ids": torch.cat([ramps[0], *(lengths[0][:, None] + ramp for ramp in ramps[1:])], dim=1),
        "block_widths": tuple(widths),
        "shortest_prefix": int(lengths[0].min()),
        "prefix_lengths": lengths[0],
        "first_lengths": lengths[1],
        "second_lengths": lengths[2],
    }
    starts = (widths[0], widths[0] + widths[1])
    entries = [_shared_entries(row, dict(zip(o, starts, strict=True))) for row, o in zip(rows, orders, strict=True)]
    return batch, entries


def _ramp(width: int, lengths: Tensor) -> Tensor:
    """(R, width): 0, 1, …, length-1, length-1, …"""
    return torch.minimum(torch.arange(width)[None, :], lengths[:, None] - 1)


def _shared_entries(row: dict[str, Any], blocks: dict[str, int]) -> list[Entry]:
    """The row's scored entries, given the column at which each side's block starts."""
    prefix, length = row["prefix_ids"], len(row["prefix_ids"])
    a_start, b_start = row["a_start"], row["b_start"]
    entries = [Entry(t - 1, prefix[t], t >= a_start, t >= b_start) for t in range(min(a_start, b_start), length)]
    for side, start in (("a", a_start), ("b", b_start)):
        ids, block = row[f"{side}_ids"], blocks[side]
        for t in range(max(start - length, 0), len(ids)):
            column = length - 1 if t == 0 else block + t - 1
            entries.append(Entry(column, ids[t], side == "a", side == "b"))
    return entries


def _flat(rows: Sequence[dict[str, Any]], pad_id: int) -> tuple[dict[str, Any], list[list[Entry]]]:
    sides = [(row, side) for side in ("a", "b") for row in rows]
    sequences = [[*row["prefix_ids"], *row[f"{side}_ids"]] for row, side in sides]
    input_ids = _padded(sequences, pad_id)
    lengths = _integers([len(sequence) for sequence in sequences])
    columns = torch.arange(input_ids.shape[1])[None, :]
    batch = {
        "input_ids": input_ids,
        "position_ids": columns.expand(len(sequences), -1).contiguous(),
        "attention_mask": (columns < lengths[:, None]).long(),
    }
    entries = [
        [Entry(t - 1, sequence[t], side == "a", side == "b") for t in range(row[f"{side}_start"], len(sequence))]
        for (row, side), sequence in zip(sides, sequences, strict=True)
    ]
    return batch, entries


def _scores(entries: list[list[Entry]]) -> dict[str, Tensor]:
    """(R, K) tensors; a padding entry reads column 0 and counts for no side."""
    width = max(len(row) for row in entries)
    padding = Entry(0, 0, False, False)
    table = [[*row, *[padding] * (width - len(row))] for row in entries]
    return {
        "score_positions": _integers([[entry.column for entry in row] for row in table]),
        "score_targets": _integers([[entry.target for entry in row] for row in table]),
        "score_a": torch.tensor([[entry.a for entry in row] for row in table]),
        "score_b": torch.tensor([[entry.b for entry in row] for row in table]),
    }
