"""One micro-batch: log-probabilities, losses, and their m gradients. Suffixes: M objectives, N comparisons, R rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from paretune.gradients import (
    GradientStack,
    RowAxisLost,
    RowLayers,
    common_signal,
    per_objective,
    single_pass,
    trainable_parameters,
)
from paretune.losses import LogProbs
from paretune.policy.logprobs import ResponseLogprobs, Scorer, response_logprobs
from paretune.policy.reference import Reference, reference_logprobs


def log_probs(
    model: nn.Module, scorer: Scorer, reference: Reference, batch: dict[str, Tensor]
) -> tuple[ResponseLogprobs, LogProbs]:
    """The policy's response log-probabilities with their graph, and all that the losses need."""
    ref = reference_logprobs(reference, batch)
    scores = response_logprobs(model, batch, scorer)
    ref_a, ref_b = ref if ref is not None else (None, None)
    return scores, LogProbs(scores.logp_a, scores.logp_b, ref_a, ref_b, batch["a_tokens"], batch["b_tokens"])


def differentiate(
    scores: ResponseLogprobs, slopes_a: Tensor, slopes_b: Tensor, stack: GradientStack, layers: RowLayers | None
) -> int:
    """Adds the m gradients of losses with these slopes to the stack; returns how many backward passes it took.

    Args:
        scores: of N comparisons, with their graph.
        slopes_a, slopes_b: (M, N) float64, d L_i / d log pi of each side.
        stack: receives the gradients.
        layers: the model's prepared layers; None takes one backward pass per objective.
    """
    if layers is None:
        a, b = scores.logp_a.double(), scores.logp_b.double()
        per_objective(slopes_a @ a + slopes_b @ b, stack)
        return stack.objectives
    if scores.rows is not None:  # flat: a response is a row, and any loss of both is one pass
        single_pass(scores.rows, torch.cat([slopes_a, slopes_b], dim=1), stack, layers)
        return 1
    k = common_signal(slopes_a, slopes_b)
    if k is not None:
        single_pass(scores.logp_a + k * scores.logp_b, slopes_a, stack, layers)
        return 1
    single_pass(scores.logp_a, slopes_a, stack, layers, retain_graph=True)
    single_pass(scores.logp_b, slopes_b, stack, layers)
    return 2


def single_pass_reason(model: nn.Module, score: Callable[[], ResponseLogprobs]) -> str | None:
    """Why one backward pass cannot give this model's gradients, in words; None where it can.

    First by kind of layer, then by trying: on a made batch, the single pass must agree with a plain backward pass. The
    trial catches what no list of layers can: a module that uses a weight without calling the layer that holds it
    (DoRA), or that regroups tokens (experts).

    Args:
        model: its trainable parameters are checked; left as it was.
        score: the forward pass of a small made batch, with its graph.
    """
    parameters = trainable_parameters(model)
    layers = RowLayers(model)
    try:
        if layers.uncovered:
            names = ", ".join(layers.uncovered[:3]) + (", …" if len(layers.uncovered) > 3 else "")
            return f"{len(layers.uncovered)} trained parameters are in layers that are not covered ({names})"
        scores = _with_one_seed(score)
        slopes = torch.linspace(-1.0, 2.0, len(scores.logp_a), dtype=torch.float64)[None] + 0.1
        stack = GradientStack(parameters, 1)
        differentiate(scores, slopes.to(scores.logp_a.device), (-slopes).to(scores.logp_a.device), stack, layers)
    except RowAxisLost as error:
        return str(error)
    except RuntimeError as error:
        return f"the trial pass failed: {str(error).splitlines()[0]}"
    finally:
        layers.restore()
    plain = GradientStack(parameters, 1)
    differentiate(
        _with_one_seed(score), slopes.to(scores.logp_a.device), (-slopes).to(scores.logp_a.device), plain, None
    )
    wrong = size = 0.0
    for name in plain.buffers.keys() | stack.buffers.keys():
        truth = plain.buffer(name).double()
        wrong += float((stack.buffer(name).double() - truth).square().sum())
        size += float(truth.square().sum())
    half = any(
        p.dtype not in (torch.float32, torch.float64) for p in model.parameters()
    )  # 4-bit weights compute so too
    half = half or torch.is_autocast_enabled(scores.logp_a.device.type)
    tolerance = 0.1 if half else 1e-3  # loose: it tells a wrong gradient from a rounded one, the tests tell how exact
    if not wrong <= tolerance**2 * size:
        return f"on a made batch it differs from a plain backward pass: squared {wrong:.1e} of {size:.1e}"
    return None


def _with_one_seed(score: Callable[[], ResponseLogprobs]) -> ResponseLogprobs:
    """The forward pass with the same dropout every time, the global random state left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return score()


def real_tokens(batch: dict[str, Tensor]) -> int:
    """Tokens of a batch without its padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(sum(batch[key].sum() for key in ("prefix_lengths", "a_lengths", "b_lengths")))


def label_shares(labelled: np.ndarray, step: int) -> Tensor:
    """(m,) float64: the labels of each objective that a step of this many comparisons holds on average."""
    return torch.from_numpy(labelled).double().mean(0) * step
