"""Prompt-shared attention on this machine: forward and backward, against flat rows and against other ways of doing it.

    python benchmarks/attention.py                # writes benchmarks/results/attention.json
    python benchmarks/attention.py --rounds 5     # a quick look

One thread unless --threads says otherwise: threads that wait for one another on a busy machine measure its other users.

Two parts. `attention`: one layer of a 512-wide model (8 heads of 64; 8 or 2 key/value heads), every way on the same
numbers, checked to agree before it is timed. `model`: log-probabilities and gradients of a whole small Llama. Ways are
interleaved, so that a busy moment of the machine falls on all of them, and medians are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.comparisons.batches import collate
from paretune.policy.attention import Blocks, shared_attention, use_paretune_attention
from paretune.policy.logprobs import Scorer, response_logprobs

HEADS, SIZE = 8, 64
ROWS = 4
WIDTHS = {"prompt 384, responses 48": (384, 48, 48), "prompt 128, responses 256": (128, 256, 256)}

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def repeated(states: Tensor) -> Tensor:
    return states.repeat_interleave(HEADS // states.shape[1], dim=1)


def visible(widths: tuple[int, int, int], lengths: Tensor) -> Tensor:
    """(R, 1, T, T): what a shared row sees, in full; prefix padding sees itself so that no row of scores is empty."""
    width_p, width_a, width_b = widths
    column = torch.arange(sum(widths))
    block = (column >= width_p).long() + (column >= width_p + width_a).long()
    causal = column[None, :] <= column[:, None]
    seen = causal & ((block[None, :] == 0) | (block[None, :] == block[:, None]))
    real = (column >= width_p)[None, :] | (column[None, :] < lengths[:, None])
    return (seen[None] & (real[:, None, :] | (column[:, None] < width_p)))[:, None]


def additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, -math.inf)


class Merged(torch.autograd.Function):
    """Prefix part and own part by the flash kernel, unmasked where it can be, merged by their logsumexp.

    Backward of each part takes the merged output and logsumexp: those make its probabilities the merged ones.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, padding: Tensor, widths: Any) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        spans = Merged.spans(widths)
        results = [
            kernel(query[:, :, q], key[:, :, k], value[:, :, k], 0.0, causal, attn_mask=padding if masked else None)
            for q, k, causal, masked in spans
        ]
        (first, first_lse), (shared, shared_lse), (own_a, lse_a), (own_b, lse_b) = results
        own, own_lse = torch.cat([own_a, own_b], 2), torch.cat([lse_a, lse_b], 2)
        lse = torch.logaddexp(shared_lse, own_lse)
        merged = shared * (shared_lse - lse).exp()[..., None] + own * (own_lse - lse).exp()[..., None]
        output, lse = torch.cat([first, merged], 2), torch.cat([first_lse, lse], 2)
        ctx.save_for_backward(query, key, value, output, lse, padding)
        ctx.widths = widths
        return output

    @staticmethod
    def spans(widths: tuple[int, int, int]) -> list[tuple[slice, slice, bool, bool]]:
        width_p, start_b, total = widths[0], widths[0] + widths[1], sum(widths)
        prefix, a, b = slice(0, width_p), slice(width_p, start_b), slice(start_b, total)
        return [
            (prefix, prefix, True, False),
            (slice(width_p, total), prefix, False, True),
            (a, a, True, False),
            (b, b, True, False),
        ]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (grad,) = outputs
        query, key, value, output, lse, padding = ctx.saved_tensors
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = [torch.zeros_like(part) for part in (query, key, value)]
        for q, k, causal, masked in Merged.spans(ctx.widths):
            parts = kernel(
                *(grad[:, :, q], query[:, :, q], key[:, :, k], value[:, :, k], output[:, :, q], lse[:, :, q]),
                *(0.0, causal),
                attn_mask=padding if masked else None,
            )
            for total, part, columns in zip(grads, parts, (q, k, k), strict=True):
                total[:, :, columns] += part
        return (*grads, None, None)


