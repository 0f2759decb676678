"""Real weights and real labels: a 260K-parameter story model on TruthfulQA's two label files, LoRA and full.

It shows that the pipeline walks. What such a model scores on held-out questions is in studies/truthfulqa_pipeline.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel

from paretune import Objective, RACOConfig, RACOTrainer
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.rows import split_groups
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.evaluation.margins import evaluate_margins, figures
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference
from tests.shared_data import shared_data

OBJECTIVES = [Objective("truthful", weight=0.5), Objective("informative", weight=0.5)]
NAMES = [o.name for o in OBJECTIVES]


def kind(preferences: dict[str, float | None]) -> str:
    """Which labels differ, and whether they want the same answer."""
    truthful, informative = (preferences[name] for name in NAMES)
    if truthful is None or informative is None:
        return "truth" if informative is None else "information"
    return "agree" if truthful == informative else "conflict"


@pytest.fixture(scope="module")
def parts() -> tuple[Dataset, Dataset]:
    """Short pairs of every kind, split by question: 32 for training and 16 held out."""
    rows, _ = read_comparisons(shared_data("truthfulqa"), max_pairs=4)
    short = rows.filter(lambda row: len(row["prompt"] + row["response_a"] + row["response_b"]) < 140)

    def some(part: Dataset, of_each: int) -> Dataset:
        chosen: dict[str, list[int]] = {}
        for i, row in enumerate(part):
            chosen.setdefault(kind(row["preferences"]), []).append(i)
        return part.select([i for numbers in chosen.values() for i in numbers[:of_each]])

    train, held_out = split_groups(short, 0.2, seed=0)
    return some(train, 8), some(held_out, 4)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_real_labels_train_a_real_model(parts: tuple[Dataset, Dataset], tmp_path: Path, lora: bool) -> None:
    train, held_out = parts
    assert Counter(map(kind, train["preferences"])) == dict.fromkeys(("conflict", "agree", "truth", "information"), 8)
    assert not set(train["group"]) & set(held_out["group"])
    base = str(shared_data("stories260K"))
    args = RACOConfig(
        output_dir=str(tmp_path / "run"), max_steps=16, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=5e-3 if lora else 1e-3, beta=0.1, max_length=512, logging_steps=8, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = RACOTrainer(base, args, OBJECTIVES, train, {"seen": train, "new": held_out}, peft_config=adapter)

    before = trainer.evaluate()
    assert all(before[f"eval_{part}_rewards/margins/{name}"] == 0.0 for part in ("seen", "new") for name in NAMES)
    trainer.train()
    after = trainer.evaluate()
    for name in NAMES:  # a third of each one's pairs conflict and cannot be had for both: at best 5 in 6 on the average
        assert after[f"eval_seen_rewards/margins/{name}"] > 1.0, after
        assert after[f"eval_seen_rewards/accuracies/{name}"] > 0.7, after
    assert all(torch.tensor(value).isfinite() for key, value in after.items() if key.startswith("eval_new"))

    trainer.save_model()
    policy, tokenizer = load_scored(args.output_dir), load_tokenizer(base)
    assert isinstance(policy, PeftModel) == lora
    scorer = prepare_scorer(policy)
    model = load_scored(base)
    reference = Reference("adapter", policy, scorer) if lora else Reference("copy", model, prepare_scorer(model))
    data, _ = tokenize_comparisons(held_out, tokenizer, NAMES, max_length=512)
    found = evaluate_margins(policy, scorer, reference, data, OBJECTIVES, 0.1, pad_id=pad_id(tokenizer))
    margin, counted = figures(found)["margin"]
    for i, name in enumerate(NAMES):
        assert margin[i][counted[i]].mean() == pytest.approx(after[f"eval_new_rewards/margins/{name}"], rel=1e-3)
