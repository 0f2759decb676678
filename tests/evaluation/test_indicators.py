"""Indicators against their definitions by brute force, against moocore, and by hand."""

from __future__ import annotations

import sys

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.evaluation import hypervolume, pareto_front
from paretune.evaluation.indicators import (
    additive_epsilon,
    extent,
    igd_plus,
    reference_free,
    sampled_volume,
    scaled,
    simplex_centres,
    volume,
)


def sets(m: int) -> st.SearchStrategy[np.ndarray]:
    # small integers, so that ties and duplicates are common
    row = st.lists(st.integers(-2, 4), min_size=m, max_size=m)
    return st.lists(row, min_size=1, max_size=7).map(lambda rows: np.array(rows, dtype=float))


pairs = st.integers(1, 4).flatmap(lambda m: st.tuples(sets(m), sets(m)))


@given(pairs)
def test_epsilon_is_the_least_shift_that_covers_the_target(both: tuple[np.ndarray, np.ndarray]) -> None:
    points, target = both
    shift = additive_epsilon(points, target)

    def covers(by: float) -> bool:
        return all(any((p + by >= r - 1e-9).all() for p in points) for r in target)

    assert covers(shift) and not covers(shift - 1e-3)
    assert shift == pytest.approx(moocore.epsilon_additive(points, ref=target, maximise=True), abs=1e-9)


@given(pairs)
def test_igd_plus_is_moocores(both: tuple[np.ndarray, np.ndarray]) -> None:
    points, target = both
    assert igd_plus(points, target) == pytest.approx(moocore.igd_plus(points, ref=target, maximise=True), abs=1e-9)


def test_distances_by_hand() -> None:
    target = [[1.0, 0.0], [0.0, 1.0]]
    assert additive_epsilon([[0.5, 0.5]], target) == 0.5
    assert (
        igd_plus([[0.5, 0.5]], target) == 0.5
    )  # falls short of each by 0.5 in one objective; the surplus is no distance
    assert igd_plus([[1, 1]], target) == 0 and additive_epsilon([[2, 2]], target) == -1
    assert extent([[1, 0], [0, 1], [-5, -5]]) == pytest.approx(1.0), "a dominated point does not stretch the front"
    assert extent([[1, 0, 0], [0, 1, 0]]) == pytest.approx((2 / 3) ** 0.5)
    assert extent([[3, 4]]) == 0


@pytest.mark.parametrize("m", [4, 6])
def test_the_sampled_volume_is_near_the_exact_one(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, corner = np.random.default_rng(m).random((25, m)), np.full(m, 0.05)
    exact = volume(points, corner)
    assert exact.how.startswith("exact (moocore ") and exact.error == 0
    for seed in range(3):
        found = sampled_volume(points, corner, seed=seed)
        assert 0 < found.error < 0.02 * exact.value + 1e-3
        assert abs(found.value - exact.value) < 4 * found.error
    monkeypatch.setitem(sys.modules, "moocore", None)  # not installed
    found = volume(points, corner)
    assert found.how == "Monte Carlo, 20000 draws" and abs(found.value - exact.value) < 4 * found.error


def test_the_stated_error_is_the_spread_over_seeds() -> None:
    points = np.random.default_rng(0).random((12, 4))
    found = [sampled_volume(points, np.zeros(4), draws=500, seed=seed) for seed in range(200)]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.15)


def test_sets_under_one_top_meet_the_same_draws() -> None:
    points, top = np.random.default_rng(1).random((12, 4)), np.ones(4)
    whole = sampled_volume(points, np.zeros(4), top=top, seed=3)
    fewer = sampled_volume(points[:8], np.zeros(4), top=top, seed=3)
    assert fewer.value <= whole.value, "a subset covers no draw that the whole does not"
    assert sampled_volume(np.full((1, 4), 0.5), np.zeros(4), top=np.full(4, 0.5)).value == pytest.approx(0.5**4)


