"""From exact rewards to preferences: how comparisons are labelled, in every world of the sandbox.

A labeller of objective i prefers a with probability p_i = sigma(kappa_i (r_i(a) - r_i(b))) (Bradley & Terry 1952). What
real label files add to that (flips, missing labels, ties, one objective per row, chosen rows) is a `Labelling`, and
`PRESETS` names the ones that studies use.

N comparisons, m objectives; numpy in, numpy out. Every preset draws the same random numbers in the same order, so with
one seed two presets differ only in what they say they differ in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from paretune.errors import InputError

Floats = npt.NDArray[np.float64]
Each = float | tuple[float, ...]  # one number for every objective, or the first objectives' own


def _check(name: str, value: Each, low: float, high: float) -> None:
    values = value if isinstance(value, tuple) else (value,)
    if not all(low <= x <= high for x in values):
        raise InputError(f"bad {name}", expected=f"numbers from {low:g} to {high:g}", found=value)


@dataclass(frozen=True)
class Labelling:
    """How exact rewards become labels.

    A number is every objective's; a tuple is that of the first objectives, and those after it get the neutral value.

    Args:
        kappa: inverse noise of the labellers, per unit of reward; inf follows the rewards' signs. A tuple names all m.
        soft: the label is the probability itself, flips included, instead of a draw from it.
        flip: share of labels that are turned round, neutral 0.
        missing: share of labels that are left out, neutral 0.
        tie: rewards that differ by no more are a tie, label 0.5; in units of reward.
        disjoint: each row is labelled by one objective alone, all objectives equally often.
        scale: multiplies the objective's beta when a policy is trained on these labels, neutral 1.
        conflict: rows are chosen by `select_conflict` so that this share of them conflicts; None takes all rows.
    """

    kappa: Each = 4.0
    soft: bool = False
    flip: Each = 0.0
    missing: Each = 0.0
    tie: float = 0.0
    disjoint: bool = False
    scale: Each = 1.0
    conflict: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("kappa", 0.0, math.inf), ("flip", 0.0, 1.0), ("missing", 0.0, 1.0)):
            _check(name, getattr(self, name), low, high)
        _check("scale", self.scale, math.ulp(0.0), 1e300)
        _check("tie", self.tie, 0.0, math.inf)
        if self.conflict is not None:
            _check("conflict", self.conflict, 0.0, 1.0)

    def with_kappa(self, kappa: float) -> Labelling:
        """The same with other noise, in units of a world's rewards; labels that follow the rewards exactly still do."""
        own = self.kappa if isinstance(self.kappa, tuple) else (self.kappa,)
        changed = tuple(math.inf if math.isinf(one) else kappa for one in own)
        return replace(self, kappa=changed if isinstance(self.kappa, tuple) else changed[0])

    def betas(self, beta: float, m: int) -> list[float]:
        """The m objectives' inverse temperatures in a run with `beta`."""
        return [beta * factor for factor in each("scale", self.scale, m, 1.0)]


# In the conflict presets labels follow the rewards exactly: noise would add conflicts of its own to the stated share.
PRESETS: dict[str, Labelling] = {
    "clean": Labelling(),
    "noisy-one": Labelling(flip=(0.3,)),
    "rare-one": Labelling(missing=(0.9,)),
    "scaled": Labelling(scale=(5.0,)),
    "disjoint": Labelling(disjoint=True),
    **{f"conflict-{share}": Labelling(kappa=math.inf, conflict=share / 100) for share in (0, 30, 60, 100)},
}


def each(name: str, value: Each, m: int, neutral: float | None) -> list[float]:
    """One number per objective; `neutral` fills up a tuple, or None where a tuple must be complete.

    Raises:
        InputError: a tuple of more than m numbers, or of fewer and there is nothing neutral.
    """
    if not isinstance(value, tuple):
        return [value] * m
    if len(value) > m or (neutral is None and len(value) < m):
        raise InputError(f"{name} does not fit", expected=f"numbers for {m} objectives", found=value)
    return [*value, *[neutral or 0.0] * (m - len(value))]


