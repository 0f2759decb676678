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

    The two labels are compared as the same kind of token: "a" with "b", "a)" with "b)". A label that is not listed has
    at most what the list leaves over, and no more than its last entry; it counts as having that.
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
    labels = protocol.labels
    texts = [token.text, *sorted(token.top, key=lambda text: (len(text), text))]  # then the bare label
    tails = [text[len(head + label) :] for text in texts for label in labels if text.startswith(head + label)]
    for tail in dict.fromkeys(tails):
        logprobs = [token.top.get(head + label + tail) for label in labels]
        if all(logprob is None or logprob < -1e3 for logprob in logprobs):  # -9999: "not among the listed"
            continue
        left = _left_over(token.top)
        first, second = (left if logprob is None else logprob for logprob in logprobs)
        return 1.0 / (1.0 + math.exp(min(second - first, 700.0)))
    return math.nan


def _left_over(top: Mapping[str, float]) -> float:
    """The most that the log-probability of a text can be that is not listed."""
    rest = 1.0 - sum(math.exp(logprob) for logprob in top.values())
    return min(min(top.values()), math.log(max(rest, 1e-9)))


def _named(protocol: Protocol, text: str, forced: bool) -> tuple[int, int] | None:
    """Which answer a reply names, 0 or 1, and where in the text its label begins; None where that is not clear.

    Clear is a reply that begins with an answer, names only one, or is a bare label.
    """
    said = protocol.prefix + text if forced else text
    places = []
    for answer in protocol.answers:
        whole_word = r"(?!\w)" if answer[-1].isalnum() else ""
        found = re.search(re.escape(answer) + whole_word, said, re.IGNORECASE)
        places.append(None if found is None else found.start())
    start = len(said) - len(said.lstrip())
    for which, place in enumerate(places):
        if place is not None and (place == start or places[1 - which] is None):
            return which, place + len(protocol.prefix)
    if places == [None, None]:
        bare = re.fullmatch(r"\W*(\w+)\W*", text)
        labels = [label.strip().lower() for label in protocol.labels]
        if bare is not None and bare[1].lower() in labels:
            return labels.index(bare[1].lower()), bare.start(1)
    return None
