"""The policy: half-knowledge, a supervised start on references, and one round of sample, label, align."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune import Objective, RACOConfig, RACOTrainer
from paretune.evaluation.sample import sample
from paretune.pipelines.labelling import label_candidates
from paretune.pipelines.sampling import SamplingSettings, open_responses, read_prompts
from paretune.pipelines.sampling_here import sample_here
from paretune.preferences.candidates import Candidates, read_candidates
from paretune.preferences.specs import parse_sources
from paretune.training.sft import SFTConfig, run_supervised, supervised_trainer
from studies.self_improvement.judges import QUIET, small_model, write_model
from studies.self_improvement.world import COUNT, OBJECTIVES, Creature, demonstrate, refer, score

MARGIN = 1e-6  # of a label: equal scores are no opinion


@dataclass(frozen=True)
class Policies:
    """What all policies of the study share."""

    demonstrations: int = 50  # per creature
    second_words: float = 0.0  # how often the demonstrations say a value in its other word
    base_epochs: int = 4
    base_rate: float = 3e-3
    sft_rate: float = 1e-3
    sft_steps: int = 15
    sft_batch: int = 32
    draws: int = 4  # per prompt
    steps: int = 40
    batch: int = 32  # comparisons; twice as many responses where more SFT is the arm
    align_rate: float = 2e-4
    more_rates: tuple[float, ...] = (2.5e-4, 1.25e-4, 5e-4)  # the first for references of any quality
    beta: float = 0.1
    c: float = 0.4
    eval_draws: Mapping[str, int] = field(default_factory=lambda: {"held out": 16, "train": 4})  # per creature


def supervised(start: str, out: Path, rows: list[dict[str, str]], seed: int, **options: Any) -> str:
    """A model trained to give the rows' responses."""
    args = SFTConfig(output_dir=str(out), seed=seed, weight_decay=0.0, **options, **QUIET)
    trainer, record = supervised_trainer(start, args, rows)
    run_supervised(trainer, record)
    return str(out)


def train_base(out: Path, creatures: Sequence[Creature], seed: int, own: Policies) -> str:
    """What the policy knows before anybody asks it to be right."""
    rng = random.Random(f"demonstrations {seed}")
    rows = [
        {"prompt": one.prompt, "response": demonstrate(one, rng, own.second_words)}
        for one in creatures
        for _ in range(own.demonstrations)
    ]
    start = write_model(out / "untrained", small_model(seed))
    return supervised(
        start, out / "base", rows, seed, learning_rate=own.base_rate, num_train_epochs=own.base_epochs,
        per_device_train_batch_size=64,
    )  # fmt: skip


def references(creatures: Sequence[Creature], seed: int, **quality: float) -> list[dict[str, str]]:
    """One reference per creature; which properties it mentions does not depend on its quality."""
    return [
        {"prompt": one.prompt, "reference": refer(one, random.Random(f"{one.name} {seed}"), **quality)}
        for one in creatures
    ]


def imitate(start: str, out: Path, referred: Sequence[Mapping[str, str]], seed: int, own: Policies) -> str:
    """The supervised start."""
    rows = [{"prompt": row["prompt"], "response": row["reference"]} for row in referred]
    return supervised(
        start, out, rows, seed, learning_rate=own.sft_rate, max_steps=own.sft_steps,
        per_device_train_batch_size=own.sft_batch,
    )  # fmt: skip


def imitate_more(
    start: str, out: Path, referred: Sequence[Mapping[str, str]], rate: float, seed: int, own: Policies
) -> str:
    """As many further steps as an aligned arm takes, on as many responses per step."""
    rows = [{"prompt": row["prompt"], "response": row["reference"]} for row in referred]
    return supervised(
        start, out, rows, seed, learning_rate=rate, max_steps=own.steps,
        per_device_train_batch_size=2 * own.batch, lr_scheduler_type="constant_with_warmup", warmup_steps=4,
    )  # fmt: skip


def draw(start: str, out: Path, referred: Sequence[Mapping[str, str]], seed: int, own: Policies) -> list[Candidates]:
    """The start's own responses to the prompts."""
    out.mkdir(parents=True, exist_ok=True)
    settings = SamplingSettings(start, n=own.draws, max_tokens=COUNT + 1, seed=seed)
    prompts, _ = read_prompts(list(referred))
    with open_responses(out / "responses.jsonl", settings, overwrite=True) as file:
        sample_here(prompts, settings, file, batch_size=512)
        file.finish(prompts)
    return read_candidates(str(out / "responses.jsonl"))[0]


def label(candidates: Sequence[Candidates], asked: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """All pairs of each prompt with hard labels, and the report; a source that has no opinion gives no label."""
    common = {"soft": False, "min_margin": MARGIN}
    labellers = parse_sources({name: {**spec, **common} for name, spec in asked.items()})
    return label_candidates(candidates, labellers, None, pairs="all")


def align(
    start: str, out: Path, rows: list[dict[str, Any]], weights: Mapping[str, float], seed: int, own: Policies,
    *, combiner: str = "linear", beta: float | None = None,
) -> str:  # fmt: skip
    """DPO with one objective; RACO or linear weighting of several."""
    args = RACOConfig(
        output_dir=str(out), seed=seed, combiner=combiner, c=own.c, beta=own.beta if beta is None else beta,
        learning_rate=own.align_rate, lr_scheduler_type="constant_with_warmup", warmup_steps=4,
        per_device_train_batch_size=own.batch, max_steps=own.steps, precompute_ref_log_probs=True, **QUIET,
    )  # fmt: skip
    trainer = RACOTrainer(start, args, [Objective(name, weight=w) for name, w in weights.items()], rows)
    trainer.train()
    trainer.save_model()
    return str(out)


def evaluate(model: str, start: str, creatures: Sequence[Creature], draws: int, seed: int) -> dict[str, float]:
    """Mean exact rewards of fresh draws, the same random numbers for every model; KL to the supervised start."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy, reference = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model, start))
    drawn = sample(
        policy, tokenizer, [one.prompt for one in creatures], draws, max_new_tokens=COUNT + 1, seed=seed,
        reference=reference,
    )  # fmt: skip
    scores = [score(one, text) for one, texts in zip(creatures, drawn.texts, strict=True) for text in texts]
    found = {name: float(np.mean([one[name] for one in scores])) for name in (*OBJECTIVES, "overall")}
    return found | {"kl": float(drawn.kl().mean())}
