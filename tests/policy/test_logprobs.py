"""Response log-probabilities in both layouts against the plainest way: one sequence at a time, all its logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlamaForCausalLM, PreTrainedModel

from paretune.comparisons.batches import collate
from paretune.errors import InputError
from paretune.policy import logprobs
from paretune.policy.logprobs import (
    ResponseLogprobs,
    Scorer,
    head_reason,
    prepare_scorer,
    response_logprobs,
    token_logprobs,
)
from tests.models_made import SHARED_FAMILIES, VOCABULARY, make_model

# prefix, a, b lengths; a_start, b_start. Prompts and responses beyond every window of the made models (5 and 6); common
# beginnings scored inside the prefix (rows 2, 4), starts beyond the prefix (3, 4), and a one-token prefix.
SHAPES = [(20, 7, 9, 20, 20), (13, 3, 14, 10, 10), (4, 12, 1, 6, 4), (17, 8, 8, 15, 19), (1, 5, 9, 1, 1)]


def made(shapes: list[tuple[int, int, int, int, int]] = SHAPES) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    return [
        {
            "prefix_ids": ids(prefix),
            "a_ids": ids(a),
            "b_ids": ids(b),
            "a_start": a_start,
            "b_start": b_start,
            "preferences": [1.0],
            "index": index,
        }
        for index, (prefix, a, b, a_start, b_start) in enumerate(shapes)
    ]


def plainly(model: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
    """(N, 2): each sequence alone, without padding, through the model's own forward."""
    values = []
    for row in rows:
        for side in ("a", "b"):
            ids = torch.tensor([row["prefix_ids"] + row[f"{side}_ids"]])
            logits = model(input_ids=ids).logits[0]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            start = row[f"{side}_start"]
            values.append(logits[start - 1 : -1].log_softmax(-1).gather(-1, ids[0, start:, None]).sum())
    return torch.stack(values).view(-1, 2)


def scored(model: nn.Module, rows: list[dict[str, Any]], layout: str) -> ResponseLogprobs:
    scorer = prepare_scorer(model, layout)
    assert scorer.own_head, scorer.notices
    return response_logprobs(model, collate(rows, layout=scorer.layout, pad_id=0), scorer)


def pair(scores: ResponseLogprobs) -> Tensor:
    return torch.stack([scores.logp_a, scores.logp_b], dim=1)


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("family", SHARED_FAMILIES)
def test_equals_one_sequence_at_a_time(family: str, dtype: torch.dtype, tolerance: float, layout: str) -> None:
    model = make_model(family, dtype=dtype)
    with torch.no_grad():
        truth = plainly(model, made())
        scores = scored(model, made(), layout)
    assert scores.logp_a.dtype == dtype
    torch.testing.assert_close(pair(scores), truth, rtol=0, atol=tolerance * float(truth.abs().max()))


def test_soft_capped_attention_goes_flat_and_says_so() -> None:
    model = make_model("gemma2")
    scorer = prepare_scorer(model)
    assert scorer.layout == "flat" and scorer.own_head
    assert scorer.notices == ("flat rows, each prompt computed twice: attention scores are soft-capped",)
    with torch.no_grad():
        truth = plainly(model, made())
        ours = pair(response_logprobs(model, collate(made(), layout="flat", pad_id=0), scorer))
    torch.testing.assert_close(ours, truth, rtol=0, atol=2e-3)


def test_flat_rows_are_side_a_then_side_b() -> None:
    scores = scored(make_model("llama"), made(), "flat")
    assert scores.rows is not None and scores.rows.shape == (2 * len(SHAPES),)
    assert torch.equal(scores.rows, torch.cat([scores.logp_a, scores.logp_b]))
    assert scored(make_model("llama"), made(), "shared").rows is None


