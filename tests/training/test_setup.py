"""What a trainer decides and refuses before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from paretune.errors import InputError
from paretune.objectives import Objective
from tests.models_made import make_model
from tests.runs_made import made_text_rows, small_config, small_model, small_trainer


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_dora_goes_one_pass_each_and_says_so(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, peft_config=LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]), max_steps=2
    )
    assert not trainer.one_pass
    assert any("one backward pass per objective" in notice for notice in trainer.record.content["notices"])
    trainer.train()
    assert logged(trainer, "grad/norm/helpful")[-1] > 0
    with pytest.raises(InputError, match="single_pass cannot serve"):
        small_trainer(
            tmp_path / "s",
            peft_config=LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
            gradient_mode="single_pass",
        )


def test_an_adapter_that_is_not_the_identity_keeps_a_copy_as_reference(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path,
        peft_config=LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"),
        eval_dataset=made_text_rows(8),
    )
    assert trainer.reference.kind == "copy"
    assert trainer.evaluate()["eval_rewards/margins/helpful"] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fp16": True}, "fp16"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"optim": "galore_adamw_layerwise"}, "optim"),
        ({"optim": "lomo"}, "optim"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed does not work.*in shards"),
        ({"fsdp": "full_shard"}, "fsdp does not work.*on CPUs there is none"),
        ({"ddp_find_unused_parameters": False}, "ddp_find_unused_parameters would have no effect"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last would have no effect"),
        ({"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1}, "dataloader_prefetch_factor"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches of accelerator_config"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}, "gradient_accumulation"),
        ({"adam_beta2": 1.0}, "bad adam_beta2.*< 1.*found 1"),
        ({"learning_rate": -1.0}, "bad learning_rate; expected a number >= 0; found -1"),
        ({"weight_decay": -0.1}, "bad weight_decay"),
        ({"c": 1.0}, "bad c.*< 1.*found 1"),
        ({"c": -0.1}, "bad c"),
        ({"beta": 0}, "bad beta"),
        ({"layout": "packed"}, "bad layout.*auto, shared, flat"),
        ({"combiner": "racco"}, "unknown combiner.*raco"),
        ({"normalize": "batch"}, "bad normalize"),
        ({"max_length": 1}, "bad max_length"),
        ({"per_device_train_batch_size": 0}, "batch sizes"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_an_error_at_start(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small_trainer(tmp_path, **changes)


def test_an_engine_of_accelerates_configuration_is_an_error_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="accelerate's configuration: deepspeed does not work"):
        small_config(tmp_path)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        (None, None),
        ("loss", False),
        ("eval_loss/helpful", False),
        ("eval_one_loss/helpful", False),
        ("eval_rewards/margins/loss", True),
    ],
)
def test_a_lower_loss_is_better_of_one_objective_too(tmp_path: Path, metric: str | None, greater: bool | None) -> None:
    assert small_config(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    assert small_config(tmp_path, metric_for_best_model=metric, greater_is_better=True).greater_is_better


@pytest.mark.parametrize(
    ("metric", "sets", "said"),
    [
        ("eval_lss", False, "found eval_lss. Did you mean eval_loss?"),
        ("accuracy", False, "no such metric"),
        (None, True, "found eval_loss. Did you mean eval_(one|two)_loss?"),
        ("eval_one_loss/hlpful", True, "Did you mean eval_one_loss/helpful"),
        ("loss", False, None),
        ("rewards/margins/concise", False, None),
        ("eval_two_rewards/accuracies/helpful", True, None),
    ],
)
def test_the_metric_of_the_best_model_must_be_measured(
    tmp_path: Path, metric: str | None, sets: bool, said: str | None
) -> None:
    rows = made_text_rows(6)
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "max_steps": 1}
    options["eval_dataset"] = {"one": rows, "two": rows} if sets else rows
    if said is None:
        trainer = small_trainer(tmp_path, **options)
        trainer.train()
        assert trainer.state.best_metric is not None
        return
    with pytest.raises(InputError, match=said):
        small_trainer(tmp_path, **options)


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocabulary of 400 tokens.*97"):
        small_trainer(tmp_path, ref_model=make_model("llama"))


def test_a_reference_of_its_own(tmp_path: Path) -> None:
    rows = made_text_rows(8)
    trainer = small_trainer(tmp_path, rows=rows, eval_dataset=rows, ref_model=small_model(seed=5), lora=True)
    assert trainer.evaluate()["eval_rewards/margins/helpful"] != 0.0


def test_reference_free_objectives_keep_no_reference(tmp_path: Path) -> None:
    objectives = [Objective("helpful", loss="simpo", beta=2.0), Objective("concise", loss="simpo", beta=2.0)]
    trainer = small_trainer(tmp_path, objectives=objectives)
    assert trainer.reference.kind == "none"
    trainer.train()
    assert logged(trainer, "grad/norm/helpful")[-1] > 0


def test_small_config_is_the_papers_where_it_says_nothing(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    assert (config.combiner, config.c, config.clip, config.beta) == ("raco", 0.4, True, 0.2)
