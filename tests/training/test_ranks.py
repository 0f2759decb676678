"""Two processes take the steps that one takes: the same rows, the same Gram, the same weights on both ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs_made import farthest, made_text_rows, small_trainer, weights

ROOT = Path(__file__).resolve().parents[2]

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **shared, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:  # one that waits for a rank that died would outlive the test
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(output[-3000:] for output in said)
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
