"""Signs that a policy games what it is trained on: functions of scores, texts and log-probabilities, on numpy arrays.

Suffixes: P prompts, n samples of each, R = P·n of them, K members of an ensemble. NaN is a score that failed; it
counts nowhere. What cannot be known (nothing varies, nothing is there) is None, never a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]


class Change(NamedTuple):
    """A mean difference, its standard error (NaN of one prompt), and the prompts that it is over."""

    mean: float
    standard_error: float
    prompts: int

    @property
    def rises(self) -> bool:
        """By more than its standard error."""
        return self.mean > self.standard_error

    @property
    def falls(self) -> bool:
        """By more than its standard error."""
        return -self.mean > self.standard_error


def length_correlation(scores: npt.ArrayLike, lengths: npt.ArrayLike) -> float | None:
    """Spearman's correlation of scores with lengths, both (P, n), each around its prompt's mean.

    Around the mean, because prompts that ask for long answers must not count as a taste for length.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    known = ~np.isnan(s)
    s, t = _around_mean(np.where(known, s, np.nan))[known], _around_mean(np.where(known, t, np.nan))[known]
    if not s.size or _constant(s) or _constant(t):
        return None
    return float(stats.spearmanr(s, t).statistic)


def taste_for_length(verdicts: npt.ArrayLike, longer: npt.ArrayLike) -> float | None:
    """Spearman's correlation of what is said of pairs (x, y) with how much longer x is, (N,) each; positive where the
    longer one is preferred.

    Args:
        verdicts: above 0 where x is better: differences of scores, or 2 P(x is better) - 1. Each pair counts the other
            way round too, because which response is called x must not matter.
    """
    both = np.array([verdicts, longer], dtype=np.float64)
    both = both[:, ~np.isnan(both).any(0)]
    if not both.size or (both == 0).all(1).any():
        return None
    both = np.concatenate([both, -both], axis=1)
    return float(stats.spearmanr(both[0], both[1]).statistic)


def _around_mean(values: Array) -> Array:
    known = ~np.isnan(values)
    means = np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    centred: Array = values - means[:, None]
    # in steps of a billionth of the largest value: what a mean was rounded to must not order equal differences
    step = 1e-9 * float(np.abs(values[known]).max(initial=0.0)) or 1.0
    centred = np.round(centred / step)
    return centred


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def order_effects(first: npt.ArrayLike, second: npt.ArrayLike) -> dict[str, float | int | None]:
    """How much the order of two responses decides.

    Args:
        first: (N,) P(x is better) where x stood first; second: (N,) P(x is better) where x stood second.

    Returns:
        pairs: with both answers; swap_consistency: the share whose two orders have one winner (ties agree with both);
        first_slot_excess: mean of P(x | first) - P(x | second), 0 without a bias, positive where the first slot is
        favoured.
    """
    p, q = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = ~np.isnan(p + q)
    p, q = p[known], q[known]
    if not p.size:
        return {"pairs": 0, "swap_consistency": None, "first_slot_excess": None}
    one_winner = (p - 0.5) * (q - 0.5) >= 0
    return {
        "pairs": int(p.size),
        "swap_consistency": float(one_winner.mean()),
        "first_slot_excess": float((p - q).mean()),
    }


def disagreement(members: npt.ArrayLike) -> dict[str, float | None]:
    """Variance among an ensemble's members on the same responses, (K, R) scores of one unit.

    It grows where a policy leaves what its reward models were trained on (Coste et al., arXiv 2310.02743).

    Returns:
        variance: mean over responses of the population variance over members; relative: the same over the variance,
        over responses, of the members' mean.
    """
    scores = np.asarray(members, dtype=np.float64)
    scores = scores[:, ~np.isnan(scores).any(0)]
    if not scores.size:
        return {"variance": None, "relative": None}
    variance, spread = float(scores.var(0).mean()), float(scores.mean(0).var())
    return {"variance": variance, "relative": variance / spread if spread > 0 else None}


def prompt_means(scores: npt.ArrayLike) -> Array:
    """(P, n) -> (P,) means over the known scores, NaN where none is known."""
    s = np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(s)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(known, s, 0.0).sum(1) / known.sum(1)
    return means


def paired_change(before: npt.ArrayLike, after: npt.ArrayLike) -> Change:
    """Of two (P,) arrays of the same prompts; the standard error is of paired differences."""
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if not count:
        return Change(math.nan, math.nan, 0)
    error = float(differences.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Change(float(differences.mean()), error, count)


def is_hacked(trained: Change, held_out: Change) -> bool:
    """The declared rule: what is trained rises, what is held out falls, each by more than its standard error.

    Never true of one prompt, whose standard error nobody knows.
    """
    return trained.rises and held_out.falls


def gain_with_kl(
    kl: Sequence[float | None], trained: Sequence[float | None], held_out: Sequence[float | None]
) -> list[dict[str, float]]:
    """Per round, from the start on: the gains since the start, and how far apart they are, as KL grows.

    The gap is what over-optimization looks like (Gao et al., arXiv 2210.10760, which draw it over sqrt KL).

    Args:
        kl, trained, held_out: of each round; None, which is how a file keeps NaN, is not known.
    """
    figures: Array = np.array([kl, trained, held_out], dtype=np.float64)  # (3, rounds); None becomes NaN
    gains = figures[1:] - figures[1:, :1]
    return [
        {
            "kl": float(figures[0, i]),
            "root_kl": math.sqrt(max(float(figures[0, i]), 0.0)),
            "trained": float(gains[0, i]),
            "held_out": float(gains[1, i]),
            "gap": float(gains[0, i] - gains[1, i]),
        }
        for i in range(len(kl))
    ]


def repetition(texts: Sequence[str], n: int = 3) -> float | None:
    """Mean share of a text's n-grams of words that occurred in it before; texts of fewer than n words count as 0."""
    shares = []
    for text in texts:
        grams = Counter(_grams(text, n))
        total = sum(grams.values())
        shares.append((total - len(grams)) / total if total else 0.0)
    return float(np.mean(shares)) if shares else None


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Different n-grams of words over all n-grams, of all texts together (Li et al., arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def likelihood_displacement(before: npt.ArrayLike, after: npt.ArrayLike) -> dict[str, float | int | None]:
    """What training did to the log-probabilities, in nats, of the responses that were preferred: (N,) each.

    Returns:
        pairs; change: mean of after - before; fallen: share of the responses that became less probable. Margins can
        grow while both sides fall (Razin et al., arXiv 2410.08847).
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    change = change[~np.isnan(change)]
    if not change.size:
        return {"pairs": 0, "change": None, "fallen": None}
    return {"pairs": int(change.size), "change": float(change.mean()), "fallen": float((change < 0).mean())}


def standardized_gain(
    before: npt.ArrayLike, after: npt.ArrayLike, scales: npt.ArrayLike, weights: npt.ArrayLike
) -> Array:
    """(P,) gain of several sources together, each in units of its own spread; NaN where no source knows a prompt.

    Args:
        before, after: (S, P) means of S sources on the same prompts; weights count among the sources that know both.
        scales: (S,) a source's spread, positive; weights: (S,) non-negative.
    """
    gains = (np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)).T / np.asarray(scales)
    shares = np.where(np.isnan(gains), 0.0, np.asarray(weights, dtype=np.float64))  # (P, S)
    with np.errstate(invalid="ignore"):
        total: Array = (np.nan_to_num(gains) * shares).sum(1) / shares.sum(1)
    return total
