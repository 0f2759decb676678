"""From what a source says about K responses to labels of their pairs: soft or hard, with ties and missing ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from paretune.errors import InputError
from paretune.preferences.source import Pair, Verdict

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
        if math.isnan(difference) or abs(difference) < options.min_margin or dropped:
            continue
        labels[i, j] = 0.5 if abs(difference) <= options.tie else p
    return labels


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# ---- combined: functions of the parts' verdicts and labels ----


def first_opinion(parts: Sequence[tuple[Verdict, Labels]], count: int) -> Verdict:
    """Lexicographic: each pair has the label of the first part that does not call it a tie.

    A part that failed on a pair leaves the pair without a label: what it would have said is not known. Scores are the
    mean labels of a response's pairs.
    """
    pairs: Labels = {}
    for pair in itertools.combinations(range(count), 2):
        for _, labels in parts:
            if pair not in labels:
                pairs.pop(pair, None)
                break
            pairs[pair] = labels[pair]
            if labels[pair] != 0.5:
                break
    wins = [[p if k == i else 1.0 - p for (i, j), p in pairs.items() if k in (i, j)] for k in range(count)]
    return Verdict(tuple(sum(won) / len(won) if won else math.nan for won in wins), pairs)


def weighted_sum(parts: Sequence[tuple[Verdict, float]], count: int) -> Verdict:
    """Σ w·s of the parts' scores (win rates of comparisons); NaN where one of them is."""
    return Verdict(tuple(sum(weight * verdict.scores[k] for verdict, weight in parts) for k in range(count)))
