"""Small real models of several families, built from their configs, with random weights wide enough to matter.

With the weights that transformers draws (0.02), attention is nearly uniform and a wrong mask changes hardly anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, **changes}))


def _qwen3(**changes: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**_SIZES, "head_dim": 8, "tie_word_embeddings": True, **changes}))


def _gemma3(**changes: Any) -> PreTrainedModel:
    """Two layers in three look back 6 tokens; logits soft-capped."""
    own = {
        "head_dim": 8,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 6,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 8,
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**_SIZES, **own, **changes}))


def _gpt2(**changes: Any) -> PreTrainedModel:
    own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**{**own, **drops, **tokens, **changes}))


def _cohere(**changes: Any) -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**{**_SIZES, "logit_scale": 0.25, **changes}))


def _granite(**changes: Any) -> PreTrainedModel:
    own = {"logits_scaling": 3.0, "embedding_multiplier": 5.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7}
    return GraniteForCausalLM(GraniteConfig(**{**_SIZES, **own, **changes}))


def _mistral(**changes: Any) -> PreTrainedModel:
    """Every layer looks back 5 tokens."""
    return MistralForCausalLM(MistralConfig(**{**_SIZES, "sliding_window": 5, **changes}))


def _gemma2(**changes: Any) -> PreTrainedModel:
    """Soft-capped attention scores: not for prompt-shared rows."""
    own = {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    return Gemma2ForCausalLM(Gemma2Config(**{**_SIZES, **own, "final_logit_softcapping": 4.0, **changes}))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "cohere": _cohere,
    "granite": _granite,
    "mistral": _mistral,
    "gemma2": _gemma2,
}

# Those that can be given prompt-shared rows.
SHARED_FAMILIES = [name for name in FAMILIES if name != "gemma2"]


def make_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, std: float = 0.3, **changes: Any
) -> PreTrainedModel:
    """A model in eval mode; `changes` go into its config. The global random state is left as it was.

    Args:
        family: a key of FAMILIES.
        std: standard deviation of the matrices; gains and biases get small random values too, so that nothing is
            trivially zero or one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](**changes)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, std)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()
