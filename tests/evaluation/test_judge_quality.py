"""Figures of judges, each against what it must be by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paretune.evaluation.judge_quality import Verdicts, calibration_error, quality, same_verdict

NAN = math.nan
FIRST = np.array([0.9, 0.82, 0.6, 0.2, 0.5, NAN])
SECOND = np.array([0.74, 0.4, 0.28, 0.1, 0.74, 0.9])
LABELS = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])


def test_by_hand() -> None:
    figures = quality(Verdicts(FIRST, SECOND), LABELS)
    assert all(figure.n == 5 for figure in figures.values())
    value = {name: figure.value for name, figure in figures.items()}
    # right, per order: (1, 1), (1, 0), (1, 0), (0, 0), (1/2, 0)
    assert value["accuracy"] == pytest.approx((1 + 0.5 + 0.5 + 0 + 0.25) / 5, rel=1e-12)
    assert value["accuracy_both"] == pytest.approx(2 / 5, rel=1e-12)  # 0.82, 0.61, 0.44, 0.15, 0.62
    assert value["agreement"] == pytest.approx(2 / 5, rel=1e-12)
    assert value["first_slot_excess"] == pytest.approx((0.16 + 0.42 + 0.32 + 0.1 - 0.24) / 5, rel=1e-12)
    # bins of confidence: 0.82 (right), 0.61 and 0.62 (right, wrong), 0.56 (wrong), 0.85 (wrong)
    gaps = [1 - 0.82, 1 - 1.23, 0 - 0.56, 0 - 0.85]
    assert value["calibration_error"] == pytest.approx(sum(map(abs, gaps)) / 5, rel=1e-9)
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())


def test_a_judge_without_orders() -> None:
    figures = quality(Verdicts(FIRST), LABELS)
    assert set(figures) == {"accuracy", "accuracy_both", "calibration_error"}
    assert figures["accuracy"].value == figures["accuracy_both"].value == pytest.approx(3.5 / 5, rel=1e-12)
    assert quality(Verdicts(np.full(3, NAN)), np.ones(3)) == {}


def test_a_perfect_and_a_calibrated_judge() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    labels = (rng.uniform(size=20_000) < p).astype(float)
    fair = quality(Verdicts(p, p), labels, draws=50)
    assert fair["calibration_error"].value < 0.02 and fair["agreement"].value == 1
    assert fair["accuracy"].value == pytest.approx(0.75, abs=0.01)
    sure = quality(Verdicts(labels, labels), labels, draws=50)
    assert sure["accuracy"].value == 1 and sure["calibration_error"].value == 0
    assert calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9, rel=1e-9)


def test_two_judges() -> None:
    one, other = Verdicts(FIRST, SECOND), Verdicts(np.array([0.6, 0.4, 0.4, 0.4, 0.4, 0.9]))
    figure = same_verdict(one, other)
    assert figure is not None and figure.value == pytest.approx(3 / 5, rel=1e-12) and figure.n == 5
    assert same_verdict(one, Verdicts(np.full(6, NAN))) is None
