"""Several reward models of one objective as one: mean, worst case, uncertainty-weighted, all by one operator.

    tilted(r, τ) = -τ log mean exp(-r/τ)

For τ -> 0 it is the worst member (worst-case optimization, WCO), for τ -> inf the mean, and in between, to second order
in 1/τ, mean - var/(2τ) with the population variance: uncertainty-weighted optimization (UWO) with λ = 1/(2τ)
(Coste et al., arXiv 2310.02743, define the three; arXiv 2606.09073 states that they are one). Members' rewards must be
of one unit: equally trained, or standardized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from paretune.errors import InputError

# way -> what its strength is called, "" for none
WAYS = {"mean": "", "worst": "", "uncertainty": "penalty", "tilted": "tau"}


def tilted(rewards: npt.ArrayLike, tau: float) -> npt.NDArray[np.float64]:
    """-τ log mean exp(-r/τ) over the members, the first axis: (K, ...) -> (...); τ = 0 is min, inf the mean.

    NaN where a member is: an ensemble without one of its members would be another one.

    Raises:
        InputError: τ < 0 or NaN, no member.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if not tau >= 0:
        raise InputError("bad tau", expected="a number >= 0", found=tau)
    if r.ndim == 0 or len(r) == 0:
        raise InputError("an ensemble without members", expected="at least one")
    if math.isinf(tau):
        return np.asarray(r.mean(0))
    least = r.min(0)
    if tau == 0:
        return np.asarray(least)
    # From the least member up, where every exponent is at most 0. expm1 and log1p keep the digits of large τ, where
    # exp is nearly 1 and its logarithm nearly 0.
    with np.errstate(over="ignore"):  # of a τ so small that only the least member counts
        excess = np.mean(np.expm1(-(r - least) / tau), axis=0)
    return np.asarray(least - tau * np.log1p(excess))


def uncertainty_weighted(rewards: npt.ArrayLike, penalty: float) -> npt.NDArray[np.float64]:
    """mean - λ var over the members, the first axis, with the *population* variance (divided by K, not K - 1).

    It is `tilted` at τ = 1/(2λ) to second order, and exact for members that are normally distributed. Code by the
    authors of arXiv 2310.02743 divides by K in one place and by K - 1 in another: with the latter's λ', take
    λ = λ' K/(K - 1).

    Raises:
        InputError: λ < 0 or NaN, no member.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if not 0 <= penalty < math.inf:
        raise InputError("bad penalty", expected="a number >= 0", found=penalty)
    if r.ndim == 0 or len(r) == 0:
        raise InputError("an ensemble without members", expected="at least one")
    return np.asarray(r.mean(0) - penalty * r.var(0))


def combined(rewards: npt.ArrayLike, way: str, strength: float) -> npt.NDArray[np.float64]:
    """The ensemble's rewards by one of `WAYS`; rewards (K, ...) of the members -> (...)."""
    if way == "uncertainty":
        return uncertainty_weighted(rewards, strength)
    return tilted(rewards, {"mean": math.inf, "worst": 0.0}.get(way, strength))


def rounding(rewards: npt.ArrayLike, way: str, strength: float) -> npt.NDArray[np.float64]:
    """How far rounding may have put `combined` off: a few ulps of what is added up; (K, ...) -> (...)."""
    size = np.abs(np.asarray(rewards, dtype=np.float64))
    penalty = strength if way == "uncertainty" else 0.0
    ulps = 2 * len(size) * np.finfo(np.float64).eps
    return np.asarray(ulps * (size.mean(0) + penalty * (size**2).mean(0)))


def ensemble_way(where: str, options: Mapping[str, Any]) -> tuple[str, float]:
    """The way of an ensemble (mean where none is named) and its strength: `penalty` of uncertainty, `tau` of tilted.

    Raises:
        InputError: an unknown way, a strength that is missing, bad, or of another way.
    """
    way = options.get("way", "mean")
    if way not in WAYS:
        raise InputError("bad way", where=where, expected=f"one of {', '.join(WAYS)}", found=way)
    wanted = WAYS[way]
    for key in ("penalty", "tau"):
        if key != wanted and key in options:
            expected = f"{wanted} only" if wanted else "neither tau nor penalty"
            raise InputError(f"{key} means nothing to way: {way}", where=where, expected=expected)
    if not wanted:
        return way, 0.0
    value = options.get(wanted)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"bad {wanted}", where=where, expected="a number > 0", found=value)
    return way, float(value)
