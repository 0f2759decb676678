"""What a handful of seeds can show: paired intervals, tests, equivalence, and corrections for asking often.

A seed is the unit: it fixes data, labels, initialisation and the order of batches, so two methods are compared by their
differences seed by seed. Everything here takes such differences, (n,), and knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from paretune.errors import InputError

# Up to so many differences, all 2^n signs are tried; beyond, so many are drawn.
EXACT_SIGNS, DRAWN_SIGNS = 16, 1 << 16


@dataclass(frozen=True)
class Interval:
    """A mean of n differences with the bounds of its two-sided interval, in the differences' unit."""

    mean: float
    low: float
    high: float
    n: int


def paired_interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of paired differences.

    Args:
        differences: (n,), one per seed; n at least 2.
        level: the interval's coverage.

    Raises:
        InputError: fewer than two differences, or one that is not finite.
    """
    values = _checked(differences, least=2)
    half = _half_width(values, 0.5 + level / 2)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, len(values))


def sign_flip_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean under random signs: exact up to 16 differences, 65,536 draws beyond.

    Fisher's randomisation test. It assumes that a difference is as likely as its negative where the methods do not
    differ, and no distribution. The given signs are counted among the drawn, so p is never 0.

    Raises:
        InputError: no difference, or one that is not finite.
    """
    values = _checked(differences, least=1)
    n, observed = len(values), abs(values.sum())
    rounding = 1e-12 * np.abs(values).sum()  # sums in another order differ in their last bits
    if n <= EXACT_SIGNS:
        signs = 1.0 - 2.0 * ((np.arange(1 << n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ values) >= observed - rounding))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(DRAWN_SIGNS, n))
    return float((1 + np.sum(np.abs(signs @ values) >= observed - rounding)) / (1 + DRAWN_SIGNS))


def equivalence_test(differences: ArrayLike, bound: float) -> float:
    """p-value of "the mean lies outside (-bound, bound)": below 0.05, the two are equivalent within the bound.

    Schuirmann's two one-sided t tests (doi:10.1007/BF01068419): the larger of the two p-values. It is not the reverse
    of a test of difference; both can fail, and then the seeds were too few.

    Args:
        differences: (n,), n at least 2.
        bound: the largest mean difference that does not matter, positive, stated before the run.

    Raises:
        InputError: fewer than two differences, one that is not finite, or a bound that is not positive.
    """
    values = _checked(differences, least=2)
    if not bound > 0:
        raise InputError("bad bound of equivalence", expected="a number > 0", found=bound)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    if error == 0.0:
        return 0.0 if abs(mean) < bound else 1.0
    freedom = len(values) - 1
    return float(max(stats.t.sf((mean + bound) / error, freedom), stats.t.cdf((mean - bound) / error, freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for asking several times (Holm 1979): below 0.05, the claim stands within its family.

    Args:
        p_values: of one declared family, in any order.

    Returns:
        The adjusted ones in the given order, each at least its own and at most 1.
    """
    order, adjusted, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[i])))
        adjusted[int(i)] = largest
    return adjusted


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of a statistic of n units (seeds, prompts), resampled with replacement.

    Two statistics bootstrapped with the same n, draws and seed meet the same resamples, so their difference is paired.

    Args:
        statistic: from indices (n,) of the units that a resample holds to a number.

    Returns:
        The interval's bounds; with a single unit they are the statistic itself, and no interval.

    Raises:
        InputError: no units.
    """
    if n < 1:
        raise InputError("a bootstrap of nothing", where="n", expected="at least one unit", found=n)
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _half_width(values: NDArray[np.float64], quantile: float) -> float:
    return float(stats.t.ppf(quantile, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def _checked(differences: ArrayLike, least: int) -> NDArray[np.float64]:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < least:
        expected = f"at least {least}, one per seed"
        raise InputError("too few differences", expected=expected, found=f"shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("a difference that is not finite", fix="Leave out seeds that failed, and say so.")
    return values
