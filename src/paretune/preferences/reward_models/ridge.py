"""Ridge regression heads on frozen features, in closed form (the first stage of ArmoRM, arXiv 2406.12845).

Suffixes: R responses, D features, M objectives. float64: products of features square their condition number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError

STRENGTHS = tuple(10.0**k for k in range(-4, 5))


@dataclass(frozen=True)
class Ridge:
    """Heads, and how they were chosen.

    Args:
        weights: (M, D) float64, without intercepts.
        strengths: (M,) the chosen one of each head.
        errors: (S, M) mean squared errors on the responses held out for choosing, by strength.
    """

    weights: Tensor
    strengths: Tensor
    errors: Tensor


def fit_ridge(features: Tensor, scores: Tensor, chosen_on: Tensor, strengths: tuple[float, ...] = STRENGTHS) -> Ridge:
    """min_w Σ (s - w·x)² + strength ‖w‖² per objective, over its scored responses; no intercept.

    The strength is the one with the least error on the responses that `chosen_on` holds out; then all are fitted.

    Args:
        features: (R, D).
        scores: (R, M), NaN where missing.
        chosen_on: (R,) bool, about a fifth of them, no prompt on both sides.

    Raises:
        InputError: an objective without scores on one of the sides.
    """
    x, s = features.double(), scores.double()
    columns = []
    for i in range(s.shape[1]):
        known = ~s[:, i].isnan()
        fitted, held = known & ~chosen_on, known & chosen_on
        if not fitted.any() or not held.any():
            found = f"{int(fitted.sum())} to fit and {int(held.sum())} to choose the strength on"
            raise InputError("too few scores for a ridge head", where=f"head {i}", expected="some of each", found=found)
        tried = _solutions(x[fitted], s[fitted, i], strengths)
        error = (x[held] @ tried - s[held, i : i + 1]).square().mean(0)
        best = int(error.argmin())
        weights = _solutions(x[known], s[known, i], (strengths[best],))[:, 0]
        columns.append((weights, strengths[best], error))
    return Ridge(
        torch.stack([weights for weights, _, _ in columns]),
        torch.tensor([strength for _, strength, _ in columns], dtype=torch.float64),
        torch.stack([error for _, _, error in columns], dim=1),
    )


def _solutions(x: Tensor, y: Tensor, strengths: tuple[float, ...]) -> Tensor:
    """(D, S): (XᵀX + strength I)⁻¹ Xᵀy for every strength, from one decomposition."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    shifted = values.clamp(min=0.0)[:, None] + x.new_tensor(strengths)
    return vectors @ ((vectors.T @ (x.T @ y))[:, None] / shifted)
