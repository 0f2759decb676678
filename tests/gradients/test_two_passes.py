"""Gradients that are not kept: two passes over one graph, and fewer rows than objectives, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paretune.combine import raco
from paretune.comparisons.batches import collate
from paretune.gradients import GradientStack, LayerGrams, RowBasis, RowLayers, trainable_parameters
from paretune.losses import BatchLosses, LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.policy.logprobs import ResponseLogprobs, prepare_scorer, response_logprobs
from paretune.training.step import differentiate, differentiate_twice
from tests.comparisons_made import made_comparisons
from tests.gradients.test_single_pass import FAMILIES, objectives, with_lora
from tests.models_made import make_model
from tests.plain_gradients import BETA, made_reference, plain_gradients


def scored(
    model: nn.Module, n: int, objs: list[Objective], layout: str
) -> tuple[list, ResponseLogprobs, BatchLosses, RowLayers]:
    rows = made_comparisons(n, len(objs), seed=n)
    scorer, layers = prepare_scorer(model, layout), RowLayers(model)
    batch = collate(rows, layout=scorer.layout, pad_id=0)
    scores = response_logprobs(model, batch, scorer)
    logps = LogProbs(scores.logp_a, scores.logp_b, *made_reference(n), batch["a_tokens"], batch["b_tokens"])
    losses = batch_losses(objs, BETA, logps, batch["preferences"])
    return rows, scores, losses.over(losses.labelled.sum(1).double()), layers


def combined(stack: GradientStack, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    gram = stack.gram(exact=True)
    coefficients = raco(gram, weights).coefficients
    return gram, {name: coefficients @ stack.buffer(name).double() for name in stack.parameters}


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_passes_give_the_gram_and_the_update_of_plain_autograd(family: str, adapted: bool, layout: str) -> None:
    model = make_model(family, dtype=torch.float64)
    model = with_lora(model) if adapted else model
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()
    objs, weights = objectives(3), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rows, scores, losses, layers = scored(model, 5, objs, layout)
    seen: list[Tensor] = []

    def combine(gram: Tensor) -> Tensor:
        seen.append(gram)
        return raco(gram, weights).coefficients

    stack = GradientStack(trainable_parameters(model), 1)
    assert differentiate_twice(scores, losses, stack, layers, combine)
    layers.restore()
    gram, update = combined(plain_gradients(model, rows, objs), weights)
    assert relative(seen[0], gram) <= 1e-6
    found = torch.cat([stack.buffer(name)[0] for name in update])
    assert relative(found, torch.cat(list(update.values()))) <= 1e-6


def test_a_skipped_second_pass_leaves_no_gradient() -> None:
    model = make_model("llama")
    _, scores, losses, layers = scored(model, 3, objectives(2), "shared")
    stack = GradientStack(trainable_parameters(model), 1)
    assert not differentiate_twice(scores, losses, stack, layers, lambda gram: None)
    assert not layers.current.calls, "the next step counts anew"
    assert stack.gram().item() == 0
    layers.restore()


def test_no_gradient_is_kept_longer_than_its_parameter_needs() -> None:
    """Only what a forward pass uses twice (the tied embedding) waits for its other half."""
    model = make_model("qwen3")
    _, scores, losses, layers = scored(model, 4, objectives(2), "shared")
    most: list[set[str]] = []

    class Watched(LayerGrams):
        def _came(self, name: str) -> None:
            super()._came(name)
            most.append(set(self._open))

    grams = Watched(trainable_parameters(model), 2, layers.current.calls)
    differentiate(scores, losses, grams, layers)
    layers.restore()
    assert max(most, key=len) == {"model.embed_tokens.weight"} and not most[-1]
    with pytest.raises(RuntimeError, match="more often"):
        grams.receive("model.embed_tokens.weight", lambda buffer, fresh: None)


@pytest.mark.parametrize("splits", [[5], [2, 3], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_fewer_rows_than_objectives(layout: str, splits: list[int]) -> None:
    """Sixteen objectives on a handful of comparisons: kept are the rows' gradients, and the sixteen follow."""
    model, objs, n = make_model("llama", dtype=torch.float64), objectives(16), sum(splits)
    rows = made_comparisons(n, 16, seed=n)
    labels = torch.tensor([row["preferences"] for row in rows], dtype=torch.float64)
    counts = (~labels.isnan()).sum(0).double().clamp_min(1)
    refs, weights = made_reference(n), torch.full((16,), 1 / 16, dtype=torch.float64)
    scorer, layers = prepare_scorer(model, layout), RowLayers(model)
    basis = RowBasis(16, n * (1 if layout == "shared" else 2))
    stack = GradientStack(trainable_parameters(model), basis.kept)
    for part in torch.arange(n).split(splits):
        batch = collate([rows[i] for i in part.tolist()], layout=scorer.layout, pad_id=0)
        scores = response_logprobs(model, batch, scorer)
        logps = LogProbs(
            scores.logp_a, scores.logp_b, *(ref[part] for ref in refs), batch["a_tokens"], batch["b_tokens"]
        )
        losses = batch_losses(objs, BETA, logps, batch["preferences"]).over(counts)
        differentiate(scores, losses, stack, layers, basis)
    layers.restore()
    assert stack.objectives == basis.kept < 16
    some = (~labels.isnan()).any(0)
    truth = plain_gradients(model, rows, objs)
    gram = basis.gram(stack.gram())
    assert relative(gram[some][:, some], truth.gram(exact=True)[some][:, some]) <= 1e-6
    wanted = {name: (weights * some).nan_to_num() @ truth.buffer(name).nan_to_num() for name in truth.parameters}
    stack.write_grad(basis.coefficients(weights))
    found = torch.cat([parameter.grad.flatten() for parameter in stack.parameters.values()])  # type: ignore[union-attr]
    assert relative(found, torch.cat(list(wanted.values()))) <= 1e-6


def test_rows_that_never_came_count_nothing() -> None:
    """A step's micro-batches of padding alone are not differentiated."""
    basis = RowBasis(3, 2)
    slopes = torch.randn(3, 1, dtype=torch.float64)
    assert basis.slopes(slopes).tolist() == [[1.0], [0.0]]
    gram = torch.tensor([[2.0, 9.0], [9.0, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(basis.gram(gram), 2 * slopes @ slopes.T)
    assert basis.coefficients(torch.ones(3, dtype=torch.float64))[1] == 0
