"""Which models are given prompt-shared rows: told from the config, or caught by trial where it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention

from paretune.policy.eligibility import config_reason, evaluating, shared_layout_reason
from tests.models_made import SHARED_FAMILIES, make_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", SHARED_FAMILIES)
def test_eligible_families(family: str, dtype: torch.dtype) -> None:
    assert shared_layout_reason(make_model(family, dtype=dtype)) is None


def test_the_trial_leaves_the_model_as_it_was() -> None:
    model = make_model("gemma3")
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    assert shared_layout_reason(model) is None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == "sdpa"


def test_modes_come_back_after_an_error() -> None:
    model = make_model("llama").train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        1 / 0  # noqa: B018
    assert all(module.training for module in model.modules())


def test_dropout_of_a_training_model_does_not_spoil_the_trial() -> None:
    assert shared_layout_reason(make_model("llama", attention_dropout=0.5).train()) is None


_TINY: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4))


def _gpt_oss() -> PreTrainedModel:
    more = {"intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 2}
    return GptOssForCausalLM(GptOssConfig(**_TINY, **more, num_experts_per_tok=1))


def _llama4() -> PreTrainedModel:
    more = {"intermediate_size": 16, "intermediate_size_mlp": 16, "num_key_value_heads": 1, "head_dim": 8}
    return Llama4ForCausalLM(Llama4TextConfig(**_TINY, **more, num_local_experts=2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_model("gemma2"), "soft-capped"),
        (lambda: make_model("gemma3", use_bidirectional_attention=True), "not causal"),
        (lambda: make_model("gpt2", add_cross_attention=True), "cross-attention"),
        (_t5, "encoder-decoder"),
        (_mamba, "linear_attention"),
        (_llama4, "chunked"),
        (_gpt_oss, "sinks"),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)), "interface"),
    ],
)
def test_told_from_the_config(make: Any, words: str) -> None:
    reason = config_reason(make())
    assert reason is not None and words in reason


def test_virtual_tokens_are_told() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "virtual tokens" in str(shared_layout_reason(get_peft_model(make_model("llama"), config)))


def test_an_adapter_changes_nothing() -> None:
    assert (
        shared_layout_reason(get_peft_model(make_model("mistral"), LoraConfig(r=2, target_modules=["q_proj"]))) is None
    )


class Swallowing(LlamaAttention):
    """Takes the keyword and forgets it."""

    def forward(self, *args: Any, paretune_blocks: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Unwindowed(MistralAttention):
    """Windowed by the mask alone, as a model whose attention is not told its window would be."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.config.sliding_window, window = None, self.config.sliding_window
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.config.sliding_window = window


class ByColumn(LlamaAttention):
    """Knows a token's column, not its position: right on flat rows only."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(hidden_states, *args, **kwargs)
        column = torch.arange(hidden_states.shape[1])[None, :, None]
        return output + (0.2 * column).to(output), weights


class Strict(LlamaAttention):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if "paretune_blocks" in kwargs:
            raise TypeError("unexpected keyword")
        return super().forward(hidden_states, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "attention", "changes", "words"),
    [
        ("llama", Swallowing, {}, "1 of 2 layers"),
        ("llama", ByColumn, {}, "differ from flat rows"),
        ("llama", Strict, {}, "TypeError: unexpected keyword"),
        # Longer than a short made batch would be: the loss of the window shows only beyond it.
        ("mistral", Unwindowed, {"sliding_window": 60}, "differ from flat rows"),
    ],
)
def test_caught_by_trial(family: str, attention: type, changes: dict[str, Any], words: str, dtype: torch.dtype) -> None:
    model = make_model(family, dtype=dtype, std=0.4, **changes)
    model.model.layers[1].self_attn.__class__ = attention
    if attention is Unwindowed and dtype is torch.bfloat16:
        # A few keys more of sixty drown in bf16's rounding; for them there are the windows that layers report.
        model.config.layer_types = ["sliding_attention"] * 2
        words = "given window None"
    reason = shared_layout_reason(model)
    assert reason is not None and words in reason
    assert model.config._attn_implementation == "sdpa"


def test_a_model_too_short_to_try() -> None:
    assert "no room" in str(shared_layout_reason(make_model("gpt2", n_positions=16)))
