"""Alignment tax in a language world: what training on two objectives does to what was not trained.

    python studies/alignment_tax/run.py              # cells.jsonl, one line per finished run, then results.json
    python studies/alignment_tax/run.py --quick      # in small, keeps nothing
    python studies/alignment_tax/figure.py           # figure.svg from results.json

World "summaries": coverage and conciseness are trained, faithfulness is not. Every model is read on the way for three
things: the loss of the base's own task (demonstrations for held-out items, nats per token of the response), the mean
exact rewards of samples for held-out items, and KL to the base. Descriptive: three seeds, no verdict.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from paretune import Objective, RACOConfig, RACOTrainer  # noqa: E402
from paretune.sandbox import WORLDS  # noqa: E402
from paretune.sandbox.language import BASE_STEPS, make_items  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.language_worlds.runs import Plan, Reader, prepare  # noqa: E402

WORLD = WORLDS["summaries"]
TRAINED, UNTRAINED = ("coverage", "conciseness"), "faithfulness"
# Arm -> combiner, and the weights of the objectives that are trained.
ARMS: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", dict.fromkeys(TRAINED, 0.5)),
    "raco": ("raco", dict.fromkeys(TRAINED, 0.5)),
    **{f"{one} alone": ("linear", {one: 1.0}) for one in TRAINED},
}


@dataclass(frozen=True)
class Size:
    """How much is run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: tuple[int, ...] = (10, 30, 60)
    prompts: int = 400
    eval_prompts: int = 64
    demonstrations: int = 256
    base_steps: int = BASE_STEPS
    rate: float = 2e-4

    def plan(self) -> Plan:
        return Plan(
            "clean", self.checkpoints, prompts=self.prompts, eval_prompts=self.eval_prompts, base_steps=self.base_steps
        )


class TaxReader(Reader):
    """Adds the loss of held-out demonstrations to what is read of a model."""

    def __init__(self, size: Size, base: str, seed: int):
        super().__init__(size.plan(), WORLD, base, seed)
        rng = random.Random(f"held-out demonstrations {seed}")
        items = make_items(WORLD, size.demonstrations, seed=seed + 500_000, held_out=True)
        self.texts = [(item.prompt, WORLD.demonstrate(item, rng)) for item in items]

    def read(self, model: Any, step: int) -> None:
        super().read(model, step)
        self.points[-1]["demonstrations"] = demonstration_loss(model, self.tokenizer, self.texts)


def demonstration_loss(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], batch: int = 64) -> float:
    """Mean loss of the responses' tokens, their EOS among them, in nats per token; prompts are read and not scored."""
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    for start in range(0, len(texts), batch):
        pairs = [
            (tokenizer(prompt)["input_ids"], [*tokenizer(response)["input_ids"], tokenizer.eos_token_id])
            for prompt, response in texts[start : start + batch]
        ]
        longest = max(len(prompt) + len(response) for prompt, response in pairs)
        ids, targets = torch.zeros(len(pairs), longest, dtype=torch.long), torch.full((len(pairs), longest), -100)
        for row, (prompt, response) in enumerate(pairs):
            whole = torch.tensor([*prompt, *response])
            ids[row, : len(whole)] = whole  # padded on the right: a causal model sees nothing of it before
            targets[row, len(prompt) : len(whole)] = whole[len(prompt) :]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum"))
        count += int((targets >= 0).sum())
    model.train(was_training)
    return total / count


def run_base(size: Size, seed: int, folder: Path) -> list[dict[str, Any]]:
    base, _, _ = prepare(size.plan(), WORLD.name, seed, folder)
    reader = TaxReader(size, base, seed)
    reader.read(reader.reference, 0)
    return reader.points


