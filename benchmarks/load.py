"""A million rows, rows of 100,000 tokens, a front of 1,000 cells, a report of 1,000 runs: what each takes in memory.

    python benchmarks/load.py                 # writes benchmarks/results/load.json; about ten minutes on two cores
    python benchmarks/load.py --rows 20000 --tokens 20000 --cells 100 --runs 50 --out /tmp/load.json   # a quick look

Everything is made here (seed 0); each part is a fresh process with one thread. Memory is the peak of the process above
what it held after its imports and a first tiny run. Times stand beside the time that the same process takes to parse
the same file with the json module line by line, so that the machine's speed cancels.

rows     validated and indexed (`read_comparisons`), tokenized, and three optimizer steps of a small model on them
long     rows whose prompt and responses hold so many tokens together: read, tokenized, and one step on one of them
cells    a front planned; planned again and found finished, by the cells' own files
report   one page about so many runs; and its size
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.data import WORDS, machine, memory  # noqa: E402

OBJECTIVES = ("helpful", "concise")


def make_rows(path: Path, rows: int, words: int = 6) -> None:
    """Comparisons of two short responses, with a label per objective."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            a, b = (" ".join(rng.choices(WORDS, k=words)) for _ in range(2))
            preferences = {"helpful": rng.choice([0, 1, 0.5, None]), "concise": rng.choice([0, 1])}
            row = {
                "prompt": f"Question {i}?",
                "response_a": f" {a}.",
                "response_b": f" {b}!",
                "preferences": preferences,
            }
            file.write(json.dumps(row) + "\n")


def make_long_rows(path: Path, rows: int, tokens: int) -> None:
    """Rows of about so many words, half of them the prompt's; a word is one token of `word_tokenizer`."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            prompt, a, b = (" ".join(rng.choices(WORDS, k=n)) for n in (tokens // 2, tokens // 4, tokens // 4))
            row = {"prompt": f"{i} {prompt}", "response_a": f" {a}", "response_b": f" {b}"}
            file.write(json.dumps(row | {"preferences": {"helpful": i % 2, "concise": 1 - i % 2}}) + "\n")


def word_tokenizer() -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1 << 20, **names)


def small_model(vocabulary: int, positions: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=positions, **sizes))


class Stages:
    """Seconds of each stage, and the peak of memory above what the process held before the first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        gc.collect()
        self.before = memory("VmRSS")

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        start = time.process_time()
        found = call()
        self.seconds[name] = time.process_time() - start
        self.peaks[name] = memory("VmHWM") - self.before
        return found


