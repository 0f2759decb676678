"""When a run stops: all ranks after the same step, and in time for its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from paretune.cli.train import _early_stopping
from paretune.errors import InputError
from paretune.training import interruption
from paretune.training.interruption import Interruption
from tests.ranks_made import run_ranks
from tests.runs_made import small_config

# Each rank trains; the second one alone is asked to stop, in the middle of step 3; then both go on.
WORKER = """
import json, os, signal, sys
from pathlib import Path
from paretune.errors import StoppedError
from tests.runs_made import small_trainer, weights
import torch

out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
def trainer():
    return small_trainer(out, lora=True, max_steps=6, ddp_backend="gloo")
first, told = trainer(), {}
plain, seen = first.training_step, [0]
def step(*args, **kwargs):
    seen[0] += 1
    if rank == 1 and seen[0] == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(*args, **kwargs)
first.training_step = step
try:
    first.train()
except StoppedError as stop:
    told = {"reason": stop.reason, "step": stop.step, "files": sorted(p.name for p in Path(stop.checkpoint).iterdir())}
second = trainer()
second.train(resume_from_checkpoint=True)
whole = small_trainer(out / "whole", lora=True, max_steps=6, ddp_backend="gloo")
whole.train()
a, b = weights(second), weights(whole)
told["equal"] = all(torch.equal(a[k], b[k]) for k in a)
told["status"] = json.loads((out / "run" / "run.json").read_text())["status"] if rank == 0 else None
(out / f"told{rank}.json").write_text(json.dumps(told))
"""


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    statuses, said = run_ranks(WORKER, [str(tmp_path)], world=2)
    assert statuses == [0, 0], said
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    for one in told:
        assert (one["reason"], one["step"], one["equal"]) == ("SIGTERM", 3, True)
        assert {"manifest.json", "rng_state_0.pth", "rng_state_1.pth"} < set(one["files"])
    assert told[0]["status"] == "finished"


def _at(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption.time, "monotonic", lambda: seconds)


def _ended(listener: Interruption, args: Any, step: int, epoch: float) -> TrainerControl:
    control = TrainerControl()
    state = TrainerState(global_step=step, max_steps=100, epoch=epoch)
    listener.on_step_end(args, state, control)
    return control


def test_time_is_left_for_the_longest_step_and_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at(1000.0, monkeypatch)
    args = small_config(tmp_path, max_hours=1.0)
    listener = Interruption(args)
    _at(1100.0, monkeypatch)
    listener.on_train_begin(args, TrainerState(), TrainerControl(), model=torch.nn.Linear(10_000_000, 1, bias=False))
    assert listener.saving == pytest.approx((4 + 8) * 1e7 / 100e6), "until one was written: weights and two moments"
    for step, now in enumerate((1500.0, 1800.0, 2200.0, 2600.0, 3000.0, 3400.0, 3799.0), start=1):
        _at(now, monkeypatch)
        assert not _ended(listener, args, step, 0.01 * step).should_save, "a step of 400 s and two checkpoints fit"
        if step == 1:
            listener.saved(200.0)  # ends at 1700, and is no part of the second step
    _at(3801.0, monkeypatch)
    assert _ended(listener, args, 8, 0.08).should_save and listener.reason == "max_hours"


def test_what_is_due_at_an_epochs_last_step_waits_for_its_end(tmp_path: Path) -> None:
    args = small_config(tmp_path)
    listener, control = Interruption(args), TrainerControl(should_save=True)
    listener.on_step_end(args, TrainerState(global_step=4, max_steps=9, epoch=1.0), control)
    assert not control.should_save
    listener.on_epoch_end(args, TrainerState(), control)
    assert control.should_save


def test_early_stopping_has_waited_as_long_as_its_checkpoint(tmp_path: Path) -> None:
    args = small_config(
        tmp_path, eval_strategy="steps", save_strategy="steps", load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    before, after = _early_stopping(3), _early_stopping(3)
    before.early_stopping_patience_counter = 2
    state = TrainerState(global_step=5, stateful_callbacks=[before])
    after.on_train_begin(args, state, TrainerControl())
    assert after.early_stopping_patience_counter == 2
    after.on_train_begin(args, TrainerState(), TrainerControl())
    assert after.early_stopping_patience_counter == 0, "a new run begins to wait anew"


@pytest.mark.parametrize("hours", [0, -1.0])
def test_a_limit_is_above_zero(hours: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bad max_hours"):
        small_config(tmp_path, max_hours=hours)
