"""What needs no language model: scores of answers from their length alone, or from their words alone.

Each baseline is a Bradley-Terry model: a score per answer, linear in its features, and the answer with the higher score
is predicted to be preferred. It is fitted to the same training pairs with the same weighted loss as the policy, one
score for both objectives, as a policy has one log-probability for both. Weights (1, 0) and (0, 1) give the best such
predictor of one objective alone.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 60  # lengths above it count as it
RIDGE = (1e-4, 1e-3, 1e-2, 1e-1)


def length_features(tokens_a: np.ndarray, tokens_b: np.ndarray) -> Tensor:
    """(N, F): one feature per length in tokens, of a minus b. A free-form function of length: it need not be monotone,
    so it can learn that answers of exactly seven tokens are mostly one stock phrase."""
    return _one_hot(tokens_a) - _one_hot(tokens_b)


def _one_hot(tokens: np.ndarray) -> Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(tokens).clamp(max=LONGEST), LONGEST + 1).double()


def words_of(text: str) -> set[str]:
    """The different words of an answer."""
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def vocabulary(rows: list[dict[str, Any]], least: int = 5) -> dict[str, int]:
    """Words in at least so many answers of the training pairs."""
    count = Counter(word for row in rows for side in ("response_a", "response_b") for word in words_of(row[side]))
    return {word: i for i, word in enumerate(sorted(word for word, n in count.items() if n >= least))}


def word_features(rows: list[dict[str, Any]], known: dict[str, int]) -> Tensor:
    """(N, F): which known words each answer has, of a minus b."""
    features = torch.zeros(len(rows), len(known), dtype=torch.float64)
    for n, row in enumerate(rows):
        for side, sign in (("response_a", 1.0), ("response_b", -1.0)):
            for word in words_of(row[side]):
                if word in known:
                    features[n, known[word]] += sign
    return features


def weighted_loss(scores: Tensor, preferences: Tensor, weights: Tensor) -> Tensor:
    """Sum over objectives of weight times the mean logistic loss of its labelled pairs.

    Args:
        scores: (N,), of a minus b.
        preferences: (N, m), 1, 0 or NaN.
        weights: (m,).
    """
    labelled = ~preferences.isnan()
    sign = torch.where(labelled, 2 * preferences - 1, 0.0)
    losses = torch.nn.functional.softplus(-sign * scores[:, None]) * labelled
    return (weights * losses.sum(0) / labelled.sum(0)).sum()


def fit(features: Tensor, preferences: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """(F,) the coefficients of least weighted loss plus ridge/2 times their squared norm."""
    coefficients = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weighted_loss(features @ coefficients, preferences, weights)
        loss = loss + 0.5 * ridge * coefficients.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return coefficients.detach()


def fit_best(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """The fit whose ridge has the least weighted loss on the validation pairs; each a (features, preferences)."""
    fits = [fit(*train, weights, ridge) for ridge in RIDGE]
    losses = [float(weighted_loss(validation[0] @ found, validation[1], weights)) for found in fits]
    return fits[int(np.argmin(losses))]