def prefer(rewards_a: Floats, rewards_b: Floats, labelling: Labelling, rng: np.random.Generator) -> Floats:
    """Labels of N comparisons: the probability that a is better, (N, m); 1 and 0 where drawn, 0.5 a tie, NaN missing.

    `labelling.conflict` and `.scale` are not used here: the first chooses rows beforehand, the second is of training.

    Args:
        rewards_a, rewards_b: (N, m), exact rewards of the two responses.

    Raises:
        InputError: shapes that do not fit, rewards that are not finite.
    """
    difference = _difference(rewards_a, rewards_b)
    n, m = difference.shape
    drawn, turned, left_out = rng.random((3, n, m))
    owner = rng.permutation(n) % m
    tied = np.abs(difference) <= labelling.tie
    kappa = np.array(each("kappa", labelling.kappa, m, None))
    flip = np.array(each("flip", labelling.flip, m, 0.0))
    # tied rewards have no sign, and 0 times an infinite kappa no value
    p = sigmoid(np.where(tied, 0.0, difference) * np.where(tied, 1.0, kappa))
    if labelling.soft:
        labels = p * (1.0 - flip) + (1.0 - p) * flip
    else:
        labels = ((drawn < p) != (turned < flip)).astype(np.float64)
    labels[tied] = 0.5
    labels[left_out < np.array(each("missing", labelling.missing, m, 0.0))] = np.nan
    if labelling.disjoint:
        labels[owner[:, None] != np.arange(m)] = np.nan
    return labels


def ceiling(rewards_a: Floats, rewards_b: Floats, labelling: Labelling) -> Floats:
    """The accuracy that nobody can exceed in expectation on N pairs with labels drawn so, (m,): mean max(p, 1 - p).

    Whoever knows the rewards reaches it (unless more than half of the labels are turned round). Pairs that are labelled
    a tie are left out, as accuracies leave them out.

    Args:
        rewards_a, rewards_b: (N, m), exact rewards of the two responses.
    """
    soft = replace(labelling, soft=True, missing=0.0, disjoint=False)
    p = prefer(rewards_a, rewards_b, soft, np.random.default_rng(0))  # draws nothing that counts
    tied = np.abs(_difference(rewards_a, rewards_b)) <= labelling.tie
    return np.nanmean(np.where(tied, np.nan, np.maximum(p, 1.0 - p)), axis=0)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow; exact at -inf and inf."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


def conflicting(rewards_a: Floats, rewards_b: Floats, *, tie: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which of N rows conflict, (N,): some objective finds a better by more than `tie`, and some other one finds b."""
    difference = _difference(rewards_a, rewards_b)
    return np.logical_and((difference > tie).any(1), (difference < -tie).any(1))


def select_conflict(
    rewards_a: Floats, rewards_b: Floats, share: float, rng: np.random.Generator, *, tie: float = 0.0
) -> npt.NDArray[np.int64]:
    """As many of the N rows as can be kept so that `share` of them conflicts; their indices, ascending.

    All rows of the kind that is short are kept, and as many of the other kind, drawn at random; the share is met up to
    one row. A row whose objectives all tie does not conflict.

    Args:
        rewards_a, rewards_b: (N, m).
        share: in [0, 1].
        tie: as `Labelling.tie`.

    Raises:
        InputError: no row of a kind that the share needs.
    """
    conflict = conflicting(rewards_a, rewards_b, tie=tie)
    kinds = [rng.permutation(np.flatnonzero(conflict)), rng.permutation(np.flatnonzero(~conflict))]
    shares = [share, 1.0 - share]
    for kind, part, name in zip(kinds, shares, ("conflict", "do not conflict"), strict=True):
        if part > 0.0 and not len(kind):
            raise InputError(
                f"no rows that {name}",
                expected=f"a share of {part:g}",
                found=f"{len(conflict)} rows, none of them",
                fix="Draw more rows, or take a preset with another share.",
            )
    total = min(len(kind) / part for kind, part in zip(kinds, shares, strict=True) if part > 0.0)
    counts = [min(len(kind), round(total * part)) for kind, part in zip(kinds, shares, strict=True)]
    return np.sort(np.concatenate([kind[:count] for kind, count in zip(kinds, counts, strict=True)]))


def _difference(rewards_a: Floats, rewards_b: Floats) -> Floats:
    a, b = np.asarray(rewards_a, dtype=np.float64), np.asarray(rewards_b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] == 0:
        raise InputError("rewards do not fit", expected="two arrays (N, m)", found=f"{a.shape} and {b.shape}")
    difference = a - b
    if not np.isfinite(difference).all():
        raise InputError("rewards are not finite", where=f"row {int(np.argmin(np.isfinite(difference).all(1)))}")
    return difference