def run_arm(size: Size, seed: int, arm: str, folder: Path) -> list[dict[str, Any]]:
    """Trains one arm of a seed; what was read at the checkpoints."""
    plan, (combiner, weights) = size.plan(), ARMS[arm]
    base, rows, _ = prepare(plan, WORLD.name, seed, folder)
    reader = TaxReader(size, base, seed)
    with tempfile.TemporaryDirectory() as output:
        args = RACOConfig(
            output_dir=output,
            combiner=combiner,
            c=plan.c,
            beta=plan.beta,
            learning_rate=size.rate,
            lr_scheduler_type="constant_with_warmup",  # a point on the way does not depend on where the run ends
            warmup_steps=5,
            per_device_train_batch_size=plan.batch,
            gradient_accumulation_steps=1,
            max_steps=size.checkpoints[-1],
            save_strategy="no",
            seed=seed,
            precompute_ref_log_probs=True,
            disable_tqdm=True,
            report_to="none",
        )
        objectives = [Objective(name, weight=weight) for name, weight in weights.items()]
        RACOTrainer(base, args, objectives, str(rows), callbacks=[reader]).train()
    return reader.points


def cells(size: Size) -> Iterator[tuple[int, str]]:
    for seed in size.seeds:
        for arm in ("base", *ARMS):
            yield seed, arm


def finished(path: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Cells that are there; a line that a kill cut short is none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[cell["seed"], cell["arm"]] = cell
    return found


def fill(size: Size, path: Path, folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Runs what is missing, one cell after the other."""
    done = finished(path)
    for seed, arm in cells(size):
        if (seed, arm) in done:
            continue
        began = time.process_time()
        points = run_base(size, seed, folder) if arm == "base" else run_arm(size, seed, arm, folder)
        cell = {"seed": seed, "arm": arm, "points": points, "CPU seconds": round(time.process_time() - began, 1)}
        line = json.dumps(cell)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        done[seed, arm] = json.loads(line)  # as a later start finds it: numpy rounds otherwise than Python
        print(seed, arm, points[-1], f"{cell['CPU seconds']} s", flush=True)
    return done


def summarize(size: Size, done: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """Per arm and checkpoint, mean over seeds and each seed: KL, change of the demonstrations' loss, of the rewards."""
    rows: dict[str, list[dict[str, Any]]] = {}
    names = WORLD.objectives
    for arm in ARMS:
        for place, step in enumerate(size.checkpoints):
            of: dict[str, list[float]] = {}
            for seed in size.seeds:
                start, point = done[seed, "base"]["points"][0], done[seed, arm]["points"][place]
                of.setdefault("KL", []).append(point["kl"])
                of.setdefault("loss", []).append(point["demonstrations"] - start["demonstrations"])
                for i, name in enumerate(names):
                    of.setdefault(name, []).append(point["scores"][i] - start["scores"][i])
            figures = {
                key: {"mean": round(sum(v) / len(v), 5), "seeds": [round(x, 5) for x in v]} for key, v in of.items()
            }
            rows.setdefault(arm, []).append({"step": step, **figures})
    starts = [done[seed, "base"]["points"][0] for seed in size.seeds]
    base = {
        "loss": [round(start["demonstrations"], 5) for start in starts],
        **{name: [round(start["scores"][i], 5) for start in starts] for i, name in enumerate(names)},
    }
    return {"base": base, "changes": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps; keeps nothing")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of cells.jsonl and results.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one thread are the same on every machine, and these tensors are small
    if options.quick:
        size = Size((0,), (1, 2), prompts=24, eval_prompts=8, demonstrations=32, base_steps=40)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(summarize(size, fill(size, Path(folder) / "cells.jsonl", Path(folder))), indent=1))
        return 0
    size = Size()
    with tempfile.TemporaryDirectory() as folder:
        done = fill(size, options.out / "cells.jsonl", Path(folder))
    about = {
        "command": "python studies/alignment_tax/run.py",
        "commit": commit(),
        "versions": versions(),
        "size": asdict(size),
        "CPU seconds": round(sum(cell["CPU seconds"] for cell in done.values())),
    }
    write_json(options.out / "results.json", {**summarize(size, done), **about})
    return 0


if __name__ == "__main__":
    sys.exit(main())
