"""Rules about one response's text. Each function takes a rule's options and returns what scores a `Question`.

More is better in all of them. NaN is a failure, as in every source: the rule has nothing to say about this response.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paretune.errors import InputError


class Question(NamedTuple):
    """A response to be scored. columns: the row's others, its `reference` among them."""

    prompt: str
    response: str
    columns: Mapping[str, Any]


Rule = Callable[[Question], float]

UNITS = ("characters", "words", "tokens")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def words_of(text: str) -> list[str]:
    """Lower-case words; apostrophes and hyphens inside them belong to them."""
    return [word.lower() for word in _WORD.findall(text)]


# ---- length ----


def measure(unit: str, tokenizer: str | None) -> Callable[[str], int]:
    """A text's length in characters, words (at white space) or tokens of a model's tokenizer."""
    if unit not in UNITS:
        raise InputError("bad unit", expected=f"one of {', '.join(UNITS)}", found=unit)
    if (unit == "tokens") != (tokenizer is not None):
        fix = "Give unit: tokens and tokenizer: MODEL together."
        raise InputError(
            "tokens need a tokenizer, and only tokens", found=f"unit {unit}, tokenizer {tokenizer}", fix=fix
        )
    if tokenizer is not None:
        from paretune.policy.loading import load_tokenizer

        loaded = load_tokenizer(tokenizer)
        return lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"])
    return len if unit == "characters" else lambda text: len(text.split())


def shorter(*, unit: str = "characters", tokenizer: str | None = None) -> Rule:
    """Minus the length."""
    length_of = measure(unit, tokenizer)
    return lambda q: -float(length_of(q.response))


def longer(*, unit: str = "characters", tokenizer: str | None = None) -> Rule:
    """The length."""
    length_of = measure(unit, tokenizer)
    return lambda q: float(length_of(q.response))


def fewer_words() -> Rule:
    """Minus the number of words."""
    return shorter(unit="words")


def length(*, least: int = 0, most: int | None = None, unit: str = "words", tokenizer: str | None = None) -> Rule:
    """Minus how far the length lies outside [least, most]: 0 inside."""
    whole("least", least, 0)
    top = math.inf if most is None else whole("most", most, least)
    length_of = measure(unit, tokenizer)

    def score(q: Question) -> float:
        n = length_of(q.response)
        return -float(max(least - n, n - top, 0))

    return score


# ---- form ----

_BULLET = re.compile(r"\s*([-*•]|\d+[.)])\s+\S")


def format(
    *,
    starts: str | None = None,
    ends: str | None = None,
    contains: list | None = None,
    least_lines: int | None = None,
    most_lines: int | None = None,
    bullets: bool | None = None,
) -> Rule:
    """Share of the stated requirements that are met. Lines are those that are not blank; bullets: true wants every
    line to be a list's item ("- ", "* ", "1. "), false none."""
    checks: list[Callable[[str, list[str]], bool]] = []
    if starts is not None:
        one_string("starts", starts)
        checks.append(lambda text, lines: text.startswith(starts))
    if ends is not None:
        one_string("ends", ends)
        checks.append(lambda text, lines: text.endswith(ends))
    checks += [lambda text, lines, part=part: part in text for part in strings("contains", contains or [])]  # type: ignore[misc]
    if least_lines is not None:
        whole("least_lines", least_lines, 1)
        checks.append(lambda text, lines: len(lines) >= least_lines)
    if most_lines is not None:
        whole("most_lines", most_lines, 1)
        checks.append(lambda text, lines: len(lines) <= most_lines)
    if bullets is not None:
        flag("bullets", bullets)
        checks.append(lambda text, lines: all(bool(_BULLET.match(line)) is bullets for line in lines))
    if not checks:
        raise InputError("no requirement", expected="starts, ends, contains, least_lines, most_lines or bullets")

    def score(q: Question) -> float:
        text = q.response.strip()
        lines = [line for line in text.splitlines() if line.strip()]
        return sum(check(text, lines) for check in checks) / len(checks)

    return score


def regex(*, pattern: str, absent: bool = False, whole_text: bool = False, count: bool = False) -> Rule:
    """1 where the pattern is found, else 0; absent: the reverse; whole_text: it must match all of it; count: how many
    times it is found (minus that, with absent)."""
    for name, value in (("absent", absent), ("whole_text", whole_text), ("count", count)):
        flag(name, value)
    if count and whole_text:
        raise InputError(
            "count and whole_text", expected="one of them", fix="The whole text matches once or not at all."
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            "bad pattern", expected="a regular expression of Python", found=f"{pattern}: {error}"
        ) from None
    sign = -1.0 if absent else 1.0

    def score(q: Question) -> float:
        if count:
            return sign * sum(1 for _ in compiled.finditer(q.response))
        found = bool(compiled.fullmatch(q.response) if whole_text else compiled.search(q.response))
        return float(found is not absent)

    return score


