"""What a million comparisons cost before training starts, and how long the library and its command take to answer.

    python benchmarks/data.py                     # writes benchmarks/results/data.json; about 8 minutes on two cores
    python benchmarks/data.py --rows 50000 --tokenized 20000 --out /tmp/data.json   # a quick look

Rows are made here (seed 0): a prompt of 25 words, responses of 15 to 45, two objectives, one with missing labels and
ties, a group for every two rows. Each measurement is a fresh process:

reading      every row validated, duplicates found, indexed: rows per second, and the peak of the process's memory above
             what it held after imports and a first tiny data set, beside the file's size. Once more for the first
             tenth of the rows: the difference is what a row costs.
summary      of those rows (`paretune data FILE` draws it), in the same process
labels       where each row carries labels, as the sampler needs it, and the split of a tenth for evaluation
tokens       by one process, by as many as the library chooses here, and the second time, found on disk and checked;
             with a BPE tokenizer of 4,000 tokens trained on the first rows
             Rows per second of processor time stand beside rows per second: on a busy machine they are the steadier.
start-up     `import paretune` after `import torch`, and `paretune --help` as a shell runs it: medians, with targets
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SYLLABLES = [a + b for a in "bdfklmnprst" for b in "aeiou"]
WORDS = [first + last for first in SYLLABLES[::4] for last in ("", "n", "ra", "ton", "lis", *SYLLABLES[::9])]
TARGETS = {"import paretune after torch": 0.3, "paretune --help": 0.5}  # seconds


def make_rows(path: Path, rows: int) -> None:
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {
                "prompt": f"Question {i}: {text(25)}?",
                "response_a": f" {text(rng.randint(15, 45))}.",
                "response_b": f" {text(rng.randint(15, 45))}.",
                "preferences": {"helpful": rng.choice([0, 1, 0.5, None]), "concise": rng.choice([0, 1])},
                "group": f"g{i // 2}",
            }
            file.write(json.dumps(row) + "\n")


def make_tokenizer(data: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with data.open(encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for line, _ in zip(file, range(2_000), strict=False)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4_000, special_tokens=["</s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)


# ---- in the fresh processes ----


def memory(what: str) -> float:
    """MB from /proc: VmHWM is the peak, RssAnon what no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1000


def cpu_seconds() -> float:
    """Processor time of this process and of those that it waited for."""
    own, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def reading_part(file: str, rows: int) -> dict[str, Any]:
    from paretune.comparisons.columns import labels, stretches
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.rows import split_groups
    from paretune.comparisons.summary import summarize

    tiny = {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"x": 1}}
    read_comparisons([tiny])
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    cpu = cpu_seconds()
    (data, report), seconds = timed(lambda: read_comparisons(file, take=rows))
    found: dict[str, Any] = {"rows": len(data), "rows_per_second": len(data) / seconds, "seconds": seconds}
    found["rows_per_cpu_second"] = len(data) / (cpu_seconds() - cpu)
    found |= {"before_mb": before, "peak_above_mb": memory("VmHWM") - before}
    _, found["summary_seconds"] = timed(lambda: summarize(data, report.objectives))
    _, found["labels_seconds"] = timed(
        lambda: [labels(part["preferences"], report.objectives) for part in stretches(data, ["preferences"])]
    )
    _, found["split_seconds"] = timed(lambda: split_groups(data, 0.1))
    found["not_backed_by_a_file_at_the_end_mb"] = memory("RssAnon") - before
    return found


def tokens_part(file: str, rows: int, tokenizer: str, processes: int | None) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from paretune.comparisons import token_work
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.tokens import tokenize_comparisons

    data, report = read_comparisons(file, take=rows)
    made = AutoTokenizer.from_pretrained(tokenizer)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    cpu = cpu_seconds()
    (_, tokens), seconds = timed(
        lambda: tokenize_comparisons(data, made, report.objectives, max_length=2048, num_proc=processes)
    )
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "rows_per_cpu_second": rows / (cpu_seconds() - cpu),
        "seconds": seconds,
        "processes": token_work.processes(processes, rows),
        "tokens_per_row": tokens.tokens_flat / rows,
        "peak_above_mb": memory("VmHWM") - before,
    }


# ---- measuring them ----


