"""Which ordered pairs of K responses a judge is asked about, and what the answers come to.

    all        every pair in both orders: K(K-1) calls, the scores of arXiv 2602.16802
    one-order  every pair in one drawn order: K(K-1)/2 calls; a slot's favour is noise in the labels, not bias
    knockout   pairs in both orders, the winner stays in: 2(K-1) calls; finds the best, not the worst
    anchor     each response against the reference in both orders: 2K calls; against the first response: 2(K-1)

Of a knock-out the pairs that met have labels, and those of the winner: against a response that it never met P follows
along the matches between them. Against an anchor each pair has one: P(i better than j) follows from P(i) and P(j)
against the anchor. Both as Bradley and Terry have it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

from paretune.errors import InputError
from paretune.preferences.source import ALL_ORDERED, REFERENCE, Pair, Schedule, Verdict, win_rates

ANCHORS = {"reference": REFERENCE, "first": 0}
SCHEDULES = ("all", "one-order", "knockout", "anchor")
# Against an anchor a P of 0 or 1 (a verdict in words) would outweigh everything: it counts as this far from it.
_SURE = 1e-3


def make_schedule(name: str, anchor: str | None, where: str) -> Schedule:
    """One of `SCHEDULES`.

    Raises:
        InputError: an unknown name; an anchor without the schedule that needs it, or one that is not known.
    """
    if name not in SCHEDULES:
        raise InputError("bad schedule", where=where, expected=f"one of {', '.join(SCHEDULES)}", found=name)
    if anchor is not None and (name != "anchor" or anchor not in ANCHORS):
        expected = f"{' or '.join(ANCHORS)}, with schedule: anchor"
        raise InputError("bad anchor", where=where, expected=expected, found=f"{anchor}, schedule: {name}")
    if name == "anchor":
        return _against(ANCHORS[anchor or "reference"])
    return {"all": ALL_ORDERED, "one-order": ONE_ORDER, "knockout": KNOCKOUT}[name]


# ---- every pair in one order ----


def _one_order(count: int, answers: Mapping[Pair, float], seed: int) -> list[Pair]:
    if answers:
        return []
    rng = random.Random(f"one-order {seed}")
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in itertools.combinations(range(count), 2)]


ONE_ORDER = Schedule(lambda count: count * (count - 1) // 2, _one_order, win_rates)


# ---- a knock-out ----


def _knockout(count: int, answers: Mapping[Pair, float], seed: int) -> list[Pair]:
    """Both orders of the next round's pairs. Where a call failed the first of the pair stays in."""
    standing = list(range(count))
    random.Random(f"knockout {seed}").shuffle(standing)
    while len(standing) > 1:
        pairs = list(zip(standing[::2], standing[1::2], strict=False))
        if any(pair not in answers for pair in pairs):
            return [order for i, j in pairs for order in ((i, j), (j, i))]
        bye = standing[-1:] if len(standing) % 2 else []
        standing = [_stays(i, j, answers) for i, j in pairs] + bye
    return []


def _stays(i: int, j: int, answers: Mapping[Pair, float]) -> int:
    """The winner; of a draw the response that was given first, of a failed match the one drawn first."""
    low, high = min(i, j), max(i, j)
    p = _mean(low, high, answers)
    return i if math.isnan(p) else low if p >= 0.5 else high


def _mean(i: int, j: int, answers: Mapping[Pair, float]) -> float:
    """P(i better), both orders averaged in the way of `win_rates`, to the last bit; NaN where one failed."""
    return (answers[i, j] + (1.0 - answers[j, i])) / 2


def _knockout_verdict(count: int, answers: Mapping[Pair, float]) -> Verdict:
    """Scores: P(better than the winner), from the match that was lost and on along those that its winner lost.

    As Bradley and Terry have it, odds multiply along the way; the winner's score is 1/2 and the highest. These are also
    the labels of the winner's pairs: the worst has seldom met it, and the best against the worst would have none.
    """
    met = win_rates(count, answers)
    unknown = (math.nan,) * count
    beaten: dict[int, tuple[int, float]] = {}  # by whom, and the odds of the other outcome
    for i, j in itertools.combinations(range(count), 2):
        if (i, j) not in answers:
            continue
        if (i, j) not in (met.pairs or {}):
            return Verdict(unknown, met.pairs, met.inconsistent)  # who was best is not known
        p = (met.pairs or {})[i, j]
        beaten[j if p >= 0.5 else i] = (i if p >= 0.5 else j, min(p, 1.0 - p) / max(p, 1.0 - p))
    odds, pairs, inconsistent = [1.0] * count, dict(met.pairs or {}), set(met.inconsistent)
    for k in range(count):
        at, split = k, False
        while at in beaten:
            by, one = beaten[at]
            split |= (min(at, by), max(at, by)) in met.inconsistent
            at, odds[k] = by, odds[k] * one
        pair = (min(at, k), max(at, k))
        if at != k and pair not in pairs:
            p = odds[k] / (1.0 + odds[k])
            pairs[pair] = p if k < at else 1.0 - p
            inconsistent |= {pair} if split else set()
    return Verdict(tuple(o / (1.0 + o) for o in odds), pairs, frozenset(inconsistent))


KNOCKOUT = Schedule(lambda count: 2 * (count - 1), _knockout, _knockout_verdict)


# ---- against an anchor ----


def _against(anchor: int) -> Schedule:
    def others(count: int) -> list[int]:
        return [i for i in range(count) if i != anchor]

    def next_pairs(count: int, answers: Mapping[Pair, float], seed: int) -> list[Pair]:
        return [] if answers else [pair for i in others(count) for pair in ((i, anchor), (anchor, i))]

    def verdict(count: int, answers: Mapping[Pair, float]) -> Verdict:
        p = [0.5 if i == anchor else _mean(i, anchor, answers) for i in range(count)]
        orders = {i: (answers[i, anchor], 1.0 - answers[anchor, i]) for i in others(count)}
        split = {i for i, both in orders.items() if min(both) < 0.5 < max(both)}
        pairs = {(i, j): _between(p[i], p[j]) for i, j in itertools.combinations(range(count), 2)}
        pairs = {pair: value for pair, value in pairs.items() if not math.isnan(value)}
        return Verdict(tuple(p), pairs, frozenset(pair for pair in pairs if split & set(pair)))

    return Schedule(lambda count: 2 * len(others(count)), next_pairs, verdict)


def _between(p: float, q: float) -> float:
    """P(i better than j) from P(i) = p and P(j) = q against one anchor: σ(logit p - logit q) (Bradley-Terry)."""
    p, q = (x if math.isnan(x) else min(max(x, _SURE), 1 - _SURE) for x in (p, q))
    return p * (1 - q) / (p * (1 - q) + q * (1 - p))
