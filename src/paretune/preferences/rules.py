"""Rules that label a comparison from its text alone: name -> function of (response_a, response_b).

Each returns the probability that a is preferred; a tie is 0.5. They make an ordinary DPO file a data set of several
objectives (`rule: shorter`) without a labelling step.
"""

from __future__ import annotations

from collections.abc import Callable

Rule = Callable[[str, str], float]


def _less(a: int, b: int) -> float:
    return 0.5 if a == b else float(a < b)


def shorter(response_a: str, response_b: str) -> float:
    """Prefers fewer characters."""
    return _less(len(response_a), len(response_b))


def longer(response_a: str, response_b: str) -> float:
    """Prefers more characters."""
    return _less(len(response_b), len(response_a))


def fewer_words(response_a: str, response_b: str) -> float:
    """Prefers fewer words, split at white space."""
    return _less(len(response_a.split()), len(response_b.split()))


RULES: dict[str, Rule] = {"shorter": shorter, "longer": longer, "fewer_words": fewer_words}
