"""The reference policy's log-probabilities: adapters off, a frozen copy, or columns that were computed beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.policy.eligibility import made_batch
from paretune.policy.loading import load_policy
from paretune.policy.logprobs import Scorer, prepare_scorer, response_logprobs


@dataclass(frozen=True)
class Reference:
    """Which model is the reference, and how it is reached.

    `kind` is "adapter" (the policy with its adapters off), "copy" (a model of its own, frozen), or "none" (every
    objective is reference-free). Columns ref_a, ref_b of a batch, where present, stand for the model.
    """

    kind: str
    model: nn.Module | None = None
    scorer: Scorer | None = None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, as it was before afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model as it is now that will not train."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def reference_logprobs(reference: Reference, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """log pi_ref of both sides, (N,) each, in nats and float32 at least; None where there is no reference."""
    if reference.kind == "none":
        return None
    if "ref_a" in batch:
        return batch["ref_a"], batch["ref_b"]
    model, scorer = reference.model, reference.scorer
    if model is None or scorer is None:
        raise ValueError("a reference without a model needs the columns ref_a and ref_b")
    adapters_off: Any = model.disable_adapter() if reference.kind == "adapter" else nullcontext()  # type: ignore[operator]
    with frozen(model), adapters_off:
        scores = response_logprobs(model, batch, scorer)
    return scores.logp_a, scores.logp_b


def choose_reference(
    policy: nn.Module, given: str | nn.Module | None, scorer: Scorer, *, needed: bool
) -> tuple[Reference, list[str]]:
    """The reference of a run, and what had to be said about it.

    Args:
        policy: the model about to train, in its final form.
        given: a model (or where to load it) that is the reference; None takes the policy as it is now: with its
            adapters off where that is the same, else as a frozen copy.
        scorer: the policy's.
        needed: False where every objective is reference-free; no reference is kept then.

    Raises:
        InputError: a given reference that cannot have been trained on the same tokens.
    """
    if not needed:
        return Reference("none"), []
    if given is not None:
        model = load_policy(given, full=False) if isinstance(given, str) else given
        check_reference(policy, model)
        model.requires_grad_(False).eval().to(next(policy.parameters()).device)
        return Reference("copy", model, prepare_scorer(model, scorer.layout)), []
    if not isinstance(policy, PeftModel):
        return Reference("copy", frozen_copy(policy), scorer), []
    if not _adapters_change(policy, scorer):
        return Reference("adapter", policy, scorer), []
    said = "the adapters already change the model at its start, so the reference is a frozen copy of it"
    return Reference("copy", frozen_copy(policy), scorer), [said]


def _adapters_change(policy: PeftModel, scorer: Scorer) -> bool:
    """Whether a PEFT model at its start already differs from its base, which then is not its reference."""
    batch = made_batch(policy, scorer.layout)
    with frozen(policy):
        on = response_logprobs(policy, batch, scorer)
        with policy.disable_adapter():
            off = response_logprobs(policy, batch, scorer)
    return not (torch.allclose(on.logp_a, off.logp_a, rtol=1e-4) and torch.allclose(on.logp_b, off.logp_b, rtol=1e-4))


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """Raises InputError where the two models cannot have been trained on the same tokens."""
    sizes = [_vocabulary(model) for model in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "the reference model does not match the policy",
            where="ref_model",
            expected=f"a vocabulary of {sizes[0]} tokens",
            found=f"one of {sizes[1]}",
            fix="The reference is the model that training starts from; leave ref_model out to use it.",
        )


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
