"""Labels from exact rewards: each preset does what its name says, measured on the labels it gives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.sandbox.labels import PRESETS, Labelling, ceiling, conflicting, prefer, select_conflict

N = 20_000


def rewards(m: int = 2, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)), rng.normal(size=(n, m))


def labels_of(preset: str | Labelling, m: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the differences of rewards, both (N, m)."""
    a, b = rewards(m)
    labelling = PRESETS[preset] if isinstance(preset, str) else preset
    return prefer(a, b, labelling, np.random.default_rng(1)), a - b


@pytest.mark.parametrize("kappa", [0.5, 4.0, (2.0, 0.7, 5.0)])
def test_draws_follow_bradley_and_terry(kappa: float | tuple[float, ...]) -> None:
    labels, difference = labels_of(Labelling(kappa=kappa), m=3)
    assert set(np.unique(labels)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-np.array(kappa) * difference))
    # the mean of N independent draws is within 5 standard deviations, in each third of the probabilities
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)):
        inside = (low <= p) & (p < high)
        deviation = math.sqrt((p * (1 - p))[inside].sum()) / inside.sum()
        assert abs(labels[inside].mean() - p[inside].mean()) < 5 * deviation
    soft, _ = labels_of(Labelling(kappa=kappa, soft=True), m=3)
    np.testing.assert_allclose(soft, p, rtol=1e-12)


def test_clean_labels_are_all_there_and_turn_with_their_sides() -> None:
    labels, _ = labels_of("clean")
    assert not np.isnan(labels).any()
    a, b = rewards()
    soft = replace(PRESETS["clean"], soft=True)
    there, back = (prefer(x, y, soft, np.random.default_rng(1)) for x, y in ((a, b), (b, a)))
    np.testing.assert_allclose(there + back, 1.0, rtol=1e-12)


def test_one_objective_is_noisy() -> None:
    clean, _ = labels_of("clean")
    noisy, _ = labels_of("noisy-one")
    changed = (clean != noisy).mean(0)  # the same draws but for the flips
    assert changed[0] == pytest.approx(0.3, abs=0.02)
    assert changed[1] == 0.0
    soft, _ = labels_of(replace(PRESETS["noisy-one"], soft=True))
    assert soft[:, 0].max() <= 0.7 and soft[:, 0].min() >= 0.3  # what a flipped label can be worth
    assert soft[:, 1].max() > 0.99


def test_one_objective_is_rare() -> None:
    clean, _ = labels_of("clean", m=3)
    rare, _ = labels_of("rare-one", m=3)
    absent = np.isnan(rare)
    assert absent[:, 0].mean() == pytest.approx(0.9, abs=0.01)
    assert not absent[:, 1:].any()
    assert (rare[~absent] == clean[~absent]).all()


def test_one_beta_is_scaled_and_its_labels_are_not() -> None:
    assert PRESETS["scaled"].betas(0.2, 3) == [1.0, 0.2, 0.2]
    assert (labels_of("scaled")[0] == labels_of("clean")[0]).all()
    assert PRESETS["clean"].betas(0.2, 3) == [0.2, 0.2, 0.2]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_disjoint_rows_have_one_label(m: int) -> None:
    labels, _ = labels_of("disjoint", m)
    present = ~np.isnan(labels)
    assert (present.sum(1) == 1).all()
    counts = present.sum(0)
    assert counts.max() - counts.min() <= 1


def test_ties_are_half_and_only_within_the_threshold() -> None:
    labels, difference = labels_of(Labelling(kappa=math.inf, tie=0.25, flip=1.0))
    tied = np.abs(difference) <= 0.25
    assert 0.05 < tied.mean() < 0.5
    assert (labels[tied] == 0.5).all()
    assert (labels[~tied] == (difference < 0)[~tied]).all()  # all flipped
    same = prefer(np.ones((4, 2)), np.ones((4, 2)), PRESETS["conflict-0"], np.random.default_rng(0))
    assert (same == 0.5).all()


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("share", [0, 30, 60, 100])
def test_the_stated_share_of_labels_conflicts(share: int, m: int) -> None:
    labelling = PRESETS[f"conflict-{share}"]
    a, b = rewards(m, n=2_000)
    assert labelling.conflict is not None
    rows = select_conflict(a, b, labelling.conflict, np.random.default_rng(2))
    labels = prefer(a[rows], b[rows], labelling, np.random.default_rng(3))
    opposed = (labels == 1.0).any(1) & (labels == 0.0).any(1)
    assert abs(opposed.mean() - share / 100) <= 1 / len(rows)
    assert (np.diff(rows) > 0).all()
    # nothing is thrown away that could stay: all rows of one kind are kept
    kept, found = opposed.sum(), conflicting(a, b).sum()
    assert kept == found or (~opposed).sum() == len(a) - found


