"""Two processes take the steps that one takes: the same rows, the same Gram, the same weights on both ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ranks_made import run_ranks
from tests.runs_made import farthest, made_text_rows, small_trainer, weights

# What each rank runs; one process runs the same without RANK in its environment.
WORKER = """
import sys, torch
from pathlib import Path
from tests.runs_made import made_text_rows, small_trainer, weights
out = Path(sys.argv[1])
rows = made_text_rows(21)
trainer = small_trainer(
    out / "run", rows=rows[:15], eval_dataset=rows[15:], lora=True, optim="sgd", learning_rate=0.1, max_steps=5,
    per_device_train_batch_size=2, gradient_accumulation_steps=2, ddp_backend="gloo",
    eval_strategy="steps", eval_steps=5,
)
trainer.train()
rank = trainer.args.process_index
history = [e for e in trainer.state.log_history if "loss" in e or "eval_loss" in e]
torch.save({"weights": weights(trainer), "history": history}, out / f"rank{rank}.pt")
"""


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    statuses, said = run_ranks(WORKER, [str(tmp_path)], world=2)
    assert statuses == [0, 0], said
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])

    rows = made_text_rows(21)
    alone = small_trainer(
        tmp_path / "alone", rows=rows[:15], eval_dataset=rows[15:], lora=True, optim="sgd", learning_rate=0.1,
        max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=5,
    )  # fmt: skip
    alone.train()
    assert farthest(first["weights"], weights(alone)) <= 1e-5
    history = [entry for entry in alone.state.log_history if "loss" in entry or "eval_loss" in entry]
    timing = ("time/", "tokens/", "runtime", "per_second")
    for one, two in zip(history, first["history"], strict=True):
        for key in one.keys() - {k for k in one if any(word in k for word in timing)}:
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key
