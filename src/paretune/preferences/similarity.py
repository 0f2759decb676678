"""Likeness to the reference: ROUGE-L and exact match. A baseline for judges, and a rule of its own."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence

from paretune.preferences.text_rules import Question, Rule

_WORD = re.compile(r"[^\W_]+")


def references_of(q: Question, column: str) -> list[str]:
    """The texts of a column that holds one or several; [] where a row has none."""
    given = q.columns.get(column)
    if given is None:
        return []
    return [str(one) for one in (given if isinstance(given, list) else [given]) if str(one).strip()]


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. Hunt and Szymanski's way: the longest increasing run of matching positions, quick where words rarely
    repeat."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(b):
        places.setdefault(word, []).append(place)
    ends: list[int] = []  # ends[k]: least last position in b of a common subsequence of k + 1 words
    for word in a:
        for place in reversed(places.get(word, ())):  # from the right, so that one word of a matches once
            k = bisect_left(ends, place)
            ends[k : k + 1] = [place]
    return len(ends)


def rouge_l(response: str, reference: str) -> float:
    """F-measure (β = 1) of the longest common subsequence of words (Lin 2004), lower case, without stemming."""
    a, b = ([word.lower() for word in _WORD.findall(text)] for text in (response, reference))
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def rouge(*, column: str = "reference") -> Rule:
    """ROUGE-L with the row's reference, the best of several; NaN without one."""

    def score(q: Question) -> float:
        return max((rouge_l(q.response, one) for one in references_of(q, column)), default=math.nan)

    return score


def exact_match(*, column: str = "reference") -> Rule:
    """1 where the response is a reference but for case, punctuation and spaces; NaN without one."""

    def score(q: Question) -> float:
        own = _WORD.findall(q.response.lower())
        return max((float(own == _WORD.findall(one.lower())) for one in references_of(q, column)), default=math.nan)

    return score
