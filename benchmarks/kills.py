"""Commands killed (SIGKILL) at random moments and begun again: is the result that of the run that nobody killed?

    python benchmarks/kills.py --jobs 2           # 50 trials; writes benchmarks/results/kills.json; 15 minutes
    python benchmarks/kills.py --trials 5 --out /tmp/kills.json train front

A trial is one command in a folder of its own, killed one to four times and begun again each time as a person would
(`train` with --resume where a checkpoint is there, the others by the same command), at last to its end. Two kinds of
moments, both drawn from the trial's seed: before the process opens, renames or removes its n-th file below the folder,
which lands within every piece of writing; and after a time, which lands within a write and within computation. Results
are compared bit for bit, wall-clock figures aside: weights, evaluations and logged figures of `train` (with LoRA's
dropout, and with the reference scored beforehand: "caching"), every cell of `front`, rows and report of `label` and how
often its source was asked, weights and scores of each round of `improve`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file  # noqa: E402

from paretune.cli.main import main as paretune  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
_TIMES = ("time", "seconds", "runtime", "per_second", "tokens/second", "started", "ended", "written", "total_flos")
COMMON = [
    *["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2"],
    *["--logging_steps", "1", "--use_cpu", "true"],
]
# A function as a source of labels: it notes every response that it is asked about.
SOURCE = """
import os
def score(prompts, completions, **columns):
    for i, completion in enumerate(completions):
        with open(os.environ["KILLS_LOG"], "a") as stream:
            stream.write(f"{prompts[i]!r} {completion!r}\\n")
        yield i, float(completion.count("e"))
"""


@dataclass(frozen=True)
class Inputs:
    """What the commands work on: a tiny model's directory, files of comparisons and of prompts with responses."""

    model: str
    comparisons: str
    responses: str
    prompts: str


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Args:
        words: the command line, given inputs and the trial's folder.
        result: what is compared, given the folder: plain values.
        resumes: whether --resume is given where a checkpoint is there.
    """

    words: Callable[[Inputs, Path], list[str]]
    result: Callable[[Path], Any]
    resumes: bool = False


# ---- the commands ----


def _train(inputs: Inputs, folder: Path, *more: str) -> list[str]:
    asked = ["--model", inputs.model, "--data", inputs.comparisons, "--objectives", "{helpful: 0.6, short: 0.4}"]
    length = ["--num_train_epochs", "2", "--save_steps", "2", "--save_total_limit", "2", "--eval_fraction", "0.2"]
    evaluated = ["--eval_strategy", "epoch", "--output_dir", str(folder / "run")]
    return ["train", *asked, *COMMON, *length, *evaluated, *more]


def _dropout(inputs: Inputs, folder: Path) -> list[str]:
    return _train(inputs, folder, "--lora", "{r: 4, lora_dropout: 0.1}", "--gram", "averaged")


def _caching(inputs: Inputs, folder: Path) -> list[str]:
    return _train(inputs, folder, "--lora", "{r: 4}", "--precompute_ref_log_probs", "true")


def _front(inputs: Inputs, folder: Path) -> list[str]:
    asked = ["--model", inputs.model, "--data", inputs.comparisons, "--objectives", "helpful,short"]
    few = ["--methods", "linear", "--weightings", "1", "--seeds", "[0]", "--workers", "1", "--eval_fraction", "0.4"]
    return ["front", *asked, *COMMON, *few, "--max_steps", "2", "--output_dir", str(folder / "front")]


def _label(inputs: Inputs, folder: Path) -> list[str]:
    sources = "{much: {function: 'noting:score'}, short: {rule: shorter}}"
    places = ["--out", str(folder / "train.jsonl"), "--cache", str(folder / "answers.sqlite")]
    return ["label", inputs.responses, "--sources", sources, *places]


def _improve(inputs: Inputs, folder: Path) -> list[str]:
    asked = ["--model", inputs.model, "--prompts", inputs.prompts, "--n", "3", "--max_tokens", "6", "--rounds", "1"]
    labelled = ["--sources", "{short: {rule: shorter}, right: {rule: rouge}}", "--objectives", "{short: 1, right: 1}"]
    held = ["--held_out", "{prompts: 0.3, sources: {fluent: {rule: repetition, n: 1}}}"]
    places = ["--output_dir", str(folder / "rounds"), "--cache", str(folder / "answers.sqlite")]
    return ["improve", *asked, *labelled, *held, *COMMON, "--max_steps", "3", "--save_steps", "1", *places]


def _weights(folder: Path) -> dict[str, Any]:
    files = [path for path in sorted(folder.rglob("*.safetensors")) if "checkpoint-" not in str(path)]
    kept = [path for path in files if path.parent.name != "reference"]
    return {
        f"{path.relative_to(folder)}:{name}": tensor.numpy().tobytes().hex()
        for path in kept
        for name, tensor in load_file(path).items()
    }


def _timeless(value: Any, folder: Path) -> Any:
    """Without what a clock decides, and with the trial's folder under one name."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(word in k for word in _TIMES)}
        return {k: _timeless(v, folder) for k, v in kept.items()}
    if isinstance(value, list):
        return [_timeless(v, folder) for v in value]
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


