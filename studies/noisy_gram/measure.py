"""How far a batch's Gram, and what is decided on it, is from the full gradients': where both are known.

Everything follows from the rows' gradients of their margins, J (N, P), and slopes s (2, N): a batch of n rows drawn
with replacement is a vector of counts. N rows of a data set, P parameters, D draws of a batch, 2 objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studies.noisy_gram.duals import RULES, coefficients, mixture
from studies.noisy_gram.grams import across_rows, cosine, projected, shrunk

C = 0.4


class Truth(NamedTuple):
    """Of a data set: full (2, P) gradients, gram G (2, 2), and the covariance Sigma (2, 2) of one row's."""

    full: Tensor
    gram: Tensor
    sigma: Tensor


def truth_of(rows_gradients: Tensor, slopes: Tensor) -> Truth:
    """From J (N, P) and the slopes (2, N) of single rows (no 1 / N in them)."""
    full = slopes @ rows_gradients / slopes.shape[1]
    gram = full @ full.T
    nu = rows_gradients.square().sum(1)
    return Truth(full, gram, (slopes * nu) @ slopes.T / slopes.shape[1] - gram)


def draws(rows_gradients: Tensor, slopes: Tensor, n: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gradients (D, 2, P) of `count` batches of n rows, and their rows' products with themselves (D, 2, 2)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(slopes.shape[1], (count, n), generator=generator)
    counts = torch.zeros(count, slopes.shape[1], dtype=slopes.dtype).scatter_add_(
        1, chosen, torch.ones(count, n, dtype=slopes.dtype)
    )
    batch = torch.stack([(counts * one) @ rows_gradients for one in slopes], 1) / n
    nu = rows_gradients.square().sum(1)
    products = torch.stack([nu * slopes[0] ** 2, nu * slopes[0] * slopes[1], nu * slopes[1] ** 2])
    own = (counts @ products.T / n**2)[:, [0, 1, 1, 2]].view(count, 2, 2)
    return batch, own


def measured(rows_gradients: Tensor, slopes: Tensor, weights: Tensor, n: int, count: int, seed: int) -> dict[str, Any]:
    """All figures of one policy, one batch size and one weighting (2,); angles in degrees, lengths in ||g_1||.

    Angles: `of the Gram` is between the full gradients mixed by the batch's coefficients and by the true ones: what
    the Gram alone does wrong. `of the update` is between the batch's update and RACO's on full gradients. `without
    Gram noise` is the latter for the batch's gradients under the true coefficients: what no Gram can help.
    """
    truth = truth_of(rows_gradients, slopes)
    batch, own = draws(rows_gradients, slopes, n, count, seed)
    gram = batch @ batch.mT
    gram = (gram + gram.mT) / 2
    w = weights.to(gram).expand(count, 2)
    true_p = mixture(truth.gram, weights, C)
    true_a = coefficients(truth.gram, weights, torch.minimum(true_p, weights), C)
    target = true_a @ truth.full
    expected = truth.gram + truth.sigma / n
    estimates = {"batch": gram, "rows": across_rows(gram, own, n)} if n > 1 else {"batch": gram}
    decided = {"batch": gram}
    if n > 1:
        decided |= {"rows": projected(estimates["rows"], gram), "shrunk": shrunk(gram, own)}
    found: dict[str, Any] = {
        "cosine, true": float(cosine(truth.gram)),
        "cosine of the noise": float(cosine(truth.sigma)),
        "cosine, batch, predicted": float(cosine(expected)),
        "noise over signal, g_0": float((weights @ truth.sigma @ weights) / n / (weights @ truth.gram @ weights)),
        "p, true": float(true_p[0]),
        "effective weight, true": float(true_a[0] / true_a.sum()),
        "clip acts, true": _turned(truth.gram, true_p, weights),
        "angle of the update, linear": _mean(angle((w[:, None] @ batch)[:, 0], target)),
        "angle without Gram noise": _mean(angle((true_a @ batch), target)),
        "angle of the mean update, without Gram noise": float(angle((true_a @ batch).mean(0), target)),
    }
    scale = truth.gram.diagonal().sqrt()
    unit = scale[:, None] * scale
    for name, estimate in estimates.items():
        found[f"{name}: entries over G's norms, mean"] = _entries(estimate.mean(0) / unit)
        found[f"{name}: entries over G's norms, deviation"] = _entries(estimate.std(0) / unit)
        error = estimate.std(0) / count**0.5
        aim = expected if name == "batch" else truth.gram
        off = ((estimate.mean(0) - aim) / error).abs().max()
        found[f"{name}: off its expectation, in standard errors"] = float(off)
    for name, estimate in decided.items():
        p = mixture(estimate, w, C)
        a = coefficients(estimate, w, torch.minimum(p, w), C)
        share = a[:, 0] / a.sum(-1)
        updates = (a[:, None] @ batch)[:, 0]
        found[name] = {
            "cosine, mean": _mean(cosine(estimate)),
            "cosine, deviation": float(cosine(estimate).std()),
            "p, mean": _mean(p[:, 0]),
            "p, deviation": float(p[:, 0].std()),
            "p at a vertex": _mean(((p[:, 0] < 1e-6) | (p[:, 0] > 1 - 1e-6)).double()),
            "clip acts": _mean(_turns(estimate, p, w).double()),
            "effective weight, mean": _mean(share),
            "effective weight, deviation": float(share.std()),
            "angle of the Gram": _mean(angle(a @ truth.full, target)),
            "angle of the update": _mean(angle(updates, target)),
            "angle of the mean update": float(angle(updates.mean(0), target)),
            "largest coefficient, 99th percentile": float(a.amax(-1).quantile(0.99)),
        }
    return found


def angle(x: Tensor, y: Tensor) -> Tensor:
    """Degrees between vectors (..., P)."""
    x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
    return torch.rad2deg(2.0 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1)))


def _turns(gram: Tensor, p: Tensor, w: Tensor) -> Tensor:
    """Where clipping turns the update by more than 1e-6 rad: `Combination.clip_active`."""
    with_, without = (coefficients(gram, w, RULES[rule](p, w), C) for rule in ("clip", "none"))
    cross = (with_[..., 0] * without[..., 1] - with_[..., 1] * without[..., 0]).abs()
    return cross > 1e-6 * with_.norm(dim=-1) * without.norm(dim=-1)


def _turned(gram: Tensor, p: Tensor, w: Tensor) -> bool:
    return bool(_turns(gram, p, w))


def _mean(values: Tensor) -> float:
    return float(values.nanmean())  # batches whose update is 0 have no direction


def _entries(matrix: Tensor) -> list[float]:
    """[11, 12, 22]."""
    return [float(matrix[0, 0]), float(matrix[0, 1]), float(matrix[1, 1])]


def averaged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of every figure, with the spread of seeds left to the page's text."""
    first = found[0]
    result: dict[str, Any] = {}
    for key, value in first.items():
        column = [one[key] for one in found]
        if isinstance(value, dict):
            result[key] = averaged(column)
        elif isinstance(value, list):
            result[key] = [sum(parts) / len(parts) for parts in zip(*column, strict=True)]
        else:
            result[key] = sum(map(float, column)) / len(column)
    return result
