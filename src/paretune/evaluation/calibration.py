"""Does a reward mean what it says: σ(r_a - r_b) as the probability that a is preferred, against the labels.

Suffixes: N pairs, B bins. Labels are probabilities that a is better; 1 and 0 where they were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from paretune.errors import InputError
from paretune.evaluation.margins import bootstrap, interval

Floats = npt.NDArray[np.float64]
BINS = 10
_COLDEST, _HOTTEST = 1e-3, 1e3


@dataclass(frozen=True)
class Reliability:
    """Pairs by confidence max(p, 1 - p), in B bins of equal width from 1/2 to 1.

    Args:
        count: (B,) pairs. confidence: (B,) their mean; accuracy: (B,) share that is right; NaN of an empty bin.
        ece: Σ count/N |accuracy - confidence|, the expected calibration error.
    """

    count: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    ece: float


def reliability(probability: Floats, labels: Floats, bins: int = BINS) -> Reliability:
    """Of N pairs, how often predictions of each confidence are right; a soft label is right by its share.

    Args:
        probability: (N,) predicted that a is better.
        labels: (N,), no NaN.

    Raises:
        InputError: no pair.
    """
    if len(probability) == 0:
        raise InputError("nothing to calibrate on", expected="at least one labelled pair")
    for_a = probability >= 0.5
    confidence = np.where(for_a, probability, 1 - probability)
    right = np.where(for_a, labels, 1 - labels)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, bins) / count for values in (confidence, right)]
    gaps = np.abs(means[1] - means[0])[count > 0]
    return Reliability(count, means[0], means[1], float((gaps * count[count > 0]).sum() / len(probability)))


def log_loss(difference: Floats, labels: Floats) -> float:
    """Mean of -p log σ(d) - (1 - p) log σ(-d), in nats."""
    return float(np.mean(np.logaddexp(0, -difference) * labels + np.logaddexp(0, difference) * (1 - labels)))


def fit_temperature(difference: Floats, labels: Floats) -> float:
    """T > 0 for which σ(d/T) has the least log loss (Guo et al., arXiv 1706.04599); within 1e-3 … 1e3 times the scale
    of the differences, and a bound of these where the pairs set none (all of them right, or none).

    Raises:
        InputError: no pair that differs.
    """
    scale = float(np.abs(difference).mean()) if len(difference) else 0.0
    if not scale > 0:
        raise InputError("no temperature", expected="pairs whose rewards differ", found=f"{len(difference)} pairs")
    bounds = np.log([_COLDEST, _HOTTEST])
    # the loss is convex in 1/T and so has one minimum in log T
    found = optimize.minimize_scalar(lambda t: log_loss(difference / (scale * np.exp(t)), labels), bounds=bounds)
    return float(scale * np.exp(found.x))


def crossed_ece(difference: Floats, labels: Floats, groups: npt.NDArray[np.int64]) -> float | None:
    """The ECE after a temperature, each half of the groups scaled by the other half's; None where a half has none."""
    half = groups % 2 == 0
    scaled = np.zeros_like(difference)
    for part in (half, ~half):
        if not part.any() or not np.abs(difference[~part]).any():
            return None
        scaled[part] = difference[part] / fit_temperature(difference[~part], labels[~part])
    return reliability(special.expit(scaled), labels).ece


def pair_figures(
    difference: Floats, labels: Floats, groups: npt.NDArray[np.int64], *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """What held-out pairs say about one head's rewards: accuracy with its 95 % interval, calibration, log loss.

    Args:
        difference: (N,) r_a - r_b.
        labels: (N,), NaN where missing; ties (0.5) count in calibration and not in accuracy.
        groups: (N,) whole numbers from 0: pairs of one group (a prompt) are drawn together.
        draws, seed: of the bootstrap.
    """
    known = ~np.isnan(labels)
    decided = known & (labels != 0.5)
    right = 0.5 + 0.5 * np.sign(difference) * np.sign(np.where(known, labels, 0.5) - 0.5)
    counted = decided[None]
    drawn = bootstrap(right[None], counted, groups, draws, seed)
    value = np.array([right[decided].mean() if decided.any() else np.nan])
    figures: dict[str, Any] = {"accuracy": interval(value, drawn, counted.sum(1))[0], "pairs": int(known.sum())}
    if not known.any():
        return figures
    d, p, g = difference[known], labels[known], groups[known]
    table = reliability(special.expit(d), p)
    figures |= {"log_loss": log_loss(d, p), "ece": table.ece, "ece_after_temperature": crossed_ece(d, p, g)}
    figures["temperature"] = fit_temperature(d, p) if np.abs(d).any() else None
    figures["reliability"] = [
        {"confidence": c, "accuracy": a, "pairs": int(n)}
        for c, a, n in zip(table.confidence.tolist(), table.accuracy.tolist(), table.count.tolist(), strict=True)
        if n
    ]
    return figures
