"""Small real runs: made text comparisons, a real tokenizer, a real model, the real trainer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from paretune.objectives import Objective
from paretune.training.config import RACOConfig
from paretune.training.trainer import RACOTrainer
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe

WORDS = "a cat dog sat ran in the big red sun day little girl boy happy sad went home and saw".split()  # noqa: SIM905


def made_text_rows(n: int, names: tuple[str, ...] = ("helpful", "concise"), seed: int = 0) -> list[dict[str, Any]]:
    """The first objective likes the word "happy", the second short responses; labels are hard, soft, tied, missing."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    rows = []
    for i in range(n):
        a, b = " " + text(2, 9), " " + text(2, 9)
        truth = [
            0.5 if a.count("happy") == b.count("happy") else float(a.count("happy") > b.count("happy")),
            0.5 if len(a) == len(b) else float(len(a) < len(b)),
            0.8 if "cat" in a else 0.3,
        ]
        labels = dict(zip(names, truth, strict=False))
        if i % 7 == 3:
            labels[names[i % len(names)]] = None  # type: ignore[assignment]
        rows.append(
            {
                "prompt": f"{i} once {text(2, 6)}",
                "response_a": a,
                "response_b": b,
                "preferences": labels,
                "group": str(i // 2),
            }
        )
    return rows


def small_model(family: str = "qwen3", **changes: Any) -> PreTrainedModel:
    """A model whose vocabulary fits the made tokenizer; ready to be trained (float32)."""
    return make_model(family, std=0.15, vocab_size=400, **changes)


OBJECTIVES = [Objective("helpful", weight=0.6), Objective("concise", weight=0.4)]


def small_config(tmp_path: Path, **changes: Any) -> RACOConfig:
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_length": 64,
    }
    return RACOConfig(**{**options, **changes})


def small_trainer(
    tmp_path: Path,
    *,
    rows: list[dict[str, Any]] | None = None,
    lora: bool = False,
    model: Any = None,
    objectives: list[Objective] | None = None,
    **changes: Any,
) -> RACOTrainer:
    """A trainer on made rows; keyword arguments of RACOTrainer go by their names, the others into the configuration."""
    own = {k: changes.pop(k) for k in ("eval_dataset", "ref_model", "callbacks", "peft_config") if k in changes}
    if lora:
        own["peft_config"] = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return RACOTrainer(
        model=small_model() if model is None else model,
        args=small_config(tmp_path, **changes),
        objectives=objectives or OBJECTIVES,
        train_dataset=made_text_rows(40) if rows is None else rows,
        processing_class=byte_bpe(),
        **own,
    )


def weights(trainer: RACOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def farthest(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a parameter."""
    return max(float((x[k] - y[k]).norm() / y[k].norm().clamp_min(1e-30)) for k in y)
