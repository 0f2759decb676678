"""Log-probabilities of responses: the head only at scored entries, the vocabulary's logits in bounded pieces.

Shape suffixes: R rows, K scored entries per row, D hidden size, V vocabulary, N comparisons. Everything keeps its row
axis first, because `gradients.single_pass` tells comparisons apart by it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from paretune.comparisons.batches import Layout
from paretune.errors import InputError
from paretune.policy.attention import base_model, flat_inputs, shared_inputs, use_paretune_attention
from paretune.policy.eligibility import backbone, coarsest_eps, evaluating, made_batch, shared_layout_reason
from paretune.policy.mixed import MixedPolicy
from paretune.policy.sharding import is_sharded, put_back, within_forward

# Bytes of float32 logits that exist at once.
_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class Scorer:
    """How a model scores: decided once by `prepare_scorer`.

    Args:
        layout: the layout to collate batches in.
        own_head: True where we apply the head at scored entries only; False where the model's own forward makes logits.
        notices: what could not be done the fast way and why, in words, to be logged once and recorded.
    """

    layout: Layout
    own_head: bool = True
    notices: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class ResponseLogprobs:
    """Summed log-probabilities of the scored tokens, float32 (float64 for a float64 model).

    Args:
        logp_a, logp_b: (N,) of the two sides.
        rows: (2N,) of a flat batch, side a first; logp_a and logp_b are views of it. None in the shared layout.
    """

    logp_a: Tensor
    logp_b: Tensor
    rows: Tensor | None = None


def prepare_scorer(model: nn.Module, layout: str = "auto") -> Scorer:
    """Decides layout and head for a model, and sets its attention implementation where rows will be shared.

    Call it once the model has its final form (adapters in place, dtype cast, on its device), and under the autocast it
    will be trained with where it has weights of several dtypes.

    Args:
        model: a causal language model of transformers, or a PEFT wrapper of one.
        layout: "auto" (shared where eligible), "shared" or "flat".

    Raises:
        InputError: "shared" asked of a model that is not eligible; prompt-learning adapters; an unknown layout.
    """
    if layout not in ("auto", "shared", "flat"):
        raise InputError("unknown layout", expected="'auto', 'shared' or 'flat'", found=layout)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError("prompt-learning adapters add virtual tokens, which are not supported", fix="Use LoRA.")
    if isinstance(model, MixedPolicy):
        if layout == "shared":
            raise InputError("a mixture of policies has no prompt-shared rows", fix="Set layout: flat or auto.")
        return Scorer("flat", own_head=False)
    notices = []
    chosen: Layout = "flat"
    if layout != "flat":
        reason = shared_layout_reason(model)
        if reason is None:
            chosen = "shared"
            previous = use_paretune_attention(model)
            if previous not in ("sdpa", "paretune"):
                notices.append(f"attention implementation {previous} replaced by paretune's (sdpa) for shared prompts")
        elif layout == "shared":
            raise InputError(f"prompt-shared rows are not possible: {reason}", fix="Set layout: flat or auto.")
        else:
            notices.append(f"flat rows, each prompt computed twice: {reason}")
    reason = head_reason(model, chosen)
    if reason is not None:
        notices.append(f"logits come from the model's own forward: {reason}")
    return Scorer(chosen, reason is None, tuple(notices))


def response_logprobs(model: nn.Module, batch: dict[str, Any], scorer: Scorer) -> ResponseLogprobs:
    """Log-probabilities of both sides of every comparison; differentiable.

    Args:
        model: the model given to `prepare_scorer` (adapters may be switched on and off between calls).
        batch: output of `collate` in `scorer.layout`, on the model's device.
    """
    return summed(token_logprobs(model, batch, own_head=scorer.own_head), batch)


def summed(logprobs: Tensor, batch: dict[str, Any]) -> ResponseLogprobs:
    """The responses' log-probabilities from those of their scored entries, (R, K) of `token_logprobs`."""
    logp_a = logprobs.masked_fill(~batch["score_a"], 0.0).sum(1)
    logp_b = logprobs.masked_fill(~batch["score_b"], 0.0).sum(1)
    if "block_widths" in batch:
        return ResponseLogprobs(logp_a, logp_b)
    rows = logp_a + logp_b  # a flat row has entries of one side only
    count = rows.shape[0] // 2
    return ResponseLogprobs(rows[:count], rows[count:], rows)


