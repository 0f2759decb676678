"""The one contract of everything that labels: rules, reward models, judges.

A source either scores single responses or compares ordered pairs of them, in batches:

    score(prompts, responses, references=None, **columns) -> one number per response
    compare(prompts, pairs, references=None, **columns)   -> P(first is better) per pair

`prompts` and responses come as the rows hold them, text or messages (`text_of` makes text of either); `pairs` are
tuples (first, second), in the order in which a judge is to see them. NaN is a failure: a missing label, counted and
never a vote. Instead of a list a source may yield (position, answer) as each is known, or {position: answer} of
several: then what was answered is kept even when the process is killed, or the source raises, in the middle of a batch.
A column that is called as one of these arguments comes with an underscore more (`references_`). A network source runs
its own event loop inside.

What a source is told beside the texts is what it `reads`. That and its fingerprint are the key under which an answer
is kept (`asking`), so a fingerprint names whatever changes the answers: model and its revision, prompt, rubric,
settings, a version of the code. Its name is that of the objective that it labels, and is not part of the key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from paretune.comparisons.rows import Text
from paretune.errors import InputError

Pair = tuple[int, int]
Portion = Mapping[int, float | None]
Answers = Sequence[float | None] | Iterable[tuple[int, float | None] | Portion]

REFERENCE = -1  # as an index in a pair: the row's reference takes part as a candidate (an anchor)


@dataclass(frozen=True)
class Verdict:
    """What one source says about the K responses to one prompt.

    Args:
        scores: (K,) numbers to order the responses by; NaN where unknown. For a judge these are win rates.
        pairs: {(i, j), i < j: P(i is better)}, both orders averaged; a pair that is absent has no label. None: labels
            follow from the scores' differences.
        inconsistent: those pairs whose two orders lie on different sides of 1/2.
        missing: pairs without a label although their scores are known: a part of a combination has none.
        rounding: (K,) how far rounding may have put each score off, of a combination's; () for not at all.
    """

    scores: tuple[float, ...]
    pairs: Mapping[Pair, float] | None = None
    inconsistent: frozenset[Pair] = frozenset()
    missing: frozenset[Pair] = frozenset()
    rounding: tuple[float, ...] = ()


class Schedule(NamedTuple):
    """Which ordered pairs of K responses a judge is asked about, and what the answers come to.

    Args:
        calls: K -> how many ordered pairs it asks about in all.
        next_pairs: (K, answers so far, seed) -> ordered pairs to ask about next, [] when it is done. Rounds that
            depend on earlier answers (a knock-out) come one after another; NaN is an answer, of a call that failed. The
            seed is the prompt's own: what a schedule draws differs from prompt to prompt.
        verdict: (K, all answers) -> `Verdict`.
    """

    calls: Callable[[int], int]
    next_pairs: Callable[[int, Mapping[Pair, float], int], list[Pair]]
    verdict: Callable[[int, Mapping[Pair, float]], Verdict]


def win_rates(count: int, answers: Mapping[Pair, float]) -> Verdict:
    """The verdict of ordered answers: each pair's known orders averaged, each response's mean over its pairs.

    With every ordered pair answered the score is that of arXiv 2602.16802, section 3 of its code:
    s_i = 1/(2(K-1)) Σ_j [P(i wins | i first) + P(i wins | i second)]. A pair with one failed order has the other's
    answer only where it was never to be asked in both; else it would carry that slot's bias, and is left out.
    """
    pairs, inconsistent = {}, set()
    for i, j in itertools.combinations(range(count), 2):
        orders = [p if first == i else 1.0 - p for first, p in _both(i, j, answers)]
        if not orders or any(math.isnan(p) for p in orders):
            continue
        pairs[i, j] = sum(orders) / len(orders)
        if min(orders) < 0.5 < max(orders):
            inconsistent.add((i, j))
    return Verdict(mean_wins(count, pairs), pairs, frozenset(inconsistent))


def mean_wins(count: int, pairs: Mapping[Pair, float]) -> tuple[float, ...]:
    """(count,) each response's mean P over the pairs that it is in; NaN without one."""
    wins = [[p if k == i else 1.0 - p for (i, j), p in pairs.items() if k in (i, j)] for k in range(count)]
    return tuple(sum(won) / len(won) if won else math.nan for won in wins)


def _both(i: int, j: int, answers: Mapping[Pair, float]) -> list[tuple[int, float]]:
    return [(pair[0], answers[pair]) for pair in ((i, j), (j, i)) if pair in answers]


def _all_ordered(count: int, answers: Mapping[Pair, float], seed: int) -> list[Pair]:
    return [pair for pair in itertools.permutations(range(count), 2) if pair not in answers]


ALL_ORDERED = Schedule(lambda count: count * (count - 1), _all_ordered, win_rates)


@dataclass(frozen=True)
class Source:
    """Something that labels one objective. Exactly one of `score` and `compare` is given.

    Args:
        name: the objective.
        fingerprint: see above.
        score, compare: see above.
        schedule: of a comparing source.
        reads: columns of the rows that it is told, "reference" among them (given as `references`, None where a row has
            none); None: all that the rows hold.
        batch_size: items that one call takes: what a device computes at once, or a server answers concurrently.
        cached: keep its answers on disk. False for what is quicker to compute than to find.
        usage: what it has used so far, by name, as {"input_tokens": …, "usd": …}; shown with the counts.
        requests: a row's columns -> the calls that one item of it takes, for the announcement; None: one.

    Raises:
        InputError: neither or both of score and compare, no name, no fingerprint, a bad batch size.
    """

    name: str
    fingerprint: str
    score: Callable[..., Answers] | None = None
    compare: Callable[..., Answers] | None = None
    schedule: Schedule = ALL_ORDERED
    reads: tuple[str, ...] | None = ()
    batch_size: int = 64
    cached: bool = True
    usage: Callable[[], Mapping[str, float]] | None = None
    requests: Callable[[Mapping[str, Any]], int] | None = None

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if (self.score is None) == (self.compare is None):
            raise InputError("bad source", where=where, expected="one of score and compare")
        if not self.name or not self.fingerprint:
            raise InputError("bad source", where=where, expected="a name and a fingerprint")
        if self.batch_size < 1:
            raise InputError("bad batch_size", where=where, expected="at least 1", found=self.batch_size)


@dataclass(frozen=True)
class Item:
    """One thing to be answered: a response to a prompt, or an ordered pair of them; and the row's other columns."""

    prompt: Text
    responses: tuple[Text] | tuple[Text, Text]
    columns: Mapping[str, Any] = field(default_factory=dict)
