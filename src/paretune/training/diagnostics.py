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
from paretune.losses import BatchLosses, LogProbs
from paretune.objectives import Objective


class ComparisonSums:
    """Sums over labelled comparisons, reduced over ranks when read: losses, implicit rewards, accuracies.

    Implicit rewards of objective i are beta_i times the log-ratio to the reference (or what its margin is made of);
    "chosen" is the side that the objective prefers, and ties count in the loss only.
    """

    def __init__(self, objectives: Sequence[Objective]):
        self.objectives = list(objectives)
        self.sums: Tensor | None = None  # (m, 7) float64: loss, labels, chosen, rejected, margin, right, decided
        self.logps: Tensor | None = None  # (3,) float64: log pi(a), log pi(b), comparisons

    def add(self, logps: LogProbs, losses: BatchLosses, preferences: Tensor) -> None:
        """Adds one batch of N comparisons; `preferences` is (N, m) with NaN for missing. Waits for no device."""
        p = preferences.T.double()
        decided = losses.labelled & (p != 0.5)
        chosen = torch.where(p > 0.5, losses.reward_a, losses.reward_b)
        rejected = torch.where(p > 0.5, losses.reward_b, losses.reward_a)
        margin = chosen - rejected
        right = (margin > 0) + 0.5 * (margin == 0)  # a policy that is its reference guesses
        counted = [torch.where(decided, values, 0.0) for values in (chosen, rejected, margin, right)]
        parts = [losses.values, losses.labelled, *counted, decided]
        sums = torch.stack([part.sum(1, dtype=torch.float64) for part in parts], dim=1)
        used = losses.labelled.any(0)
        parts = [torch.where(used, side.detach().double(), 0.0) for side in (logps.a, logps.b)]
        pair = torch.stack([part.sum(dtype=torch.float64) for part in (*parts, used)])
        self.sums = sums if self.sums is None else self.sums + sums
        self.logps = pair if self.logps is None else self.logps + pair

    def read(self, device: torch.device) -> dict[str, float]:
        """The metrics, over all ranks. Objectives without a label are left out."""
        m = len(self.objectives)
        sums = torch.zeros(m, 7, dtype=torch.float64, device=device) if self.sums is None else self.sums
        logps = torch.zeros(3, dtype=torch.float64, device=device) if self.logps is None else self.logps
        both = sum_over_ranks(torch.cat([sums.flatten(), logps]), device)
        sums, logps = both[:-3].view(m, 7), both[-3:]
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

    def evaluation(self, device: torch.device) -> dict[str, float]:
        """The metrics with the weighted loss among them; an objective without a label adds nothing to it."""
        metrics = self.read(device)
        return {"loss": sum(o.weight * metrics.get(f"loss/{o.name}", 0.0) for o in self.objectives), **metrics}


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


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum over ranks, on the CPU; the reduction is done on the device, and nothing without a process group."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.to(device, copy=True)
        dist.all_reduce(values)
    return values.cpu()
