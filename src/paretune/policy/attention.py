"""Prompt-shared attention, registered with transformers under the name "paretune".

A shared row is `prefix | one side | the other` (see comparisons/batches.py): the prefix attends causally to itself,
each side to the row's own prefix and causally to itself, never to the other side. The model's forward is called with
the keyword `paretune_blocks`, which models pass through to the attention function; without it (flat rows, `generate`)
the function *is* transformers' sdpa. A dummy 4-D attention mask goes along, because transformers returns such a mask as
it is: no T x T mask is built. (Real 4-D masks are a trap: a boolean one is silently wrong with eager attention, which
adds it, and any 4-D mask silently removes sliding windows.)

The implementation is read from the config at every call, also when gradient checkpointing recomputes a layer during
backward, so it is set on the model for good (`use_paretune_attention`), never for the length of a forward.

Shape suffixes: R rows, H query heads, G key/value heads, T columns, D head size; P, A, B widths of the three blocks
(A and B of the longer and the shorter side).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "paretune"

# Entries of a response mask (13 bytes each, while it is made) from which long responses do without one.
_MOST_MASKED = 1 << 26
# Queries of a windowed prefix are taken in pieces of at most this many, so their mask stays (512, 512 + window).
_PIECE = 512


@dataclass(eq=False)
class Blocks:
    """Where the three blocks of a shared batch lie, and the small masks made for it, once each.

    Args:
        widths: P, A, B in columns.
        prefix_lengths: (R,) int64, real tokens of each row's prefix.
        shortest: smallest of prefix_lengths, as a Python number (one transfer per batch, not one per layer).
        windows_seen: the window of every attention call, noted when not None (the eligibility check asks for it).
    """

    widths: tuple[int, int, int]
    prefix_lengths: Tensor
    shortest: int
    windows_seen: list[int | None] | None = None
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)


def blocks_of(batch: dict[str, Any]) -> Blocks:
    """The `paretune_blocks` of a shared batch."""
    return Blocks(batch["block_widths"], batch["prefix_lengths"], batch["shortest_prefix"])


def shared_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Keywords for a model's forward on a shared batch."""
    rows = batch["input_ids"].shape[0]
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": torch.ones(rows, 1, 1, 1, dtype=torch.bool, device=batch["input_ids"].device),
        "use_cache": False,
        "paretune_blocks": blocks_of(batch),
    }


