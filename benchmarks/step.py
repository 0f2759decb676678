"""Times the whole optimizer step: ours for any number of objectives, TRL's for one, and the naive way.

Every contestant is a real trainer on real tokenized rows, with the same model, dtype, adapters and batch, in one
process. They take turns (A B C A B C ...): each runs its training loop in its own thread and waits at the end of every
step until it is called again, so whatever else the machine does falls on all of them alike. A result is the median of
the ratios of turns, with quartiles; the CPU time's ratio stands beside it.

    python benchmarks/step.py --quick                           # all rows, small model; ten minutes on two cores
    python benchmarks/step.py --family qwen3 llama gemma3       # the full table; an hour and more on two cores
    python benchmarks/step.py --model 0.6b 4b 8b --minutes 10   # Qwen3's true sizes; needs a GPU
    python benchmarks/step.py --size tiny --rounds 1            # shows that everything runs; its figures mean nothing
    python benchmarks/step.py --plot                            # docs/step.svg and .png, from what was measured

Contestants and their settings: benchmarks/steps/contestants.py. Targets: targets.py. The floor on paper: paper.py.
Peak memory: memory.py (CPU: each contestant in its own process), timing.py (GPU: the allocator's counts during turns).
Results go to benchmarks/results/step-SIZE-FAMILY[-gpu].json after every group, beside what that file already holds of
the same commit and machine. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.steps import contestants, memory, paper, targets, timing  # noqa: E402
from benchmarks.steps.models import FAMILIES, SHAPES, SIZES  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the size `quick`, in ten minutes")
    parser.add_argument("--size", "--model", nargs="+", choices=SIZES, help="default: full; with a GPU 0.6b")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=["qwen3"])
    parser.add_argument("--gpu", action="store_true", help="insist on the GPU, which is used anyway where there is one")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts whose names start so: lora/tldr full memory …")
    parser.add_argument(
        "--comparisons", nargs=3, type=int, metavar=("TLDR", "CHAT", "LONG"), help="of a step; default by size"
    )
    parser.add_argument("--rounds", type=int, help="turns that count (default 7; with a GPU 15)")
    parser.add_argument("--warm-up", type=int, help="turns before them (default 1; with a GPU 4)")
    parser.add_argument("--naive-rounds", type=int, help="turns of the naive way (default 1; with a GPU 3)")
    parser.add_argument("--minutes", type=float, help="start nothing new after this long (default 9 with --quick)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    parser.add_argument("--plot", action="store_true", help="draw what was measured, and measure nothing")
    parser.add_argument("--serve-memory", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    cuda = torch.cuda.is_available() and not options.cpu
    if options.gpu and not cuda:
        parser.error("--gpu: PyTorch sees no GPU here")
    options.device = "cuda" if cuda else "cpu"
    options.size = options.size or ["quick" if options.quick else "0.6b" if cuda else "full"]
    options.rounds = options.rounds or (15 if cuda else 7)
    options.warm_up = options.warm_up or (4 if cuda else 1)
    options.naive_rounds = options.naive_rounds or (3 if cuda else 1)
    options.minutes = options.minutes or (9.0 if options.quick else 1e6)
    return options


def machine() -> dict[str, Any]:
    """What kind of machine."""
    model, cpuinfo = platform.processor(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "processor": model, "gpu": gpu, "threads": torch.get_num_threads()}


def all_versions() -> dict[str, str]:
    try:
        return versions() | {"trl": version("trl")}
    except PackageNotFoundError:
        return versions()


def begun(path: Path, start: dict[str, Any], given_commit: str | None) -> dict[str, Any]:
    """A record to add to: what the file holds of this commit, machine and these versions, or an empty one."""
    fresh = start | {
        "model": asdict(SIZES[start["size"]]),
        "commit": given_commit or commit(),
        "machine": machine(),
        "versions": all_versions(),
        "groups": {},
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(name) == fresh[name] for name in fresh if name != "groups"):
            return old
    return fresh | {"rates": asdict(paper.machine_rates(start["device"]))}


def add_times(record: dict[str, Any], group: targets.Group, options: argparse.Namespace, deadline: float) -> None:
    """Measures one group into the record."""
    load = os.getloadavg()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def say(text: str) -> None:
        sys.stderr.write(f"{group.key}: {text}\n")

    found = timing.measure(
        group.names,
        group.case,
        rounds=options.rounds,
        warm_up=options.warm_up,
        naive_rounds=options.naive_rounds,
        deadline=deadline,
        say=say,
    )
    for name, result in found.items():
        if result.get("turns"):
            result["seconds"] = timing.seconds(result)
            result["paper"] = asdict(paper.work(name, group.case)) | {
                "seconds": paper.seconds_on_paper(name, group.case, paper.Rates(**record["rates"]))
            }
    before = record["groups"].get(group.key, {}).get("contestants", {})
    for name, result in found.items():  # what memory a process of its own found stays
        if not result.get("memory"):
            result |= {key: value for key, value in before.get(name, {}).items() if key.startswith("memory")}
    record["groups"][group.key] = {
        "command": command(),
        "case": vars(group.case),
        "model_settings": {"attn_implementation": "sdpa", "dtype": str(group.case.dtype)},
        "started": started,
        "load_before": load,
        "load_after": os.getloadavg(),
        "trl": contestants.trl_settings(group.case, Path("run")),
        "ours": contestants.our_settings("ours-8", group.case, Path("run")),
        "allocator": record["groups"].get(group.key, {}).get("allocator"),
        "contestants": {**before, **found},
    }


def add_memory(record: dict[str, Any], deadline: float, options: argparse.Namespace) -> None:
    """Measures the memory rows on a CPU, each contestant in its own process, into the record."""
    jobs = memory.worker_command(Path(__file__))
    wanted = targets.memory_jobs(record["size"], record["family"], record["comparisons"])
    measured = memory.measure_memory(wanted, jobs)
    for case, name, found in measured:
        group = record["groups"].setdefault(case.key, {"command": command(), "case": vars(case), "contestants": {}})
        entry = group["contestants"].setdefault(name, {})
        if "missing" in found:
            entry |= found if not entry else {"memory_missing": found["missing"]}
        else:
            entry |= {"memory": found["above"], "memory_parts": found}
        group["allocator"] = memory.ALLOCATOR
        save(record, options)
        sys.stderr.write(f"{case.key}: memory of {name}\n")
        if time.monotonic() > deadline:
            measured.close()  # type: ignore[attr-defined]
            break


def command() -> str:
    return " ".join(["python", "benchmarks/step.py", *sys.argv[1:]])


def path_of(record: dict[str, Any], options: argparse.Namespace) -> Path:
    name = f"step-{record['size']}-{record['family']}" + ("-gpu" if record["device"] == "cuda" else "")
    return options.out / f"{name}.json"


def save(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Judges every row with what there is and writes the file."""
    rows = targets.rows(record["size"], record["device"], record["comparisons"])
    record["rows"] = [targets.judged(row, record) for row in rows]
    write_json(path_of(record, options), record)


