"""Every combiner in real runs: options checked first, losses and seeds supplied, memory kept in checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from paretune.combine import COMBINERS
from paretune.errors import InputError
from paretune.objectives import Objective
from tests.runs_made import made_text_rows, small_config, small_trainer, weights

OPTIONS: dict[str, dict[str, Any]] = {"replay": {"coefficients": [[0.5, 0.1], [0.2, 0.3], [0.0, 1.0]]}}
TORCHJD = ["torchjd:AlignedMTL", "torchjd:GradVac", "torchjd:PCGrad"]


def run(folder: Path, combiner: str, **changes: Any) -> Any:
    options = {
        "combiner_options": OPTIONS.get(combiner, {}),
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.05,
        "warmup_steps": 0,
    }
    trainer = small_trainer(folder, lora=True, combiner=combiner, **{**options, **changes})
    trainer.train()
    return trainer


@pytest.mark.parametrize("combiner", [*COMBINERS, *TORCHJD])
def test_a_run_with_every_combiner(tmp_path: Path, combiner: str) -> None:
    trainer = run(tmp_path, combiner, rows=made_text_rows(24))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[0] == pytest.approx(0.693, abs=1e-3) and losses[1] != losses[0]
    last = trainer.state.log_history[-2]
    assert all(f"combine/coefficient/{name}" in last for name in ("helpful", "concise"))
    if combiner == "replay":
        assert [last[f"combine/coefficient/{name}"] for name in ("helpful", "concise")] == [0.0, 1.0]


@pytest.mark.parametrize("combiner", ["famo", "torchjd:GradVac", "pcgrad", "cagrad_fast", "random_correction"])
def test_resuming_is_bit_for_bit(tmp_path: Path, combiner: str) -> None:
    names = ("helpful", "concise", "third")
    own: dict[str, Any] = {"cagrad_fast": {"n": 2}}
    options = {
        "objectives": [Objective(name, weight=w) for name, w in zip(names, (0.5, 0.3, 0.2), strict=True)],
        "rows": made_text_rows(40, names), "combiner_options": own.get(combiner, {}), "max_steps": 5,
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": None,
    }  # fmt: skip
    whole = run(tmp_path, combiner, **options)
    one = weights(whole)
    for later in Path(whole.args.output_dir).glob("checkpoint-[45]"):
        shutil.rmtree(later)
    torch.manual_seed(123)
    resumed = small_trainer(
        tmp_path, lora=True, combiner=combiner, optim="sgd", learning_rate=0.05, warmup_steps=0, **options
    )
    resumed.train(resume_from_checkpoint=True)
    two = weights(resumed)
    assert resumed.state.global_step == 5 and all(torch.equal(one[k], two[k]) for k in one)
    if combiner in ("famo", "torchjd:GradVac"):
        assert resumed.combiner.state == whole.combiner.state != {}
        stored = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
        memory = stored["stateful_callbacks"]["combiner_state"]
        assert memory["combiner"] == combiner and memory["objectives"] == list(names)


def test_a_memory_of_another_kind_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "linear", max_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(InputError, match=r"memory is not this combiner's.*famo"):
        small_trainer(tmp_path, lora=True, combiner="famo", max_steps=4).train(resume_from_checkpoint=True)


class Seen(TrainerCallback):
    """Keeps the losses that the combiner is given."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def watch(self, trainer: Any) -> None:
        combine = trainer.combiner.step_losses

        def step_losses(counts: torch.Tensor) -> torch.Tensor | None:
            found = combine(counts)
            self.losses.append(found)
            return found

        trainer.combiner.step_losses = step_losses


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "gradient_storage": "two_pass"},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "layout": "flat"},
        {"gradient_mode": "per_objective"},
    ],
    ids=["stack", "two_pass", "flat", "per_objective"],
)
def test_the_losses_are_those_logged_however_the_step_is_made(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = small_trainer(tmp_path, lora=True, combiner="smooth_tchebycheff", max_steps=3, **changes)
    seen = Seen()
    seen.watch(trainer)
    trainer.train()
    logged = [[e[f"loss/{n}"] for n in ("helpful", "concise")] for e in trainer.state.log_history if "loss" in e]
    assert torch.stack(seen.losses).tolist() == [pytest.approx(step, rel=1e-9) for step in logged]


def test_no_losses_are_gathered_for_a_combiner_without(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, lora=True, max_steps=1)
    trainer.train()
    assert trainer.combiner.sums is None and trainer.combiner.step_losses(torch.ones(2)) is None


def test_pcgrad_draws_a_new_order_each_step(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, combiner="pcgrad")
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    g -= 0.9 * g.mean(0)
    combiner = trainer.combiner
    combiner.weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    found = {tuple(combiner(g @ g.T, torch.ones(6).bool(), None, step).coefficients.tolist()) for step in range(6)}
    assert len(found) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combiner": "racoo"}, "Did you mean 'raco'"),
        ({"combiner": "torchjd:AlignedMLT"}, "torchjd:AlignedMTL"),
        ({"combiner": "torchjd:MoDo"}, "a Gram is not enough"),
        ({"combiner": "famo", "combiner_options": {"rat": 1}}, "Did you mean 'rate'"),
        ({"combiner": "famo", "combiner_options": {"losses": 1}}, "the run supplies it"),
        ({"combiner": "raco", "combiner_options": {"c": 0.1}}, "c has a key of its own"),
        ({"combiner": "linear", "combiner_options": {"c": 0.1}}, "unknown option 'c'"),
        ({"combiner": "replay"}, "coefficients is missing"),
        ({"combiner": "tchebycheff", "normalize_gradients": True}, "does not weigh gradients"),
        ({"combiner": "linear", "combiner_options": [1]}, "a mapping of names to values"),
    ],
)
def test_bad_settings_are_refused_by_the_configuration(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("combiner", "options", "message"),
    [
        ("smooth_tchebycheff", {"mu": 0}, "bad mu"),
        ("tchebycheff", {"ideal": [0.1]}, "bad ideal"),
        ("smooth_tchebycheff", {"mu": "soft"}, "bad options"),
        ("replay", {"coefficients": [[1.0]]}, "2 finite numbers"),
        ("aligned_mtl", {"scale_mode": "largest"}, "bad options"),
        ("torchjd:CAGrad", {"c": 0.4}, "cvxpy"),
    ],
)
def test_bad_values_are_refused_before_anything_is_read(
    tmp_path: Path, combiner: str, options: dict[str, Any], message: str
) -> None:
    """The data do not exist, and it never comes to that."""
    with pytest.raises(InputError, match=message):
        small_trainer(tmp_path, rows="no/such/file.jsonl", combiner=combiner, combiner_options=options)  # type: ignore[arg-type]
