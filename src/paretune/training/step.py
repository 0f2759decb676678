"""One micro-batch: log-probabilities, losses, and their m gradients. Suffixes: M objectives, N comparisons, R rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretune.gradients import (
    GradientStack,
    LayerGrams,
    Receiver,
    RowAxisLost,
    RowBasis,
    RowLayers,
    joined,
    per_objective,
    single_pass,
    trainable_parameters,
)
from paretune.losses import BatchLosses, LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.policy.logprobs import ResponseLogprobs, Scorer, response_logprobs
from paretune.policy.reference import Reference, reference_logprobs
from paretune.policy.sharding import several_passes
from paretune.training.config import RACOConfig


def log_probs(
    model: nn.Module, scorer: Scorer, reference: Reference, batch: dict[str, Any]
) -> tuple[ResponseLogprobs, LogProbs]:
    """The policy's response log-probabilities with their graph, and all that the losses need."""
    ref = reference_logprobs(reference, batch)
    scores = response_logprobs(model, batch, scorer)
    ref_a, ref_b = ref if ref is not None else (None, None)
    tokens = batch["a_tokens"], batch["b_tokens"]
    return scores, LogProbs(scores.logp_a, scores.logp_b, ref_a, ref_b, *tokens, batch.get("offsets"))


def outputs_and_slopes(scores: ResponseLogprobs, losses: BatchLosses) -> Iterator[tuple[Tensor, Tensor]]:
    """For each backward pass that the losses take: outputs (R,), one per row, and the objectives' slopes (m, R)."""
    if scores.rows is not None:  # flat: a response is a row, and any loss of both is one pass
        yield scores.rows, torch.cat([losses.slopes_a, losses.slopes_b], dim=1)
    elif losses.shared is not None:
        yield scores.logp_a + losses.shared * scores.logp_b, losses.slopes_a
    else:
        yield scores.logp_a, losses.slopes_a
        yield scores.logp_b, losses.slopes_b


def differentiate(
    scores: ResponseLogprobs,
    losses: BatchLosses,
    stack: Receiver,
    layers: RowLayers,
    basis: RowBasis | None = None,
    *,
    retain_graph: bool = False,
) -> int:
    """Adds the m gradients of the losses to the stack; returns how many backward passes it took.

    Args:
        scores: of N comparisons, with their graph.
        losses: their losses and slopes, already divided by the counts of the global batch.
        stack: receives the gradients.
        layers: the model's prepared layers.
        basis: which gradients are kept; None keeps the objectives' own.
        retain_graph: keep the graph for another pass.
    """
    passes = list(outputs_and_slopes(scores, losses))
    for i, (outputs, slopes) in enumerate(passes):
        kept = slopes if basis is None else basis.slopes(slopes)
        single_pass(outputs, kept, stack, layers, retain_graph=retain_graph or i + 1 < len(passes))
    return len(passes)


def differentiate_each(scores: ResponseLogprobs, losses: BatchLosses, stack: GradientStack) -> None:
    """The same by one plain backward pass per objective, for models whose layers a single pass cannot serve."""
    a, b = scores.logp_a.double(), scores.logp_b.double()
    per_objective(losses.slopes_a @ a + losses.slopes_b @ b, stack)


def differentiate_twice(
    scores: ResponseLogprobs,
    losses: BatchLosses,
    stack: GradientStack,
    layers: RowLayers,
    combine: Callable[[Tensor], Tensor | None],
) -> bool:
    """Two backward passes over one forward: the m gradients' Gram, none of them kept, then the combined gradient.

    Args:
        scores, losses, layers: as `differentiate`, of the step's only micro-batch, where one pass carries the losses.
        stack: of one gradient, receives the combined one.
        combine: the Gram (m, m) to m coefficients; None skips the second pass.

    Returns:
        Whether the stack was given a gradient.
    """
    ((outputs, slopes),) = outputs_and_slopes(scores, losses)
    basis = RowBasis(len(slopes), len(outputs))
    grams = LayerGrams(stack.parameters, basis.kept, layers.current.calls)
    single_pass(outputs, basis.slopes(slopes), grams, layers, retain_graph=True)
    coefficients = combine(basis.gram(grams.gram()))
    if coefficients is None:
        layers.current.forget()
        return False
    single_pass(outputs, (coefficients.to(slopes) @ slopes)[None], stack, layers)
    return True


def single_pass_reason(model: nn.Module, score: Callable[[], ResponseLogprobs], *, half: bool) -> str | None:
    """Why one backward pass cannot give this model's gradients, in words; None where it can.

    First by kind of layer, then by trying: on a made batch, the single pass must agree with a plain backward pass. The
    trial catches what no list of layers can: a module that uses a weight without calling the layer that holds it
    (DoRA), or that regroups tokens (experts).

    Args:
        model: its trainable parameters are checked; left as it was.
        score: the forward pass of a small made batch, with its graph.
        half: whether it computes in half precision, by autocast; weights in half precision are seen.
    """
    parameters = trainable_parameters(model)
    layers = RowLayers(model)
    try:
        if layers.uncovered:
            names = ", ".join(layers.uncovered[:3]) + (", …" if len(layers.uncovered) > 3 else "")
            return f"{len(layers.uncovered)} trained parameters are in layers that are not covered ({names})"
        scores = _with_one_seed(score)
        losses = _made_losses(scores)
        stack = GradientStack(parameters, 1)
        with several_passes(model):
            differentiate(scores, losses, stack, layers)
    except RowAxisLost as error:
        return str(error)
    except RuntimeError as error:
        return f"the trial pass failed: {str(error).splitlines()[0]}"
    finally:
        layers.restore()
    plain = GradientStack(parameters, 1)
    with several_passes(model):
        differentiate_each(_with_one_seed(score), losses, plain)
    (own, mixed), (_, size) = joined([stack, plain]).gram(exact=True).tolist()  # over the ranks of a sharded model
    wrong = max(own - 2.0 * mixed + size, 0.0)
    half = half or any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters())  # so 4-bit ones
    tolerance = 0.1 if half else 1e-3  # loose: it tells a wrong gradient from a rounded one, the tests tell how exact
    if not wrong <= tolerance**2 * size:
        return f"on a made batch it differs from a plain backward pass: squared {wrong:.1e} of {size:.1e}"
    return None


def _with_one_seed(score: Callable[[], ResponseLogprobs]) -> ResponseLogprobs:
    """The forward pass with the same dropout every time, the global random state left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return score()


def _made_losses(scores: ResponseLogprobs) -> BatchLosses:
    """Losses with a slope of its own for every made comparison."""
    reference = torch.linspace(-1.0, 2.0, len(scores.logp_a), dtype=torch.float64).to(scores.logp_a.device)
    one = torch.ones_like(reference)
    logps = LogProbs(scores.logp_a, scores.logp_b, scores.logp_a.detach() - reference, scores.logp_b.detach(), one, one)
    return batch_losses([Objective("made", loss="ipo", beta=0.1)], 0.1, logps, one[:, None])


def loss_divisors(args: RACOConfig, counts: Tensor, labelled: np.ndarray) -> Tensor:
    """(m,) float64: what each objective's sum of losses is divided by in a step; 1 where it has no label.

    Args:
        args: of the run: `normalize`, and how many comparisons a step holds.
        counts: (m,) labels of the step, over all ranks.
        labelled: (rows, m) bool, where the training rows have labels.
    """
    if args.normalize == "step":
        return counts.clamp_min(1.0)
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return (torch.from_numpy(labelled).double().mean(0) * min(size, len(labelled))).clamp_min(1e-300)
