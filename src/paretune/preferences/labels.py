"""From what a source says about K responses to labels of their pairs: soft or hard, with ties and missing ones."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paretune.errors import InputError
from paretune.preferences.source import Pair, Verdict, mean_wins

Labels = dict[Pair, float]  # {(i, j), i < j: probability that i is preferred}; absent: no label


@dataclass(frozen=True)
class LabelOptions:
    """How differences become labels. A difference is s_i - s_j of scores, and 2 P - 1 of comparisons.

    Args:
        soft: a number g: P = σ(g (s_i - s_j)) of scores (MMPO, arXiv 2410.03145), σ(g logit P) of comparisons; true is
            g = 1, which keeps a comparison's P as it is. false: hard, 1 or 0. None: hard for scores, soft for
            comparisons.
        tie: differences up to this are ties, 0.5.
        min_margin: differences below this are no label at all.
        consistent_only: of comparisons, no label where the two orders disagree about the winner.
    """

    soft: float | bool | None = None
    tie: float = 0.0
    min_margin: float = 0.0
    consistent_only: bool = False

    def __post_init__(self) -> None:
        for key, value in (("tie", self.tie), ("min_margin", self.min_margin)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"bad {key}", expected="a number >= 0", found=value)
        number = isinstance(self.soft, int | float) and not isinstance(self.soft, bool)
        if self.soft is not None and not isinstance(self.soft, bool) and not (number and 0 < self.soft < math.inf):
            raise InputError("bad soft", expected="true, false or a number > 0", found=self.soft)
        if not isinstance(self.consistent_only, bool):
            raise InputError("bad consistent_only", expected="true or false", found=self.consistent_only)


def pair_labels(verdict: Verdict, options: LabelOptions) -> Labels:
    """The labels of all pairs that have one."""
    labels: Labels = {}
    for i, j in itertools.combinations(range(len(verdict.scores)), 2):
        slack = verdict.rounding[i] + verdict.rounding[j] if verdict.rounding else 0.0
        if (i, j) in verdict.missing:
            continue
        if verdict.pairs is None:
            difference = verdict.scores[i] - verdict.scores[j]
            p = float(difference > 0) if not options.soft else _sigmoid(float(options.soft) * difference)
        elif (i, j) in verdict.pairs:
            p = verdict.pairs[i, j]
            difference = 2 * p - 1
            if options.soft is False:
                p = float(p > 0.5)
            elif options.soft is not None and options.soft is not True and 0 < p < 1:
                p = _sigmoid(options.soft * math.log(p / (1 - p)))
        else:
            continue
        dropped = options.consistent_only and (i, j) in verdict.inconsistent
        # NaN also where both are infinite: a sum beyond the floats
        if math.isnan(abs(difference) - slack) or abs(difference) < options.min_margin - slack or dropped:
            continue
        labels[i, j] = 0.5 if abs(difference) <= options.tie + slack else p
    return labels


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# ---- combined: functions of the parts' verdicts and labels ----


def first_opinion(parts: Sequence[tuple[Verdict, Labels]], count: int) -> Verdict:
    """Lexicographic: each pair has the label of the first part that does not call it a tie.

    A part that failed on a pair leaves the pair without a label: what it would have said is not known. Scores are the
    mean labels of a response's pairs. A pair is inconsistent where it is to the part that decided.
    """
    pairs: Labels = {}
    inconsistent = set()
    for pair in itertools.combinations(range(count), 2):
        verdict, labels = next((part for part in parts if part[1].get(pair) != 0.5), parts[-1])
        if pair in labels:
            pairs[pair] = labels[pair]
            if pair in verdict.inconsistent:
                inconsistent.add(pair)
    return Verdict(mean_wins(count, pairs), pairs, frozenset(inconsistent))


def weighted_sum(parts: Sequence[tuple[Verdict, float]], count: int) -> Verdict:
    """Σ w·s of the parts' scores (win rates of comparisons); NaN where one of them is.

    Its `rounding` bounds what n products and their sum may lose, and that w and s are decimals that no float is: so
    0.1 + 0.2 against 0.3 is a tie, not a vote.
    """
    terms = [[weight * verdict.scores[k] for verdict, weight in parts] for k in range(count)]
    ulps = (len(parts) + 2) * sys.float_info.epsilon
    lost = [sum(abs(w) * v.rounding[k] for v, w in parts if v.rounding) for k in range(count)]
    rounding = tuple(ulps * sum(map(abs, own)) + before for own, before in zip(terms, lost, strict=True))
    return Verdict(tuple(map(sum, terms)), rounding=rounding)


def known_to_all(verdict: Verdict, parts: Sequence[tuple[Verdict, Labels]]) -> Verdict:
    """A verdict by the parts' scores: a pair that a part has no label for is missing, one inconsistent to a part is so.

    Else the win rates of a part, over other opponents, would stand for the comparison that failed.
    """
    every = itertools.combinations(range(len(verdict.scores)), 2)
    missing = frozenset(pair for pair in every if any(pair not in labels for _, labels in parts))
    return replace(verdict, missing=missing, inconsistent=frozenset().union(*(part.inconsistent for part, _ in parts)))
