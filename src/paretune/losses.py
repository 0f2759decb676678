"""Per-objective losses of oriented margins.

Tensors, by suffix: N comparisons of a batch, M objectives. A margin is a log-probability (difference), in nats.

Every loss here is a function l(z) of the margin z oriented so that larger z is better; a preference p in [0, 1] mixes
both orientations, p l(z) + (1 - p) l(-z), so hard labels, soft labels and ties are one formula (for the sigmoid: cDPO
and MMPO, arXiv 2410.03145). Nothing here knows of models: `paretune.policy` gives the log-probabilities, and
`paretune.gradients` takes the slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.errors import InputError
from paretune.objectives import Objective


def sigmoid(margins: Tensor, beta: float, objective: Objective) -> Tensor:
    """DPO: -log sigma(beta z). Rafailov et al., arXiv 2305.18290, equation 7."""
    return F.softplus(-beta * margins)


def ipo(margins: Tensor, beta: float, objective: Objective) -> Tensor:
    """IPO: (z - 1/(2 beta))^2. Azar et al., arXiv 2310.12036, equation 17 (beta is their tau).

    With `length_normalized` the margin is per token, as TRL does on the authors' advice; without, as published.
    """
    return (margins - 1 / (2 * beta)).square()


def hinge(margins: Tensor, beta: float, objective: Objective) -> Tensor:
    """SLiC's hinge on the implicit reward: max(0, 1 - beta z). Liu et al. (RSO), arXiv 2309.06657, section 3.2."""
    return F.relu(1 - beta * margins)


def simpo(margins: Tensor, beta: float, objective: Objective) -> Tensor:
    """SimPO: -log sigma(beta (z - gamma)), gamma the target margin over beta. Meng et al., arXiv 2405.14734, eq. 6.

    Its margin is reference-free and per token unless the objective says otherwise.
    """
    return F.softplus(-beta * (margins - objective.gamma))


def robust(margins: Tensor, beta: float, objective: Objective) -> Tensor:
    """Robust DPO, unbiased where a share epsilon of labels is flipped. Chowdhury et al., arXiv 2403.00409, eq. 12."""
    kept, flipped = F.softplus(-beta * margins), F.softplus(beta * margins)
    return ((1 - objective.epsilon) * kept - objective.epsilon * flipped) / (1 - 2 * objective.epsilon)


LOSSES: dict[str, Callable[[Tensor, float, Objective], Tensor]] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
    "simpo": simpo,
    "robust": robust,
}


def is_reference_free(objective: Objective) -> bool:
    """Whether the objective's margin leaves the reference out: as asked, else by its loss's custom."""
    return objective.loss == "simpo" if objective.reference_free is None else objective.reference_free


def is_length_normalized(objective: Objective) -> bool:
    """Whether the objective's log-probabilities are divided by token counts: as asked, else by its loss's custom."""
    return objective.loss == "simpo" if objective.length_normalized is None else objective.length_normalized


def check_losses(objectives: Sequence[Objective]) -> None:
    """Raises InputError for a loss name that does not exist."""
    for objective in objectives:
        if objective.loss not in LOSSES:
            raise InputError(
                "unknown loss",
                where=f"objective {objective.name!r}",
                expected=f"one of {', '.join(LOSSES)}",
                found=objective.loss,
            )


@dataclass(frozen=True)
class LogProbs:
    """What the losses need of N comparisons: summed response log-probabilities (N,) in nats and token counts (N,).

    `ref_a` and `ref_b` are the reference's, or None where every objective is reference-free.
    """

    a: Tensor
    b: Tensor
    ref_a: Tensor | None
    ref_b: Tensor | None
    tokens_a: Tensor
    tokens_b: Tensor