def json_valid(*, keys: Any = None, fenced: bool = True) -> Rule:
    """0 for what is not JSON, 1 for what is. With keys: an object; (1 + share of the keys that are there)/2.

    Args:
        keys: a list of names, or {name: string | number | boolean | array | object | null}.
        fenced: a fence of Markdown around it is taken off.
    """
    flag("fenced", fenced)
    kinds: dict[str, Any] = {
        **{"string": str, "number": (int, float), "boolean": bool, "array": list, "object": dict, "null": type(None)},
    }
    wanted: dict[str, Any] = dict(keys) if isinstance(keys, Mapping) else dict.fromkeys(strings("keys", keys or []))
    for name, kind in wanted.items():
        if kind is not None and kind not in kinds:
            raise InputError(f"bad type of key {name!r}", expected=f"one of {', '.join(kinds)}", found=kind)

    def there(value: Any, name: str) -> bool:
        kind = wanted[name]
        if name not in value or (kind == "number" and isinstance(value[name], bool)):
            return False
        return kind is None or isinstance(value[name], kinds[kind])

    def score(q: Question) -> float:
        text = q.response.strip()
        fence = re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL) if fenced else None
        try:
            value = json.loads(fence[1] if fence else text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return 0.0
        if not wanted:
            return 1.0
        return (1 + sum(there(value, name) for name in wanted) / len(wanted)) / 2 if isinstance(value, dict) else 0.0

    return score


def _no_constant(name: str) -> None:
    """NaN, Infinity and -Infinity are Python's own; RFC 8259 has no such numbers."""
    raise ValueError(f"{name} is not JSON")


# ---- content ----


def keywords(*, words: list | str | None = None, column: str | None = None) -> Rule:
    """Share of the words, phrases or facts that the response holds: whole words, in any case and spacing.

    Args:
        words: the same for every row; an entry that is a list holds alternatives.
        column: a column with a row's own; NaN for a row without.
    """
    if (words is None) == (column is None):
        raise InputError("no keywords", expected="words, or the name of a column that holds them")
    words = [words] if isinstance(words, str) else words
    if words is not None and not isinstance(words, list):
        raise InputError("bad words", expected="a list", found=words)
    fixed = None if words is None else [_phrase(entry) for entry in words]
    if fixed is not None and not fixed:
        raise InputError("no keywords", expected="at least one word")

    def score(q: Question) -> float:
        wanted = fixed
        if wanted is None:
            given = q.columns.get(str(column))
            if given is None or given == []:
                return math.nan
            wanted = [_phrase(entry) for entry in (given if isinstance(given, list) else [given])]
        return sum(bool(phrase.search(q.response)) for phrase in wanted) / len(wanted)

    return score


def _phrase(entry: Any) -> re.Pattern[str]:
    options = entry if isinstance(entry, list) else [entry]
    if not options or not all(isinstance(o, str | int | float) and str(o).strip() for o in options):
        raise InputError("bad keyword", expected="text, or a list of alternatives", found=entry)
    spelt = [r"\s+".join(map(re.escape, str(option).split())) for option in options]
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelt)})(?!\w)", re.IGNORECASE)


def repetition(*, n: int = 3) -> Rule:
    """Minus the share of n-grams of words that occurred before in the response: 0 for none, towards -1 for a loop.

    A response with fewer than n words repeats nothing.
    """
    whole("n", n, 1)

    def score(q: Question) -> float:
        words = words_of(q.response)
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        total = sum(grams.values())
        return -(total - len(grams)) / total if total else 0.0

    return score


# Mild insults: so that the rule does something without a list. What is toxic depends on the use: give a list.
INSULTS = ("idiot", "idiots", "moron", "morons", "stupid", "dumb", "loser", "losers", "shut up", "hate you")


def word_list(*, path: str | None = None, words: list | None = None) -> Rule:
    """Minus the occurrences of listed words or phrases per word of the response: 0 for none.

    Args:
        path: a file with one word or phrase a line; lines that begin with # are remarks.
        words: the list itself. Neither: a few mild insults (`INSULTS`).
    """
    if path is not None and words is not None:
        raise InputError("two lists", expected="path or words")
    listed: Sequence[str] = strings("words", words) if words is not None else INSULTS
    if path is not None:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("cannot read the list", where=path, found=str(error)) from None
        listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not listed:
        raise InputError("an empty list", where=path or "words", expected="one word or phrase a line")
    phrase = _phrase(sorted(listed, key=len, reverse=True))  # the longest of several that begin alike

    def score(q: Question) -> float:
        return -sum(1 for _ in phrase.finditer(q.response)) / max(len(q.response.split()), 1)

    return score


# ---- options ----


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"bad {name}", expected=f"a whole number of at least {least}", found=value)
    return value


def flag(name: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InputError(f"bad {name}", expected="true or false", found=value)
    return value


def one_string(name: str, value: Any) -> str:
    """Some text."""
    if not isinstance(value, str) or not value:
        raise InputError(f"bad {name}", expected="a string (in quotes, where YAML reads a number)", found=value)
    return value


def strings(name: str, value: Any) -> list[str]:
    """A list of strings; one alone is a list of it."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise InputError(f"bad {name}", expected="a list of strings", found=value)
    return value
