"""AMoPO against its formula: weights, losses, and the gradient of a whole micro-batch, from texts on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.errors import InputError
from paretune.gradients import GradientStack, RowLayers, trainable_parameters
from paretune.losses import LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.pipelines.methods import Request, check_method, contract, load_outcome, run_method
from paretune.pipelines.methods.amopo import (
    confidence,
    copied,
    copy_losses,
    dimension_instruction,
    general_instruction,
    general_labels,
)
from tests.cli.made import save_model, write_jsonl
from tests.pipelines.methods_made import asked
from tests.runs_made import made_text_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def test_confidence_is_mean_and_deviation_of_token_probabilities() -> None:
    p = torch.tensor([[0.5, 0.1, 0.3, 0.9], [0.2, 0.7, 0.7, 0.7]], dtype=torch.float64)
    scored = torch.tensor([[True, True, True, False], [False, True, False, False]])
    noise = torch.tensor([1.5, -2.0], dtype=torch.float64)
    first = p[0, :3]
    expected = [float(first.mean() + 1.5 * first.std()), 0.7]
    assert confidence(p.log(), scored, noise).tolist() == pytest.approx(expected)


def test_the_general_copy_has_the_weighted_mean_label() -> None:
    nan = math.nan
    label, place = general_labels(np.array([[1, 0], [nan, 0.2], [nan, nan], [0.5, 1]]), [0.6, 0.4])
    assert label.tolist() == pytest.approx([0.6, 0.2, nan, 0.7], nan_ok=True)
    assert place[[0, 1, 3]].tolist() == [0, 1, 0]


def test_copies_carry_one_label_each_and_none_where_there_is_none() -> None:
    row = {"preferences": [math.nan, 1.0], "index": 3}
    found = copied(row, [{"index": 3, "x": 0}, {"index": 3, "x": 1}], (0.25, 1))
    assert [copy.get("x") for copy in found] == [None, 1]
    assert [copy["preferences"][1] for copy in found] == [0.25, 1.0]
    assert all(math.isnan(copy["preferences"][0]) for copy in found)


@pytest.mark.parametrize("sft", [0.0, 0.3])
def test_the_loss_is_the_mean_of_weighted_simpo_losses(sft: float) -> None:
    rng = torch.Generator().manual_seed(0)
    n, beta, gamma = 5, 0.8, 2.0
    a, b = (-20 * torch.rand(n, generator=rng, dtype=torch.float64) for _ in range(2))
    tokens_a, tokens_b = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([7, 2, 3, 4, 9])
    labels = torch.full((n, 2), math.nan, dtype=torch.float64)
    prefers_a = [1.0, 0.0, 0.0, 1.0, 1.0]
    for i, p in enumerate(prefers_a):
        labels[i, i % 2] = p
    weights = torch.rand(n, generator=rng, dtype=torch.float64).softmax(0)
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i, p in enumerate(prefers_a):
        per_token = [x[i] / tokens_a[i], y[i] / tokens_b[i]]
        chosen, rejected = per_token if p else per_token[::-1]
        total = total - weights[i] * torch.log(torch.sigmoid(beta * (chosen - rejected) - gamma)) / n - sft * chosen / n
    slope_a, slope_b = torch.autograd.grad(total, (x, y))
    objectives = [Objective(name, loss="simpo", gamma=gamma / beta) for name in ("p", "q")]
    found = copy_losses(objectives, beta, LogProbs(a, b, None, None, tokens_a, tokens_b), labels, weights, sft)
    torch.testing.assert_close(found.values.sum(), total.detach())
    torch.testing.assert_close(found.slopes_a.sum(0), slope_a)
    torch.testing.assert_close(found.slopes_b.sum(0), slope_b)
    assert (found.shared is None) == bool(sft)


def captured(request: Request, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer of a request, not trained."""
    found: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(contract, "finish", lambda trainer, checkpoint: found.append(trainer))
        run_method(request)
    return found[0]


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_a_micro_batch_has_the_gradient_of_the_published_loss(
    layout: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts to gradients, with a plain forward pass per response and the draws at their mean."""
    rows = [
        {"prompt": "once a cat", "response_a": " sat in the sun", "response_b": " ran home",
         "preferences": {"helpful": 1, "concise": 0}},
        {"prompt": "the big dog", "response_a": " was happy", "response_b": " saw a little red cat",
         "preferences": {"helpful": 0, "concise": 1}},
    ]  # fmt: skip
    config = {"layout": layout, "beta": 0.8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    trainer = captured(asked(model, tmp_path, "amopo", train_dataset=rows, config=config), monkeypatch)
    (batch,) = list(trainer.get_train_dataloader())
    assert len(batch["preferences"]) == 6
    stack = GradientStack(trainable_parameters(trainer.model), trainer.basis.kept)
    trainer.layers, trainer.parts = RowLayers(trainer.model), 1.0
    trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *size, **options: torch.zeros(size, dtype=torch.float64))
        value = trainer._differentiate(batch, stack)
    stack.write_grad(trainer.basis.coefficients(torch.full((2,), 0.5, dtype=torch.float64)))
    trainer.layers.restore()

    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)

    def logps(prompt: str, response: str) -> torch.Tensor:
        head = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]
        table = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
        return torch.stack([table[t - 1, ids[t]] for t in range(len(head), len(ids))])

    losses, confidences = [], []
    for row in rows:
        labels: dict[str, Any] = row["preferences"]  # type: ignore[assignment]
        copies = [("Answer well in every one of these respects: helpful, concise.\n",
                   0.6 * labels["helpful"] + 0.4 * labels["concise"])]  # fmt: skip
        copies += [(f"Answer with regard to {name}.\n", labels[name]) for name in labels]
        for instruction, p in copies:
            a, b = (logps(instruction + str(row["prompt"]), str(row[side])) for side in ("response_a", "response_b"))
            z = 0.8 * (a.mean() - b.mean())
            losses.append(-p * torch.nn.functional.logsigmoid(z - 2) - (1 - p) * torch.nn.functional.logsigmoid(-z - 2))
            confidences.append((a.exp().mean() + b.exp().mean()).detach())
    total = (torch.stack(confidences).softmax(0) * torch.stack(losses)).mean()
    total.backward()
    assert float(value) == pytest.approx(float(total.detach()), rel=1e-4)
    wanted = dict(policy.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=2e-3, atol=1e-5)


def test_amopo_runs_says_how_it_is_asked_and_takes_scores(model: str, tmp_path: Path) -> None:
    rows = made_text_rows(24)
    scored = [
        {"prompt": r["prompt"], "responses": [r["response_a"], r["response_b"]],
         "scores": {"helpful": [1, 5], "concise": [2, 3]}} for r in rows
    ]  # fmt: skip
    file = write_jsonl(tmp_path / "scored.jsonl", scored)
    request = asked(model, tmp_path, "amopo", method_options={"scores": file, "sft": 0.1, "gamma": 1.0})
    assert "3 times" in check_method(request)[0]
    run_method(request)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert [o["gamma"] for o in record["objectives"]] == [5.0, 5.0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss/helpful"]) for line in lines if "loss" in line)
    outcome = load_outcome(tmp_path / "run")
    sandbox = asked(model, tmp_path / "w", "amopo", method_options={"words": {"helpful": "big", "concise": "red"}})
    assert general_instruction(sandbox.method_options, ["helpful", "concise"]) == "big red "
    assert dimension_instruction(sandbox.method_options, "concise") == "red "
    check_method(sandbox)
    assert outcome.prepare("once") == "Answer well in every one of these respects: helpful, concise.\nonce"


def test_the_static_form_is_a_sum_of_per_token_losses(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sum_k w_k -log sigma(beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l)): arXiv 2602.02495, equation 9."""
    trainer = captured(asked(model, tmp_path, "amopo-static"), monkeypatch)
    assert trainer.reference.kind == "none"
    assert trainer.args.combiner == "linear"
    a, b = torch.tensor([-6.0], dtype=torch.float64), torch.tensor([-12.0], dtype=torch.float64)
    logps = LogProbs(a, b, None, None, torch.tensor([3]), torch.tensor([4]))
    found = batch_losses(trainer.objectives, 0.2, logps, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    z = 0.2 * (-6 / 3 + 12 / 4)
    expected = 0.6 * math.log1p(math.exp(-z)) + 0.4 * math.log1p(math.exp(z))
    assert float(trainer.weights @ found.values[:, 0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, "bad gamma"),
        ({"dimension": "Be good.\n"}, "names nothing"),
        ({"dimension": "{dimension} {score}\n"}, "an instruction with {score}"),
        ({"scores": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"words": {"helpful": "big"}}, "bad words"),
        ({"words": {"helpful": "big", "concise": "big"}, "general": "big "}, "writes different conditions alike"),
    ],
)
def test_amopo_says_what_it_lacks(options: Any, message: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        check_method(asked(model, tmp_path, "amopo", method_options=options))
