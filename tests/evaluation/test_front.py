"""Fronts and hypervolumes against their definitions, written out by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.evaluation import dominated_share, hypervolume, pareto_front


def brute_front(points: np.ndarray) -> list[bool]:
    def dominates(q: np.ndarray, p: np.ndarray) -> bool:
        return all(a >= b for a, b in zip(q, p, strict=True)) and any(a > b for a, b in zip(q, p, strict=True))

    return [not any(dominates(q, p) for q in points) for p in points]


def brute_volume(points: np.ndarray, reference: np.ndarray) -> float:
    """Inclusion and exclusion over all subsets: the union of boxes."""
    boxes = [np.maximum(p - reference, 0) for p in points]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for subset in itertools.combinations(boxes, size):
            total -= (-1) ** size * float(np.prod(np.min(subset, axis=0)))
    return total


def grid_points(m: int) -> st.SearchStrategy[np.ndarray]:
    # small integers, so that ties and duplicates are common
    row = st.lists(st.integers(-2, 4), min_size=m, max_size=m)
    return st.lists(row, min_size=1, max_size=8).map(lambda rows: np.array(rows, dtype=float))


@given(st.integers(1, 4).flatmap(grid_points))
def test_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    assert pareto_front(points).tolist() == brute_front(points)


@given(st.integers(1, 3).flatmap(grid_points))
def test_hypervolume_is_the_union_of_boxes(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], -1.0)
    assert hypervolume(points, reference) == pytest.approx(brute_volume(points, reference), abs=1e-9)


@pytest.mark.parametrize("m", [2, 3])
def test_hypervolume_of_many_random_points(m: int) -> None:
    rng = np.random.default_rng(m)
    points, draws = rng.random((60, m)), rng.random((200_000, m))
    inside = np.zeros(len(draws), dtype=bool)
    for point in points:
        inside |= (draws <= point).all(axis=1)
    assert hypervolume(points, np.zeros(m)) == pytest.approx(inside.mean(), abs=5e-3)
    front = points[pareto_front(points)]
    assert hypervolume(front, np.zeros(m)) == pytest.approx(hypervolume(points, np.zeros(m)), rel=1e-12)


def test_hypervolume_moves_and_scales_with_the_points() -> None:
    rng = np.random.default_rng(0)
    points, shift, scale = rng.random((9, 3)), np.array([1e3, -5.0, 0.1]), np.array([1e-10, 1e8, 3.0])
    volume = hypervolume(points, [0.2, 0.2, 0.2])
    moved = hypervolume(points * scale + shift * scale, np.full(3, 0.2) * scale + shift * scale)
    assert moved == pytest.approx(volume * scale.prod(), rel=1e-6)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([[2, 1], [1, 2]], [0, 0]) == 3
    assert hypervolume([[2, 1, 1], [1, 2, 1], [1, 1, 2]], [0, 0, 0]) == 4
    assert hypervolume([[2, 1], [5, 0]], [0, 0]) == 2  # level with the reference: nothing
    assert hypervolume(np.empty((0, 2)), [0, 0]) == 0
    assert hypervolume([], [0, 0, 0]) == 0


def test_dominated_share() -> None:
    ours, theirs = [[1, 1], [0, 3], [2, 2]], [[2, 2], [1, 0]]
    assert dominated_share(ours, theirs) == pytest.approx(1 / 3)
    assert dominated_share(theirs, ours) == pytest.approx(1 / 2)
    assert dominated_share(theirs, theirs) == 0.5  # [1, 0] by [2, 2]; equal points do not cover each other
    assert dominated_share([[1, 1]], [[1, 1]]) == 0
    assert dominated_share(ours, []) == 0


def test_equal_points_stand_or_fall_together() -> None:
    assert pareto_front([[1, 1], [1, 1], [0, 1]]).tolist() == [True, True, False]
    assert pareto_front(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hypervolume(np.zeros((2, 4)), np.zeros(4)), "one to three objectives; found 4"),
        (lambda: hypervolume([[1, 2]], [0, 0, 0]), "2 finite numbers"),
        (lambda: hypervolume([[1, 2]], [0, np.nan]), "2 finite numbers"),
        (lambda: pareto_front([[1, np.nan]]), "not finite"),
        (lambda: pareto_front([1, 2]), "shape"),
        (lambda: dominated_share([[1, 2]], [[1, 2, 3]]), "different numbers"),
        (lambda: dominated_share([], [[1, 2]]), "no points"),
    ],
)
def test_what_cannot_be_measured_is_said(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