def token_logprobs(model: nn.Module, batch: dict[str, Any], *, own_head: bool) -> Tensor:
    """(R, K) log-probabilities of the scored entries; padding entries hold numbers without meaning."""
    if isinstance(model, MixedPolicy):
        return _through_forward(model, flat_inputs(batch), batch["score_positions"], batch["score_targets"])
    base = base_model(model)
    inputs = shared_inputs(batch) if "block_widths" in batch else flat_inputs(batch)
    positions, targets = batch["score_positions"], batch["score_targets"]
    if not own_head:
        found = _through_forward(base, inputs, positions, targets)
        put_back(base)
        return found

    def through_parts() -> Tensor:
        states = backbone(base)(**inputs).last_hidden_state
        picked = states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
        return _through_head(base, picked, targets).clone()  # not a view, which FSDP2 warns of

    return within_forward(base, through_parts)


def _through_head(base: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """(R, K, D), (R, K) -> (R, K): in pieces along K, so that the logits of one piece stay within the bound.

    A sharded model's head gathers its weights once per forward pass, so it is called once, with all entries.
    """
    rows, entries = targets.shape
    vocabulary = base.config.get_text_config().vocab_size
    piece = max(1, _LOGITS_BYTES // (4 * rows * vocabulary))
    if piece >= entries or is_sharded(base):
        return _head_piece(base, states, targets)
    run = _head_piece
    if torch.is_grad_enabled():
        # Otherwise every piece's logits would wait for backward, and the bound would be none.
        run = partial(checkpoint, _head_piece, use_reentrant=False)
    pieces = zip(states.split(piece, dim=1), targets.split(piece, dim=1), strict=True)
    # contiguous: a strided piece would be multiplied row by row, several times slower on a GPU
    return torch.cat([run(base, part.contiguous(), wanted) for part, wanted in pieces], dim=1)


def _head_piece(base: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    # The head is called as a module, so an adapter on it (or a copy trained by modules_to_save) takes part.
    logits = base.get_output_embeddings()(states)
    return _picked_logprobs(_shaped(_widened(logits), base.config), targets)


def _widened(logits: Tensor) -> Tensor:
    """At least float32: log-probabilities are differences of large numbers, and bf16 carries three digits."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _shaped(logits: Tensor, config: Any) -> Tensor:
    """What a model does to its logits after the head, in the order of the models that do it."""
    scale = getattr(config, "logit_scale", None)  # Cohere
    if scale is not None:
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _picked_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    # On CPU half the time of gather - logsumexp, whose backward builds the distribution anew.
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def _through_forward(
    base: PreTrainedModel | MixedPolicy, inputs: dict[str, Any], positions: Tensor, targets: Tensor
) -> Tensor:
    """The same from the model's own logits, at the union of the rows' scored columns where its forward allows."""
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        columns = torch.unique(positions)
        logits = base(**inputs, logits_to_keep=columns).logits
        positions = torch.searchsorted(columns, positions)
    else:
        logits = base(**inputs).logits
    logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
    return _picked_logprobs(_widened(logits), targets)


def head_reason(model: nn.Module, layout: Layout) -> str | None:
    """Why logits must come from the model's own forward, in words; None when our way of calling the head equals it.

    Compared on a made, padded batch in the given layout, without gradients and in eval mode.
    """
    base = base_model(model)
    if base.config.get_text_config() is not base.config:
        return "the language model sits inside a multimodal one"
    if base.get_output_embeddings() is None or backbone(base) is base:
        return "the model has no separate head"
    batch = made_batch(base, layout)
    scored = batch["score_a"] | batch["score_b"]
    with evaluating(base), torch.no_grad():
        own = token_logprobs(base, batch, own_head=True)[scored]
        theirs = token_logprobs(base, batch, own_head=False)[scored]
    # Both round their logits once in the model's dtype; after that we go on in float32, where a model may round again.
    eps = 2 * coarsest_eps(base) + 64 * torch.finfo(own.dtype).eps
    error = (own - theirs).square().mean().sqrt()
    if error <= eps * theirs.abs().max():  # also refuses NaN
        return None
    return f"its log-probabilities differ from head and hidden states by {float(error):.1e} per token"