SIGNS = torch.tensor([[1.0, -1.0], [-0.5, 0.5], [2.0, -2.0], [0.3, -0.3], [1.0, 0.25]], dtype=torch.float64)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (error / sum(float(b.double().square().sum()) for b in theirs)) ** 0.5


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("family", SHARED_FAMILIES)
def test_gradients_equal_plain_autograd(family: str, layout: str) -> None:
    model = make_model(family, dtype=torch.float64)
    truth = gradients(model, (plainly(model, made()) * SIGNS).sum())
    ours = gradients(model, (pair(scored(model, made(), layout)) * SIGNS).sum())
    # All but GPT-2 normalise in float32 inside a float64 model, and sum that part of the gradient in it.
    assert distance(ours, truth) < (1e-13 if family == "gpt2" else 5e-7)


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str, layout: str) -> None:
    model = make_model(family)
    plain = gradients(model, (pair(scored(model, made(), layout)) * SIGNS).sum())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()  # checkpointing is off in eval mode; the made models have no dropout
    again = gradients(model, (pair(scored(model, made(), layout)) * SIGNS).sum())
    assert distance(again, plain) < 1e-6


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_the_vocabulary_in_pieces(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gemma3", dtype=torch.float64)
    whole = scored(model, made(), layout)
    truth = gradients(model, (pair(whole) * SIGNS).sum())
    rows = len(made()) * (1 if layout == "shared" else 2)
    monkeypatch.setattr(logprobs, "_LOGITS_BYTES", 4 * rows * VOCABULARY * 3)  # three entries per row at once
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    batch = collate(made(), layout=layout, pad_id=0)  # type: ignore[arg-type]
    scores = response_logprobs(model, batch, Scorer(layout))  # type: ignore[arg-type]
    entries = batch["score_positions"].shape[1]
    assert len(seen) == -(-entries // 3) and max(shape[1] for shape in seen) == 3
    assert all(shape[0] == rows for shape in seen)
    torch.testing.assert_close(pair(scores), pair(whole), rtol=0, atol=1e-12)
    assert distance(gradients(model, (pair(scores) * SIGNS).sum()), truth) < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(
            pair(response_logprobs(model, batch, Scorer(layout))),
            pair(whole),
            rtol=0,
            atol=1e-12,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("layout", ["shared", "flat"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere"])
def test_half_precision_models_give_float32(family: str, layout: str) -> None:
    model = make_model(family)
    with torch.no_grad():
        truth = pair(scored(model, made(), layout))
        rounded = scored(copy.deepcopy(model).bfloat16(), made(), layout)
        with torch.autocast("cpu", torch.bfloat16):
            cast = scored(model, made(), layout)
    for scores in (rounded, cast):
        assert scores.logp_a.dtype == torch.float32
        # bf16 keeps 8 bits: a hundredth per token of these sharp made distributions, added up over a response.
        assert float((pair(scores) - truth).abs().max()) < 0.01 * float(truth.abs().max())


@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_adapters_everywhere_also_on_the_head(layout: str) -> None:
    model = make_model("llama", dtype=torch.float64)
    base = copy.deepcopy(model)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"], init_lora_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    adapted.eval()
    truth = plainly(adapted, made())
    ours = pair(scored(adapted, made(), layout))
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-9)
    truth_gradients = gradients(adapted, (truth * SIGNS).sum())
    assert len(truth_gradients) == 2 * (2 * 3 + 1)
    assert distance(gradients(adapted, (ours * SIGNS).sum()), truth_gradients) < 5e-7
    with torch.no_grad(), adapted.disable_adapter():
        off = response_logprobs(adapted, collate(made(), layout=layout, pad_id=0), Scorer(layout))  # type: ignore[arg-type]
        torch.testing.assert_close(pair(off), plainly(base, made()), rtol=0, atol=1e-9)


class Shifted(LlamaForCausalLM):
    """A head that the config does not describe."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * torch.linspace(0.5, 2.0, output.logits.shape[-1])
        return output


class Bare(LlamaForCausalLM):
    """The same, and one that cannot be asked for some of its logits."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        output.logits = output.logits * torch.linspace(0.5, 2.0, output.logits.shape[-1])
        return output


@pytest.mark.parametrize("kind", [Shifted, Bare])
@pytest.mark.parametrize("layout", ["shared", "flat"])
def test_an_unknown_head_runs_through_the_models_forward(kind: type, layout: str) -> None:
    model = make_model("llama")
    model.__class__ = kind
    scorer = prepare_scorer(model, layout)
    assert scorer.layout == layout and not scorer.own_head
    assert len(scorer.notices) == 1 and "model's own forward: its log-probabilities differ" in scorer.notices[0]
    truth = plainly(model, made())
    ours = pair(response_logprobs(model, collate(made(), layout=scorer.layout, pad_id=0), scorer))
    torch.testing.assert_close(ours, truth, rtol=0, atol=2e-3)
    assert distance(gradients(model, (ours * SIGNS).sum()), gradients(model, (truth * SIGNS).sum())) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", [*SHARED_FAMILIES])
def test_known_heads_are_recognised_and_a_missing_scale_is_not(family: str, dtype: torch.dtype) -> None:
    model = make_model(family, dtype=dtype)
    assert head_reason(model, "flat") is None
    neutral = {
        "gemma3": ("final_logit_softcapping", None),
        "cohere": ("logit_scale", 1.0),
        "granite": ("logits_scaling", 1.0),
    }
    if family in neutral:
        name, nothing = neutral[family]
        with torch.no_grad():
            batch = collate(made(), layout="flat", pad_id=0)
            known = token_logprobs(model, batch, own_head=True)
            setattr(model.config, name, nothing)
            unscaled = token_logprobs(model, batch, own_head=True)
        assert float((known - unscaled).abs().max()) > 0.1


def _multimodal() -> PreTrainedModel:
    text = make_model("gemma3").config.to_dict() | {"final_logit_softcapping": None}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    config.image_token_id = VOCABULARY - 1
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(config).eval()


def test_a_multimodal_wrapper_goes_flat_through_its_own_forward() -> None:
    model = _multimodal()
    scorer = prepare_scorer(model)
    assert (scorer.layout, scorer.own_head) == ("flat", False)
    assert [("multimodal" in notice) for notice in scorer.notices] == [True, True]
    rows = made()
    for row in rows:
        for name in ("prefix_ids", "a_ids", "b_ids"):
            row[name] = [min(token, VOCABULARY - 2) for token in row[name]]  # no image tokens
    model.train()
    ours = pair(response_logprobs(model, collate(rows, layout="flat", pad_id=0), scorer))
    torch.testing.assert_close(ours, plainly(model, rows), rtol=0, atol=1e-3)


def test_the_layout_asked_for_is_kept_or_refused() -> None:
    model = make_model("llama")
    assert prepare_scorer(model, "flat") == Scorer("flat")
    assert model.config._attn_implementation == "sdpa"
    assert prepare_scorer(model) == Scorer("shared")
    assert model.config._attn_implementation == "paretune"
    assert prepare_scorer(model) == Scorer("shared")
    with pytest.raises(InputError, match="soft-capped"):
        prepare_scorer(make_model("gemma2"), "shared")
    with pytest.raises(InputError, match="'auto', 'shared' or 'flat'"):
        prepare_scorer(model, "packed")


def test_another_attention_replaced_is_said() -> None:
    model = make_model("llama", attn_implementation="eager")
    assert "eager replaced" in prepare_scorer(model).notices[0]
