"""The fast path (shared prompts, one backward pass, rows by length) trains as the plain one does, step after step.

The plain path: flat rows, one backward pass per objective. Rows are ragged, labels soft, tied and missing; every step
is two micro-batches. Gradients themselves are held to plain autograd in tests/gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from paretune.objectives import Objective
from tests.runs_made import made_text_rows, small_model, small_trainer

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]
OBJECTIVES = [Objective("helpful", 0.5), Objective("concise", 0.3, beta=0.1), Objective("third", 0.2, loss="hinge")]
PLAIN = {"layout": "flat", "gradient_mode": "per_objective", "gradient_storage": "stack"}


def losses(tmp_path: Path, family: str, adapted: bool, steps: int, **changes: Any) -> torch.Tensor:
    """(steps, 1 + objectives): the weighted loss and every objective's."""
    # GPT-2 keeps its matrices transposed
    config = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2") if adapted else None
    trainer = small_trainer(
        tmp_path, rows=made_text_rows(24, ("helpful", "concise", "third")), objectives=OBJECTIVES,
        model=small_model(family), peft_config=config, max_steps=steps, learning_rate=0.02, optim="sgd",
        max_grad_norm=0.0, lr_scheduler_type="constant", warmup_steps=0, **changes,
    )  # fmt: skip
    trainer.train()
    assert trainer.one_pass is (changes.get("gradient_mode") != "per_objective")
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ["loss", *(f"loss/{o.name}" for o in OBJECTIVES)]
    return torch.tensor([[entry.get(name, 0.0) for name in names] for entry in entries])


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_six_steps_in_float32(tmp_path: Path, family: str, adapted: bool) -> None:
    plain = losses(tmp_path / "plain", family, adapted, 6, **PLAIN)
    assert plain.shape == (6, 4) and float((plain[-1] - plain[0]).abs().max()) > 1e-3  # something was learnt
    for changes in ({}, {"gradient_checkpointing": True}):
        fast = losses(tmp_path / f"fast{len(changes)}", family, adapted, 6, **changes)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ten_steps_in_bfloat16(tmp_path: Path, family: str, adapted: bool) -> None:
    """As near to float32 as the plain path in bfloat16, by a factor.

    One step's gradients are held to 1.5 times the plain path's rounding error in tests/gradients. Ten steps carry each
    step's rounding on, so two runs in bfloat16 end at distances from float32 that are of one size, and differ by chance
    (1.0 to 2.7 times were seen); a wrong mask or slope moves losses by the whole of what is learnt.
    """
    exact = losses(tmp_path / "exact", family, adapted, 10, **PLAIN)
    plain = losses(tmp_path / "plain", family, adapted, 10, bf16=True, **PLAIN)
    fast = losses(tmp_path / "fast", family, adapted, 10, bf16=True)
    rounding, learnt = float((plain - exact).norm()), float((exact - exact[0]).norm())
    assert 0 < 5 * rounding < learnt
    assert float((fast - exact).norm()) <= 5 * rounding
