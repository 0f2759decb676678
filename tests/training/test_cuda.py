"""The same numbers on a GPU: what runs other kernels there (attention, products, the stack on the host, autocast)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.comparisons.batches import collate, to_device
from paretune.gradients import GradientStack, RowLayers, trainable_parameters
from paretune.losses import LogProbs, batch_losses
from paretune.policy.logprobs import prepare_scorer, response_logprobs
from paretune.training.step import differentiate
from tests.comparisons_made import made_comparisons
from tests.gradients.test_single_pass import objectives, with_lora
from tests.models_made import make_model
from tests.plain_gradients import BETA, made_reference, plain_gradients
from tests.runs_made import small_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]


def on_gpu(model: Any, rows: list[dict[str, Any]], m: int, layout: str, **storage: Any) -> GradientStack:
    """The m gradients of one batch, computed on the GPU."""
    model = model.to("cuda")
    scorer, layers = prepare_scorer(model, layout), RowLayers(model)
    batch = to_device(collate(rows, layout=scorer.layout, pad_id=0), torch.device("cuda"))
    refs = [ref.cuda() for ref in made_reference(len(rows))]
    scores = response_logprobs(model, batch, scorer)
    logps = LogProbs(scores.logp_a, scores.logp_b, *refs, batch["a_tokens"], batch["b_tokens"])
    losses = batch_losses(objectives(m), BETA, logps, batch["preferences"])
    stack = GradientStack(trainable_parameters(model), m, **storage)
    differentiate(scores, losses.over(losses.labelled.sum(1).double()), stack, layers)
    layers.restore()
    return stack


def error(found: GradientStack, truth: GradientStack) -> float:
    x, y = (torch.cat([s.buffer(n).double().cpu() for n in s.parameters], dim=1) for s in (found, truth))
    return float(((x - y).norm(dim=1) / y.norm(dim=1)).max())


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_gpu_are_those_of_plain_autograd_on_the_host(family: str, adapted: bool, layout: str) -> None:
    model = make_model(family)
    model = with_lora(model) if adapted else model
    rows = made_comparisons(6, 3)
    truth = plain_gradients(model, rows, objectives(3))
    assert error(on_gpu(model, rows, 3, layout), truth) <= 1e-4


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_on_the_gpu_rounds_no_worse_than_plain_autograd(family: str, layout: str) -> None:
    model = with_lora(make_model(family))
    rows = made_comparisons(8, 2, seed=3)
    truth = plain_gradients(model, rows, objectives(2))
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_gradients(model, rows, objectives(2))
    with torch.autocast("cuda", torch.bfloat16):
        found = on_gpu(model, rows, 2, layout)
    assert error(found, truth) <= 2 * error(plain, truth)


@pytest.mark.parametrize("autocast", [False, True])
def test_matrices_by_scaled_signals_on_the_gpu(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way is taken depends on the layers' sizes, and those of a test are too small for this one."""
    monkeypatch.setattr("paretune.gradients.row_layers._better_scaled", lambda *_: True)
    model, rows = make_model("qwen3"), made_comparisons(6, 3)
    truth = plain_gradients(model, rows, objectives(3))
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found = error(on_gpu(model, rows, 3, "shared"), truth)
    assert found <= (5e-2 if autocast else 1e-4)


def test_a_stack_on_the_host_holds_the_same_gradients() -> None:
    rows = made_comparisons(6, 3)
    here, there = (
        on_gpu(make_model("qwen3"), rows, 3, "shared", device=device) for device in (None, torch.device("cpu"))
    )
    assert torch.allclose(here.gram(), there.gram(), rtol=1e-4)
    assert there.buffer("model.norm.weight").device.type == "cpu"
    for stack in (here, there):
        stack.write_grad(torch.ones(3))
    grads = [torch.cat([p.grad.flatten() for p in stack.parameters.values()]) for stack in (here, there)]  # type: ignore[union-attr]
    assert grads[1].is_cuda and torch.allclose(*grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": True, "bf16": True},
        {"bf16": True, "gradient_storage": "two_pass"},
        {"stack_device": "cpu", "bf16": True},
        {"gradient_checkpointing": True, "lora": True},
    ],
    ids=str,
)
def test_a_run_on_the_gpu_is_the_run_on_the_host(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = {"max_steps": 5, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "optim": "sgd"}
    losses = []
    for cpu in (True, False):
        trainer = small_trainer(tmp_path / str(cpu), use_cpu=cpu, learning_rate=0.01, **{**options, **changes})
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2 if "bf16" in changes else 1e-4)


def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    """Ours reads the Gram; what transformers reads of the loss and the norm is its own."""
    trainer = small_trainer(
        tmp_path, use_cpu=False, lora=True, bf16=True, max_steps=4, logging_steps=100, max_grad_norm=0.0
    )
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        started = trainer.state.global_step >= 2  # buffers exist, constants are where they belong
        torch.cuda.set_sync_debug_mode("warn" if started else "default")
        try:
            return step(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.training_step = watched  # type: ignore[method-assign]
    with pytest.warns() as seen:
        trainer.train()
    waits = [f"{w.filename}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)]
    assert len(waits) == 2, waits  # two steps of two micro-batches
