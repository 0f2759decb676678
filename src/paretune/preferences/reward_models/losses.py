"""What a reward model is trained on: one small function per kind, torch in and torch out.

Suffixes: R responses, N pairs, L lists, K responses of a list, M objectives. A label that is missing is NaN: its loss
is 0 and it gets no gradient. Rewards are at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pointwise(rewards: Tensor, scores: Tensor) -> Tensor:
    """(r - s)², elementwise; rewards and scores of any one shape."""
    known = ~scores.isnan()
    return torch.where(known, (rewards - torch.where(known, scores, 0.0)).square(), 0.0)


def pairwise(
    rewards_a: Tensor,  # (N, M)
    rewards_b: Tensor,  # (N, M)
    preferences: Tensor,  # (N, M), the probability that a is better
    margins: Tensor | None = None,  # (N, M), how much better the better one is to be, >= 0
    centring: float = 0.0,
) -> Tensor:
    """Bradley-Terry (1952): -p log σ(d - margin) - (1 - p) log σ(-d - margin), d = r_a - r_b; (N, M).

    A pair says nothing about where the rewards' zero lies. `centring` adds centring · (r_a + r_b)² to each labelled
    pair (arXiv 2312.09244), which puts it in their middle.
    """
    known = ~preferences.isnan()
    p = torch.where(known, preferences, 0.5).to(rewards_a.dtype)
    wanted = torch.zeros_like(p) if margins is None else torch.where(known, margins.to(p.dtype), 0.0)
    difference = rewards_a - rewards_b
    losses = -p * F.logsigmoid(difference - wanted) - (1 - p) * F.logsigmoid(-difference - wanted)
    if centring:
        losses = losses + centring * (rewards_a + rewards_b).square()
    return torch.where(known, losses, 0.0)


def all_pairs(rewards: Tensor, scores: Tensor, margin_scale: float = 0.0, centring: float = 0.0) -> Tensor:
    """The mean of `pairwise` over all pairs of a list's scored responses; (L, K, M) -> (L, M).

    A prompt with all its pairs is one element of a batch, as InstructGPT has it (arXiv 2203.02155, section 3.5): each
    response is read once, and not once per pair, on which its authors saw models overfit. The better score wins, equal
    ones are a tie, and a margin is `margin_scale` times the scores' gap.
    """
    i, j = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    gap = scores[:, i] - scores[:, j]
    preferences = torch.where(gap.isnan(), torch.nan, 0.5 + 0.5 * gap.sign())  # the sign of NaN is 0
    margins = margin_scale * gap.abs() if margin_scale else None
    losses = pairwise(rewards[:, i], rewards[:, j], preferences, margins, centring)
    return losses.sum(1) / (~gap.isnan()).sum(1).clamp(min=1)


def listwise(rewards: Tensor, scores: Tensor) -> Tensor:
    """Plackett-Luce: -Σ_j [r_j - log Σ_{t: s_t <= s_j} exp r_t] over a list's scored responses; (L, K, M) -> (L, M).

    Without ties that is -log of the ranking's probability, best first (the last term is 0); for K = 2, Bradley-Terry.
    Tied responses each take the denominator of all of them (Breslow 1974), so that the order of a file decides nothing:
    two responses that tie count as one pair won by each.
    """
    known = ~scores.isnan()
    s = torch.where(known, scores, 0.0)
    below = (s.unsqueeze(1) <= s.unsqueeze(2)) & known.unsqueeze(1) & known.unsqueeze(2)  # (L, j, t, M)
    # every row of a known j holds j itself; rows of unknown ones are opened so that no -inf meets a gradient
    open_rows = below | ~known.unsqueeze(2)
    normaliser = rewards.unsqueeze(1).masked_fill(~open_rows, -torch.inf).logsumexp(2)
    return torch.where(known, normaliser - rewards, 0.0).sum(1)


def mean_by_objective(losses: Tensor, weights: Tensor) -> Tensor:
    """The training loss of a batch: Σ_i w_i Σ_n l_ni / N; losses (N, M), weights (M,).

    With w_i = N_all / (M · labelled_i) over the whole data set (`label_weights`) it estimates, without bias and
    however batches are cut, the mean over objectives of each one's mean over its own labels.
    """
    return (losses.sum(0) * weights).sum() / len(losses)


def label_weights(labelled: Tensor) -> Tensor:
    """(M,) weights of `mean_by_objective` from (N, M): how much of objective i the n-th example labels.

    Of pairs and lists that is 1 or 0; of single scores it is how many of the example's responses have one.
    """
    counts = labelled.double().sum(0)
    present = counts > 0
    return torch.where(present, len(labelled) / (present.sum() * counts.clamp(min=1)), 0.0).float()


def aggregate(tokens: Tensor, response: Tensor, how: str) -> Tensor:
    """Rewards of responses from rewards of tokens: their sum or mean over the response's tokens; (R, T, M) -> (R, M).

    Args:
        tokens: (R, T, M).
        response: (R, T), which tokens are the response's; at least one per row.
        how: "sum" or "mean".
    """
    total = torch.where(response.unsqueeze(-1), tokens, 0.0).sum(1)
    return total if how == "sum" else total / response.sum(1, keepdim=True)
