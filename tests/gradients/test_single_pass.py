"""One backward pass gives the m gradients of plain autograd, for real models, losses, layouts and splits.

The oracle, `plain_gradients`, has none of our layers, layouts or masks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from paretune.comparisons.batches import collate
from paretune.gradients import GradientStack, RowLayers, row_layers, trainable_parameters
from paretune.losses import LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.policy.logprobs import Scorer, prepare_scorer, response_logprobs
from paretune.training.step import differentiate, differentiate_each
from tests.comparisons_made import made_comparisons
from tests.models_made import VOCABULARY, make_model
from tests.plain_gradients import BETA, made_reference, plain_gradients

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]
SIGMOID = [Objective("one"), Objective("two", beta=0.5), Objective("three", loss="ipo", beta=0.3)]
MIXED = [Objective("summed"), Objective("per_token", loss="simpo", beta=2.0), Objective("anchored", sft=0.3)]


def objectives(m: int) -> list[Objective]:
    return [Objective(f"o{i}", beta=0.1 + 0.1 * i, loss=("sigmoid", "hinge", "robust")[i % 3]) for i in range(m)]


def ours(
    model: nn.Module,
    rows: list[dict[str, Any]],
    objs: list[Objective],
    scorer: Scorer,
    splits: list[int],
    *,
    one_pass: bool = True,
) -> tuple[GradientStack, list[int]]:
    """As the trainer does it: micro-batches of the given sizes, losses divided by the global counts."""
    stack = GradientStack(trainable_parameters(model), len(objs))
    labels = torch.tensor([row["preferences"] for row in rows], dtype=torch.float64)
    counts = (~labels.isnan()).sum(0).double()
    ref_a, ref_b = made_reference(len(rows))
    layers = RowLayers(model) if one_pass else None
    assert layers is None or layers.uncovered == []
    passes = []
    try:
        for part in torch.arange(len(rows)).split(splits):
            batch = collate([rows[i] for i in part.tolist()], layout=scorer.layout, pad_id=0)
            scores = response_logprobs(model, batch, scorer)
            logps = LogProbs(
                scores.logp_a, scores.logp_b, ref_a[part], ref_b[part], batch["a_tokens"], batch["b_tokens"]
            )
            losses = batch_losses(objs, BETA, logps, batch["preferences"])
            if layers is None:
                differentiate_each(scores, losses.over(counts), stack)
            else:
                passes.append(differentiate(scores, losses.over(counts), stack, layers))
    finally:
        if layers is not None:
            layers.restore()
    return stack, passes


def flat(stack: GradientStack) -> Tensor:
    """(m, all parameters) float64."""
    return torch.cat([stack.buffer(name).double() for name in stack.parameters], dim=1)


def error(found: GradientStack, truth: GradientStack) -> float:
    """The largest of the objectives' relative 2-norm differences."""
    x, y = flat(found), flat(truth)
    assert (y.norm(dim=1) > 0).all(), "an objective without a gradient shows nothing"
    return float(((x - y).norm(dim=1) / y.norm(dim=1)).max())


def with_lora(model: nn.Module, **changes: Any) -> PeftModel:
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "use_rslora": True}
    options["fan_in_fan_out"] = model.config.model_type == "gpt2"  # type: ignore[union-attr]
    adapted = get_peft_model(model, LoraConfig(**{**options, **changes}))  # type: ignore[arg-type]
    for parameter in adapted.parameters():
        parameter.data = parameter.data.to(next(model.parameters()).dtype)
    return adapted


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_plain_autograd_in_float64(family: str, adapted: bool, layout: str) -> None:
    model = make_model(family, dtype=torch.float64)
    model = with_lora(model) if adapted else model
    rows, objs = made_comparisons(6, 4), objectives(4)
    truth = plain_gradients(model, rows, objs)
    found, passes = ours(model, rows, objs, prepare_scorer(model, layout), [6])
    assert passes == [1]
    # the families compute norms and rotary angles in float32 whatever their dtype: hence not 1e-14
    assert error(found, truth) <= 1e-6


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_plain_autograd_in_float32(family: str, layout: str) -> None:
    model = make_model(family)
    rows, objs = made_comparisons(6, 3, seed=1), objectives(3)
    found, _ = ours(model, rows, objs, prepare_scorer(model, layout), [6])
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_rounds_no_worse_than_one_pass_each(family: str) -> None:
    exact = make_model(family, dtype=torch.float64)
    model = make_model(family, dtype=torch.bfloat16)
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    rows, objs = made_comparisons(6, 3, seed=2), objectives(3)
    truth = plain_gradients(exact, rows, objs)
    scorer = prepare_scorer(model, "shared")
    single, _ = ours(model, rows, objs, scorer, [6])
    each, _ = ours(model, rows, objs, scorer, [6], one_pass=False)
    assert error(single, truth) <= 1.5 * error(each, truth)


@pytest.mark.parametrize("m", range(1, 9))
def test_any_number_of_objectives(m: int) -> None:
    model = make_model("qwen3")
    rows, objs = made_comparisons(8, m, seed=m), objectives(m)
    found, passes = ours(model, rows, objs, prepare_scorer(model), [8])
    assert passes == [1]
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-5


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("splits", [[8], [1] * 8, [2] * 4, [5, 3]], ids=str)
def test_the_split_into_micro_batches_changes_nothing(splits: list[int], layout: str) -> None:
    model = make_model("llama", dtype=torch.float64)
    rows, objs = made_comparisons(8, 3, seed=3), objectives(3)
    found, _ = ours(model, rows, objs, prepare_scorer(model, layout), splits)
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-6