def _read(path: Path, folder: Path) -> Any:
    return _timeless(json.loads(path.read_text(encoding="utf-8")), folder)


def _trained(folder: Path) -> Any:
    run = folder / "run"
    record = _read(run / "run.json", folder)
    lines = [_timeless(json.loads(line), folder) for line in (run / "history.jsonl").read_text().splitlines()]
    final = {key: value for key, value in record["final"].items() if key.startswith("eval_")}
    logged = [line for line in lines if "train_loss" not in line]  # a mean over the process's own steps
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if "checkpoint-" not in str(path))
    told = {"status": record["status"], "final": final, "history": logged}
    return {**told, "weights": _weights(run), "files": left}


def _compared(folder: Path) -> Any:
    cells = _read(folder / "front" / "front.json", folder)["cells"]
    told = [{key: cell.get(key) for key in ("name", "scores", "kl")} for cell in cells]
    return {"cells": told, "weights": _weights(folder / "front")}


def _labelled(folder: Path) -> Any:
    report = _read(folder / "train.labels.json", folder)
    sources = {name: one.get("asked", 0) + one.get("found", 0) for name, one in report["sources"].items()}
    calls = (folder / "log").read_text().splitlines()
    return {
        **{"rows": (folder / "train.jsonl").read_text(), "objectives": report["objectives"]},
        **{"answers": sources, "asked": sorted(set(calls))},
    }


def _improved(folder: Path) -> Any:
    made = _read(folder / "rounds" / "improve.json", folder)
    signs = [one.get("signs") for one in made["rounds"]]
    return {"status": made["status"], "best": made["best"], "signs": signs, "weights": _weights(folder / "rounds")}


COMMANDS = {
    "train": Command(_dropout, _trained, resumes=True),
    "caching": Command(_caching, _trained, resumes=True),
    "front": Command(_front, _compared),
    "label": Command(_label, _labelled),
    "improve": Command(_improve, _improved),
}


# ---- killing ----


def _live(words: list[str], folder: Path, at: int, counted: Any) -> None:
    """In the process to be killed: it ends itself before its `at`-th change of files below the folder."""
    from paretune.pipelines.front import engine
    from tests.pipelines.front.made import Inline

    os.environ |= {"PARETUNE_CACHE": str(folder / "cache"), "KILLS_LOG": str(folder / "log")}
    sys.path.insert(0, str(folder.parent))
    engine.Processes = lambda workers: Inline()  # type: ignore[assignment, misc]  # cells in the process that is killed
    for stream in (1, 2):
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    inside = str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not str(arguments[0]).startswith(inside):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        counted.value += 1
        if counted.value == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    status = paretune(words)
    sys.stdout.flush()
    os._exit(status)


def start(command: Command, inputs: Inputs, folder: Path, *, at: int = 0, seconds: float = 0.0) -> tuple[int, int]:
    """Runs a command once, killed at its `at`-th change of files or after so many seconds (0: not).

    Returns:
        Its exit status, -9 where it was killed, and its changes of files.
    """
    words = command.words(inputs, folder)
    if command.resumes and list((folder / "run").glob("checkpoint-*")):
        words = [*words, "--resume"]
    context = multiprocessing.get_context("fork")
    counted = context.Value("i", 0, lock=False)
    process = context.Process(target=_live, args=(words, folder, at, counted))
    process.start()
    process.join(seconds or None)
    if seconds and process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, counted.value


@dataclass(frozen=True)
class Whole:
    """The run that nobody kills: its result, its changes of files, its seconds."""

    result: Any
    changes: int
    seconds: float


def undisturbed(name: str, inputs: Inputs, folder: Path) -> Whole:
    """Runs a command to its end."""
    folder.mkdir(parents=True)
    (folder.parent / "noting.py").write_text(SOURCE, encoding="utf-8")
    began = time.perf_counter()
    status, changes = start(COMMANDS[name], inputs, folder)
    if status != 0:
        raise RuntimeError(f"{name} ended with status {status}: {(folder / 'said').read_text()[-2000:]}")
    return Whole(COMMANDS[name].result(folder), changes, time.perf_counter() - began)