def fresh(part: str, *arguments: Any, cache: Path) -> dict[str, Any]:
    """A part in a process of its own, at one thread (a process that tokenizes has one as well)."""
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    environment = {
        **os.environ,
        "PARETUNE_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def start_up(repeats: int) -> dict[str, Any]:
    script = "import torch, time; t = time.perf_counter(); import paretune; print(time.perf_counter() - t)"
    trainer = script.replace("import paretune;", "from paretune import RACOTrainer;")
    command = Path(sys.executable).parent / "paretune"
    help_command = [str(command)] if command.exists() else [sys.executable, "-m", "paretune"]

    def told(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return float(done.stdout.splitlines()[-1])

    def helped() -> float:
        return timed(lambda: subprocess.run([*help_command, "--help"], capture_output=True, check=True, cwd=ROOT))[1]

    measures: dict[str, Callable[[], float]] = {
        "import paretune after torch": lambda: told(script),
        "paretune --help": helped,
        "from paretune import RACOTrainer after torch": lambda: told(trainer),
    }
    found = {}
    for name, measure in measures.items():
        measure()  # the first one reads files that are not in memory yet
        times = sorted(measure() for _ in range(repeats))
        target = TARGETS.get(name)
        median = statistics.median(times)
        verdict = None if target is None else "met" if median <= target else "missed"
        found[name] = {
            "median_s": median,
            "least_s": times[0],
            "most_s": times[-1],
            "target_s": target,
            "verdict": verdict,
        }
    return found


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"processor": model, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}


def measure(rows: int, tokenized: int, repeats: int, folder: Path) -> dict[str, Any]:
    data, tokenizer, cache = folder / "rows.jsonl", folder / "tokenizer", folder / "cache"
    found: dict[str, Any] = {"start_up": start_up(repeats)}
    make_rows(data, rows)
    make_tokenizer(data, tokenizer)
    found["file"] = {"rows": rows, "mb": data.stat().st_size / 1e6}
    found["reading"] = fresh("reading", data, rows, cache=cache)
    tenth = fresh("reading", data, rows // 10, cache=cache)
    found["reading_a_tenth"] = tenth
    grown = found["reading"]["peak_above_mb"] - tenth["peak_above_mb"]
    found["bytes_per_row"] = 1e6 * grown / (rows - rows // 10)
    tokens = {"one process": fresh("tokens", data, tokenized, tokenizer, 1, cache=cache)}
    tokens["as many as it chooses"] = fresh("tokens", data, tokenized, tokenizer, 0, cache=folder / "second")
    tokens["found on disk"] = fresh("tokens", data, tokenized, tokenizer, 0, cache=cache)
    return found | {"tokens": tokens}


def show(found: dict[str, Any]) -> None:
    file, read, tenth = found["file"], found["reading"], found["reading_a_tenth"]
    above = read["peak_above_mb"]
    print(f"file       {file['rows']:,} rows, {file['mb']:.0f} MB")
    print(f"reading    {_rates(read)}, {read['seconds']:.1f} s")
    print(f"           peak memory {above:.0f} MB above imports, {above / file['mb']:.0%} of the file")
    print(
        f"           a tenth of the rows {tenth['peak_above_mb']:.0f} MB: a further row {found['bytes_per_row']:.0f} B"
    )
    for name in ("summary", "labels", "split"):
        print(f"{name:10s} {read[f'{name}_seconds']:.2f} s")
    for name, part in found["tokens"].items():
        peak = f"peak {part['peak_above_mb']:.0f} MB above"
        print(f"tokens     {name}: {_rates(part)} ({part['rows']:,} rows, {part['processes']} processes, {peak})")
    for name, part in found["start_up"].items():
        target = "" if part["target_s"] is None else f"; target {part['target_s']} s: {part['verdict']}"
        print(f"start-up   {name}: {part['median_s']:.3f} s [{part['least_s']:.3f}, {part['most_s']:.3f}]{target}")


def _rates(part: dict[str, Any]) -> str:
    return f"{part['rows_per_second']:,.0f} rows/s, {part['rows_per_cpu_second']:,.0f} per second of processor time"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokenized", type=int, default=100_000, help="rows that are tokenized")
    parser.add_argument("--repeats", type=int, default=9, help="fresh processes of each start-up")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "data.json")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, file, rows, *more = args.part
        if name == "reading":
            print(json.dumps(reading_part(file, int(rows))))
        else:
            print(json.dumps(tokens_part(file, int(rows), more[0], int(more[1]) or None)))
        return
    from paretune.training.record import commit, versions, write_json

    command = " ".join(["python benchmarks/data.py", *sys.argv[1:]])
    found: dict[str, Any] = {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}
    folder = Path(tempfile.mkdtemp(prefix="paretune-data-"))
    try:
        found |= measure(args.rows, min(args.tokenized, args.rows), args.repeats, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["machine"]["load_after"] = os.getloadavg()[0]
    show(found)
    write_json(args.out, found)


if __name__ == "__main__":
    main()
