"""How good a judge is, in numbers, against labels that are known.

A judge sees each pair (output 1, output 2) in both orders. N items; NaN where it failed, which is no verdict and is
counted. The two first figures are those of LLMBar (arXiv 2310.07641).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretune.evaluation.statistics import bootstrap_interval

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
BINS = 10  # of the confidence, between 1/2 and 1


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of N pairs.

    Args:
        shown_first: (N,) P(output 1 is better) where output 1 is shown first.
        shown_second: (N,) the same where it is shown second; None: the judge knows no order (a reward model).
    """

    shown_first: Floats
    shown_second: Floats | None = None

    @property
    def both(self) -> Floats:
        """(N,) P(output 1 is better), both orders averaged; NaN where one failed."""
        return self.shown_first if self.shown_second is None else (self.shown_first + self.shown_second) / 2


@dataclass(frozen=True)
class Figure:
    """A number with the bounds of its bootstrap interval over items; n of them counted."""

    value: float
    low: float
    high: float
    n: int


def quality(verdicts: Verdicts, labels: Floats, *, draws: int = 2000, seed: int = 0) -> dict[str, Figure]:
    """The figures of a judge, over the items of which both orders were judged.

    Args:
        labels: (N,) 1 where output 1 is better, 0 where output 2 is.

    Returns:
        accuracy: mean over both orders (a P of exactly 1/2 is half right); accuracy_both: of the averaged P;
        agreement: share of items on whose winner the two orders agree; first_slot_excess: mean of P(first) over both
        orders, twice, less 1: 0 is fair, 1 means always the first; calibration_error: mean over bins of |share
        right - mean confidence| of the averaged P, weighted by their items. Without orders: no agreement, no excess.
        Nothing where no item was judged.
    """
    judged = np.flatnonzero(~np.isnan(verdicts.both))
    if not len(judged):
        return {}
    truth, both = labels[judged], verdicts.both[judged]
    first = verdicts.shown_first[judged]
    orders = [first] if verdicts.shown_second is None else [first, verdicts.shown_second[judged]]
    right = np.mean([correct(p, truth) for p in orders], axis=0)
    both_right = correct(both, truth)
    values = {"accuracy": right, "accuracy_both": both_right}
    if verdicts.shown_second is not None:
        values["agreement"] = (np.sign(orders[0] - 0.5) == np.sign(orders[1] - 0.5)).astype(np.float64)
        values["first_slot_excess"] = orders[0] - orders[1]
    figures = {name: _figure(_mean_of(value), len(judged), draws, seed) for name, value in values.items()}
    confidence = np.maximum(both, 1 - both)
    figures["calibration_error"] = _figure(
        lambda index: calibration_error(confidence[index], both_right[index]), len(judged), draws, seed
    )
    return figures


def same_verdict(a: Verdicts, b: Verdicts, *, draws: int = 2000, seed: int = 0) -> Figure | None:
    """Share of items on which two judges name the same winner, over those that both judged; None without any."""
    judged = np.flatnonzero(~np.isnan(a.both + b.both))
    if not len(judged):
        return None
    same = (np.sign(a.both[judged] - 0.5) == np.sign(b.both[judged] - 0.5)).astype(np.float64)
    return _figure(_mean_of(same), len(judged), draws, seed)


def correct(p: Floats, labels: Floats) -> Floats:
    """(N,) 1 where P is on the label's side of 1/2, 0 where on the other, 1/2 on it."""
    return np.where(p == 0.5, 0.5, (p > 0.5) == (labels > 0.5)).astype(np.float64)


def calibration_error(confidence: Floats, right: Floats) -> float:
    """Expected calibration error in `BINS` bins of equal width over [1/2, 1]."""
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _mean_of(values: Floats) -> Callable[[Indices], float]:
    return lambda index: float(values[index].mean())


def _figure(statistic: Callable[[Indices], float], n: int, draws: int, seed: int) -> Figure:
    low, high = bootstrap_interval(statistic, n, draws=draws, seed=seed)
    return Figure(statistic(np.arange(n)), low, high, n)