def trial(name: str, inputs: Inputs, whole: Whole, folder: Path, seed: int, *, kills: int = 0) -> dict[str, Any]:
    """One trial: kills (0: one to four) at moments drawn from the seed, then to the end.

    Returns:
        kills: how many met the process alive; equal: whether the result is that of the whole run; moments; said.
    """
    rng, command = random.Random(seed), COMMANDS[name]
    folder.mkdir(parents=True)
    wanted, moments = kills or rng.randint(1, 4), []
    for _ in range(wanted):
        by_time = kills == 0 and rng.random() < 0.4
        share = rng.uniform(0.0, 1.6 / wanted)
        at = 0 if by_time else max(1, round(share * whole.changes))
        seconds = max(0.05, share * whole.seconds) if by_time else 0.0
        status, changes = start(command, inputs, folder, at=at, seconds=seconds)
        moments.append({"at": at or None, "seconds": seconds or None, "status": status, "changes": changes})
        if status != -signal.SIGKILL:  # it came to its end before its moment did
            break
    last = moments[-1]["status"]
    if last == -signal.SIGKILL:
        last, _ = start(command, inputs, folder)
    result = command.result(folder) if last == 0 else None
    return {
        "command": name,
        "seed": seed,
        "kills": sum(one["status"] == -signal.SIGKILL for one in moments),
        "moments": moments,
        "status": last,
        "equal": result == whole.result,
        "said": None if last == 0 else (folder / "said").read_text(errors="replace")[-1000:],
    }


def made_inputs(folder: Path) -> Inputs:
    """Made rows and a model whose weights are random."""
    from tests.cli.made import records, save_model, text, write_jsonl

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    asked = [{"prompt": f"{i} {text(rng)}?", "reference": text(rng)} for i in range(8)]
    answered = [{"prompt": f"{i}?", "responses": [f"{text(rng)} {j}" for j in range(3)]} for i in range(25)]
    return Inputs(
        str(save_model(folder / "model")),
        write_jsonl(folder / "rows.jsonl", records("native", 25)),
        write_jsonl(folder / "responses.jsonl", answered),
        write_jsonl(folder / "prompts.jsonl", asked),
    )


def _share(names: Sequence[str], inputs: Inputs, wholes: dict[str, Whole], home: Path, seeds: range, out: Path) -> None:
    """Some of the trials, one after the other, in a process of their own."""
    done: list[dict[str, Any]] = []
    for seed in seeds:
        name = names[seed % len(names)]
        done.append(trial(name, inputs, wholes[name], home / str(seed), seed))
        write_json(out, done)
        print(f"{name}, seed {seed}: {done[-1]['kills']} kills, equal: {done[-1]['equal']}", flush=True)
        shutil.rmtree(home / str(seed))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), help=f"of {', '.join(COMMANDS)} [all]")
    parser.add_argument("--trials", type=int, default=50, help="in all; their seeds are 0, 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kills.json")
    asked = parser.parse_args(words)
    home = Path(tempfile.mkdtemp(prefix="paretune-kills-"))
    try:
        inputs = made_inputs(home / "inputs")
        wholes = {name: undisturbed(name, inputs, home / "trials" / name) for name in asked.commands}
        outs = [home / f"share-{job}.json" for job in range(asked.jobs)]
        given = (asked.commands, inputs, wholes, home / "trials")
        shares = [
            multiprocessing.get_context("fork").Process(
                target=_share, args=(*given, range(job, asked.trials, asked.jobs), out)
            )
            for job, out in enumerate(outs)
        ]
        for share in shares:
            share.start()
        for share in shares:
            share.join()
        done = [one for out in outs for one in json.loads(out.read_text(encoding="utf-8"))]
    finally:
        shutil.rmtree(home, ignore_errors=True)
    done.sort(key=lambda one: one["seed"])
    by_command = {
        name: {
            "trials": len(own),
            "kills": sum(one["kills"] for one in own),
            "equal": sum(one["equal"] for one in own),
            "changes_of_files": wholes[name].changes,
        }
        for name in asked.commands
        if (own := [one for one in done if one["command"] == name])
    }
    about = {"command": "python benchmarks/kills.py", "commit": commit(), "versions": versions()}
    totals = {"trials": len(done), "kills": sum(one["kills"] for one in done), "equal": sum(o["equal"] for o in done)}
    write_json(asked.out, {**about, **totals, "commands": by_command, "each": done})
    print(json.dumps({**totals, "commands": by_command}, indent=1))
    return 0 if totals["equal"] == totals["trials"] == asked.trials else 1


if __name__ == "__main__":
    sys.exit(main())
