"""The page's sentences: what the figures carry, and no more."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from paretune.evaluation.report import words
from paretune.evaluation.report.facts import Conflict
from paretune.evaluation.report.load import Run, World
from tests.evaluation.report.test_facts import made_run, point, world


def logged(cosine: float = -0.3, angle: float = 0.2, clip: float = 0.5, shift: float = 0.0, **changes: Any) -> Run:
    line = {"step": 1, "grad/cosine/x~y": cosine, "combine/angle_to_linear": angle, "combine/clip_active": clip}
    line |= {"combine/effective_weight/x": 0.3 + shift, "combine/effective_weight/y": 0.7 - shift}
    line |= {"grad/norm/x": 1.0, "grad/norm/y": 2.0}
    return made_run([line], **changes)


def compared(gap: float, spread: float, seeds: int) -> World:
    """Linear and RACO at two weightings, RACO better by `gap`, give or take `spread`, at each seed."""
    points = []
    for seed in range(seeds):
        more = gap + spread * (-1) ** seed
        for w in (0.2, 0.8):
            points.append(point("linear", (w, 1 - w), (w, 1 - w), seed=seed, run=logged(method="linear", seed=seed)))
            points.append(point("raco", (w, 1 - w), (w + more, 1 - w + more), seed=seed, run=logged(seed=seed)))
    return world(*points)


@pytest.mark.parametrize(
    ("cosine", "said"),
    [
        (-0.9, "conflict strongly"),
        (-0.3, "conflict clearly"),
        (-0.1, "conflict weakly"),
        (0.01, "hardly touch"),
        (0.1, "agree weakly"),
        (0.3, "agree clearly"),
        (0.9, "agree strongly"),
    ],
)
def test_how_much_objectives_conflict(cosine: float, said: str) -> None:
    (line,) = words.conflict_words([Conflict("x", "y", cosine, 0.873, cosine, cosine)])
    assert line.startswith(f"The gradients of x and y {said}: their cosine was")
    assert f"{cosine:+.2f}".replace("-", "−") in line
    assert "below 0 in 87\u00a0%" in line
    assert "first tenth" not in line
    assert "from −0.50 in the first tenth to +0.10 in the last" in words.conflict_words(
        [Conflict("x", "y", cosine, 0.5, -0.5, 0.1)]
    )[0]  # fmt: skip


def test_how_far_raco_lay_from_linear() -> None:
    lines = words.raco_words([logged(angle=0.2), logged(angle=0.1)])
    assert lines[0] == (
        f"RACO's update lay {math.degrees(0.15):.1f} degrees from linear weighting's on average "
        f"(c = 0.4 allows at most {math.degrees(math.asin(0.4)):.1f})."
    )
    assert "nearly linear weighting" in words.raco_words([logged(angle=0.01)])[0]
    assert "allows" not in words.raco_words([logged(), logged(c=0.2)])[0]
    assert words.raco_words([]) == []


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (0.0, "never acted: RACO was weighted CAGrad"),
        (0.4, "in 40\u00a0%"),
        (0.001, "less than 1\u00a0%"),
        (1.0, "in all"),
    ],
)
def test_whether_clipping_acted(clip: float, said: str) -> None:
    assert said in words.raco_words([logged(clip=clip)])[1]


def test_one_seed_is_called_one_seed() -> None:
    lines = words.in_short(compared(5.0, 0.0, 1))
    assert (
        "One seed (0): differences between runs may be chance, and nothing here says that one method is better."
        in lines
    )
    assert not any("interval over seeds" in line for line in lines)
    assert "One seed (0)" in words.run_in_short(logged())[-1]


def test_a_difference_is_stated_with_its_interval_or_not_at_all() -> None:
    (none,) = [line for line in words.in_short(compared(0.01, 0.05, 3)) if "interval" in line]
    assert "the interval contains 0, so no difference is shown" in none
    (some,) = [line for line in words.in_short(compared(0.3, 0.01, 4)) if "interval" in line]
    assert re.search(
        r"differed from linear's by \+0\.\d+ \(95 % interval over seeds \+0\.\d+ to \+0\.\d+\): higher", some
    )
    assert "Other data may say otherwise." in some
    (worse,) = [line for line in words.in_short(compared(-0.1, 0.005, 4)) if "interval" in line]
    assert ": lower on these prompts" in worse


@pytest.mark.parametrize("gap", [0.3, -0.1, 0.0])
def test_nothing_is_claimed_beyond_the_figures(gap: float) -> None:
    for seeds in (1, 2, 5):
        text = " ".join(words.in_short(compared(gap, 0.02, seeds)))
        assert not re.search(r"outperform|superior|wins|proves|significant|state of the art", text)
        assert "better" not in text.replace("nothing here says that one method is better", "")
        assert "same stationary points" in text and "differences of the path" in text


def test_stationary_points_are_of_raco_only() -> None:
    assert words.SAME_POINTS not in words.run_in_short(logged(method="linear"))
    assert words.SAME_POINTS in words.run_in_short(logged())


def tried(*runs: Run, seeds: int = 3) -> str:
    return " ".join(words.to_try(runs, ["x", "y"], seeds=list(range(seeds))))


def test_what_to_try() -> None:
    both = (logged(), logged(method="linear"))
    assert tried(*both) == ""
    assert "hardly conflict" in tried(logged(cosine=0.2), logged(cosine=0.0, method="linear"))
    assert "a larger c" in tried(logged(angle=0.01), logged(method="linear"))
    assert "combiner: cagrad would have given the same runs" in tried(logged(clip=0.0), logged(method="linear"))
    assert "move the nominal weights further apart" in tried(logged(shift=0.1), logged(method="linear"))
    assert "combiner: linear, to see" in tried(logged())
    assert "at least three seeds" in tried(*both, seeds=2)
    long = made_run([{"step": 1, "grad/norm/x": 8.0, "grad/norm/y": 1.0}], method="linear")
    assert "x is 8.0 times as long as that of y" in tried(long)


def test_gains_come_with_their_kl() -> None:
    points = [point(m, (w, 1 - w), (w, 1 - w), kl=1.0 + w) for m in ("linear", "raco", "cagrad") for w in (0.2, 0.8)]
    (line,) = words.gain_words(world(*points, base=(0.1, 0.3)))
    assert line.startswith("Within 1.50 nats of the reference")
    assert "linear +0.100 in x, +0.500 in y; RACO +0.100 in x, +0.500 in y." in line
    assert words.gain_words(world(*points, base=None)) == []
