"""Times the whole optimizer step: ours for any number of objectives, TRL's for one, and the naive way.

Every contestant is a real trainer on real tokenized rows, with the same model, dtype, adapters and batch, in one
process. They take turns (A B C A B C ...): each runs its training loop in its own thread and waits at the end of every
step until it is called again, so whatever else the machine does falls on all of them alike. Ratios of medians are the
result; times are only shown.

    python benchmarks/step.py --quick                        # small model, a few minutes on two cores
    python benchmarks/step.py --shape tldr chat long         # the full table
    python benchmarks/step.py --memory                       # peak memory, each contestant in its own process

Contestants: `trl` (DPOTrainer, one objective, reference precomputed, no checkpointing, no dropout), `ours-M` (RACO with
M objectives), `scalar-shared` and `scalar-flat` (one weighted loss, one plain backward pass, by our code: the floor),
`naive-M` (M plain backward passes over flat rows, as the authors' release does). Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
)

from paretune import Objective, RACOConfig, RACOTrainer
from paretune.losses import batch_losses
from paretune.training.record import commit
from paretune.training.step import log_probs

SHAPES = {"tldr": (384, 48), "chat": (128, 256), "long": (1536, 128)}
SIZES = {"quick": (384, 6), "full": (512, 8)}  # hidden size, layers


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word w0, w1, …: lengths in words are lengths in tokens."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(vocabulary - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=4096
    )


def make_model(family: str, hidden: int, layers: int, vocabulary: int) -> PreTrainedModel:
    """A randomly drawn model of the family; the same numbers every time."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden * 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 128),
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=512)),
    }
    return makers[family]()


def make_texts(n: int, prompt: int, response: int, vocabulary: int) -> list[tuple[str, str, str]]:
    """Prompts and two responses of exactly these lengths (the response's last token is its EOS)."""
    generator = torch.Generator().manual_seed(1)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(0, vocabulary - 3, (count,), generator=generator).tolist())

    return [(words(prompt), " " + words(response - 1), " " + words(response - 1)) for _ in range(n)]


class Turnstile(TrainerCallback):
    """Lets a training loop in another thread run one step at a time."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.stop = False
        self.error: BaseException | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.done.release()
        self.go.acquire()
        control.should_training_stop = self.stop
        return control


class Contestant:
    """A trainer whose steps are taken one by one; a step runs from one optimizer update to the next, data included."""

    def __init__(self, name: str, make: Callable[[list[Any]], Trainer]):
        self.name, self.turn = name, Turnstile()
        self.trainer = make([self.turn])
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.turn.go.acquire()
        try:
            self.trainer.train()
        except BaseException as error:
            self.turn.error = error
            self.turn.done.release()

    def step(self, *, keep: bool = True) -> None:
        """One optimizer step."""
        if not self.thread.is_alive():
            self.thread.start()
        wall, cpu = time.perf_counter(), time.process_time()
        self.turn.go.release()
        self.turn.done.acquire()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.turn.error is not None:
            raise self.turn.error
        if keep:
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.process_time() - cpu)

    def finish(self) -> None:
        self.turn.stop = True
        self.turn.go.release()
        self.thread.join(timeout=60)


class ScalarTrainer(RACOTrainer):
    """The floor: the weighted losses as one scalar, one plain backward pass, everything else the same."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.model.train()
        batch = self._prepare_inputs(inputs)
        with self.accelerator.autocast():
            scores, logps = log_probs(self.model, self.scorer, self.reference, batch)
        losses = batch_losses(self.objectives, self.args.beta, logps, batch["preferences"])
        share = (self.weights / self.label_counts).to(losses.values)[:, None]
        slopes_a, slopes_b = (share * losses.slopes_a).sum(0), (share * losses.slopes_b).sum(0)
        (slopes_a * scores.logp_a + slopes_b * scores.logp_b).sum().backward()
        return (share * losses.values).sum().float()


def common_arguments(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What both libraries' trainers are told."""
    return {
        "output_dir": str(run),
        "per_device_train_batch_size": options.comparisons,
        "gradient_accumulation_steps": 1,
        "max_steps": 10_000,
        "learning_rate": 1e-5,
        "logging_steps": 1_000_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "max_length": sum(SHAPES[options.shape_now]) + 8,
        "beta": 0.2,
        "optim": "adamw_torch",
    }


def adapter(options: argparse.Namespace) -> LoraConfig | None:
    return None if options.full else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)


