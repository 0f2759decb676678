"""Calibration, on pairs whose probabilities are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from paretune.errors import InputError
from paretune.evaluation.calibration import crossed_ece, fit_temperature, log_loss, pair_figures, reliability

N = 20_000


def pairs(seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds and labels drawn from them."""
    rng = np.random.default_rng(seed)
    d = rng.normal(scale=1.5, size=n)
    return d, (rng.random(n) < expit(d)).astype(float)


def test_reliability_by_hand() -> None:
    p = np.array([0.9, 0.1, 0.9, 0.65, 0.45])
    labels = np.array([1.0, 1.0, 0.5, 1.0, 0.0])
    table = reliability(p, labels, bins=5)
    assert table.count.tolist() == [1, 1, 0, 0, 3]
    assert table.confidence[[0, 1, 4]] == pytest.approx([0.55, 0.65, 0.9])
    assert table.accuracy[[0, 1, 4]] == pytest.approx([1, 1, 0.5])
    assert table.ece == pytest.approx((0.45 + 0.35 + 3 * 0.4) / 5)
    with pytest.raises(InputError, match="nothing to calibrate"):
        reliability(p[:0], labels[:0])


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_the_temperature_of_rewards_that_are_too_bold_or_too_shy_is_found(temperature: float) -> None:
    d, labels = pairs()
    shown = d * temperature
    assert fit_temperature(shown, labels) == pytest.approx(temperature, rel=0.05)
    assert log_loss(shown / fit_temperature(shown, labels), labels) <= log_loss(shown / (temperature * 1.05), labels)
    ece = reliability(expit(shown), labels).ece
    after = crossed_ece(shown, labels, np.arange(N) // 2)
    assert after is not None and after < 0.02 and (ece > 0.05 or temperature == 1)


def test_figures_of_pairs() -> None:
    d, labels = pairs(1, 4000)
    truth = expit(d)
    ceiling = np.maximum(truth, 1 - truth).mean()
    labels[:1000] = np.nan
    labels[1000:1010] = 0.5
    found = pair_figures(d, labels, np.arange(4000) // 4)
    accuracy = found["accuracy"]
    assert accuracy["low"] < ceiling < accuracy["high"] and accuracy["n"] == 2990 and found["pairs"] == 3000
    assert sum(row["pairs"] for row in found["reliability"]) == 3000 and found["ece"] < 0.03
    assert found["temperature"] == pytest.approx(1, abs=0.15)
    equal = pair_figures(np.zeros(40), np.ones(40), np.arange(40))
    assert equal["accuracy"]["value"] == 0.5 and equal["temperature"] is None
    nothing = pair_figures(d, np.full(4000, np.nan), np.arange(4000))
    assert nothing["pairs"] == 0 and nothing["accuracy"]["value"] is None and "ece" not in nothing
