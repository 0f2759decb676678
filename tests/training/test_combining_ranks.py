"""Losses and memory of a combiner on two ranks: the same on both, and those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.ranks_made import run_ranks
from tests.runs_made import farthest, made_text_rows, small_trainer, weights

WORKER = """
import json, sys, torch
from pathlib import Path
from tests.runs_made import made_text_rows, small_trainer, weights
out = Path(sys.argv[1])
trainer = small_trainer(
    out / "run", rows=made_text_rows(15), lora=True, optim="sgd", learning_rate=0.1, max_steps=4, combiner="famo",
    per_device_train_batch_size=2, gradient_accumulation_steps=2, ddp_backend="gloo",
)
trainer.train()
rank = trainer.args.process_index
torch.save(weights(trainer), out / f"rank{rank}.pt")
(out / f"rank{rank}.json").write_text(json.dumps(trainer.combiner.state))
"""


def test_two_ranks_share_losses_and_memory(tmp_path: Path) -> None:
    statuses, said = run_ranks(WORKER, [str(tmp_path)], world=2)
    assert statuses == [0, 0], said
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    states = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert states[0] == states[1] and states[0]["steps"] == 4
    alone = small_trainer(
        tmp_path / "alone", rows=made_text_rows(15), lora=True, optim="sgd", learning_rate=0.1, max_steps=4,
        combiner="famo", per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    alone.train()
    assert farthest(first, weights(alone)) <= 1e-5
    assert states[0]["logits"] == pytest.approx(alone.combiner.state["logits"], rel=1e-3)
