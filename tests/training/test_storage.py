"""How gradients are kept until they are combined: what is chosen, and that every way gives the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.storage import choose_storage, storage_bytes
from tests.runs_made import made_text_rows, small_config, small_model, small_trainer, weights

THREE = [Objective("helpful", 0.5), Objective("concise", 0.3, beta=0.1), Objective("third", 0.2, loss="ipo", beta=2.0)]


def rows_of_three() -> list[dict[str, Any]]:
    return made_text_rows(24, names=("helpful", "concise", "third"))


def run(tmp_path: Path, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor], Any]:
    options = {"max_steps": 10, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "optim": "sgd"}
    trainer = small_trainer(
        tmp_path, rows=rows_of_three(), objectives=THREE, learning_rate=0.01, **{**options, **changes}
    )
    trainer.train()
    return [e["loss"] for e in trainer.state.log_history if "loss" in e], weights(trainer), trainer


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"layout": "flat"}], ids=str)
def test_two_passes_make_the_run_that_a_stack_makes(tmp_path: Path, changes: dict[str, Any], lora: bool) -> None:
    stacked = run(tmp_path / "stack", gradient_storage="stack", lora=lora, **changes)
    twice = run(tmp_path / "two", gradient_storage="two_pass", lora=lora, **changes)
    assert twice[2]._decided()["gradient_storage"] == "two_pass"
    assert twice[0] == pytest.approx(stacked[0], rel=1e-5)
    found, wanted = (torch.cat([value.flatten() for value in r[1].values()]) for r in (twice, stacked))
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    # what is logged of the Gram; the coefficients it leads to may be many times as sensitive as the Gram is exact
    found, wanted = (
        {k: v for entry in r[2].state.log_history for k, v in entry.items() if k.startswith("grad/")}
        for r in (twice, stacked)
    )
    assert wanted and found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_a_bfloat16_stack_makes_nearly_the_run_of_a_float32_one(tmp_path: Path) -> None:
    wide = run(tmp_path / "wide", gradient_storage="stack")
    half = run(tmp_path / "half", gradient_storage="stack", stack_dtype="bfloat16")
    assert half[0] != wide[0]
    assert half[0] == pytest.approx(wide[0], rel=1e-2)
    start = {name: p.detach() for name, p in small_model().named_parameters()}
    moves = [torch.cat([(r[1][k] - start[k]).flatten() for k in start]) for r in (wide, half)]
    assert float((moves[1] - moves[0]).norm() / moves[0].norm()) < 0.01  # eight bits of mantissa, rounded once a step


def test_memory_decides_and_the_choice_is_said(tmp_path: Path) -> None:
    args = small_config(tmp_path)
    ample = choose_storage(args, trained=1000, kept=8, obstacle=None, free=10**9)
    assert not ample.two_pass and ample.notices == ()
    scarce = choose_storage(args, trained=10**8, kept=8, obstacle=None, free=4 * 10**9)
    assert scarce.two_pass and "8 gradients take 3.2 GB of 3.2 GB" in scarce.notices[0]
    stuck = choose_storage(args, trained=10**8, kept=8, obstacle="of the weather", free=4 * 10**9)
    assert not stuck.two_pass and "of the weather" in stuck.notices[0] and "bfloat16" in stuck.notices[0]
    asked = small_config(tmp_path, gradient_storage="stack")
    assert choose_storage(asked, trained=10**8, kept=8, obstacle=None, free=4 * 10**9).notices == ()


def test_every_way_is_smaller_than_the_plain_stack() -> None:
    sizes = storage_bytes(10, 8)
    assert sizes["stack"] == (320, 0) and sizes["two_pass"] == (40, 0)
    assert sizes["stack on the host"] == (40, 320)
    assert all(device < 320 for name, (device, _) in sizes.items() if name != "stack")


def test_what_two_passes_cannot_do_is_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gradient_accumulation_steps 2: two_pass needs all of a step"):
        small_config(tmp_path, gradient_storage="two_pass")
    mixed = [Objective("helpful", 0.5), Objective("concise", 0.5, loss="simpo", beta=2.0)]
    with pytest.raises(InputError, match=r"no common margin.*stack_dtype"):
        small_trainer(tmp_path, objectives=mixed, gradient_storage="two_pass", gradient_accumulation_steps=1)
    with pytest.raises(InputError, match="backward pass of its own"):
        small_trainer(
            tmp_path, gradient_storage="two_pass", gradient_mode="per_objective", gradient_accumulation_steps=1
        )


def test_two_passes_skip_a_step_that_is_not_finite(tmp_path: Path) -> None:
    model = small_model()
    options = {"gradient_storage": "two_pass", "gradient_accumulation_steps": 1, "max_steps": 3}
    trainer = small_trainer(tmp_path, model=model, **options)
    before = weights(trainer)
    original = trainer.reference.model.get_input_embeddings().weight  # type: ignore[union-attr, operator]
    original.data.fill_(float("nan"))
    trainer.train()
    assert trainer.faults.skipped == 3
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
