"""Padding: tokens that are computed against tokens that are there, by how a step's rows are dealt to micro-batches.

    python benchmarks/padding.py              # writes benchmarks/results/padding.json
    python benchmarks/padding.py --turns 1    # a quick look

Ways: `drawn` deals rows as they were drawn, `sum` sorts a step by a row's tokens, `ours` is `batches_by_length`. The
step holds the same rows in all of them. Data: TruthfulQA's pairs in the tokens of the stories260K tokenizer, where both
are at hand (`$PARETUNE_SHARED/data`, else shared/data beside the repository), and made lengths, log-normal, whose parts
vary on their own. Counts are exact and the same on every machine. Then one timing: forward and backward of a whole step
of a small Llama on one thread, in CPU seconds and the ways in turn, so that other users of the machine count least.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.comparisons.batches import Layout, collate
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.lengths import batches_by_length, computed_tokens, extents, part_lengths
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.policy.loading import load_tokenizer
from paretune.policy.logprobs import prepare_scorer, response_logprobs
from paretune.training.sampler import stratified_order

ROOT = Path(__file__).resolve().parents[1]
STEPS, MICRO = (64, 256), (2, 4, 8, 16)
TIMED = {"step": 64, "micro_batch": 8, "data": "log-normal"}

Way = Callable[[np.ndarray, int], list[np.ndarray]]


def drawn(taken: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(np.arange(len(taken)), range(size, len(taken), size))


def by_sum(taken: np.ndarray, size: int) -> list[np.ndarray]:
    order = np.argsort(-taken.sum(axis=1), kind="stable")
    return np.split(order, range(size, len(taken), size))


WAYS: dict[str, Way] = {"drawn": drawn, "sum": by_sum, "ours": batches_by_length}


def truthfulqa() -> np.ndarray | None:
    """(rows, 3) lengths; None where the files are not there."""
    data = Path(os.environ.get("PARETUNE_SHARED") or ROOT.parent / "shared") / "data"
    if not (data / "truthfulqa").exists() or not (data / "stories260K").exists():
        return None
    rows, _ = read_comparisons(data / "truthfulqa", max_pairs=4)
    tokenizer = load_tokenizer(str(data / "stories260K"))
    tokens, _ = tokenize_comparisons(rows, tokenizer, ["truthful", "informative"], max_length=None)
    return part_lengths(tokens)


def log_normal(rows: int = 4096) -> np.ndarray:
    """(rows, 3): medians of 150, 90 and 90 tokens, a quarter of them more than 1.7 times as long."""
    drawn = np.random.default_rng(0).normal(np.log((150, 90, 90)), 0.8, (rows, 3))
    return np.exp(drawn).clip(4, 1500).astype(np.int64)


def count(lengths: np.ndarray, layout: Layout, step: int, size: int) -> dict[str, Any]:
    """Tokens of an epoch's full steps, computed per real one for each way."""
    taken = extents(lengths, layout)
    order = stratified_order(np.ones((len(lengths), 1), dtype=bool), 0, 0)
    steps = [order[i : i + step] for i in range(0, len(order) - step + 1, step)]
    kept = lengths[np.concatenate(steps)]
    prompts = 1 if layout == "shared" else 2
    real = int(prompts * kept[:, 0].sum() + kept[:, 1:].sum())
    found: dict[str, Any] = {"layout": layout, "step": step, "micro_batch": size, "real_tokens": real}
    for name, way in WAYS.items():
        started = time.perf_counter()
        batches = [rows[batch] for rows in steps for batch in way(taken[rows], size)]
        if name == "ours":
            found["ms_to_deal_a_step"] = round(1e3 * (time.perf_counter() - started) / len(steps), 2)
        found[name] = round(sum(computed_tokens(taken[batch]) for batch in batches) / real, 3)
    return found


def timing(turns: int) -> dict[str, Any]:
    """CPU seconds of forward and backward over one step's micro-batches, the ways in turn."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, vocab_size=2048
    )
    model = LlamaForCausalLM(config)
    scorer = prepare_scorer(model)
    lengths = log_normal()[: int(TIMED["step"])]
    taken, rng = extents(lengths, scorer.layout), np.random.default_rng(0)
    rows = [_row(i, parts, rng) for i, parts in enumerate(lengths)]
    made = {
        name: [
            collate([rows[i] for i in batch], layout=scorer.layout, pad_id=0)
            for batch in way(taken, int(TIMED["micro_batch"]))
        ]
        for name, way in WAYS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns + 1):
        for name, batches in made.items():
            started = time.process_time()
            for batch in batches:
                scores = response_logprobs(model, batch, scorer)
                (scores.logp_a - scores.logp_b).sum().backward()
            model.zero_grad()
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
    ratios = [sorted(d / o for d, o in zip(seconds["drawn"], seconds[name], strict=True)) for name in WAYS]
    return {
        **TIMED,
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "layout": scorer.layout},
        "turns": turns,
        "median_cpu_seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "times_faster_than_drawn": {
            name: {"median": round(statistics.median(r), 2), "least": round(r[0], 2), "most": round(r[-1], 2)}
            for name, r in zip(WAYS, ratios, strict=True)
        },
    }


def _row(index: int, parts: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    prefix, a, b = (rng.integers(5, 2000, int(n)).tolist() for n in parts)
    starts = {"a_start": len(prefix), "b_start": len(prefix), "index": index, "preferences": [1.0]}
    return {"prefix_ids": prefix, "a_ids": a, "b_ids": b, **starts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each way")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "padding.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"truthfulqa": truthfulqa(), "log-normal": log_normal()}
    counted: dict[str, Any] = {}
    for name, lengths in sets.items():
        if lengths is None:
            print(f"{name}: not at hand, left out")
            continue
        print(f"{name}: {len(lengths)} rows, mean tokens {lengths.mean(0).round(1).tolist()}; computed per real token")
        counted[name] = {"rows": len(lengths), "mean_tokens": lengths.mean(0).round(1).tolist(), "counts": []}
        for layout in ("shared", "flat"):
            for step in STEPS:
                for size in MICRO:
                    line = count(lengths, layout, step, size)  # type: ignore[arg-type]
                    counted[name]["counts"].append(line)
                    ways = "  ".join(f"{way} {line[way]:.2f}" for way in WAYS)
                    print(f"  {layout:6} step {step:3} micro-batch {size:2}  {ways}  ({line['ms_to_deal_a_step']} ms)")
    timed = timing(args.turns)
    print(f"times faster than drawn: {timed['times_faster_than_drawn']}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    result = {
        "command": " ".join(["python", "benchmarks/padding.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": {"processor": platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "tokens": counted,
        "timing": timed,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
