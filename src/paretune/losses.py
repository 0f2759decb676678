"""Per-objective losses of oriented margins.

Tensors, by suffix: N comparisons of a batch, M objectives. A margin is a log-probability (difference), in nats.

Every loss here is a function l(z) of the margin z oriented so that larger z is better; a preference p in [0, 1] mixes
both orientations, p l(z) + (1 - p) l(-z), so hard labels, soft labels and ties are one formula (for the sigmoid: cDPO
and MMPO, arXiv 2410.03145). Nothing here knows of models: `paretune.policy` gives the log-probabilities, and
`paretune.gradients` takes the slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.errors import InputError
from paretune.objectives import Objective

Number = float | Tensor


class LossOptions(Protocol):
    """What a loss reads of an objective, or of several at once as (m, 1) tensors."""

    @property
    def gamma(self) -> Number: ...

    @property
    def epsilon(self) -> Number: ...


def sigmoid(margins: Tensor, beta: Number, objective: LossOptions) -> Tensor:
    """DPO: -log sigma(beta z). Rafailov et al., arXiv 2305.18290, equation 7."""
    return F.softplus(-beta * margins)


def ipo(margins: Tensor, beta: Number, objective: LossOptions) -> Tensor:
    """IPO: (z - 1/(2 beta))^2. Azar et al., arXiv 2310.12036, equation 17 (beta is their tau).

    With `length_normalized` the margin is per token, as TRL does on the authors' advice; without, as published.
    """
    return (margins - 1 / (2 * beta)).square()


def hinge(margins: Tensor, beta: Number, objective: LossOptions) -> Tensor:
    """SLiC's hinge on the implicit reward: max(0, 1 - beta z). Liu et al. (RSO), arXiv 2309.06657, section 3.2."""
    return F.relu(1 - beta * margins)


def simpo(margins: Tensor, beta: Number, objective: LossOptions) -> Tensor:
    """SimPO: -log sigma(beta (z - gamma)), gamma the target margin over beta. Meng et al., arXiv 2405.14734, eq. 6.

    Its margin is reference-free and per token unless the objective says otherwise.
    """
    return F.softplus(-beta * (margins - objective.gamma))


def robust(margins: Tensor, beta: Number, objective: LossOptions) -> Tensor:
    """Robust DPO, unbiased where a share epsilon of labels is flipped. Chowdhury et al., arXiv 2403.00409, eq. 12."""
    kept, flipped = F.softplus(-beta * margins), F.softplus(beta * margins)
    return ((1 - objective.epsilon) * kept - objective.epsilon * flipped) / (1 - 2 * objective.epsilon)