def explicit(query: Tensor, key: Tensor, value: Tensor, widths: tuple[int, int, int], seen: Tensor) -> Tensor:
    """The prefix by sdpa, responses by plain products (heads of a group folded into queries, no key copied)."""
    width_p, start_b, total = widths[0], widths[0] + widths[1], sum(widths)
    rows, kv_heads = key.shape[:2]
    prefix = (query[:, :, :width_p], key[:, :, :width_p], value[:, :, :width_p])
    parts = [F.scaled_dot_product_attention(*prefix, is_causal=True, enable_gqa=True)]
    for start, stop in ((width_p, start_b), (start_b, total)):
        count = stop - start
        folded = query[:, :, start:stop].reshape(rows, kv_heads, -1, SIZE) * SIZE**-0.5
        scores = torch.cat(
            [folded @ key[:, :, :width_p].transpose(-1, -2), folded @ key[:, :, start:stop].transpose(-1, -2)], dim=-1
        )
        mask = torch.cat([seen[:, :, start:stop, :width_p], seen[:, :, start:stop, start:stop]], dim=-1)
        weights = (scores.view(rows, kv_heads, -1, count, width_p + count) + mask[:, :, None]).softmax(-1)
        weights = weights.view(rows, kv_heads, -1, width_p + count)
        mixed = weights[..., :width_p] @ value[:, :, :width_p] + weights[..., width_p:] @ value[:, :, start:stop]
        parts.append(mixed.view(rows, HEADS, count, SIZE))
    return torch.cat(parts, dim=2)


def made_states(rows: int, kv_heads: int, total: int) -> list[Tensor]:
    """query, key, value as a model's projections leave them: (R, T, heads, size) seen as (R, heads, T, size)."""
    shapes = [(rows, total, heads, SIZE) for heads in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape).transpose(1, 2).detach().requires_grad_() for shape in shapes]


def shared_ways(widths: tuple[int, int, int], lengths: Tensor) -> dict[str, Way]:
    full = additive(visible(widths, lengths))
    width_p, responses = widths[0], widths[1] + widths[2]
    padding = full[:, :, width_p : width_p + 1, :width_p].expand(-1, HEADS, responses, -1).contiguous()
    blocks = Blocks(widths, lengths, int(lengths.min()))
    return {
        "shared (ours)": lambda q, k, v: shared_attention(q, k, v, blocks),
        "shared, full 4-D mask": lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=full, enable_gqa=True
        ),
        "shared, explicit products": lambda q, k, v: explicit(q, k, v, widths, full),
        "shared, merged by logsumexp": lambda q, k, v: Merged.apply(q, repeated(k), repeated(v), padding, widths),
    }


def check(ways: dict[str, Way], states: list[Tensor], real: Tensor) -> None:
    truth: list[Tensor] | None = None
    for name, way in ways.items():
        output = way(*states).masked_fill(~real, 0.0)
        found = [output.detach(), *torch.autograd.grad(output.sin().sum(), states)]
        truth = truth or found
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))
        if not error < 1e-5:
            raise SystemExit(f"{name} differs by {error:.1e}")


def flex_note(widths: tuple[int, int, int], lengths: Tensor, states: list[Tensor]) -> str:
    """Whether FlexAttention trains here, in words; it is timed only where it does."""
    seen = visible(widths, lengths)[:, 0]
    mask = create_block_mask(lambda b, h, q, k: seen[b, q, k], len(lengths), None, *(sum(widths),) * 2, device="cpu")
    try:
        torch.compile(flex_attention)(*states, block_mask=mask, enable_gqa=True).sum().backward()
    except Exception as error:
        return f"does not train on this device: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return "trains on this device"