def run(size: str, family: str, options: argparse.Namespace, deadline: float) -> None:
    """Measures one size and family, writing after every part, and prints its table."""
    n = dict(zip(SHAPES, options.comparisons, strict=True)) if options.comparisons else targets.BATCHES[size]
    start = {"size": size, "family": family, "device": options.device, "comparisons": n}
    record = begun(path_of(start, options), start, options.commit)

    def wanted(name: str) -> bool:
        return options.only is None or any(name.startswith(part) for part in options.only)

    parts = [group for group in targets.groups(size, family, options.device, n) if wanted(group.key)]
    last = [group for group in parts if group.key == f"full/tldr/{4 * n['tldr']}"]
    for group in [group for group in parts if group not in last]:
        if time.monotonic() < deadline:
            add_times(record, group, options, deadline)
            save(record, options)
    if options.device == "cpu" and wanted("memory") and time.monotonic() < deadline:
        add_memory(record, deadline, options)
    for group in last:  # only reported: with what time is left
        if time.monotonic() < deadline:
            add_times(record, group, options, deadline)
    save(record, options)
    sys.stdout.write(f"\n{family} {size}, {options.device}\n{targets.table(record['rows'])}\n")
    sys.stdout.flush()


def main() -> None:
    options = arguments()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # names that both libraries use
    if options.serve_memory:
        memory.serve(options.serve_memory)
        return
    if options.plot:
        from benchmarks.steps.plot import draw

        draw(options.out, ROOT / "docs")
        return
    deadline = time.monotonic() + 60 * options.minutes
    for size in options.size:
        for family in options.family:
            run(size, family, options, deadline)


if __name__ == "__main__":
    main()
