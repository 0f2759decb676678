"""What a run says about its objectives and their conflicts: sums over comparisons, means over steps.

Metric names are those of the public contract (docs/metrics.md). Nothing here computes a gradient or decides anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paretune.combine import Combination
from paretune.losses import BatchLosses, LogProbs, detached, sides
from paretune.objectives import Objective


class ComparisonSums:
    """Sums over labelled comparisons, reduced over ranks when read: losses, implicit rewards, accuracies.

    Implicit rewards of objective i are beta_i times the log-ratio to the reference (or what its margin is made of);
    "chosen" is the side that the objective prefers, and ties count in the loss only.
    """

    def __init__(self, objectives: Sequence[Objective], beta: float):
        self.objectives, self.beta = list(objectives), beta
        self.sums: Tensor | None = None  # (m, 7) float64: loss, labels, chosen, rejected, margin, right, decided
        self.logps: Tensor | None = None  # (3,) float64: log pi(a), log pi(b), comparisons

    def add(self, logps: LogProbs, losses: BatchLosses, preferences: Tensor) -> None:
        """Adds one batch of N comparisons; `preferences` is (N, m) with NaN for missing."""
        rows = []
        double = detached(logps)
        for i, objective in enumerate(self.objectives):
            beta = objective.beta or self.beta
            reward_a, reward_b = (beta * side for side in sides(objective, double))
            p = preferences[:, i].double()
            decided = losses.labelled[i] & (p != 0.5)
            chosen = torch.where(p > 0.5, reward_a, reward_b)[decided]
            rejected = torch.where(p > 0.5, reward_b, reward_a)[decided]
            margin = chosen - rejected
            rows.append(
                torch.stack(
                    [
                        losses.values[i].sum(),
                        losses.labelled[i].sum().double(),
                        chosen.sum(),
                        rejected.sum(),
                        margin.sum(),
                        (margin > 0).sum() + 0.5 * (margin == 0).sum(),  # a policy that is its reference guesses
                        decided.sum().double(),
                    ]
                )
            )
        sums = torch.stack(rows)
        used = losses.labelled.any(0)
        a, b = logps.a.detach().double()[used], logps.b.detach().double()[used]
        pair = torch.stack([a.sum(), b.sum(), used.sum().double()])
        self.sums = sums if self.sums is None else self.sums + sums
        self.logps = pair if self.logps is None else self.logps + pair

    def read(self, device: torch.device) -> dict[str, float]:
        """The metrics, over all ranks. Objectives without a label are left out."""
        m = len(self.objectives)
        sums = torch.zeros(m, 7, dtype=torch.float64, device=device) if self.sums is None else self.sums
        logps = torch.zeros(3, dtype=torch.float64, device=device) if self.logps is None else self.logps
        both = sum_over_ranks(torch.cat([sums.flatten(), logps]))
        sums, logps = both[:-3].view(m, 7).cpu(), both[-3:].cpu()
        metrics: dict[str, float] = {}
        for objective, row in zip(self.objectives, sums.tolist(), strict=True):
            loss, labels, chosen, rejected, margin, right, decided = row
            if labels:
                metrics[f"loss/{objective.name}"] = loss / labels
            if decided:
                metrics[f"rewards/chosen/{objective.name}"] = chosen / decided
                metrics[f"rewards/rejected/{objective.name}"] = rejected / decided
                metrics[f"rewards/margins/{objective.name}"] = margin / decided
                metrics[f"rewards/accuracies/{objective.name}"] = right / decided
        if logps[2]:
            metrics["logps/a"], metrics["logps/b"] = (logps[:2] / logps[2]).tolist()
        return metrics


class StepMeans:
    """Means over optimizer steps of what the combination did; angles are weighted by ||g_0||.

    Near convergence g_0 is small and its angles are noise, so a plain mean of angles would be dominated by it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, values: dict[str, float], weight: float = 1.0) -> None:
        """Adds one step's values."""
        for name, value in values.items():
            self.sums[name] += weight * value
            self.weights[name] += weight

    def read(self) -> dict[str, float]:
        """The means; a name that was never given weight is left out."""
        return {name: total / self.weights[name] for name, total in self.sums.items() if self.weights[name] > 0}


def step_metrics(
    objectives: Sequence[Objective], gram: Tensor, present: Tensor, combination: Combination
) -> tuple[dict[str, float], dict[str, float]]:
    """One step's metrics: those averaged plainly, and the angles that are averaged by ||g_0||.

    Args:
        objectives: m of them.
        gram: (m, m) float64.
        present: (m,) bool, which have a label in this step.
        combination: what the combiner made of it.
    """
    names = [o.name for o in objectives]
    norms = gram.diagonal().clamp_min(0).sqrt()
    plain: dict[str, float] = {}
    total = float(combination.coefficients.sum())
    for i, name in enumerate(names):
        if not present[i]:
            plain[f"combine/left_out/{name}"] = 1.0
            continue
        plain[f"combine/left_out/{name}"] = 0.0
        plain[f"grad/norm/{name}"] = float(norms[i])
        plain[f"combine/p/{name}"] = float(combination.p[i])
        plain[f"combine/coefficient/{name}"] = float(combination.coefficients[i])
        if total > 0:
            plain[f"combine/effective_weight/{name}"] = float(combination.coefficients[i]) / total
        for j in range(i):
            if present[j] and norms[i] > 0 and norms[j] > 0:
                plain[f"grad/cosine/{names[j]}~{name}"] = float(gram[i, j] / (norms[i] * norms[j]))
    plain["combine/clip_active"] = float(combination.clip_active)
    angles = {
        f"combine/{name}": float(combination.info[name])
        for name in ("angle_to_linear", "angle_to_unclipped")
        if name in combination.info
    }
    return plain, angles


def norm_warning(means: dict[str, float], ratio: float = 3.0) -> str | None:
    """A sentence where gradient norms of objectives differ by more than `ratio`, else None."""
    norms = {k.removeprefix("grad/norm/"): v for k, v in means.items() if k.startswith("grad/norm/") and v > 0}
    if len(norms) < 2 or max(norms.values()) <= ratio * min(norms.values()):
        return None
    large, small = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    return (
        f"the gradient of {large!r} is {norms[large] / norms[small]:.1f} times as long as that of {small!r}, so the "
        "weights say less than they seem to: give them betas or losses of one scale, or set normalize_gradients"
    )


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks; the identity without a process group."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values