@given(st.integers(1, 3).flatmap(sets))
def test_up_to_three_objectives_are_exact(points: np.ndarray) -> None:
    corner = np.full(points.shape[1], -1.5)
    found = volume(points, corner)
    assert (found.value, found.how) == (hypervolume(points, corner), "exact")
    assert found.value == pytest.approx(moocore.hypervolume(points, ref=corner, maximise=True))


def test_no_point_above_the_reference_is_no_volume() -> None:
    assert volume([[0.0] * 4], [0.5] * 4).value == 0 == volume([], [0.5] * 4).value
    assert sampled_volume(np.empty((0, 5)), np.zeros(5)).value == 0


@given(sets(2))
def test_the_reference_free_score_of_two_is_an_integral(points: np.ndarray) -> None:
    w = (np.arange(20_000) + 0.5) / 20_000
    sampled = (np.stack([w, 1 - w], 1) @ points.T).max(1).mean()
    assert reference_free(points) == pytest.approx(sampled, abs=1e-6)


def test_the_reference_free_score_by_hand() -> None:
    assert reference_free([[1, 0], [0, 1]]) == pytest.approx(0.75)
    assert reference_free([[1, 0], [0, 1], [0.5, 0.5]]) == pytest.approx(0.75), "on the line between: nothing gained"
    assert reference_free([[1, 0], [0, 1], [0.4, 0.4]]) == pytest.approx(0.75), "concave: nothing gained"
    assert reference_free([[1, 0], [0, 1], [1, 1]]) == pytest.approx(1.0)
    # E max(w_1, …, w_m) on the simplex is (1 + 1/2 + … + 1/m) / m
    assert reference_free(np.eye(3)) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, rel=3e-3)
    assert reference_free(np.eye(4)) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, rel=2e-2)
    assert reference_free([[2.0], [3.0]]) == 3.0


@pytest.mark.parametrize(("m", "most"), [(2, 11), (3, 5000), (4, 700), (8, 1), (5, 5)])
def test_the_grid_is_on_the_simplex_and_balanced(m: int, most: int) -> None:
    grid = simplex_centres(m, most)
    assert 1 <= len(grid) <= most and grid.shape[1] == m
    assert np.allclose(grid.sum(1), 1) and (grid > 0).all()
    assert np.allclose(grid.mean(0), 1 / m)
    assert len(np.unique(grid, axis=0)) == len(grid)


def test_scaling_is_undone_by_its_inverse() -> None:
    points, low, high = np.random.default_rng(0).normal(size=(3, 5, 2)), np.array([-3.0, 1e-10]), np.array([2.0, 3e-10])
    assert scaled(low, low, high).tolist() == [0, 0] and scaled(high, low, high).tolist() == [1, 1]
    assert np.allclose(scaled(points, low, high) * (high - low) + low, points)


def test_dominated_points_change_nothing() -> None:
    points = np.random.default_rng(5).random((40, 3))
    front, corner = points[pareto_front(points)], np.zeros(3)
    for of in (extent, reference_free, lambda p: volume(p, corner).value, lambda p: additive_epsilon(p, points)):
        assert of(points) == pytest.approx(of(front), rel=1e-12)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: additive_epsilon([[1, 2]], [[1, 2, 3]]), "different numbers"),
        (lambda: igd_plus([], [[1, 2]]), "points: not a table"),
        (lambda: igd_plus([[1, np.nan]], [[1, 2]]), "not a table"),
        (lambda: reference_free([1, 2]), "not a table"),
        (lambda: volume([[1, 2, 3]], [0] * 4), r"\(n, 4\)"),
        (lambda: volume([[1, 2, 3, np.inf]], [0] * 4), "finite numbers"),
        (lambda: sampled_volume([[1, 2, 3, 4]], [0, 0, np.nan, 0]), "bad reference point"),
        (lambda: sampled_volume([[1, 2, 3, 4]], [0] * 4, top=[1, 1, 1, 1]), "above the top"),
        (lambda: scaled([[1, 2]], [0, 0], [1, 0]), "does not rise"),
    ],
)
def test_what_cannot_be_measured_is_said(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