LOSSES: dict[str, Callable[[Tensor, Number, LossOptions], Tensor]] = {
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

    `ref_a` and `ref_b` are the reference's, or None where every objective is reference-free. `offsets` (N, M), in nats,
    are constants that `batch_losses` subtracts from the objectives' margins of a over b: what other rewards already
    say about the pair (MODPO, arXiv 2310.03708).
    """

    a: Tensor
    b: Tensor
    ref_a: Tensor | None
    ref_b: Tensor | None
    tokens_a: Tensor
    tokens_b: Tensor
    offsets: Tensor | None = None


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

    Raises:
        ValueError: offsets, which are one per objective.
    """
    if logps.offsets is not None:
        raise ValueError("offsets are for batch_losses")
    labelled = ~preferences.isnan()
    p = torch.where(labelled, preferences, 0.5)
    values = _mixed(objective.loss, margin(objective, logps), p, beta, objective)
    if objective.sft:
        values = values + objective.sft * _anchor(logps, p)
    return torch.where(labelled, values, 0.0)


def _mixed(loss: str, z: Tensor, p: Tensor, beta: Number, options: LossOptions) -> Tensor:
    """The loss under a preference p: both orientations, mixed."""
    function = LOSSES[loss]
    return p * function(z, beta, options) + (1 - p) * function(-z, beta, options)


def _anchor(logps: LogProbs, p: Tensor) -> Tensor:
    """-log pi(preferred) per token: keeps it likely, where DPO alone may lower both log-probabilities."""
    return -(p * logps.a / logps.tokens_a + (1 - p) * logps.b / logps.tokens_b)


@dataclass(frozen=True)
class BatchLosses:
    """Losses of M objectives on N comparisons and their slopes, all (M, N) float64 and detached.

    `slopes_a[i, n]` is d values[i, n] / d log pi(a_n); `reward_a`, `reward_b` are beta times what each objective
    compares (`sides`), the implicit rewards; `labelled` says where there is a preference. Nothing is divided by a count
    yet: the caller knows the global batch. `shared` is (N,) factors k with slopes_b = k * slopes_a for every objective,
    or None where there are none.
    """

    values: Tensor
    slopes_a: Tensor
    slopes_b: Tensor
    reward_a: Tensor
    reward_b: Tensor
    labelled: Tensor
    shared: Tensor | None

    def over(self, counts: Tensor) -> BatchLosses:
        """The same as parts of means: values and slopes divided by counts (M,)."""
        return self.times(1 / counts[:, None])

    def times(self, factors: Tensor) -> BatchLosses:
        """Values and slopes times factors (M, N), or of a shape that extends to it."""
        return replace(self, **{name: getattr(self, name) * factors for name in ("values", "slopes_a", "slopes_b")})


def detached(logps: LogProbs) -> LogProbs:
    """The same numbers without their graph, log-probabilities in float64."""
    ref_a, ref_b = (None if t is None else t.detach().double() for t in (logps.ref_a, logps.ref_b))
    a, b = logps.a.detach().double(), logps.b.detach().double()
    return LogProbs(a, b, ref_a, ref_b, logps.tokens_a, logps.tokens_b, logps.offsets)


@dataclass(frozen=True)
class _Columns:
    """What loss functions read of an objective, for several objectives at once: (m, 1) each."""

    gamma: Tensor
    epsilon: Tensor


@lru_cache(maxsize=16)
def _columns(objectives: tuple[Objective, ...], beta: float, device: torch.device) -> dict[str, Tensor]:
    """beta (resolved), gamma, epsilon and sft of the objectives, (M, 1) float64 each; moved to the device once."""
    table = [[o.beta or beta, o.gamma, o.epsilon, o.sft] for o in objectives]
    values = torch.tensor(table, dtype=torch.float64).to(device)
    return dict(zip(("beta", "gamma", "epsilon", "sft"), values.split(1, dim=1), strict=True))


def batch_losses(objectives: Sequence[Objective], beta: float, logps: LogProbs, preferences: Tensor) -> BatchLosses:
    """Every objective's losses and slopes on one batch; the model's graph is not touched.

    A comparison's loss depends on the model only through two numbers, log pi(a) and log pi(b), so differentiating
    with respect to these two gives, by the chain rule, all that the backward pass needs. Objectives of one loss are
    computed together, so that sixteen cost the operations of one; nothing here waits for the device.

    Args:
        objectives: M of them.
        beta: the run's, for objectives without one of their own.
        logps: of N comparisons; `a` and `b` may carry a graph, which is left alone.
        preferences: (N, M), NaN where an objective has no opinion.

    Raises:
        InputError: as `sides`.
    """
    double, labels = detached(logps), preferences.T.double()
    table = _columns(tuple(objectives), beta, double.a.device)
    a, b = (side.expand(len(objectives), -1).clone().requires_grad_() for side in (double.a, double.b))
    labelled = ~labels.isnan()
    p = torch.where(labelled, labels, 0.5)
    values, reward_a, reward_b = (torch.zeros_like(p) for _ in range(3))
    with torch.enable_grad():
        for alike in _alike(objectives):
            first, which = objectives[alike[0]], _places(alike, len(objectives))
            own = LogProbs(a[which], b[which], double.ref_a, double.ref_b, double.tokens_a, double.tokens_b)
            of_a, of_b = sides(first, own)
            betas, options = table["beta"][which], _Columns(table["gamma"][which], table["epsilon"][which])
            z = of_a - of_b if double.offsets is None else of_a - of_b - double.offsets.T[which]
            value = _mixed(first.loss, z, p[which], betas, options)
            if first.sft:
                value = value + table["sft"][which] * _anchor(own, p[which])
            values[which], reward_a[which], reward_b[which] = value, betas * of_a.detach(), betas * of_b.detach()
        values = torch.where(labelled, values, 0.0)
        slopes_a, slopes_b = torch.autograd.grad(values.sum(), (a, b))
    k = shared_signal(objectives, double)
    return BatchLosses(values.detach(), slopes_a, slopes_b, reward_a, reward_b, labelled, k)


def _alike(objectives: Sequence[Objective]) -> list[list[int]]:
    """Objectives of one formula together, by their numbers."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, o in enumerate(objectives):
        kinds.setdefault((o.loss, is_reference_free(o), is_length_normalized(o), o.sft > 0), []).append(i)
    return list(kinds.values())


def _places(numbers: list[int], count: int) -> slice | list[int]:
    """All of them as a slice: a list of numbers would be copied to the device, which waits for it."""
    return slice(None) if len(numbers) == count else numbers


def share_a_signal(objectives: Sequence[Objective]) -> bool:
    """Whether there is a `shared_signal`, whatever the comparisons."""
    return len({is_length_normalized(o) for o in objectives}) == 1 and not any(o.sft for o in objectives)


def shared_signal(objectives: Sequence[Objective], logps: LogProbs) -> Tensor | None:
    """The factors k (N,) with slopes_b = k * slopes_a for every objective, or None where there is no such k.

    Where it exists, logp_a + k logp_b is one number per comparison on which all losses depend, and one backward pass
    carries them all: -1 for losses of summed margins, -n_a/n_b for length-normalised ones. An anchored loss, or a mix
    of summed and length-normalised margins, has none, and takes two passes over the same forward, or flat rows.
    """
    if not share_a_signal(objectives):
        return None
    normalized = is_length_normalized(objectives[0])
    return -(logps.tokens_a.to(logps.a) / logps.tokens_b) if normalized else -torch.ones_like(logps.a)