def make_contestant(name: str, options: argparse.Namespace, folder: Path) -> Contestant:
    """A contestant by its name; see the module's docstring."""
    hidden, layers = SIZES[options.size]
    prompt, response = SHAPES[options.shape_now]
    texts = make_texts(options.comparisons * 4, prompt, response, options.vocabulary)
    tokenizer = make_tokenizer(options.vocabulary)
    model = make_model(options.family, hidden, layers, options.vocabulary)
    common = common_arguments(folder / name, options)
    kind, _, number = name.partition("-")

    def ours(callbacks: list[Any]) -> Trainer:
        m = int(number) if number.isdigit() else 2
        flat = kind == "naive" or name == "scalar-flat"
        objectives = [Objective(f"o{i}", weight=1 / m) for i in range(m)]
        labels = torch.rand(len(texts), m, generator=torch.Generator().manual_seed(2)).round().tolist()
        names = [o.name for o in objectives]
        rows = [
            {"prompt": p, "response_a": a, "response_b": b, "preferences": dict(zip(names, label, strict=True))}
            for (p, a, b), label in zip(texts, labels, strict=True)
        ]
        args = RACOConfig(
            **common,
            layout="flat" if flat else "shared",
            gradient_mode="per_objective" if kind == "naive" else "single_pass",
        )
        trainer = ScalarTrainer if kind == "scalar" else RACOTrainer
        return trainer(model, args, objectives, rows, None, tokenizer, adapter(options), callbacks=callbacks)

    def trl(callbacks: list[Any]) -> Trainer:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        rows = Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts])
        args = DPOConfig(**common, disable_dropout=True, dataset_num_proc=None)
        return DPOTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter(options),
            callbacks=callbacks,
        )

    return Contestant(name, trl if kind == "trl" else ours)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median and the two quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return middle, low, high


def measure(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of every contestant's steps, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        contestants = []
        for name in names:
            contestants.append(make_contestant(name, options, Path(folder)))
        try:
            for round_ in range(options.rounds + 1):
                for contestant in contestants:
                    slow = contestant.name.startswith("naive") and round_ > options.naive_rounds
                    if not slow:
                        contestant.step(keep=round_ > 0)  # the first step of each warms up: buffers, optimizer state
                sys.stderr.write(f"\r{options.shape_now}: round {round_} of {options.rounds}")
            sys.stderr.write("\n")
        finally:
            for contestant in contestants:
                if contestant.turn.error is None and contestant.thread.is_alive():
                    contestant.finish()
    out: dict[str, Any] = {}
    for contestant in contestants:
        wall, low, high = quartiles(contestant.wall)
        cpu = quartiles(contestant.cpu)[0]
        out[contestant.name] = {"wall": wall, "quartiles": [low, high], "cpu": cpu, "steps": len(contestant.wall)}
    return out


def peak_memory(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Bytes that the steps of one contestant need beyond what is resident once model and optimizer exist."""
    with tempfile.TemporaryDirectory() as folder:
        contestant = make_contestant(name, options, Path(folder))
        contestant.step(keep=False)
        if torch.cuda.is_available():
            resident = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            resident = _resident()
        for _ in range(3):
            contestant.step()
        cuda = torch.cuda.is_available()
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        contestant.finish()
    return {"resident": float(resident), "peak": float(peak), "above": float(peak - resident)}


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def machine() -> dict[str, Any]:
    """What kind of machine, and how busy it was."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
    }


def render(shape: str, results: dict[str, Any]) -> str:
    """A table of one shape: times, and ratios to TRL and to the floor of the same layout."""
    lines = [f"{shape}: prompt {SHAPES[shape][0]}, responses {SHAPES[shape][1]}"]
    lines.append(f"  {'contestant':16s} {'wall s':>8s} {'quartiles':>15s} {'cpu s':>8s} {'/ trl':>7s} {'/ floor':>8s}")
    for name, r in results.items():
        trl = r["wall"] / results["trl"]["wall"] if "trl" in results else float("nan")
        floor = r["wall"] / results["scalar-shared"]["wall"] if "scalar-shared" in results else float("nan")
        low, high = r["quartiles"]
        lines.append(f"  {name:16s} {r['wall']:8.3f} {low:7.3f} {high:7.3f} {r['cpu']:8.3f} {trl:7.3f} {floor:8.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small model, few rounds")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tldr"])
    parser.add_argument("--family", choices=["qwen3", "llama", "gemma3"], default="qwen3")
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--objectives", nargs="+", type=int, default=[1, 2, 8, 16])
    parser.add_argument("--comparisons", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--naive-rounds", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one contestant's memory, in this process
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/step-….json")
    options = parser.parse_args()
    options.size = "quick" if options.quick else "full"
    if options.only:
        options.shape_now = options.shape[0]
        sys.stdout.write(json.dumps(peak_memory(options.only, options)) + "\n")
        return
    names = ["trl", "scalar-flat", "scalar-shared", *[f"ours-{m}" for m in options.objectives]]
    names += [] if options.memory else ["naive-8"]
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "shapes": {},
    }
    record["options"] = {k: v for k, v in vars(options).items() if isinstance(v, int | str | bool | list)}
    for shape in options.shape:
        options.shape_now = shape
        if options.memory:
            words = [
                sys.executable,
                __file__,
                *[w for w in sys.argv[1:] if w != "--memory"],
                "--shape",
                shape,
                "--only",
            ]
            measured = {}
            for name in names:
                done = subprocess.run([*words, name], check=True, capture_output=True, text=True)
                measured[name] = json.loads(done.stdout.splitlines()[-1])
            record["shapes"][shape] = measured
            sys.stdout.write(json.dumps(record["shapes"][shape], indent=1) + "\n")
        else:
            record["shapes"][shape] = measure(names, options)
            sys.stdout.write(render(shape, record["shapes"][shape]) + "\n")
    kind = "memory" if options.memory else "step"
    how = "full" if options.full else "lora"
    out = options.out or Path(__file__).parent / "results" / f"{kind}-{options.size}-{options.family}-{how}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
