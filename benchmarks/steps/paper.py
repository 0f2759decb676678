"""The floor on paper: operations and bytes of one optimizer step, and of its peak memory, from config and shape alone.

Counted are what no implementation of the same arithmetic avoids: the products of the linear layers, attention and head,
each tensor between them written once and read once, and the passes over gradients and optimizer state. Not counted are
norms, activations, rotations, dispatch: on a CPU these are half of a step and more, so a measured ratio can be on
either side of the one on paper.

Letters: h hidden, a query heads x head size, k key/value heads x head size, f intermediate, V vocabulary, G trained
weights, R rows, M objectives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.steps.contestants import objectives_of
from benchmarks.steps.models import RANK, SIZES, Case, Size

LOGITS_BYTES = 256 << 20  # paretune.policy.logprobs: more logits than this are computed twice instead of kept


@dataclass(frozen=True)
class Work:
    """Of a step: the pass through the model, and what follows over gradients and optimizer state."""

    flops: float
    bytes: float
    gradient_flops: float
    gradient_bytes: float


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: operations of a large matrix product, bytes of a large copy."""

    flops: float
    bytes: float


def linear_shapes(size: Size) -> list[tuple[int, int]]:
    """(inputs, outputs) of one layer's linear layers."""
    h, f = size.hidden_size, size.intermediate_size
    a, k = size.num_attention_heads * size.head_dim, size.num_key_value_heads * size.head_dim
    return [(h, a), (h, k), (h, k), (a, h), (h, f), (h, f), (f, h)]


def trained_weights(case: Case) -> int:
    """G: adapters, or everything but the norms, which are small."""
    size = SIZES[case.size]
    shapes = linear_shapes(size)
    if not case.full:
        return size.num_hidden_layers * RANK * sum(i + o for i, o in shapes)
    tables = size.vocab_size * size.hidden_size * (1 if size.tie_word_embeddings else 2)
    return size.num_hidden_layers * sum(i * o for i, o in shapes) + tables


def is_flat(name: str) -> bool:
    """Whether each response is a row with a prompt of its own."""
    return name == "trl" or name == "scalar-flat" or name.startswith("naive")


def tokens(name: str, case: Case) -> int:
    prompt, response = case.lengths
    return case.comparisons * (2 * (prompt + response) if is_flat(name) else prompt + 2 * response)


def pairs_attended(name: str, case: Case) -> int:
    """Query and key pairs of one head and layer."""
    prompt, response = case.lengths
    one = response * prompt + response * (response + 1) // 2
    prompts = prompt * (prompt + 1) // 2
    return case.comparisons * (2 * (prompts + one) if is_flat(name) else prompts + 2 * one)


def scored(name: str, case: Case) -> int:
    """Positions whose logits are computed; TRL 1.16 takes all where there is no Triton (utils.py, `compact`)."""
    prompt, response = case.lengths
    everywhere = name == "trl" and case.device == "cpu"
    return 2 * case.comparisons * (prompt + response - 1 if everywhere else response)


def logits_recomputed(name: str, case: Case) -> bool:
    """Whether the backward pass computes logits once more: TRL always, ours where they would not fit the bound."""
    return name == "trl" or 4 * scored(name, case) * SIZES[case.size].vocab_size > LOGITS_BYTES


def work(name: str, case: Case) -> Work:
    """Operations and bytes of one step."""
    size, m = SIZES[case.size], objectives_of(name)
    t, s, layers, width = tokens(name, case), scored(name, case), size.num_hidden_layers, case.dtype.itemsize
    if case.device == "cuda":
        width = 2  # autocast
    a, h = size.num_attention_heads * size.head_dim, size.hidden_size
    weights = layers * sum(i * o for i, o in linear_shapes(size))
    adapters = 0 if case.full else trained_weights(case)
    head = size.vocab_size * h
    attention = layers * 4 * a * pairs_attended(name, case)
    linear, on_head = 2 * t * (weights + adapters), 2 * s * head
    forward = linear + attention + on_head
    # to the inputs: as much as forward, attention twice (two products become four); to the trained weights: once more
    backward = linear + 2 * attention + on_head * (2 if logits_recomputed(name, case) else 1)
    to_weights = 2 * t * (weights if case.full else adapters) + (on_head if case.full else 0)
    passes = m if name.startswith("naive") else 2 if name.startswith("twopass") else 1
    moved = t * layers * sum(i + o for i, o in linear_shapes(size)) * width + s * size.vocab_size * 4
    read = (weights + head) * width
    body_bytes = moved + read + passes * (2 * moved + read)
    gradient_flops, gradient_bytes = gradient_work(name, case)
    return Work(forward + passes * (backward + to_weights), body_bytes, gradient_flops, gradient_bytes)


def gradient_work(name: str, case: Case) -> tuple[float, float]:
    """Operations and bytes of what becomes of weight gradients: in float32, written and read as seldom as can be."""
    G, m, rows = trained_weights(case), objectives_of(name), case.comparisons
    kept = m if name.startswith("naive") else min(m, rows)  # never more gradients than rows
    plain = 4.0 * G * (1 + 1 + 2 + 7)  # written, its norm, clipped, then AdamW: four read and three written
    if name == "trl" or name.startswith("scalar"):
        return 16.0 * G, plain
    if name.startswith("twopass"):  # the Gram of each layer's row gradients, which never leave it
        return 2.0 * G * rows * rows + 16 * G, plain
    mixed = 0 if name.startswith("naive") else 2.0 * G * kept * rows  # rows of gradients into the sums
    # written, read for the Gram and for the combination
    return mixed + 2.0 * G * (kept * kept + kept) + 16 * G, plain + 4.0 * G * 3 * kept


def seconds_on_paper(name: str, case: Case, rates: Rates) -> float:
    """The slower of operations and bytes, for the pass through the model and for what follows it."""
    w = work(name, case)
    body = max(w.flops / rates.flops, w.bytes / rates.bytes)
    return body + max(w.gradient_flops / rates.flops, w.gradient_bytes / rates.bytes)


def peak_on_paper(name: str, case: Case) -> int:
    """Bytes above model and optimizer at the end of the forward pass, and of the step, whichever is more."""
    size, m = SIZES[case.size], objectives_of(name)
    h, f = size.hidden_size, size.intermediate_size
    a, k = size.num_attention_heads * size.head_dim, size.num_key_value_heads * size.head_dim
    # inputs of two norms and of the layers behind them; queries, keys, values, before and after their norm; attention's
    # output; of the gated block gate, its activation, up and their product
    kept = 4 * h + (a + 2 * k) + (a + k) + a + 4 * f
    kept += 2 * h + a + k if case.full else 0  # the gain's own gradient needs the normed states
    width = 2 if case.device == "cuda" else 4
    activations = tokens(name, case) * (size.num_hidden_layers * kept + 2 * h) * width
    tile = 4 * scored(name, case) * size.vocab_size
    logits = min(tile, LOGITS_BYTES) if logits_recomputed(name, case) else 2 * tile
    G = 4 * trained_weights(case)
    stays = G * m if name.startswith("naive") else G * min(m, case.comparisons) if name.startswith("ours") else 0
    return stays + max(activations + logits, G)


def machine_rates(device: str) -> Rates:
    """Measured in a second: the best of several large products and copies."""
    n, count = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x, y = torch.randn(2, n, n, device=device, dtype=dtype)
    source = torch.zeros(count, device=device)
    product, copied = _best(lambda: x @ y, device), _best(lambda: source.clone(), device)
    return Rates(2.0 * n**3 / product, 8.0 * count / copied)


def _best(call: Any, device: str) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
