import itertools

import numpy as np
import pytest
from scipy import stats

from paretune.errors import InputError
from paretune.evaluation.statistics import (
    bootstrap_interval,
    equivalence_test,
    holm,
    paired_interval,
    sign_flip_test,
)


def test_paired_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 12)
    found = paired_interval(values, 0.9)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 12 and found.mean == pytest.approx(values.mean())


def test_sign_flips_are_counted_exactly() -> None:
    values = [1.0, 2.0, -0.5, 3.0, 0.25]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert sign_flip_test(values) == pytest.approx(np.mean([total >= abs(sum(values)) for total in sums]))
    assert sign_flip_test([0.1] * 10) == pytest.approx(2 / 2**10)
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_drawn_signs_agree_with_the_exact_test() -> None:
    values = np.random.default_rng(1).normal(0.4, 1.0, 30)
    drawn = sign_flip_test(values)
    normal = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt(np.square(values).sum()))
    assert drawn == pytest.approx(normal, abs=0.01)


def test_tests_keep_their_level() -> None:
    """Under no difference, a test at 5 % rejects about 5 %; at the bound, so does the test of equivalence."""
    rng = np.random.default_rng(2)
    rejected = [sign_flip_test(rng.normal(0.0, 1.0, 10)) < 0.05 for _ in range(600)]
    assert 0.03 < np.mean(rejected) < 0.075
    at_bound = [equivalence_test(rng.normal(1.0, 1.0, 20), 1.0) < 0.05 for _ in range(2000)]
    assert 0.035 < np.mean(at_bound) < 0.065


def test_equivalence_is_two_one_sided_tests() -> None:
    values = np.random.default_rng(3).normal(0.1, 1.0, 25)
    low = stats.ttest_1samp(values, -0.6, alternative="greater").pvalue
    high = stats.ttest_1samp(values, 0.6, alternative="less").pvalue
    assert equivalence_test(values, 0.6) == pytest.approx(max(low, high))
    assert equivalence_test([0.1, 0.1], 0.2) == 0.0 and equivalence_test([0.3, 0.3], 0.2) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_bootstrap_covers_a_mean() -> None:
    values = np.random.default_rng(4).normal(0.0, 1.0, 40)
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), 40)
    half = 1.96 * values.std() / 40**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06)
    assert bootstrap_interval(lambda i: float(values[i].mean()), 1) == (values[0], values[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_interval([1.0]),
        lambda: paired_interval([1.0, np.nan]),
        lambda: sign_flip_test([]),
        lambda: equivalence_test([1.0, 2.0], 0.0),
        lambda: bootstrap_interval(lambda i: 0.0, 0),
    ],
)
def test_what_cannot_be_said_is_an_error(call) -> None:
    with pytest.raises(InputError):
        call()
