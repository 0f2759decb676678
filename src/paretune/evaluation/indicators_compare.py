"""Indicators of several methods side by side: estimates, intervals, paired differences, shares of dominated points.

A unit is a seed, or a resample of prompts where there is one seed only. U units, k weightings, e end points, m
objectives; scores are scaled, larger is better. All methods share the end points, which are trained on one objective
each: a front is a method's own points and these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.errors import InputError
from paretune.evaluation.front import dominated_share, pareto_front
from paretune.evaluation.indicators import additive_epsilon, extent, igd_plus, reference_free, volume
from paretune.evaluation.statistics import bootstrap_interval, paired_interval, sign_flip_test

Floats = NDArray[np.float64]
Values = dict[str, dict[str, Floats]]  # method -> indicator -> (U,)

# Name -> whether more is better.
INDICATORS = {"hypervolume": True, "reference_free": True, "epsilon": False, "igd_plus": False, "extent": True}
GAINS = ("gain_hypervolume", "gain_reference_free")
EXPLORATORY = 10  # fewer seeds than this show a direction at most
DRAWS = 2000
PROMPT_DRAWS = 400  # each computes every indicator of every method anew


@dataclass(frozen=True)
class Fronts:
    """Points of every method, unit by unit.

    Args:
        own: method -> (U, k, m), its own points; k may differ between methods.
        ends: (U, e, m), the end points that all share; e may be 0.
    """

    own: Mapping[str, Floats]
    ends: Floats

    def whole(self, method: str, unit: int) -> Floats:
        """(k + e, m): a method's front in one unit."""
        return np.concatenate([self.own[method][unit], self.ends[unit]])


@dataclass(frozen=True)
class Estimate:
    """A mean over units with its 95 % interval."""

    mean: float
    low: float
    high: float


def indicator_values(fronts: Fronts, references: Sequence[Floats], *, soup: str | None, draws: int = 20_000) -> Values:
    """Every indicator of every method in every unit.

    Epsilon and IGD+ are distances to the front of all methods' points together in that unit: they depend on who takes
    part. `hypervolume` is over the first reference point, `hypervolume@1`, … over the others.

    Args:
        references: each (m,), the declared one first.
        soup: the method that the gains are over, where there is one.
        draws: of a volume by Monte Carlo, of the same box for all methods in a unit.

    Returns:
        method -> indicator -> (U,).
    """
    units = len(fronts.ends)
    found: Values = {method: {} for method in fronts.own}
    for unit in range(units):
        wholes = {method: fronts.whole(method, unit) for method in fronts.own}
        together = np.concatenate(list(wholes.values()))
        target, top = np.unique(together[pareto_front(together)], axis=0), together.max(0)
        for method, points in wholes.items():
            got = {
                "reference_free": reference_free(points, grid=1000),
                "epsilon": additive_epsilon(points, target),
                "igd_plus": igd_plus(points, target),
                "extent": extent(points),
            }
            for i, corner in enumerate(references):
                name = "hypervolume" if i == 0 else f"hypervolume@{i}"
                got[name] = volume(points, corner, top=np.maximum(top, corner), draws=draws).value
            for name, value in got.items():
                found[method].setdefault(name, np.empty(units))[unit] = value
    if soup is not None:
        for values in found.values():
            for gain in GAINS:
                name = gain.removeprefix("gain_")
                values[gain] = values[name] - found[soup][name]
    return found


def estimates(values: Values, resampled: Values | None, *, draws: int = DRAWS) -> dict[str, dict[str, Estimate]]:
    """Mean and interval of every indicator.

    Args:
        values: over seeds (or of the one seed).
        resampled: None bootstraps the seeds; otherwise the same indicators of resampled prompts, whose quantiles are
            the interval.
    """
    return {
        method: {name: _estimate(value, None if resampled is None else resampled[method][name], draws)
                 for name, value in of_method.items()}
        for method, of_method in values.items()
    }  # fmt: skip


def differences(values: Values, resampled: Values | None, baseline: str, *, draws: int = DRAWS) -> dict[str, Any]:
    """Every other method minus a baseline, unit by unit: method -> indicator -> {mean, low, high, …}.

    With several seeds each difference also has Student's t interval and the p-value of a sign-flip test, neither of
    them corrected for the number of methods and indicators.
    """
    out: dict[str, Any] = {}
    for method in values:
        if method == baseline:
            continue
        out[method] = {}
        for name, value in values[method].items():
            difference = value - values[baseline][name]
            again = None if resampled is None else resampled[method][name] - resampled[baseline][name]
            out[method][name] = vars(_estimate(difference, again, draws))
            if len(difference) > 1:
                t = paired_interval(difference)
                out[method][name] |= {"t_low": t.low, "t_high": t.high, "p": sign_flip_test(difference)}
    return out


def dominated_shares(fronts: Fronts) -> dict[str, dict[str, float]]:
    """method -> rival -> share of the method's own points that the rival's front dominates, mean over units."""
    return {
        method: {
            rival: float(np.mean([dominated_share(own[u], fronts.whole(rival, u)) for u in range(len(own))]))
            for rival in fronts.own
            if rival != method
        }
        for method, own in fronts.own.items()
    }


def resampled_fronts(own: Mapping[str, Floats], ends: Floats, *, draws: int = PROMPT_DRAWS, seed: int = 0) -> Fronts:
    """Fronts of prompts drawn anew with replacement, the same for all methods and points; each draw is a unit.

    Args:
        own: method -> (k, P, m) scores of each prompt; NaN where a prompt says nothing of an objective.
        ends: (e, P, m).
    """
    prompts = next(iter(own.values())).shape[1]
    rng = np.random.default_rng(seed)
    counts = np.stack([np.bincount(rng.integers(prompts, size=prompts), minlength=prompts) for _ in range(draws)])

    def means(scores: Floats) -> Floats:
        known = ~np.isnan(scores)
        sums = np.einsum("dp,kpm->dkm", counts.astype(np.float64), np.where(known, scores, 0.0))
        sizes = np.einsum("dp,kpm->dkm", counts.astype(np.float64), known.astype(np.float64))
        # a draw without any prompt that tells of an objective says what all prompts together say
        whole = np.nanmean(scores, axis=1)
        return np.where(sizes > 0, sums / np.maximum(sizes, 1.0), whole)

    return Fronts({method: means(scores) for method, scores in own.items()}, means(ends))


def _estimate(values: Floats, resampled: Floats | None, draws: int) -> Estimate:
    if not len(values):
        raise InputError("an estimate of nothing", where="values", expected="at least one unit")
    if resampled is None:
        low, high = bootstrap_interval(lambda index: float(values[index].mean()), len(values), draws=draws)
    else:
        low, high = (float(x) for x in np.quantile(resampled, [0.025, 0.975]))
    return Estimate(float(values.mean()), low, high)