def interleaved(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds: median and the middle half's bounds over the rounds, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    quarters = {name: statistics.quantiles(found, n=4) for name, found in times.items()}
    return {name: dict(zip(("q1", "median", "q3"), map(rounded, cut), strict=True)) for name, cut in quarters.items()}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def forward_backward(way: Way, states: list[Tensor], seed: Tensor) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(way(*states), states, seed)

    return run


def attention_part(rounds: int) -> list[dict[str, Any]]:
    results = []
    for title, widths in WIDTHS.items():
        for kv_heads in (8, 2):
            torch.manual_seed(0)
            lengths = widths[0] - 7 * torch.arange(ROWS)
            states = made_states(ROWS, kv_heads, sum(widths))
            ways = shared_ways(widths, lengths)
            column = torch.arange(sum(widths))
            real = ((column >= widths[0])[None, :] | (column[None, :] < lengths[:, None]))[:, None, :, None]
            check(ways, states, real)
            seed = torch.randn(states[0].shape)
            runs = {name: forward_backward(way, states, seed) for name, way in ways.items()}
            # The same comparisons as flat rows: twice the rows, padded, with the mask transformers makes for sdpa.
            flat = made_states(2 * ROWS, kv_heads, widths[0] + widths[1])
            column = torch.arange(widths[0] + widths[1])
            mask = (column[None, :] <= column[:, None])[None] & (
                column[None, None, :] < (lengths + widths[1]).repeat(2)[:, None, None]
            )
            mask = mask[:, None]
            runs["flat rows, sdpa"] = forward_backward(
                lambda q, k, v, mask=mask: F.scaled_dot_product_attention(q, repeated(k), repeated(v), attn_mask=mask),
                flat,
                torch.randn(flat[0].shape),
            )
            found = interleaved(runs, rounds)
            results.append({"case": title, "rows": ROWS, "heads": HEADS, "kv_heads": kv_heads, "ms": found})
            report(f"attention, {title}, {kv_heads} key/value heads", found)
    return results


def made_comparisons(widths: tuple[int, int, int], vocabulary: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    rows = []
    for index in range(ROWS):
        prefix, a, b = widths[0] - 7 * index, widths[1] - 3 * index, widths[2] - 5 * index
        starts = {"a_start": prefix, "b_start": prefix}
        parts = {"prefix_ids": ids(prefix), "a_ids": ids(a), "b_ids": ids(b)}
        rows.append({**parts, **starts, "preferences": [1.0], "index": index})
    return rows


def model_part(rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 8192}
    config = LlamaConfig(**sizes, num_attention_heads=HEADS, num_key_value_heads=2)
    flat_model = LlamaForCausalLM(config)
    shared_model = LlamaForCausalLM(config)
    shared_model.load_state_dict(flat_model.state_dict())
    use_paretune_attention(shared_model)
    results = []
    for title, widths in WIDTHS.items():
        rows = made_comparisons(widths, config.vocab_size)

        def scored(model: LlamaForCausalLM, layout: Any, rows: list[dict[str, Any]] = rows) -> Callable[[], None]:
            batch = collate(rows, layout=layout, pad_id=0)

            def run() -> None:
                model.zero_grad()
                scores = response_logprobs(model, batch, Scorer(layout))
                (scores.logp_a - scores.logp_b).sum().backward()

            return run

        def plain(rows: list[dict[str, Any]] = rows) -> None:
            """What most trainers do: all logits of flat rows, log_softmax over them, gather."""
            flat_model.zero_grad()
            batch = collate(rows, layout="flat", pad_id=0)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
            logits = flat_model(**inputs, use_cache=False).logits[:, :-1]
            tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
            signs = torch.tensor([1.0, -1.0]).repeat_interleave(len(rows))
            (tokens * batch["attention_mask"][:, 1:] * signs[:, None]).sum().backward()

        runs = {
            "shared rows": scored(shared_model, "shared"),
            "flat rows": scored(flat_model, "flat"),
            "flat rows, all logits": plain,
        }
        found = interleaved(runs, rounds)
        results.append({"case": title, "rows": ROWS, "model": {**sizes, "heads": HEADS, "kv_heads": 2}, "ms": found})
        report(f"model, {title}", found)
    return results


def report(title: str, found: dict[str, dict[str, float]]) -> None:
    print(title)
    for name, cut in found.items():
        print(f"  {name:28s} {cut['median']:8.1f} ms   ({cut['q1']:.1f} to {cut['q3']:.1f})")


def provenance() -> dict[str, Any]:
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False).stdout
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "command": "python benchmarks/attention.py " + " ".join(sys.argv[1:]),
        "commit": commit.strip(),
        "machine": {"cpu": model, "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "dtype": "float32",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    widths = WIDTHS["prompt 384, responses 48"]
    results = provenance() | {
        "rounds": options.rounds,
        "flex_attention": flex_note(widths, widths[0] - 7 * torch.arange(ROWS), made_states(ROWS, 2, sum(widths))),
        "attention": attention_part(options.rounds),
        "model": model_part(max(5, options.rounds // 2)),
    }
    print("FlexAttention", results["flex_attention"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
