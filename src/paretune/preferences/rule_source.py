"""`rule: NAME` as a source: the rules by name, and their options."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paretune.comparisons.rows import Text, text_of
from paretune.errors import InputError
from paretune.preferences import text_rules
from paretune.preferences.asking import columns_told
from paretune.preferences.language import language
from paretune.preferences.math_answers import math_answer
from paretune.preferences.similarity import exact_match, rouge
from paretune.preferences.source import Source
from paretune.preferences.text_rules import Question, Rule
from paretune.preferences.verifiers import code, numeric_answer

# name -> function of the rule's options that returns what scores a question
TEXT_RULES: dict[str, Callable[..., Rule]] = {
    "shorter": text_rules.shorter,
    "longer": text_rules.longer,
    "fewer_words": text_rules.fewer_words,
    "length": text_rules.length,
    "format": text_rules.format,
    "regex": text_rules.regex,
    "json": text_rules.json_valid,
    "keywords": text_rules.keywords,
    "repetition": text_rules.repetition,
    "word_list": text_rules.word_list,
    "language": language,
    "rouge": rouge,
    "exact_match": exact_match,
    "numeric_answer": numeric_answer,
    "math_answer": math_answer,
    "code": code,
}
_SLOW = ("math_answer", "code")  # worth keeping on disk


def rule_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """A rule as a source of scores.

    Raises:
        InputError: an unknown rule or option (the nearest is named), an option missing or of a bad value.
    """
    where = f"source {name!r}, rule {value}"
    if value not in TEXT_RULES:
        near = difflib.get_close_matches(str(value), TEXT_RULES, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else ""
        expected = f"one of {', '.join(TEXT_RULES)}"
        raise InputError("unknown rule", where=f"source {name!r}", expected=expected, found=value, fix=fix)
    make = TEXT_RULES[value]
    parameters = inspect.signature(make).parameters
    for key in options:
        if key not in parameters:
            near = difflib.get_close_matches(str(key), parameters, n=1)
            known = f"Known options: {', '.join(parameters)}." if parameters else "It has no options."
            raise InputError(
                f"unknown option {key!r}", where=where, fix=f"Did you mean {near[0]!r}?" if near else known
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise InputError(f"option {key!r} is missing", where=where)
    if not isinstance(options.get("column", ""), str):
        raise InputError("bad column", where=where, expected="the name of one column", found=options["column"])
    try:
        rule = make(**options)
    except InputError as error:
        raise InputError(str(error), where=where) from None
    except TypeError as error:  # text where a number is wanted, and the like
        raise InputError("bad options", where=where, found=f"{options!r}: {error}") from None
    slow = value in _SLOW
    return Source(
        name,
        f"rule {value} 2 {json.dumps(options, sort_keys=True, default=str)}",
        score=functools.partial(_scores, rule) if not slow else functools.partial(_one_by_one, rule),
        reads=None,
        batch_size=64 if slow else 4096,
        cached=slow,
    )


def _one_by_one(
    rule: Rule, prompts: Sequence[Text], responses: Sequence[Text], /, references: Any = None, **told: Sequence[Any]
) -> Iterator[tuple[int, float]]:
    """Each score as it is known."""
    columns = columns_told(references, told)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        others = {name: values[i] for name, values in columns.items()}
        yield i, rule(Question(text_of(prompt), text_of(response), others))


def _scores(rule: Rule, /, *texts: Any, **told: Any) -> list[float]:
    return [score for _, score in _one_by_one(rule, *texts, **told)]
