"""The arms of the study as data: which Gram a step's coefficients are decided on, and how.

S seeds, W runs of an arm, 2 objectives, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from studies.noisy_gram.duals import RULES, coefficients, mixture
from studies.noisy_gram.grams import across_halves, across_rows, cosine, projected, shrunk


@dataclass(frozen=True)
class Arm:
    """One way to combine.

    Attributes:
        gram: "batch" (the paper's), "rows" (U-statistic over rows), "halves", "shrunk"; "fresh" (of another batch of
            the same size: as noisy, but independent of the gradients it decides on) and "large" (of 512 other rows):
            what a Gram without its own batch's noise, or with hardly any, would be worth; "each" (a row is a batch:
            the release's accumulation at one row).
        decay: exponential average of the Gram (of the unprojected estimate, bias-corrected), 0 none.
        momentum: the same of the gradients whose Gram is taken; the update still mixes the batch's.
        metric: "plain", or "adam": <g_i, D^-1 g_j> with D the optimizer's preconditioner before the step.
        rule: of `duals.RULES`.
        adapt: "" for constant c; "signal" multiplies it by the square root of the share of ||g^_0||^2 that is signal;
            "cosine" by (1 - cosine) / 2.
        smooth: exponential average of the coefficients themselves (CR-MOGM, NeurIPS 2022), 0 none.
        floor: of the projection, relative.
        published: the update keeps the length that its formula gives; otherwise it is scaled to ||g_0||.
    """

    name: str
    gram: str = "batch"
    decay: float = 0.0
    momentum: float = 0.0
    metric: str = "plain"
    rule: str = "clip"
    adapt: str = ""
    smooth: float = 0.0
    c: float = 0.4
    floor: float = 1e-3
    published: bool = False


LINEAR = Arm("linear", c=0.0)
RACO = Arm("raco")


class Step(NamedTuple):
    """What a step offers its arm; all with leading axes (S, W).

    gradients (2, P) of the batch and of its halves; own (2, 2), its rows' products with themselves, in the arm's
    metric; rows of the batch; inverse (P,): D^-1, None in the plain metric; other (2, P): of other rows, or None.
    """

    gradients: Tensor
    halves: tuple[Tensor, Tensor] | None
    own: Tensor
    rows: int
    inverse: Tensor | None
    other: Tensor | None


class Memory:
    """What an arm carries from step to step."""

    def __init__(self) -> None:
        self.steps = 0
        self.kept: dict[str, Tensor] = {}

    def average(self, name: str, value: Tensor, decay: float) -> Tensor:
        """The bias-corrected exponential average; the value itself where decay is 0."""
        if decay == 0.0:
            return value
        self.kept[name] = decay * self.kept.get(name, torch.zeros_like(value)) + (1.0 - decay) * value
        return self.kept[name] / (1.0 - decay**self.steps)


def decide(arm: Arm, step: Step, weights: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Coefficients (S, W, 2) of one step's update, and p. weights (W, 2)."""
    memory.steps += 1
    w = weights.expand(*step.gradients.shape[:2], 2)
    if arm.c == 0.0 or arm.gram == "each":
        return w, w
    gram = estimate(arm, step, memory)
    c: Tensor | float = arm.c
    if arm.adapt == "signal":
        batch = _gram(step.gradients, step.inverse)
        signal = memory.average("signal", quadratic(across_rows(batch, step.own, step.rows), w), arm.decay)
        total = memory.average("total", quadratic(batch, w), arm.decay)
        c = arm.c * (signal / total.clamp(min=1e-300)).clamp(0.0, 1.0).sqrt()
    elif arm.adapt == "cosine":
        c = arm.c * (1.0 - cosine(gram)).clamp(0.0, 2.0) / 2.0
    p = mixture(gram, w, c)
    a = coefficients(gram, w, RULES[arm.rule](p, w), c)
    if arm.smooth:
        a = memory.average("coefficients", a, arm.smooth)
    return a, p


def estimate(arm: Arm, step: Step, memory: Memory) -> Tensor:
    """(S, W, 2, 2), positive semidefinite."""
    metric = step.inverse if arm.metric == "adam" else None
    gradients = step.other if arm.gram in ("fresh", "large") else step.gradients
    assert gradients is not None
    if arm.momentum:
        gradients = memory.average("gradients", gradients, arm.momentum)
    batch = _gram(gradients, metric)
    if arm.gram in ("batch", "fresh", "large"):
        return memory.average("gram", batch, arm.decay)
    if arm.gram == "halves":
        assert step.halves is not None
        first, second = step.halves
        raw = across_halves(first, second if metric is None else second * metric[..., None, :])
        raw = (raw + raw.mT) / 2
        return projected(memory.average("gram", raw, arm.decay), memory.average("batch", batch, arm.decay), arm.floor)
    if arm.gram == "shrunk":
        return shrunk(memory.average("batch", batch, arm.decay), memory.average("own", step.own, arm.decay), arm.floor)
    raw = across_rows(batch, step.own, step.rows)
    return projected(memory.average("gram", raw, arm.decay), memory.average("batch", batch, arm.decay), arm.floor)


def quadratic(gram: Tensor, w: Tensor) -> Tensor:
    """(...): w' gram w."""
    return torch.einsum("...i,...ij,...j->...", w, gram, w)


def _gram(gradients: Tensor, metric: Tensor | None) -> Tensor:
    right = gradients if metric is None else gradients * metric[..., None, :]
    product = gradients @ right.mT
    return (product + product.mT) / 2
