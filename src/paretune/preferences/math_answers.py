"""A mathematical answer that need not be a number: expressions, sets, intervals, read and compared by math-verify."""

from __future__ import annotations

import math
import re
import threading
from typing import Any

from paretune.errors import InputError
from paretune.preferences.similarity import references_of
from paretune.preferences.text_rules import Question, Rule

_SECONDS = 5  # for reading an answer and for comparing two, each: 9^{9^{9^9}} has no end
_IN_LATEX = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
_WORDS = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|inf|lim)[^A-Za-z])[A-Za-z]{3,}")


def math_answer(*, column: str = "reference") -> Rule:
    """1 where the response's final answer equals that of the column as mathematics: 2 + x and x + 2, 1/2 and 0.5.

    A response without an answer that can be read is wrong; a row whose truth cannot be read, or is words, gets NaN.

    Raises:
        InputError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise InputError("math-verify is not installed", fix="Install it: pip install 'paretune[math]'.") from error

    def read(text: str) -> list[Any]:
        found: list[Any] = parse(text, parsing_timeout=_seconds())
        return found

    def score(q: Question) -> float:
        texts = filter(None, map(_truth, references_of(q, column)))
        truths = [truth for truth in map(read, texts) if truth]
        if not truths:
            return math.nan
        own = read(q.response)
        return float(any(verify(truth, own, timeout_seconds=_seconds()) for truth in truths))

    return score


def _truth(text: str) -> str:
    """As LaTeX between signs, which a truth is often written without; "" for words."""
    if _IN_LATEX.search(text):
        return text
    return "" if _WORDS.search(text) else f"${text}$"


def _seconds() -> int | None:
    # math-verify's limit is an alarm, which only the main thread can set
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
