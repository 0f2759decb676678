"""P(first is better) from a server's answer: from its log-probabilities where it gives them, else from its words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paretune.preferences.judges.protocols import Protocol


@dataclass(frozen=True)
class Token:
    """One generated token: its text and the most probable texts in its place, itself among them, by log-probability."""

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Reading:
    """P(first is better), NaN where nothing could be read, and whether it came from words alone."""

    p: float
    by_words: bool = False


def read(protocol: Protocol, text: str, tokens: Sequence[Token] | None, *, forced: bool) -> Reading:
    """What a reply says.

    Args:
        text: the reply.
        tokens: its tokens with alternatives, None where the server gave none.
        forced: the protocol's prefix was put into the model's mouth, so the reply begins with the label.
    """
    if tokens:
        p = from_tokens(protocol, tokens, forced=forced)
        if not math.isnan(p):
            return Reading(p)
    named = _named(protocol, text, forced)
    return Reading(math.nan if named is None else 1.0 - named[0], by_words=named is not None)


def from_tokens(protocol: Protocol, tokens: Sequence[Token], *, forced: bool) -> float:
    """exp(l_1) / (exp(l_1) + exp(l_2)) of the two labels where the reply has its label; NaN where it has none.

    The two labels are compared as the same kind of token: "a" with "b", "a)" with "b)", in the kind that holds the most
    probability, whichever token was drawn. A label that is not listed has at most what the list leaves over, and no
    more than its last entry; it counts as having that.
    """
    start = 0
    if not forced:
        named = _named(protocol, "".join(token.text for token in tokens), forced)
        if named is None:
            return math.nan
        start = named[1]
    end = 0
    for token in tokens:
        begin, end = end, end + len(token.text)
        if begin <= start < end or forced:
            return _share(protocol, token, token.text[: start - begin])
    return math.nan


def _share(protocol: Protocol, token: Token, head: str) -> float:
    kinds: dict[str, list[float | None]] = {}  # what follows the label -> the two log-probabilities
    for text, logprob in token.top.items():
        for which, label in enumerate(protocol.labels):
            tail = text[len(head + label) :]
            # -9999: "not among the listed"
            if text.startswith(head + label) and logprob > -1e3 and _ends_label(protocol, tail):
                kinds.setdefault(tail, [None, None])[which] = logprob
    if not kinds:
        return math.nan
    mass = {tail: sum(math.exp(p) for p in both if p is not None) for tail, both in kinds.items()}
    most = min(kinds, key=lambda tail: (-mass[tail], len(tail), tail))
    left = _left_over(token.top)
    first, second = (left if logprob is None else logprob for logprob in kinds[most])
    return 1.0 / (1.0 + math.exp(min(second - first, 700.0)))


def _ends_label(protocol: Protocol, tail: str) -> bool:
    """Whether a token goes on after the label as the answer does, or with signs: "as" and "both" are words, no labels.

    The labels are where the answers differ, so a word may go on behind them: "Lef" and "Righ" of "Left" and "Right".
    """
    rest = protocol.answers[0][len(protocol.prefix + protocol.labels[0]) :]
    word = re.match(r"\w*", rest)
    own = word[0] if word is not None else ""
    return rest.startswith(tail) or (tail.startswith(own) and re.search(r"\w", tail[len(own) :]) is None)


def _left_over(top: Mapping[str, float]) -> float:
    """The most that the log-probability of a text can be that is not listed."""
    rest = 1.0 - sum(math.exp(logprob) for logprob in top.values())
    return min(min(top.values()), math.log(max(rest, 1e-9)))


def _named(protocol: Protocol, text: str, forced: bool) -> tuple[int, int] | None:
    """Which answer a reply names, 0 or 1, and where in the text its label begins; None where that is not clear.

    Clear is a reply that names only one answer, is a bare label, or begins with an answer by itself and then explains
    it. One that names both otherwise is not: "Output (a) is worse than Output (b)".
    """
    said = protocol.prefix + text if forced else text
    names = [re.escape(answer) + (r"(?!\w)" if answer[-1].isalnum() else "") for answer in protocol.answers]
    found = [re.search(name, said, re.IGNORECASE) for name in names]
    places = [None if one is None else one.start() for one in found]
    for which, place in enumerate(places):
        if place is None:
            continue
        other = names[1 - which]
        if places[1 - which] is None or (_by_itself(names[which], said, r"\A\s*") and not _by_itself(other, said)):
            return which, place + len(protocol.prefix)
    if places == [None, None]:
        bare = re.fullmatch(r"\W*(\w+)\W*", text)
        labels = [label.strip().lower() for label in protocol.labels]
        if bare is not None and bare[1].lower() in labels:
            return labels.index(bare[1].lower()), bare.start(1)
    return None


def _by_itself(name: str, said: str, before: str = r"(?:\A|[.!?]\s|\n)") -> bool:
    """Whether an answer is a sentence or a line of its own, whatever marks it as bold or quoted."""
    after = r"""["'*_`]{0,4}(?:[.!]["'*_`]{0,4}(?=\s|\Z)|[^\S\n]*(?:\n|\Z))"""
    return re.search(rf"{before}[\W_]{{0,4}}?{name}{after}", said, re.IGNORECASE) is not None
