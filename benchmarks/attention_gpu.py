"""Prompt-shared attention on a GPU: forward and backward of one layer, ours against the other ways of doing it.

    python benchmarks/attention_gpu.py           # writes benchmarks/results/attention-gpu.json

bfloat16; heads as in Qwen3-0.6B (16 query, 8 key/value heads of 128). Ways, checked to agree before they are timed:
`ours` (three or two sdpa calls over padded blocks), `varlen` (one call of torch's flash kernel for ragged sequences:
prefix, a and b of every row, keys of the prefix gathered three times; no padding is computed), `flex` (FlexAttention,
compiled, its block mask made once and not counted), and `flat` (the 2R flat rows by sdpa's flash kernel without any
mask: what attention costs without sharing, at its best). Interleaved; medians and quartiles in milliseconds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from paretune.policy.attention import Blocks, shared_attention
from paretune.training.record import commit, versions

HEADS, GROUPS, SIZE = 16, 8, 128
SHAPES = {"tldr": (384, 48, 16), "chat": (128, 256, 16), "long": (1536, 128, 4)}  # prompt, response, rows

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def places(widths: tuple[int, int, int], lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Columns (in the flattened batch) of the queries and the keys of every segment: prefix, a, b of each row."""
    width_p, width_a, width_b = widths
    queries, keys = [], []
    for row, length in enumerate(lengths):
        start = row * sum(widths)
        prefix = list(range(start, start + length))
        a = list(range(start + width_p, start + width_p + width_a))
        b = list(range(start + width_p + width_a, start + sum(widths)))
        queries += [prefix, a, b]
        keys += [prefix, prefix + a, prefix + b]
    return queries, keys


def varlen_way(widths: tuple[int, int, int], lengths: list[int]) -> Way:
    """Ragged segments by torch's own kernel, packed and unpacked around it."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys = places(widths, lengths)
    take_q, take_k = (torch.tensor(sum(parts, []), device="cuda") for parts in (queries, keys))
    bounds = [
        F.pad(torch.tensor([len(part) for part in parts], device="cuda").cumsum(0), (1, 0)).int()
        for parts in (queries, keys)
    ]
    longest = [max(map(len, parts)) for parts in (queries, keys)]
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True

    def way(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, _, total, _ = query.shape
        q, k, v = (t.transpose(1, 2).reshape(rows * total, -1, SIZE) for t in (query, key, value))
        k, v = k[take_k], v[take_k]
        if "enable_gqa" not in known:
            k, v = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (k, v))
        found = varlen_attn(q[take_q], k, v, *bounds, *longest, **options)
        out = torch.zeros_like(q).index_copy(0, take_q, found)
        return out.view(rows, total, HEADS, SIZE).transpose(1, 2)

    return way


def flex_way(widths: tuple[int, int, int], lengths: list[int]) -> Way:
    """FlexAttention with the same visibility."""
    total, device = sum(widths), "cuda"
    column = torch.arange(total, device=device)
    block = (column >= widths[0]).long() + (column >= widths[0] + widths[1]).long()
    reach = torch.tensor(lengths, device=device)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        real = (block[k] > 0) | (k < reach[batch]) | (block[q] == 0)
        return (k <= q) & real & ((block[k] == 0) | (block[k] == block[q]))

    mask = create_block_mask(seen, len(lengths), None, total, total, device=device)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def states(rows: int, total: int) -> list[Tensor]:
    shapes = [(rows, total, heads, SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    made = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    return [t.transpose(1, 2).detach().requires_grad_() for t in made]


def agree(ways: dict[str, Way], inputs: list[Tensor], real: Tensor) -> dict[str, float]:
    """Each way's relative 2-norm difference from ours, outputs and gradients together, at most."""
    errors, truth = {}, None
    for name, way in ways.items():
        output = way(*inputs).masked_fill(~real, 0.0)
        found = [t.float() for t in (output.detach(), *torch.autograd.grad(output.float().sin().sum(), inputs))]
        truth = truth or found
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))
    return errors


def milliseconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(first.elapsed_time(last))
    return {name: [float(f"{cut:.4g}") for cut in statistics.quantiles(t, n=4)] for name, t in times.items()}


def case(prompt: int, response: int, rows: int, ragged: bool, rounds: int) -> dict[str, Any]:
    widths = (prompt, response, response)
    lengths = [prompt - (prompt * i // (2 * rows) if ragged else 0) for i in range(rows)]
    blocks = Blocks(widths, torch.tensor(lengths, device="cuda"), min(lengths))
    ways: dict[str, Way] = {"ours": lambda q, k, v: shared_attention(q, k, v, blocks)}
    notes: dict[str, str] = {}
    inputs = states(rows, sum(widths))
    for name, make in (("varlen", varlen_way), ("flex", flex_way)):
        try:
            way = make(widths, lengths)
            torch.autograd.grad(way(*inputs).float().sum(), inputs)
            ways[name] = way
        except Exception as error:  # a way that this PyTorch or this GPU lacks is a finding, not a failure
            notes[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    column = torch.arange(sum(widths), device="cuda")
    real = ((column >= prompt) | (column[None] < blocks.prefix_lengths[:, None]))[:, None, :, None]
    errors = agree(ways, inputs, real)
    seed, flat = torch.randn_like(inputs[0]), states(2 * rows, prompt + response)
    flat_seed = torch.randn_like(flat[0])

    def timed(way: Way, given: list[Tensor], upstream: Tensor) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(way(*given), given, upstream)

        return run

    runs = {name: timed(way, inputs, seed) for name, way in ways.items()}
    causal: Way = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
    runs["flat"] = timed(causal, flat, flat_seed)
    return {
        "rows": rows,
        "widths": widths,
        "ragged": ragged,
        "ms": milliseconds(runs, rounds),
        "differs": errors,
        "notes": notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention-gpu.json")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "command": "python benchmarks/attention_gpu.py " + " ".join(sys.argv[1:]),
        "commit": options.commit or commit(),
        "machine": torch.cuda.get_device_name(),
        "versions": versions(),
        "heads": {"query": HEADS, "key/value": GROUPS, "size": SIZE},
        "cases": {},
    }
    for name, shape in SHAPES.items():
        for ragged in (False, True):
            title = name + (", prompts of half to full length" if ragged else "")
            found = record["cases"][title] = case(*shape, ragged, options.rounds)
            print(title, {way: cut[1] for way, cut in found["ms"].items()}, found["differs"], found["notes"])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