def parsed(path: Path) -> None:
    """What reading cannot do without."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            json.loads(line)


def train(rows: Any, tokenizer: Any, folder: Path, steps: int, batch: int, max_length: int | None) -> None:
    from paretune import Objective, RACOConfig, RACOTrainer

    args = RACOConfig(
        output_dir=str(folder / "run"), max_steps=steps, per_device_train_batch_size=batch, use_cpu=True,
        disable_tqdm=True, save_strategy="no", report_to="none", max_length=max_length, logging_steps=1,
        dataset_num_proc=1,
    )  # fmt: skip
    model = small_model(len(tokenizer), 64 if max_length is None or max_length <= 64 else max_length)
    objectives = [Objective(name) for name in OBJECTIVES]
    RACOTrainer(model, args, objectives, rows, processing_class=tokenizer).train()


def rows_part(file: Path, folder: Path, *, batch: int, steps: int, max_length: int) -> dict[str, Any]:
    """Parsed, read, tokenized, trained on for some steps; figures of each."""
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.tokens import tokenize_comparisons

    tokenizer = word_tokenizer()
    tiny, _ = read_comparisons([{"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"helpful": 1}}])
    tokenize_comparisons(tiny, tokenizer, ["helpful"], max_length=max_length)
    stages = Stages()
    stages.run("json alone", lambda: parsed(file))
    data, report = stages.run("read", lambda: read_comparisons(str(file)))
    names = report.objectives
    _, tokens = stages.run(
        "tokenized", lambda: tokenize_comparisons(data, tokenizer, names, max_length=max_length, num_proc=1)
    )
    rows = len(data)
    stages.run("read again, tokens found, steps", lambda: train(str(file), tokenizer, folder, steps, batch, max_length))
    megabytes, alone = file.stat().st_size / 1e6, stages.seconds["json alone"]
    return {
        **{"rows": rows, "file_mb": megabytes, "longest_tokens": tokens.longest, "steps": steps, "batch": batch},
        "held_before_mb": stages.before,
        "peak_above_mb": stages.peaks,
        "microseconds_a_row": {name: 1e6 * seconds / rows for name, seconds in stages.seconds.items()},
        "times_json_alone": {name: seconds / alone for name, seconds in stages.seconds.items()},
    }


def front_plan(cells: int, folder: Path) -> Any:
    """A plan of at least so many cells."""
    from paretune.objectives import Objective
    from paretune.pipelines.front.plan import Entry, Plan, Scoring, even_weightings

    data = folder / "rows.jsonl"
    make_rows(data, 100)
    return Plan(
        objectives=tuple(Objective(name) for name in OBJECTIVES),
        entries=(Entry("linear", "linear"), Entry("raco", "raco")),
        weightings=tuple(even_weightings(2, max(1, (cells // 5 - 3) // 2 + 1))),
        seeds=(0, 1, 2, 3, 4),
        config={"max_steps": 2, "eval_fraction": 0.3},
        model="a model",
        data=str(data),
        scoring=Scoring(prompts=["a", "b"], sources=dict.fromkeys(OBJECTIVES, "shorter")),
    )


class NoWork:
    """An engine that may not be asked."""

    def submit(self, job: Any) -> None:
        raise AssertionError(f"{job.name} was to be run, and is finished")

    def running(self) -> list[str]:
        return []

    def wait(self, seconds: float) -> list[Any]:
        return []

    def close(self) -> None:
        return None


def finish_cells(folder: Path, plan: Any, cells: Any) -> None:
    """Every cell as `run_cell` leaves it, its training and scoring apart."""
    from paretune.pipelines.front import cells as module

    part = {"scores": dict.fromkeys(OBJECTIVES, 0.5), "ci": {}, "prompts": [[0.5, 0.5]] * 2, "extras": {}}

    def step(plan: Any, cell: Any, needs: Any, place: Path) -> dict[str, Any]:
        return {"run": None, "temperatures": {} if cell.kind == "trunk" else {"1": part, "0.6": part}, "kl": 0.1}

    names = ("_base", "_train", "_read")
    kept = {name: getattr(module, name) for name in names}
    code, commit, versions = module.code_digest, module.commit, module.versions
    try:
        for name in names:
            setattr(module, name, step)
        facts = code(), commit(), versions()  # found once here: real cells come from processes that train for minutes
        module.code_digest, module.commit, module.versions = (lambda fact=fact: fact for fact in facts)
        for cell in cells:
            module.run_cell(plan, cell, {}, folder)
    finally:
        for name, function in kept.items():
            setattr(module, name, function)
        module.code_digest, module.commit, module.versions = code, commit, versions


def cells_part(cells: int, folder: Path) -> dict[str, Any]:
    from paretune.pipelines.front.plan import make_cells, superseded
    from paretune.pipelines.front.run import run_front

    plan = front_plan(cells, folder)
    make_cells(front_plan(10, folder))
    stages = Stages()
    planned = stages.run("planned", lambda: make_cells(plan))
    finish_cells(folder, plan, planned)

    def resumed() -> Any:
        again = make_cells(plan)
        superseded(folder, again)
        return run_front(folder, plan, again, NoWork(), retries=0, tell=lambda progress: None)

    found, failed = stages.run("planned and found finished", resumed)
    assert len(found) == len(planned) and not failed
    return {"cells": len(planned), "seconds": stages.seconds, "peak_above_mb": stages.peaks}


def report_part(runs: int, folder: Path) -> dict[str, Any]:
    from paretune.evaluation.report import write_report

    paths = [make_run(folder / f"run-{i}", i) for i in range(runs)]
    write_report(paths[:2], folder / "first.html")
    stages = Stages()
    page = stages.run("written", lambda: write_report(paths, folder / "report.html"))
    return {
        "runs": runs,
        "page_mb": page.stat().st_size / 1e6,
        "seconds": stages.seconds,
        "peak_above_mb": stages.peaks,
    }


def make_run(path: Path, seed: int, steps: int = 50) -> Path:
    """A run's record and history, with figures drawn by chance."""
    from paretune.training.record import write_json

    rng = random.Random(seed)
    objectives = [{"name": name, "weight": 0.5} for name in OBJECTIVES]
    held_out = {"rows": {"fingerprint": "same"}, "tokens": {"kept": 100}}
    config = {"combiner": rng.choice(["raco", "linear"]), "c": 0.4, "max_steps": steps}
    content = {
        "status": "finished",
        "objectives": objectives,
        "seed": seed,
        "config": config,
        "notices": [],
        "final": {},
    }
    write_json(path / "run.json", content | {"data": {"eval": held_out}, "settings": {"model": "m", "data": "d"}})
    names = ("rewards/margins", "rewards/accuracies", "grad/norm", "combine/p", "eval_rewards/accuracies")
    with (path / "history.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            line = {f"{name}/{o}": rng.random() for name in names for o in OBJECTIVES}
            line |= {"step": step, "loss": rng.random(), "grad/cosine/helpful~concise": rng.uniform(-1, 1)}
            file.write(json.dumps(line) + "\n")
    return path


# ---- the parts, each in a process of its own ----


def part(name: str, size: int, folder: Path) -> dict[str, Any]:
    file = folder / f"{name}.jsonl"
    if name == "rows":
        make_rows(file, size)
        return rows_part(file, folder, batch=8, steps=3, max_length=64)
    if name == "long":
        make_long_rows(file, 20, size)
        return rows_part(file, folder, batch=1, steps=1, max_length=2 * size)
    return cells_part(size, folder) if name == "cells" else report_part(size, folder)


def fresh(name: str, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="paretune-load-") as folder:
        environment = os.environ | {"PARETUNE_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--part", name, str(size), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=100_000, help="of a long row")
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "load.json")
    parser.add_argument("--only", help="parts to measure, by commas; the file keeps what it has of the others")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(part(args.part[0], int(args.part[1]), Path(args.part[2]))))
        return
    from paretune.training.record import commit, versions, write_json

    command = " ".join(["python benchmarks/load.py", *sys.argv[1:]])
    sizes = {"cells": args.cells, "report": args.runs, "long": args.tokens, "rows": args.rows}
    for name in args.only.split(",") if args.only else sizes:
        about: dict[str, Any] = {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}
        part_found = fresh(name, sizes[name]) | about
        print(name, json.dumps(part_found, indent=1), flush=True)
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        write_json(args.out, before | {name: part_found})


if __name__ == "__main__":
    main()
