"""The m gradients without any layer of ours: per-sequence forwards, losses by autograd, one backward pass each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paretune.gradients import GradientStack, per_objective, trainable_parameters
from paretune.losses import LogProbs, preference_loss
from paretune.objectives import Objective

BETA = 0.2


def made_reference(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return tuple(-30 + torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def sequence_logprobs(model: nn.Module, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """(N,) each, from one plain forward per sequence: no padding, no masks, no code of ours."""
    sides: dict[str, list[Tensor]] = {"a": [], "b": []}
    for row in rows:
        for side, values in sides.items():
            ids = torch.tensor([row["prefix_ids"] + row[f"{side}_ids"]])
            logits = model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits[0]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            tokens = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            values.append(tokens[row[f"{side}_start"] - 1 :].sum())
    return torch.stack(sides["a"]), torch.stack(sides["b"])


def tokens(rows: list[dict[str, Any]], side: str) -> Tensor:
    return torch.tensor([len(r["prefix_ids"]) + len(r[f"{side}_ids"]) - r[f"{side}_start"] for r in rows])


def plain_gradients(
    model: nn.Module, rows: list[dict[str, Any]], objs: list[Objective], reference: tuple[Tensor, Tensor] | None = None
) -> GradientStack:
    """Every objective's loss is the mean over its labelled rows; `reference` (N,) each is made up where left out."""
    a, b = sequence_logprobs(model, rows)
    ref_a, ref_b = made_reference(len(rows)) if reference is None else reference
    logps = LogProbs(a, b, ref_a, ref_b, tokens(rows, "a"), tokens(rows, "b"))
    labels = torch.tensor([row["preferences"] for row in rows], dtype=torch.float64)
    means = [
        preference_loss(o, o.beta or BETA, logps, labels[:, i]).sum() / (~labels[:, i].isnan()).sum()
        for i, o in enumerate(objs)
    ]
    stack = GradientStack(trainable_parameters(model), len(objs))
    per_objective(torch.stack(means), stack)
    return stack