def sides(objective: Objective, logps: LogProbs) -> tuple[Tensor, Tensor]:
    """What the objective compares of a and of b, (N,) each: log-ratios to the reference, per token where it says so.

    Times beta they are the implicit rewards of DPO (arXiv 2305.18290, section 5).

    Raises:
        InputError: the objective needs reference log-probabilities and there are none.
    """
    side_a, side_b = logps.a, logps.b
    if not is_reference_free(objective):
        if logps.ref_a is None or logps.ref_b is None:
            raise InputError(
                "no reference log-probabilities",
                where=f"objective {objective.name!r}",
                fix="Give a reference model, or set reference_free.",
            )
        side_a, side_b = side_a - logps.ref_a, side_b - logps.ref_b
    if is_length_normalized(objective):
        side_a, side_b = side_a / logps.tokens_a, side_b / logps.tokens_b
    return side_a, side_b


def margin(objective: Objective, logps: LogProbs) -> Tensor:
    """The objective's margin of a over b, (N,): Delta of spec 1.1 (arXiv 2602.02495, section 3), SimPO's u, or a mix.

    Raises:
        InputError: as `sides`.
    """
    side_a, side_b = sides(objective, logps)
    return side_a - side_b


def preference_loss(objective: Objective, beta: float, logps: LogProbs, preferences: Tensor) -> Tensor:
    """The objective's loss of each comparison, (N,); 0 where the preference is missing (NaN).

    Args:
        objective: which loss, and its options.
        beta: its inverse temperature, already resolved.
        logps: of the N comparisons.
        preferences: (N,) probability that a is better; NaN is no opinion.
    """
    labelled = ~preferences.isnan()
    p = torch.where(labelled, preferences, 0.5)
    z = margin(objective, logps)
    loss = LOSSES[objective.loss]
    values = p * loss(z, beta, objective) + (1 - p) * loss(-z, beta, objective)
    if objective.sft:
        # the anchor keeps the preferred response likely: DPO alone may lower both log-probabilities
        values = values - objective.sft * (p * logps.a / logps.tokens_a + (1 - p) * logps.b / logps.tokens_b)
    return torch.where(labelled, values, 0.0)


@dataclass(frozen=True)
class BatchLosses:
    """Losses of M objectives on N comparisons and their slopes, all (M, N) float64 and detached.

    `slopes_a[i, n]` is d values[i, n] / d log pi(a_n); `margins` are of a over b; `labelled` says where there is a
    preference. Nothing is divided by a count yet: the caller knows the global batch.
    """

    values: Tensor
    slopes_a: Tensor
    slopes_b: Tensor
    margins: Tensor
    labelled: Tensor


def detached(logps: LogProbs) -> LogProbs:
    """The same numbers without their graph, log-probabilities in float64."""
    ref_a, ref_b = (None if t is None else t.detach().double() for t in (logps.ref_a, logps.ref_b))
    return LogProbs(logps.a.detach().double(), logps.b.detach().double(), ref_a, ref_b, logps.tokens_a, logps.tokens_b)


def batch_losses(objectives: Sequence[Objective], beta: float, logps: LogProbs, preferences: Tensor) -> BatchLosses:
    """Every objective's losses and slopes on one batch; the model's graph is not touched.

    A comparison's loss depends on the model only through two numbers, log pi(a) and log pi(b), so differentiating
    with respect to these two gives, by the chain rule, all that the backward pass needs.

    Args:
        objectives: M of them.
        beta: the run's, for objectives without one of their own.
        logps: of N comparisons; `a` and `b` may carry a graph, which is left alone.
        preferences: (N, M), NaN where an objective has no opinion.
    """
    double = detached(logps)
    a, b = double.a.requires_grad_(), double.b.requires_grad_()
    rows: list[tuple[Tensor, ...]] = []
    with torch.enable_grad():
        for i, objective in enumerate(objectives):
            labels = preferences[:, i].double()
            values = preference_loss(objective, objective.beta or beta, double, labels)
            slope_a, slope_b = torch.autograd.grad(values.sum(), (a, b))
            rows.append((values.detach(), slope_a, slope_b, margin(objective, double).detach(), ~labels.isnan()))
    return BatchLosses(*(torch.stack(column) for column in zip(*rows, strict=True)))
