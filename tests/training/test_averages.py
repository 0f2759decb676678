"""gram: averaged, against the study's arm that was confirmed, and in real runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paretune.errors import InputError
from paretune.gradients import GradientStack
from paretune.training.averages import AveragedGradients
from studies.noisy_gram.arms import Memory
from tests.runs_made import made_text_rows, small_config, small_trainer, weights

ROWS = made_text_rows(40)


def filled(rows: torch.Tensor) -> GradientStack:
    """A stack of two parameters, with these m gradients (m, 10)."""
    stack = GradientStack({"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(7))}, len(rows))
    for i, row in enumerate(rows):
        stack.add("a", i, row[:3])
        stack.add("b", i, row[3:])
    return stack


def test_it_is_the_studys_average(tmp_path: Path) -> None:
    """studies/noisy_gram, arm "averaged": what was confirmed is what runs."""
    averages, memory = AveragedGradients(small_config(tmp_path, gram="averaged"), ["one", "two"]), Memory()
    generator, present = torch.Generator().manual_seed(0), torch.tensor([True, True])
    for step in range(1, 7):
        rows = torch.randn(2, 10, generator=generator)
        stack = filled(rows)
        memory.steps = step
        mean = memory.average("gradients", rows.double(), 0.9)
        found = averages.gram(stack, present)
        torch.testing.assert_close(found, mean @ mean.T, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([stack.buffer("a"), stack.buffer("b")], 1), rows)  # left as they were


def test_an_absent_objective_keeps_its_average(tmp_path: Path) -> None:
    averages = AveragedGradients(small_config(tmp_path, gram="averaged"), ["one", "two"])
    first = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))
    before = averages.gram(filled(first), torch.tensor([True, False]))
    assert before[1].tolist() == [0.0, 0.0]  # never met
    averages.gram(filled(first), torch.tensor([True, True]))
    rows = torch.stack([2 * first[0], torch.zeros(10)])
    after = averages.gram(filled(rows), torch.tensor([True, False]))
    assert float(after[1, 1]) == pytest.approx(float(first[1] @ first[1]), rel=1e-5)
    assert float(after[0, 0]) > float(first[0] @ first[0])


def run(folder: Path, **changes: Any) -> Any:
    options = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.05, "warmup_steps": 0, "gram": "averaged"}
    trainer = small_trainer(folder, lora=True, rows=ROWS, **{**options, **changes})
    trainer.train()
    return trainer


def test_it_decides_and_leaves_the_gradients_alone(tmp_path: Path) -> None:
    """With c = 0 the coefficients are the weights whatever the Gram; with one step the average is the gradient."""
    for name, changes in (("weights", {"c": 0.0}), ("first", {"c": 0.8, "max_steps": 1})):
        one, two = (weights(run(tmp_path / f"{name} {gram}", gram=gram, **changes)) for gram in ("batch", "averaged"))
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=0 if name == "weights" else 1e-6)
    one, two = (weights(run(tmp_path / gram, gram=gram, c=0.8)) for gram in ("batch", "averaged"))
    assert any(not torch.allclose(one[key], two[key], rtol=0, atol=1e-5) for key in one)


def test_resuming_is_bit_for_bit(tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = run(tmp_path, **options)
    one = weights(whole)
    for later in Path(whole.args.output_dir).glob("checkpoint-[45]"):
        shutil.rmtree(later)
    resumed = small_trainer(
        tmp_path, lora=True, rows=ROWS, optim="sgd", learning_rate=0.05, warmup_steps=0, gram="averaged", **options
    )
    resumed.train(resume_from_checkpoint=True)
    two = weights(resumed)
    assert resumed.state.global_step == 5 and all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(resumed.combiner.averages.mass, whole.combiner.averages.mass)


def test_a_checkpoint_without_averages_is_refused(tmp_path: Path) -> None:
    run(tmp_path, gram="batch", max_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(InputError, match="no averaged gradients of this run"):
        small_trainer(tmp_path, lora=True, rows=ROWS, max_steps=4, gram="averaged").train(resume_from_checkpoint=True)


def test_what_it_cannot_do_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two_pass.*keeps gradients from step to step"):
        small_trainer(tmp_path, gram="averaged", gradient_storage="two_pass", gradient_accumulation_steps=1)
    with pytest.raises(InputError, match="gram_decay"):
        small_config(tmp_path, gram_decay=1.0)
    with pytest.raises(InputError, match="bad gram"):
        small_config(tmp_path, gram="full")
