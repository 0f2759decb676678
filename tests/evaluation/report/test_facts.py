"""Figures of the page against figures worked out here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from paretune.evaluation.report import facts
from paretune.evaluation.report.load import Point, Run, World


def made_run(lines: list[dict[str, Any]], *, weights: tuple[float, ...] = (0.3, 0.7), **changes: Any) -> Run:
    names = "xyz"[: len(weights)]
    record = {"config": {"clip": True}}
    own = {"name": "run", "method": "raco", "c": 0.4, "seed": 0, "record": record, **changes}
    return Run(objectives=tuple(names), weights=dict(zip(names, weights, strict=True)), history=lines, **own)


def point(method: str, weights: tuple[float, float], scores: tuple[float, float], **changes: Any) -> Point:
    own: dict[str, Any] = {"seed": 0, "ci": {}, "kl": None, "extras": {}, "run_name": "", "run": None, **changes}
    return Point(method, dict(zip("xy", weights, strict=True)), scores=dict(zip("xy", scores, strict=True)), **own)


def world(*points: Point, base: tuple[float, float] | None = (0.0, 0.0)) -> World:
    start = None if base is None else point("base", (0, 0), base)
    return World("w", ("x", "y"), {}, "", list(points), base=start)


def test_conflict_is_averaged_run_by_run() -> None:
    long = made_run([{"step": i, "grad/cosine/x~y": -0.5 if i > 2 else 0.5} for i in range(1, 21)])
    short = made_run([{"step": 1, "grad/cosine/x~y": 0.25}, {"step": 2, "train_runtime": 1.0, "grad/cosine/x~y": 9.0}])
    (found,) = facts.conflicts([long, short], ["x", "y"])
    assert (found.a, found.b) == ("x", "y")
    assert found.mean == pytest.approx(((-0.5 * 18 + 0.5 * 2) / 20 + 0.25) / 2)
    assert found.negative == pytest.approx((18 / 20 + 0) / 2)
    assert found.first == pytest.approx((0.5 + 0.25) / 2)
    assert found.last == pytest.approx((-0.5 + 0.25) / 2)
    assert facts.conflicts([made_run([])], ["x", "y"]) == []


def test_curves_skip_what_is_not_a_number() -> None:
    run = made_run([{"step": 1, "v": 1.0}, {"step": 2, "v": None}, {"step": 3, "v": math.nan}, {"step": 4, "v": 2}])
    found = facts.train_curve(run, "v")
    assert found.steps.tolist() == [1, 4] and found.values.tolist() == [1, 2]


def test_thinned_curves_keep_their_mean_and_ends() -> None:
    full = facts.Curve(np.arange(1000.0), np.sin(np.arange(1000.0)))
    thin = facts.thinned(full, 100)
    assert len(thin.steps) == 100
    assert thin.values.mean() == pytest.approx(full.values.mean())
    assert thin.steps[0] < 10 and thin.steps[-1] > 990
    assert facts.thinned(thin, 100) is thin


def test_mean_curve_is_over_the_steps_all_have() -> None:
    a = facts.Curve(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]))
    b = facts.Curve(np.array([2.0, 3, 4]), np.array([4.0, 5, 6]))
    found = facts.mean_curve([a, b, facts.Curve(np.empty(0), np.empty(0))])
    assert found.steps.tolist() == [2, 3] and found.values.tolist() == [3, 4]


def test_effective_weights_and_their_shift() -> None:
    key = "combine/effective_weight/"
    run = made_run([{"step": 1, f"{key}x": 0.4, f"{key}y": 0.6}, {"step": 2, f"{key}x": 0.5, f"{key}y": 0.5}])
    assert facts.effective_weights(run) == {"x": pytest.approx(0.45), "y": pytest.approx(0.55)}
    assert facts.weight_shift([run]) == pytest.approx(0.15)
    assert facts.effective_weights(made_run([{"step": 1, f"{key}x": 0.4}])) is None
    assert facts.weight_shift([made_run([])]) is None


def test_gains_at_equal_kl_take_only_what_was_reached() -> None:
    points = [
        point("linear", (0.5, 0.5), (0.2, 0.1), kl=1.0),
        point("linear", (0.9, 0.1), (0.9, 0.0), kl=5.0),
        point("raco", (0.5, 0.5), (0.3, 0.2), kl=2.0, seed=0),
        point("raco", (0.5, 0.5), (0.5, 0.2), kl=4.0, seed=1),
        point("raco", (0.9, 0.1), (0.8, 0.0), kl=6.0),
    ]
    found = facts.equal_kl(world(*points, base=(0.1, 0.1)))
    assert found is not None
    budget, gains, counts = found
    assert budget == 4.0  # the median of 1, 5, (2 + 4) / 2, 6
    assert counts == {"linear": 1, "raco": 1}
    assert gains["linear"]["x"][0] == pytest.approx(0.1)
    assert gains["raco"]["x"][0] == pytest.approx(0.4 - 0.1)
    assert gains["raco"]["x"][1].weights == {"x": 0.5, "y": 0.5}
    far = [*points, point("mgda", (0.5, 0.5), (0.3, 0.3), kl=9.0)]
    assert facts.equal_kl(world(*far)) is not None and facts.equal_kl(world(*far))[0] == 9.0  # type: ignore[index]
    assert facts.equal_kl(world(*points, base=None)) is None
    assert facts.equal_kl(world(*points, point("raco", (0.1, 0.9), (0, 0)))) is None


def test_volumes_compare_the_weightings_that_all_have() -> None:
    points = [
        point("linear", (0.2, 0.8), (0.0, 1.0)),
        point("linear", (0.8, 0.2), (1.0, 0.0)),
        point("linear", (0.5, 0.5), (0.9, 0.9)),  # raco lacks it: it may not help
        point("raco", (0.2, 0.8), (0.5, 1.0)),
        point("raco", (0.8, 0.2), (1.0, 0.5)),
        point("mgda", (0.5, 0.5), (0.7, 0.7)),
    ]
    found = facts.volumes(world(*points))
    assert found is not None
    assert found.reference == {"x": pytest.approx(-0.1), "y": pytest.approx(-0.1)}
    assert found.best == {"x": 1.0, "y": 1.0}
    assert (found.weightings, found.left_out) == (2, ["mgda"])
    assert found.shares["linear"][0] == pytest.approx((1.1 * 0.1 * 2 - 0.01) / 1.21)
    assert found.shares["raco"][0] == pytest.approx((1.21 - 0.25) / 1.21)
    incomplete = [*points, point("raco", (0.2, 0.8), (0.6, 1.0), seed=1)]
    assert list(facts.volumes(world(*incomplete)).shares["raco"]) == [0]  # type: ignore[union-attr]
    only = facts.volumes(world(point("raco", (0.5, 0.5), (1.0, 1.0)), point("linear", (0.5, 0.5), (0.5, 1.0))))
    assert only is not None and only.shares["raco"][0] == pytest.approx(1.0)
    assert facts.volumes(replace(world(*points), objectives=("x",))) is None
    assert facts.volumes(world()) is None


@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired_difference_is_the_t_interval(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(1, 0.1, n), rng.normal(0.9, 0.1, n)
    found = facts.paired_difference(dict(enumerate(ours)), dict(enumerate([*theirs, 5.0])))
    assert found is not None
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.n == n  # the seed that only one of them has is left out
    assert facts.paired_difference({0: 1.0}, {0: 2.0, 1: 3.0}) is None


def test_groups_gather_the_seeds_of_a_weighting() -> None:
    points = [point("raco", (0.8, 0.2), (1, 0), seed=s) for s in (0, 1)]
    points += [point("linear", (1 / 3, 2 / 3), (0, 1)), point("raco", (0.2, 0.8), (0, 1), kl=2.0)]
    found = facts.groups(world(*points))
    shown = [(group.method, group.weights["x"], len(group.points)) for group in found]
    assert shown == [("raco", 0.2, 1), ("raco", 0.8, 2), ("linear", 1 / 3, 1)]
    assert found[0].kl == 2.0 and found[1].kl is None