def test_rows_that_belong_to_one_objective_only() -> None:
    model = make_model("qwen3", dtype=torch.float64)
    rows, objs = made_comparisons(6, 3, seed=4), objectives(3)
    for i, row in enumerate(rows):
        row["preferences"] = [1.0 if i % 3 == k else float("nan") for k in range(3)]
    found, _ = ours(model, rows, objs, prepare_scorer(model), [2, 4])
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-6


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_losses_without_a_common_margin_take_two_passes_or_flat_rows(layout: str) -> None:
    model = make_model("llama", dtype=torch.float64)
    rows = made_comparisons(6, 3, seed=5)
    found, passes = ours(model, rows, MIXED, prepare_scorer(model, layout), [6])
    assert passes == [2 if layout == "shared" else 1]
    assert error(found, plain_gradients(model, rows, MIXED)) <= 1e-6


def test_length_normalized_losses_share_one_pass() -> None:
    model = make_model("llama", dtype=torch.float64)
    objs = [Objective("u", loss="simpo", beta=2.0), Objective("v", loss="ipo", length_normalized=True, beta=0.5)]
    rows = made_comparisons(5, 2, seed=6)
    found, passes = ours(model, rows, objs, prepare_scorer(model, "shared"), [5])
    assert passes == [1]
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-6


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family: str, adapted: bool) -> None:
    model = make_model(family, dtype=torch.float64)
    model = with_lora(model) if adapted else model
    rows = made_comparisons(5, 3, seed=8)
    truth = plain_gradients(model, rows, MIXED)
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()
    found, passes = ours(model, rows, MIXED, prepare_scorer(model, "shared"), [3, 2])
    assert passes == [2, 2]
    assert error(found, truth) <= 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"use_rslora": False}],
    ids=str,
)
def test_what_lora_can_train_besides_its_matrices(changes: dict[str, Any]) -> None:
    model = with_lora(make_model("llama", dtype=torch.float64, attention_bias=True, mlp_bias=True), **changes)
    rows, objs = made_comparisons(5, 2, seed=9), objectives(2)
    found, _ = ours(model, rows, objs, prepare_scorer(model), [5])
    assert error(found, plain_gradients(model, rows, objs)) <= 1e-6


def test_lora_dropout_sees_one_forward() -> None:
    """With the same random state, one pass and one pass each drop the same entries and give the same gradients."""
    model = with_lora(make_model("llama", dtype=torch.float64), lora_dropout=0.3)
    model.train()
    rows, objs = made_comparisons(5, 3, seed=10), objectives(3)
    scorer = prepare_scorer(model)
    torch.manual_seed(5)
    single, _ = ours(model, rows, objs, scorer, [5])
    torch.manual_seed(5)
    each, _ = ours(model, rows, objs, scorer, [5], one_pass=False)
    assert error(single, each) <= 1e-6
    torch.manual_seed(6)
    other, _ = ours(model, rows, objs, scorer, [5])
    assert error(other, each) > 1e-3


def test_autocast_is_handled_inside() -> None:
    model = with_lora(make_model("qwen3"))
    rows, objs = made_comparisons(5, 2, seed=11), objectives(2)
    truth = plain_gradients(model, rows, objs)
    scorer = prepare_scorer(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single, _ = ours(model, rows, objs, scorer, [5])
        each, _ = ours(model, rows, objs, scorer, [5], one_pass=False)
    assert all(single.buffer(name).dtype == torch.float32 for name in single.parameters)
    assert error(each, truth) > 1e-4 and error(single, truth) <= 1.5 * error(each, truth)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_of_forming_a_matrix_gradient(family: str, adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows formed and mixed, or the signal scaled for every objective: what is faster decides, by shapes."""
    model = make_model(family, dtype=torch.float64)
    model = with_lora(model) if adapted else model
    rows, objs = made_comparisons(6, 4, seed=12), objectives(4)
    truth, scorer = plain_gradients(model, rows, objs), prepare_scorer(model)
    asked: list[int] = []
    for better in (False, True):
        monkeypatch.setattr(row_layers, "_better_scaled", lambda m, *_, better=better: asked.append(m) or better)
        found, _ = ours(model, rows, objs, scorer, [4, 2])
        assert error(found, truth) <= 1e-6
    assert set(asked) == {4}


def test_what_decides_between_the_two_ways() -> None:
    wide, short, thin = torch.zeros(4, 480, 512), torch.zeros(4, 20, 512), torch.zeros(4, 480, 16)
    better = row_layers._better_scaled
    assert better(1, wide, wide) and not better(2, wide, wide)  # one objective: nothing to mix
    assert better(2, short, short) and not better(8, short, short)
    assert not better(1, thin, wide)


def test_a_plain_backward_pass_through_prepared_layers_is_refused() -> None:
    model = make_model("llama")
    layers = RowLayers(model)
    ids = torch.randint(0, VOCABULARY, (2, 5))
    loss = model(input_ids=ids, labels=ids).loss
    with pytest.raises(RuntimeError, match="single_pass"):
        loss.backward()
    layers.restore()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_generation_and_evaluation_are_left_alone() -> None:
    model = make_model("gemma3")
    ids = torch.randint(3, VOCABULARY, (2, 5))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        layers = RowLayers(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    layers.restore()
