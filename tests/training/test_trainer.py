"""The trainer as its users have it: real runs on small models. Speed and figures of quality are not its business."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from paretune.combine import raco
from paretune.errors import DivergedError
from paretune.objectives import Objective
from tests.plain_gradients import plain_gradients, sequence_logprobs
from tests.runs_made import farthest, made_text_rows, small_model, small_trainer, weights

NAN = float("nan")


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_learns_and_leaves_its_files(tmp_path: Path, lora: bool) -> None:
    rows = made_text_rows(60)
    trainer = small_trainer(
        tmp_path,
        rows=rows[:48],
        eval_dataset=rows[48:],
        lora=lora,
        max_steps=20,
        learning_rate=3e-3,
        eval_strategy="steps",
    )
    before = trainer.evaluate()
    assert before["eval_loss/helpful"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its reference
    assert before["eval_rewards/margins/concise"] == 0.0 and before["eval_rewards/accuracies/concise"] == 0.5
    trainer.train()
    assert logged(trainer, "rewards/margins/concise")[-1] > 0.05
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["decided"]["one_backward_pass"]
    assert record["decided"]["layout"] == "shared" and record["decided"]["reference"] == ("adapter" if lora else "copy")
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [h["step"] for h in history if "loss" in h] == list(range(1, 21))
    if lora:
        assert isinstance(PeftModel.from_pretrained(small_model(), out), PeftModel)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(out)
        assert loaded.config._attn_implementation == "sdpa", "our attention's name must not leak into saved configs"
        state, mine = loaded.state_dict(), trainer.model.state_dict()
        assert all(torch.equal(state[k], mine[k]) for k in state)


def test_every_metric_of_the_contract_is_logged(tmp_path: Path) -> None:
    rows = made_text_rows(24)
    trainer = small_trainer(
        tmp_path, rows=rows, eval_dataset=rows[:6], eval_strategy="steps", eval_steps=2, max_steps=2
    )
    trainer.train()
    per_objective = ["loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"]
    names = [f"{stem}/{o}" for stem in per_objective for o in ("helpful", "concise")] + ["logps/a", "logps/b", "loss"]
    steps = ["grad/norm", "combine/p", "combine/coefficient", "combine/effective_weight"]
    own = [f"{stem}/{o}" for stem in steps for o in ("helpful", "concise")]
    own += ["grad/cosine/helpful~concise", "combine/clip_active", "combine/angle_to_linear"]
    own += ["combine/angle_to_unclipped", "time/step", "tokens/second", "grad_norm", "learning_rate"]
    train = next(entry for entry in trainer.state.log_history if "loss" in entry)
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert not {*names, *own} - train.keys()
    assert not {f"eval_{name}" for name in names} - evaluation.keys()
    assert not [key for key in evaluation if "grad/" in key or "combine/" in key]


class Gradients(TrainerCallback):
    """Keeps what is in `.grad` when the optimizer is about to step (after clipping)."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"layout": "flat"},
        {"gradient_mode": "per_objective"},
        {"gradient_checkpointing": True},
        {"precompute_ref_log_probs": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_how_a_step_is_computed_does_not_change_it(
    tmp_path: Path, lora: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches, layout, gradient mode, checkpointing and reference are ways to one and the same update."""
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    found = []
    for folder, options in (("one", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}), ("two", {})):
        torch.manual_seed(0)
        trainer = small_trainer(
            tmp_path / folder, lora=lora, optim="sgd", learning_rate=0.1, max_steps=3, **(options or changes)
        )
        trainer.train()
        found.append(weights(trainer))
    assert farthest(found[1], found[0]) <= 1e-5  # float32; test_single_pass shows 1e-6 in float64


def test_the_update_is_the_one_of_the_paper(tmp_path: Path) -> None:
    """After a step of plain SGD the move is -lr sum_i a_i g_i, a_i being RACO's and g_i plain autograd's."""
    objectives = [Objective("helpful", weight=0.7, beta=0.5), Objective("concise", weight=0.3, loss="ipo", beta=0.5)]
    trainer = small_trainer(
        tmp_path, rows=made_text_rows(8), objectives=objectives, optim="sgd", learning_rate=1e-2, max_steps=1,
        max_grad_norm=0.0, lr_scheduler_type="constant", warmup_steps=0, model=small_model().double(),
    )  # fmt: skip
    before, data = weights(trainer), list(trainer.train_data.rows)
    with torch.no_grad():
        own = sequence_logprobs(trainer.model, data)
    stack = plain_gradients(trainer.model, data, objectives, own)
    gram = stack.gram(exact=True)
    expected = raco(gram, torch.tensor([0.7, 0.3], dtype=torch.float64), c=0.4).coefficients
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        move = (parameter.detach() - before[name]).flatten() / -1e-2
        wanted = expected @ stack.buffer(name)
        assert float((move - wanted).norm()) <= 1e-6 * float(gram.diagonal().max().sqrt())


def test_resuming_is_bit_for_bit(tmp_path: Path) -> None:
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4, "lora": True}
    whole = small_trainer(tmp_path / "whole", **options)
    whole.train()
    cut = small_trainer(tmp_path / "cut", **options)
    cut.train()
    for later in Path(cut.args.output_dir).glob("checkpoint-[89]"):
        shutil.rmtree(later)
    torch.manual_seed(123)
    resumed = small_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    one, two = weights(whole), weights(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    lines = (Path(cut.args.output_dir) / "history.jsonl").read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]
    assert steps == list(range(1, 10)), "a resumed run drops the lines past its checkpoint"


def test_an_objective_without_labels_in_a_step_leaves_the_dual(tmp_path: Path) -> None:
    rows = made_text_rows(32, ("helpful", "concise"))
    for i, row in enumerate(rows):
        row["preferences"] = {"helpful": float(i % 2), "concise": 1.0 if i == 0 else None}
    trainer = small_trainer(tmp_path, rows=rows, max_steps=4)
    trainer.train()
    left_out = logged(trainer, "combine/left_out/concise")
    assert sorted(left_out) == [0.0, 1.0, 1.0, 1.0]
    for entry in trainer.state.log_history:
        if entry.get("combine/left_out/concise") == 1.0:
            # alone in the dual, helpful is corrected along itself: weight 0.6 times (1 + c)
            assert entry["combine/coefficient/helpful"] == pytest.approx(0.6 * 1.4)
            assert "combine/coefficient/concise" not in entry


def test_rows_of_one_objective_each_reach_every_step(tmp_path: Path) -> None:
    rows = made_text_rows(40)
    for i, row in enumerate(rows):
        row["preferences"] = {"helpful": 1.0, "concise": None} if i < 30 else {"helpful": None, "concise": 0.0}
    trainer = small_trainer(tmp_path, rows=rows, max_steps=5)
    trainer.train()
    assert logged(trainer, "combine/left_out/concise") == [0.0] * 5


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_steps_that_are_not_finite_are_skipped_then_stop_the_run(tmp_path: Path, lora: bool) -> None:
    trainer = small_trainer(tmp_path, lora=lora, max_steps=10, max_skipped_steps=2)
    before = weights(trainer)

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            head = model.get_output_embeddings().weight
            if state.global_step == 1:
                self.kept = head.data.clone()
                head.data.fill_(NAN)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                model.get_output_embeddings().weight.data.copy_(self.kept)

    trainer.add_callback(Poison())
    trainer.args.max_steps = 4
    trainer.train()
    assert trainer.faults.skipped == 1 and trainer.state.global_step == 4
    after = weights(trainer)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[k], before[k]) for k in after)
    assert any("not finite" in notice for notice in trainer.record.content["notices"])

    class Ruin(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.get_output_embeddings().weight.data.fill_(NAN)

    trainer = small_trainer(tmp_path / "ruin", lora=lora, max_steps=10, max_skipped_steps=2, callbacks=[Ruin()])
    with pytest.raises(DivergedError, match="3 steps in a row"):
        trainer.train()
    out = Path(trainer.args.output_dir)
    assert bool(list(out.glob("checkpoint-*/trainer_state.json"))) is lora, "no checkpoint of weights that are ruined"
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


def test_best_model_and_early_stopping(tmp_path: Path) -> None:
    rows = made_text_rows(40)
    trainer = small_trainer(
        tmp_path,
        rows=rows[:32],
        eval_dataset=rows[32:],
        max_steps=40,
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train()
    assert trainer.state.global_step < 40
    losses = logged(trainer, "eval_loss")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_short_run_logs_its_last_step(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, logging_steps=100, max_steps=3)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss/helpful" in entry] == [3]
    assert "loss/helpful" in json.loads((Path(trainer.args.output_dir) / "run.json").read_text())["final"]


def test_several_evaluation_sets(tmp_path: Path) -> None:
    rows = made_text_rows(40)
    trainer = small_trainer(tmp_path, rows=rows[:20], eval_dataset={"near": rows[20:30], "far": rows[30:]})
    metrics = trainer.evaluate()
    assert {"eval_near_loss/helpful", "eval_far_loss/helpful"} <= metrics.keys()
    trainer.train()
    metrics = trainer.evaluate()
    again = trainer.evaluate(rows[30:])  # rows as a user has them
    assert again["eval_loss"] == pytest.approx(metrics["eval_far_loss"], rel=1e-6)


def test_evaluation_goes_by_length_and_does_not_depend_on_it(tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 64):
        trainer = small_trainer(
            tmp_path / str(size), eval_dataset=made_text_rows(22, seed=4), lora=True, per_device_eval_batch_size=size
        )
        batches = list(trainer.get_eval_dataloader())
        assert sorted(i for batch in batches for i in batch["index"].tolist()) == list(range(22))
        computed = [batch["input_ids"].numel() for batch in batches]
        assert computed == sorted(computed, reverse=True)
        found.append({k: v for k, v in trainer.evaluate().items() if "/" in k and "second" not in k})
    assert len(found[0]) > 4
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_clipping_and_schedule_act_on_the_combined_gradient(tmp_path: Path) -> None:
    seen = Gradients()
    trainer = small_trainer(tmp_path, max_grad_norm=1e-3, callbacks=[seen], lr_scheduler_type="linear", warmup_steps=0)
    trainer.train()
    for grads in seen.steps:
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-4)
    assert logged(trainer, "learning_rate") == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_bf16_trains_float32_weights(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, model=small_model().to(torch.bfloat16), bf16=True, layout="flat")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))
    frozen = small_trainer(tmp_path / "lora", model=small_model().to(torch.bfloat16), lora=True)
    dtypes = {p.requires_grad: p.dtype for p in frozen.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    frozen.train()
    assert all(math.isfinite(x) for x in logged(frozen, "loss"))


def test_normalize_dataset_divides_by_the_expected_count(tmp_path: Path) -> None:
    """With every row labelled and full steps the two countings agree; with rare labels they do not."""
    full = made_text_rows(16)
    for row in full:
        row["preferences"] = {"helpful": 1.0, "concise": 0.0}
    labels = [{"helpful": 1.0, "concise": 0.0 if i % 4 == 0 else None} for i in range(len(full))]
    rare = [{**row, "preferences": label} for row, label in zip(full, labels, strict=True)]
    for rows, same in ((full, True), (rare, False)):
        losses = []
        for normalize in ("step", "dataset"):
            trainer = small_trainer(
                tmp_path / f"{same}{normalize}", rows=rows, normalize=normalize, max_steps=2,
                per_device_train_batch_size=1, gradient_accumulation_steps=3,
            )  # fmt: skip
            trainer.train()
            losses.append(logged(trainer, "grad/norm/concise"))
        assert (losses[0] == pytest.approx(losses[1], rel=1e-3)) is same


def test_normalize_gradients_and_the_warning(tmp_path: Path) -> None:
    objectives = [Objective("helpful", weight=0.5, beta=2.0), Objective("concise", weight=0.5, beta=0.05)]
    trainer = small_trainer(tmp_path, objectives=objectives)
    trainer.train()
    assert any("times as long" in notice for notice in trainer.record.content["notices"])
    trainer = small_trainer(tmp_path / "n", objectives=objectives, normalize_gradients=True, combiner="linear")
    trainer.train()
    assert not any("times as long" in notice for notice in trainer.record.content["notices"])
    for entry in trainer.state.log_history:
        if "loss" in entry:
            pulls = [entry[f"combine/coefficient/{o}"] * entry[f"grad/norm/{o}"] for o in ("helpful", "concise")]
            assert pulls[0] == pytest.approx(pulls[1], rel=1e-6)


def test_unnormalised_weights_are_said(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, objectives=[Objective("helpful", weight=3), Objective("concise", weight=1)])
    assert any("sum to 4" in notice and "helpful 0.75" in notice for notice in trainer.record.content["notices"])


def test_a_float32_head_on_a_bf16_base(tmp_path: Path) -> None:
    """The trained copy of the head is float32, the states that reach it are bf16: only under autocast do they meet."""
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = small_model("llama").to(torch.bfloat16)
    trainer = small_trainer(tmp_path, model=model, bf16=True, peft_config=adapter, max_steps=2)
    trainer.train()
    assert logged(trainer, "grad/norm/helpful")[-1] > 0
