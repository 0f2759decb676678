"""Numerical faults: what is skipped, counted, followed, and when a run stops. Ranks: `test_ranks.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from paretune.errors import DivergedError
from paretune.objectives import Objective
from paretune.training import trainer as trainer_module
from paretune.training.faults import StepFaults
from tests.runs_made import farthest, made_text_rows, small_model, small_trainer, weights

NAN, INF = float("nan"), float("inf")
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0}


class EachStep(TrainerCallback):
    """The trained weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))


def test_one_row_or_one_objective_spoils_a_step_which_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = EachStep()
    trainer = small_trainer(tmp_path, lora=True, max_steps=4, callbacks=[each], gradient_accumulation_steps=1)
    log_probs, batch_losses = trainer_module.log_probs, trainer_module.batch_losses

    def one_row(*given: Any) -> Any:
        scores, logps = log_probs(*given)
        factor = torch.ones_like(scores.logp_a)
        factor[-1] = NAN if trainer.state.global_step == 1 else 1.0
        return replace(scores, logp_a=scores.logp_a * factor), replace(logps, a=logps.a * factor)

    def one_objective(*given: Any) -> Any:
        losses = batch_losses(*given)
        slopes = losses.slopes_a.clone()
        slopes[1, 0] = INF if trainer.state.global_step == 2 else slopes[1, 0]
        return replace(losses, slopes_a=slopes)

    monkeypatch.setattr(trainer_module, "log_probs", one_row)
    monkeypatch.setattr(trainer_module, "batch_losses", one_objective)
    trainer.train()
    first, row, objective, last = each.weights
    assert torch.equal(first, row) and torch.equal(row, objective) and not torch.equal(objective, last)
    assert trainer.faults.skipped == 2 and trainer.faults.in_a_row == 0
    said = [notice for notice in trainer.record.content["notices"] if "skipped" in notice]
    assert ["of every objective" in said[0], "of concise;" in said[1]] == [True, True] and len(said) == 2


def labelled(*of_row: Any) -> tuple[list[dict[str, Any]], list[Objective]]:
    """Rows whose labels are these functions of the row's number, and one objective each, of equal weights."""
    names = [f"o{i}" for i in range(len(of_row))]
    rows = made_text_rows(8)
    for i, row in enumerate(rows):
        row["preferences"] = {name: label(i) for name, label in zip(names, of_row, strict=True)}
    return rows, [Objective(name, weight=1.0 / len(names)) for name in names]


def test_objectives_that_are_one_opposed_or_without_gradient(tmp_path: Path) -> None:
    def run(name: str, *of_row: Any) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        rows, objectives = labelled(*of_row)
        trainer = small_trainer(
            tmp_path / name, rows=rows, objectives=objectives, lora=True, max_steps=2,
            gradient_accumulation_steps=1, per_device_train_batch_size=8, **SGD,
        )  # fmt: skip
        before = weights(trainer)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(math.isfinite(value) for entry in entries for value in entry.values()) and len(entries) == 2
        return entries, before, weights(trainer)

    _, before, alone = run("alone", lambda i: i % 2)
    _, _, twice = run("twice", lambda i: i % 2, lambda i: i % 2)
    assert farthest(alone, twice) <= 1e-5, "two that say the same are one"
    said, before, after = run("opposed", lambda i: i % 2, lambda i: 1 - i % 2)
    assert farthest(after, before) <= 1e-6 < 1e-3 < farthest(alone, before), "equal weights: nothing to do"
    assert all(entry["grad/cosine/o0~o1"] == pytest.approx(-1) for entry in said)
    said, before, after = run("tied", lambda i: 0.5, lambda i: 0.5)
    assert farthest(after, before) == 0.0, "at its start the model finds both equal, as the labels do"
    assert all(entry["grad/norm/o0"] == entry["grad_norm"] == 0.0 for entry in said)


def test_a_spike_is_counted_and_followed() -> None:
    said: list[str] = []
    faults = StepFaults(["a", "b"], said.append)
    for length in (1.0, 100.0, *([1.0, 2.0] * 10)):
        faults.followed(length)
    assert faults.metrics() == {}, "no spike without enough steps before it"
    for length in (19.0, 30.0, 1.0, 40.0):
        faults.followed(length)
    assert faults.metrics() == {"steps/spiked": 3.0} and len(set(said)) == 1
    gram, present = torch.eye(2, dtype=torch.float64), torch.tensor([True, False])
    assert not faults.unfit(gram, present, torch.tensor([0.5, NAN])), "an objective without a label has no loss"
    assert faults.unfit(gram, present, torch.tensor([INF, NAN])) and "(of a;" in said[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_overflows_or_has_the_range(tmp_path: Path, dtype: torch.dtype) -> None:
    class Grow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 1:
                model.get_output_embeddings().weight.data.mul_(1e5)  # logits beyond 65504

    trainer = small_trainer(
        tmp_path, lora=True, model=small_model().to(dtype), max_steps=3, max_skipped_steps=1, callbacks=[Grow()],
        gradient_accumulation_steps=1,
    )  # fmt: skip
    if dtype == torch.bfloat16:
        trainer.train()
        assert trainer.faults.skipped == 0
        return
    with pytest.raises(DivergedError, match="2 steps in a row .* a checkpoint is in"):
        trainer.train()
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert [path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