def flat_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Keywords for a model's forward on a flat batch."""
    return {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")} | {"use_cache": False}


def paretune_attention(
    module: nn.Module,
    query: Tensor,  # (R, H, T, D)
    key: Tensor,  # (R, G, T, D)
    value: Tensor,  # (R, G, T, D)
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    paretune_blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (R, T, H, D) and no attention weights.

    Raises:
        ValueError: a shared batch with soft-capped scores, sinks or a position bias, which sdpa cannot express.
    """
    if paretune_blocks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"prompt-shared attention does not know `{name}`; use the flat layout")
    window = kwargs.get("sliding_window")
    if paretune_blocks.windows_seen is not None:
        paretune_blocks.windows_seen.append(window)
    output = shared_attention(query, key, value, paretune_blocks, window=window, dropout=dropout, scaling=scaling)
    return output.transpose(1, 2).contiguous(), None


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """(R, H, T, D): attention of a shared batch; a key is seen at distances 0 … window-1 only.

    Sides much shorter than the prompt are answered in one call, in which they see each other only as masked keys;
    longer ones in a call each, because that masked part would cost more than copying the prompt's keys.
    benchmarks/attention.py measures the choice against merging partial results by their logsumexp and against explicit
    products.
    """
    width_p, width_a, width_b = blocks.widths
    total = width_p + width_a + width_b
    options: dict[str, Any] = {"dropout": dropout, "scaling": scaling}
    if window is not None and window >= width_p + max(width_a, width_b):
        window = None  # nothing is that far apart
    if window is None and (width_a + width_b) * total > _MOST_MASKED:
        return _unmasked(query, key, value, blocks, options)
    # on a GPU copying costs more than what is masked, whatever the lengths
    apart = query.device.type == "cpu" and 4 * width_a * width_b > (width_a + width_b) * width_p
    # split, not slices: its backward pass writes a gradient once, where each slice's writes zeros all around
    queries = query.split((width_p, width_a, width_b) if apart else (width_p, width_a + width_b), dim=2)
    prefix_key, prefix_value = key[:, :, :width_p], value[:, :, :width_p]
    if window is None or window >= width_p:
        parts = [_attend(queries[0], prefix_key, prefix_value, None, **options)]
    else:
        parts = _windowed_prefix(queries[0], prefix_key, prefix_value, blocks, window, options)
    # Prefix columns before `low` are beyond every response's window.
    low = 0 if window is None else min(width_p, max(0, blocks.shortest - window + 1))
    start_b = width_p + width_a
    spans: list[tuple[tuple[int, int], tuple[tuple[int, int], ...]]]
    if apart:
        spans = [((width_p, start_b), ((low, start_b),)), ((start_b, total), ((low, width_p), (start_b, total)))]
    else:
        spans = [((width_p, total), ((low, total),))]
    for asking, (columns, keys) in zip(queries[1:], spans, strict=True):
        mask = _response_mask(blocks, columns, keys, window, query)
        parts.append(_attend(asking, _columns(key, keys), _columns(value, keys), mask, **options))
    # the kernels leave (R, T, H, D) in memory, and the model wants it so: joined there, nothing is copied twice
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def _unmasked(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, options: dict[str, Any]) -> Tensor:
    """The same for long responses, whose mask would take gigabytes: each side causal behind its prompt, as flat rows.

    The prompt is answered once for each side. Rows of different prompts go one by one, each without its padding.
    """
    width_p, width_a, width_b = blocks.widths
    padded = blocks.shortest < width_p
    lengths = blocks.prefix_lengths.tolist() if padded else [width_p]
    rows = []
    for i, length in enumerate(lengths):
        row = slice(i, i + 1) if padded else slice(None)
        sides = []
        for start, width in ((width_p, width_a), (width_p + width_a, width_b)):
            columns = ((0, length), (start, start + width))
            asking, keys, values = (_columns(part[row], columns) for part in (query, key, value))
            sides.append(_attend(asking, keys, values, None, **options))
        prefix = functional.pad(sides[0][:, :, :length], (0, 0, 0, width_p - length))
        rows.append(torch.cat([prefix, *(side[:, :, length:] for side in sides)], dim=2))
    return torch.cat(rows)


def _columns(states: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    pieces = [states[:, :, slice(*columns)] for columns in ranges if columns != (0, states.shape[2])] or [states]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float, scaling: float | None
) -> Tensor:
    """sdpa; causal where no mask is given."""
    groups = query.shape[1] // key.shape[1]
    # The CPU kernel reads grouped heads in place, with and without a mask. On CUDA only the flash kernel does: half
    # precision, no mask; anything else would fall back to writing out all scores, so heads are repeated there.
    in_place = query.device.type == "cpu" or (mask is None and query.dtype in (torch.float16, torch.bfloat16))
    if groups > 1 and not in_place:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=groups > 1 and in_place,
    )


def _windowed_prefix(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, window: int, options: dict[str, Any]
) -> list[Tensor]:
    """A prefix longer than the window: the first window causally, then pieces of queries against a band of keys."""
    width = query.shape[2]
    parts = [_attend(query[:, :, :window], key[:, :, :window], value[:, :, :window], None, **options)]
    piece = min(max(window, 64), _PIECE)
    for start in range(window, width, piece):
        stop = min(start + piece, width)
        low = start - window + 1
        band = _band_mask(blocks, piece, window, query)[..., : stop - start, : stop - low]
        keys = slice(low, stop)
        parts.append(_attend(query[:, :, start:stop], key[:, :, keys], value[:, :, keys], band, **options))
    return parts


def _band_mask(blocks: Blocks, piece: int, window: int, like: Tensor) -> Tensor:
    """(1, 1, piece, piece + window - 1): query i sees keys i … i + window - 1."""
    name = ("band", piece, window, like.dtype, like.device)
    if name not in blocks.masks:
        ahead = torch.arange(piece + window - 1, device=like.device) - torch.arange(piece, device=like.device)[:, None]
        blocks.masks[name] = _additive((ahead >= 0) & (ahead < window), like)[None, None]
    return blocks.masks[name]


def _response_mask(
    blocks: Blocks,
    queries: tuple[int, int],
    keys: tuple[tuple[int, int], ...],
    window: int | None,
    like: Tensor,
) -> Tensor:
    """(R or 1, 1, queries, keys), additive: what response columns see, by true positions."""
    name = ("response", queries, keys, window, like.dtype, like.device)
    if name not in blocks.masks:
        width_p, width_a, width_b = blocks.widths
        lengths = blocks.prefix_lengths.to(like.device)
        if blocks.shortest == width_p:
            lengths = lengths[:1]  # no padding: one mask for all rows
        column = torch.arange(width_p + width_a + width_b, device=like.device)
        block = (column >= width_p).long() + (column >= width_p + width_a).long()
        start = width_p * (block > 0) + width_a * (block > 1)  # no table: copying one to the device waits for it
        # (R, T): the padding of the prefix never counts, whatever its position would be.
        position = column - start + torch.where(block > 0, lengths[:, None], 0)
        real = (block > 0) | (column < lengths[:, None])
        key_columns = torch.cat([column[slice(*part)] for part in keys])
        query_columns = column[slice(*queries)]
        distance = position[:, query_columns, None] - position[:, None, key_columns]
        seen = (block[key_columns] == 0) | (block[key_columns] == block[query_columns, None])
        visible = seen & real[:, None, key_columns] & (distance >= 0)
        if window is not None:
            visible &= distance < window
        blocks.masks[name] = _additive(visible, like)[:, None]
    return blocks.masks[name]


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where visible, -inf elsewhere: sdpa would convert a boolean mask anew in every layer."""
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))


AttentionInterface.register(ATTENTION_NAME, paretune_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, adapters in place; the model itself otherwise."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"expected a transformers model, found {type(inner).__name__}")
    return inner


def use_paretune_attention(model: nn.Module) -> str:
    """Sets this attention on the model for good; returns the name of the one it replaces.

    `base_model(model).set_attn_implementation(name)` puts that one back.
    """
    base = base_model(model)
    previous: str = base.config._attn_implementation
    base.set_attn_implementation(ATTENTION_NAME)
    return previous
