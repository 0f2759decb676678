"""May this model be given prompt-shared rows? First by its config, then by trying.

The config alone is not trusted (a model may ignore the keyword, or have a window the config does not name), nor is the
trial (a sequence shorter than a window does not show that the window was lost): both must agree, and the trial's batch
is longer than every window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paretune.comparisons.batches import Layout, collate, to_device
from paretune.policy.attention import ATTENTION_NAME, base_model, shared_inputs, use_paretune_attention
from paretune.policy.sharding import within_forward

_LAYERS = {"full_attention", "sliding_attention"}

# Attributes of configs whose attention is more than softmax over causal (windowed) scores.
_EXTRAS = {
    "attn_logit_softcapping": "attention scores are soft-capped",
    "attention_chunk_size": "attention is chunked",
    "alibi": "attention has an ALiBi position bias",
    "use_bidirectional_attention": "attention is not causal",
    "add_cross_attention": "the model has cross-attention",
    "layers_block_type": "the model has recurrent or state-space layers",
}


def shared_layout_reason(model: nn.Module) -> str | None:
    """Why the model must have flat rows, in words; None when prompt-shared rows give what flat rows give.

    The trial costs three forwards of one window's length without gradients. The model is left as it was found: mode,
    attention implementation, random state.
    """
    reason = config_reason(model)
    return trial_reason(model) if reason is None else reason


def config_reason(model: nn.Module) -> str | None:
    """The part of `shared_layout_reason` that needs no forward."""
    if _prompt_learning(model):
        return "the adapter adds virtual tokens to the prompt"
    base = base_model(model)
    config = base.config
    if config.is_encoder_decoder:
        return "the model is an encoder-decoder"
    if config.get_text_config() is not config:
        return "the language model sits inside a multimodal one"
    for name, words in _EXTRAS.items():
        if getattr(config, name, None):
            return words
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", "rope", None):
        return f"positions enter attention as {config.position_embedding_type}"
    if not getattr(config, "is_causal", True):
        return "attention is not causal"
    other = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if other:
        return f"layers of type {', '.join(sorted(map(str, other)))}"
    if any(name.rsplit(".", 1)[-1] in ("sinks", "attention_sink_bias") for name, _ in base.named_parameters()):
        return "attention has learned sinks"
    if getattr(base, "_is_stateful", False):
        return "the model has recurrent or state-space layers"
    if not (base._supports_attention_backend and base._supports_sdpa):
        return "its attention does not go through transformers' attention interface"
    return None


def _prompt_learning(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def trial_reason(model: nn.Module) -> str | None:
    """Compares last hidden states of shared and flat rows on a made batch longer than any window."""
    base = base_model(model)
    length = _trial_length(base.config)
    if length is None:
        return "the model's longest sequence leaves no room to check the layout"
    rows = made_rows(base.config.vocab_size, length)
    device = next(base.parameters()).device
    shared = to_device(collate(rows, layout="shared", pad_id=0), device)
    flat = to_device(collate(rows, layout="flat", pad_id=0), device)
    with evaluating(base), torch.no_grad():
        plain = _hidden(base, flat, flat)
        padded = {name: flat[name] for name in ("input_ids", "position_ids", "attention_mask")}
        padded = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in padded.items()}
        noise = _rms(_hidden(base, padded, flat) - plain)
        previous = use_paretune_attention(base)
        try:
            if base.config._attn_implementation != ATTENTION_NAME:
                return "its attention implementation cannot be set"
            inputs = shared_inputs(shared)
            seen: list[int | None] = []
            inputs["paretune_blocks"].windows_seen = seen
            ours = _hidden(base, inputs, shared)
        except Exception as error:  # whatever a model does with a keyword it does not expect
            return f"its forward fails on shared rows ({type(error).__name__}: {error})"
        finally:
            base.set_attn_implementation(previous)
    allowed = 3 * noise + _rounding(base) * _rms(plain)
    return _windows_reason(base.config, seen) or _difference_reason(ours, plain, allowed)


def _rounding(base: PreTrainedModel) -> float:
    """Relative difference that may come from kernels rounding differently once per layer.

    Padding alone (the measured noise) may not show it. Float32 affords a wide margin, because a wrong mask shows far
    above it; half precision does not, and there the windows that the layers report have to tell.
    """
    eps = coarsest_eps(base)
    return (3 if eps > 1e-4 else 100) * eps * math.sqrt(base.config.num_hidden_layers)


def coarsest_eps(base: PreTrainedModel) -> float:
    """Relative spacing of the coarsest numbers the model computes with: its weights', or autocast's if that is on."""
    dtypes = {parameter.dtype for parameter in base.parameters() if parameter.is_floating_point()}
    device = next(base.parameters()).device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(float(torch.finfo(dtype).eps) for dtype in dtypes)


def _trial_length(config: Any) -> int | None:
    """Prefix length of the trial: past the largest window that the model can reach at all."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "local_attention_size")]
    window = max([value for value in windows if isinstance(value, int)], default=0)
    longest = getattr(config, "max_position_embeddings", None) or 1 << 30
    length = min(max(window + 5, 24), longest - 16)
    return length if length >= 4 else None


def made_rows(vocabulary: int, prefix: int) -> list[dict[str, Any]]:
    """Comparisons of random tokens: one, or two with prefixes of different length where that costs little."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    sizes = [(prefix, 9, 13), (prefix - 3, 12, 7)] if prefix <= 600 else [(prefix, 9, 13)]
    return [
        {
            "prefix_ids": draw(length),
            "a_ids": draw(a),
            "b_ids": draw(b),
            "a_start": length - 2,
            "b_start": length,
            "preferences": [],
            "index": index,
        }
        for index, (length, a, b) in enumerate(sizes)
    ]


def made_batch(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """A small batch of made comparisons on the model's device, for checking what it does before it trains."""
    base = base_model(model)
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    vocabulary = base.config.get_text_config().vocab_size
    batch = collate(made_rows(vocabulary, max(4, min(24, longest - 16))), layout=layout, pad_id=0)
    return to_device(batch, next(base.parameters()).device)


def backbone(base: PreTrainedModel) -> nn.Module:
    """The part of a causal language model below its head."""
    return getattr(base, base.base_model_prefix)


def _hidden(base: PreTrainedModel, inputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """(entries, D) float64: states at the scored entries, side a of all rows first, in an order both layouts share."""
    names = ("input_ids", "position_ids", "attention_mask", "use_cache", "paretune_blocks")
    given = {name: inputs[name] for name in names if name in inputs}
    states = within_forward(base, lambda: backbone(base)(**given).last_hidden_state)
    picked = states.gather(1, batch["score_positions"][..., None].expand(-1, -1, states.shape[-1]))
    return torch.cat([picked[batch["score_a"]], picked[batch["score_b"]]]).double()


def _windows_reason(config: Any, seen: list[int | None]) -> str | None:
    layers = config.num_hidden_layers
    if len(seen) != layers:
        return f"{len(seen)} of {layers} layers passed the batch's blocks to their attention"
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        expected = config.sliding_window if kind == "sliding_attention" else None
        if seen[index] != expected:
            return f"layer {index} is {kind} with window {expected} but its attention was given window {seen[index]}"
    return None


def _difference_reason(ours: Tensor, plain: Tensor, allowed: float) -> str | None:
    found = _rms(ours - plain)
    if found <= allowed:  # also refuses NaN
        return None
    return f"on a made batch its states differ from flat rows by {found / _rms(plain):.1e} (relative 2-norm)"


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, then each back in its own (a frozen part may have been in eval already)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
