"""One seed of a language world: its base, its data, and runs of RACOTrainer whose models are read on the way.

A seed fixes the base model, the prompts, responses and labels, and the order of batches; arms of a seed share them all.
A trajectory is a list of points, each with step, exact rewards of fresh samples for held-out prompts, and KL.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from paretune import Objective, RACOConfig, RACOTrainer  # noqa: E402
from paretune.evaluation.sample import sample  # noqa: E402
from paretune.sandbox import WORLDS  # noqa: E402
from paretune.sandbox.labels import PRESETS  # noqa: E402
from paretune.sandbox.language import BASE_STEPS, make_items, sample_rows, train_base  # noqa: E402
from paretune.sandbox.world import World  # noqa: E402


@dataclass(frozen=True)
class Plan:
    """What all runs of a study share."""

    labelling: str
    checkpoints: tuple[int, ...]  # steps at which a model is read; the last one is the run's length
    kappa: float = 6.0
    prompts: int = 400
    pairs_per_prompt: int = 3
    batch: int = 32
    beta: float = 0.1
    c: float = 0.4
    eval_prompts: int = 96
    eval_samples: int = 4
    base_steps: int = BASE_STEPS


@dataclass(frozen=True)
class Arm:
    """A run's method: `objective` names the only one trained on, where there is one."""

    combiner: str
    weights: tuple[float, ...]
    learning_rate: float

    @property
    def single(self) -> bool:
        return max(self.weights) == 1.0


class Reader(TrainerCallback):
    """Samples the model at the plan's checkpoints."""

    def __init__(self, plan: Plan, world: World, base: str, seed: int):
        self.plan, self.world, self.seed = plan, world, seed
        self.items = make_items(world, plan.eval_prompts, seed=seed, held_out=True)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.reference = AutoModelForCausalLM.from_pretrained(base)
        self.points: list[dict[str, Any]] = []

    def read(self, model: Any, step: int) -> None:
        prompts = [item.prompt for item in self.items]
        drawn = sample(
            model, self.tokenizer, prompts, self.plan.eval_samples, max_new_tokens=self.world.max_response + 1,
            seed=self.seed, reference=self.reference,
        )  # fmt: skip
        rewards = [
            [self.world.score(item, text)[o] for o in self.world.objectives]
            for item, texts in zip(self.items, drawn.texts, strict=True)
            for text in texts
        ]
        scores = np.array(rewards).mean(0)
        self.points.append({"step": step, "scores": [round(x, 6) for x in scores], "kl": float(drawn.kl().mean())})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.plan.checkpoints:
            self.read(model, state.global_step)


class Combinations(TrainerCallback):
    """The coefficients of every step."""

    def __init__(self, objectives: tuple[str, ...]):
        self.objectives, self.coefficients, self.logged = objectives, [], []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and f"combine/coefficient/{self.objectives[0]}" in logs:
            self.coefficients.append([logs[f"combine/coefficient/{o}"] for o in self.objectives])
            kept = ("combine/clip_active", "combine/angle_to_linear", "combine/angle_to_unclipped")
            self.logged.append({k: v for k, v in logs.items() if k in kept or k.startswith("grad/")})


def prepare(plan: Plan, name: str, seed: int, folder: Path) -> tuple[str, Path, Path]:
    """The seed's base, and its training and held-out rows; made once."""
    world, place = WORLDS[name], folder / f"{name}-{plan.labelling}-s{seed}"
    base = str(train_base(world, seed=seed, steps=plan.base_steps))
    labels = PRESETS[plan.labelling].with_kappa(plan.kappa)
    for part, count in (("train", plan.prompts), ("held-out", 100)):
        path = place / f"{part}.jsonl"
        if not path.exists():
            rows = sample_rows(world, base, count, plan.pairs_per_prompt, labels, seed, held_out=part == "held-out")
            place.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return base, place / "train.jsonl", place / "held-out.jsonl"


def read_base(plan: Plan, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The base, read as its runs are."""
    base, _, _ = prepare(plan, name, seed, folder)
    reader = Reader(plan, WORLDS[name], base, seed)
    reader.read(reader.reference, 0)
    return {"world": name, "seed": seed, "arm": None, "points": reader.points}


def train(plan: Plan, name: str, seed: int, arm: Arm, folder: Path, *, losses: bool = False) -> dict[str, Any]:
    """One run: its trajectory, the coefficients of its steps in short, and held-out losses where asked."""
    world = WORLDS[name]
    base, rows, held_out = prepare(plan, name, seed, folder)
    betas = PRESETS[plan.labelling].betas(plan.beta, len(world.objectives))
    given = zip(world.objectives, arm.weights, betas, strict=True)
    reader, combinations = Reader(plan, world, base, seed), Combinations(world.objectives)
    with tempfile.TemporaryDirectory() as output:
        args = RACOConfig(
            output_dir=output,
            combiner=arm.combiner,
            c=plan.c,
            beta=plan.beta,
            learning_rate=arm.learning_rate,
            lr_scheduler_type="constant_with_warmup",  # a point on the way does not depend on where the run ends
            warmup_steps=5,
            per_device_train_batch_size=plan.batch,
            gradient_accumulation_steps=1,
            max_steps=plan.checkpoints[-1],
            logging_steps=1,
            save_strategy="no",
            eval_strategy="steps" if losses else "no",
            eval_steps=10,
            seed=seed,
            precompute_ref_log_probs=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = RACOTrainer(
            base, args, [Objective(o, weight=w, beta=beta) for o, w, beta in given], str(rows),
            str(held_out) if losses else None, callbacks=[reader, combinations],
        )  # fmt: skip
        trainer.train()
        found = {str(line["step"]): line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    return {
        "world": name, "seed": seed, "arm": asdict(arm), "points": reader.points,
        **({"losses": found} if losses else {}), **_short(combinations, arm),
    }  # fmt: skip


def _short(seen: Combinations, arm: Arm) -> dict[str, Any]:
    """Means over the steps: effective weights (each step's sum to 1), the sum of coefficients, clipping, angles."""
    coefficients = np.array(seen.coefficients)
    totals = coefficients.sum(1, keepdims=True)
    effective = (coefficients / totals).mean(0)
    keys = sorted({key for line in seen.logged for key in line if not key.startswith("grad/norm")})
    means = {key: float(np.mean([line[key] for line in seen.logged if key in line])) for key in keys}
    return {"effective": effective.tolist(), "total": float(totals.mean()), "means": means}