def test_chosen_rows_are_drawn_not_the_first_ones() -> None:
    a, b = rewards(n=2_000)
    first, second = (select_conflict(a, b, 0.3, np.random.default_rng(seed)) for seed in (0, 1))
    assert len(first) == len(second) and (first != second).any()
    assert first.max() > 1_900
    again = select_conflict(a, b, 0.3, np.random.default_rng(0))
    assert (first == again).all()


def test_conflict_is_opposite_signs_beyond_the_tie() -> None:
    a = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, -0.1, 0.0]])
    b = np.zeros_like(a)
    assert conflicting(a, b).tolist() == [False, True, False, False, True]
    assert conflicting(a, b, tie=0.1).tolist() == [False, True, False, False, False]


def test_labels_repeat_with_their_seed() -> None:
    a, b = rewards(n=100)
    labelling = Labelling(flip=0.2, missing=0.2, tie=0.1)
    first, second, other = (prefer(a, b, labelling, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, second)
    assert (np.nan_to_num(first, nan=-1) != np.nan_to_num(other, nan=-1)).any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kappa": -1.0}, "kappa"),
        ({"kappa": math.nan}, "kappa"),
        ({"flip": 1.5}, "flip"),
        ({"missing": (0.1, -0.1)}, "missing"),
        ({"scale": 0.0}, "scale"),
        ({"conflict": 30.0}, "conflict"),
    ],
)
def test_impossible_labellings_are_refused(options: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Labelling(**options)


def test_other_noise_leaves_exact_labels_exact() -> None:
    assert Labelling(kappa=(2.0, math.inf), flip=0.1).with_kappa(6.0) == Labelling(kappa=(6.0, math.inf), flip=0.1)
    assert PRESETS["clean"].with_kappa(6.0) == replace(PRESETS["clean"], kappa=6.0)
    assert PRESETS["conflict-60"].with_kappa(6.0) == PRESETS["conflict-60"]


def test_what_does_not_fit_is_refused() -> None:
    a, b = rewards(n=5)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="3 objectives|2 objectives"):
        prefer(a, b, Labelling(flip=(0.1, 0.1, 0.1)), rng)
    with pytest.raises(InputError, match="kappa does not fit"):
        prefer(a, b, Labelling(kappa=(1.0,)), rng)
    with pytest.raises(InputError, match="do not fit"):
        prefer(a, b[:, :1], Labelling(), rng)
    b[2, 1] = math.nan
    with pytest.raises(InputError, match="row 2"):
        prefer(a, b, Labelling(), rng)
    with pytest.raises(InputError, match="no rows that conflict"):
        select_conflict(np.ones((5, 2)), np.zeros((5, 2)), 0.3, rng)


@pytest.mark.parametrize("labelling", [Labelling(kappa=0.8), Labelling(kappa=3.0, flip=0.2, tie=0.1, missing=0.3)])
def test_whoever_knows_the_rewards_reaches_the_ceiling_and_nobody_passes_it(labelling: Labelling) -> None:
    a, b = rewards(n=100_000)
    labels = prefer(a, b, labelling, np.random.default_rng(1))
    counted = ~np.isnan(labels) & (labels != 0.5)
    right = np.where(counted, (labels > 0.5) == (a > b), np.nan)
    best = ceiling(a, b, labelling)
    assert np.nanmean(right, axis=0) == pytest.approx(best, abs=5 * 0.5 / math.sqrt(counted.sum(0).min()))
    assert (ceiling(a, b, Labelling(kappa=math.inf)) == 1).all()
