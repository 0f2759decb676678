"""Layouts whose record is one pair: our own rows, DPO files, the authors' release, and public human comparisons.

Column names were checked against public code that reads each data set; see the functions.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from paretune.comparisons.layouts.shared import CHOSEN, LayoutOptions, carried, each, need, number_or_none, preference
from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import Item

_TEXT = "a string or a list of messages"
_SIDES = (str, list)


def native(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """Our own rows. A table may spell preferences as columns `preferences.<objective>` or as JSON text. Where an
    objective has no preference but `ratings`, [of a, of b], the higher one is preferred."""

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        labels = {**_rated(record.get("ratings")), **_given_labels(record, options)}
        if not labels and options.needs_labels and record.get("preferences") is None:
            raise BadRow("missing field", field="preferences", expected="{objective: label}", found=sorted(record))
        return [{**record, "preferences": labels}]

    return each(records, make)


def _rated(ratings: Any) -> dict[str, float | None]:
    """Labels from ratings of both sides."""
    expected = "{objective: [rating of a, rating of b]}"
    if ratings is not None and not isinstance(ratings, Mapping):
        raise BadRow("wrong type", field="ratings", expected=expected, found=ratings)
    labels = {}
    for name, both in (ratings or {}).items():
        if both is not None and not (isinstance(both, list | tuple) and len(both) == 2):
            raise BadRow("bad ratings", field=f"ratings.{name}", expected="[of a, of b]", found=both)
        labels[name] = preference(*(number_or_none(value, f"ratings.{name}") for value in both or (None, None)))
    return labels


def _given_labels(record: Mapping[str, Any], options: LayoutOptions) -> dict[str, Any]:
    """`preferences` in any spelling, and the columns that an objective asks for by `labels`."""
    given = record.get("preferences")
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):  # what stays a string is refused below
            given = json.loads(given)
    if given is not None and not isinstance(given, Mapping):
        raise BadRow("wrong type", field="preferences", expected="{objective: label}", found=given)
    labels = dict(given or {})
    for name, value in record.items():
        if name.startswith("preferences."):
            labels[name.removeprefix("preferences.")] = value
        elif name in options.columns and name not in labels and name not in ("chosen", "rejected"):
            labels[name] = value
    return labels


def trl(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """`prompt?, chosen, rejected`, plain or conversational (TRL's "preference" type); a is `chosen`.

    Without a prompt, or with a plain prompt beside whole conversations, the prompt is what both sides begin with.
    """

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        prompt, a, b = _prompt_and_sides(record, "chosen", "rejected")
        labels = {CHOSEN: 1.0, **_given_labels(record, options)}
        return [{"prompt": prompt, "response_a": a, "response_b": b, "preferences": labels, **carried(record)}]

    return each(records, make)


def _prompt_and_sides(record: Mapping[str, Any], side_a: str, side_b: str) -> tuple[Any, Any, Any]:
    a, b = need(record, side_a, _SIDES, _TEXT), need(record, side_b, _SIDES, _TEXT)
    if isinstance(a, str) != isinstance(b, str):
        raise BadRow("the two sides differ in kind", field=side_b, expected=f"the same kind as {side_a}", found=b)
    prompt = record.get("prompt")
    plain_beside_messages = isinstance(prompt, str) and isinstance(a, list)
    if prompt is None or plain_beside_messages:
        shared, rest_a, rest_b = split_prompt(a, b)
        if shared:
            return shared, rest_a, rest_b
        if not plain_beside_messages:
            expected = f"a prompt, or one that {side_a} and {side_b} begin with"
            raise BadRow("no prompt", field="prompt", expected=expected)
    return prompt, a, b


def split_prompt(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The implicit prompt of two whole texts or conversations, and what is left of each.

    Conversations share their longest common beginning of messages, texts that of characters, as TRL's
    `extract_prompt` does, but a word is never cut in two: the prompt ends before the word in which they part, and the
    space before it goes to the responses. Each side keeps at least one message or character.
    """
    most = min(len(a), len(b)) - 1
    end = next((i for i in range(most) if a[i] != b[i]), max(most, 0))
    if isinstance(a, str):
        while end > 0 and _in_word(a[end - 1]) and (_in_word(a[end]) or _in_word(b[end])):
            end -= 1
        if end > 0 and a[end - 1] == " ":
            end -= 1
    return a[:end], a[end:], b[end:]


def _in_word(character: str) -> bool:
    # from U+2E80 on scripts write without spaces (Chinese, Japanese): there any character is a boundary
    return character.isalnum() and ord(character) < 0x2E80


_SIGNS = {"a": 1, "summary_a": 1, "chosen": 1, "1": 1, "b": -1, "summary_b": -1, "rejected": -1, "-1": -1}
_SIGNS |= {name: 0 for name in ("tie", "equal", "same", "unknown", "none", "n/a", "0")}
_RELEASE_LABELS = ("Quality", "Verbosity", "Faithfulness")


def raco(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """The authors' release: `chosen, rejected, raco_s_<objective>` in {-1, 0, 1}, or `Summary_A, Summary_B` with
    `Quality, Verbosity`; objectives are named in lower case without the prefix.

    1 is a (`chosen`), -1 is b, 0 is what `ties` says: "missing" is no opinion, "equal" is 0.5, "release" pulls nowhere
    but is counted in the mean (`count_only`), as its trainer does with the constant loss of a zero sign.
    """

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        sides = ("Summary_A", "Summary_B") if "Summary_A" in record or "Summary_B" in record else ("chosen", "rejected")
        prompt, a, b = _prompt_and_sides(record, *sides)
        labels: dict[str, float | None] = {}
        count_only = []
        for column, value in record.items():
            if not (column.startswith("raco_s_") or column in _RELEASE_LABELS or column in options.columns):
                continue
            name, sign = raco_name(column), _sign(value, column)
            if sign in (0, None) and options.ties == "release":
                count_only.append(name)  # the release turns a missing label into a zero sign before it counts
            tie = 0.5 if options.ties == "equal" else None
            labels[name] = None if sign is None else {1: 1.0, -1: 0.0, 0: tie}[sign]
        if not labels and options.needs_labels:
            raise BadRow("no label", field="raco_s_*", expected="raco_s_<objective> columns", found=sorted(record))
        row = {"prompt": prompt, "response_a": a, "response_b": b, "preferences": labels, "count_only": count_only}
        return [{**row, **carried(record)}]

    return each(records, make)


def raco_name(column: str) -> str:
    """The objective that a column of the release labels."""
    return column.removeprefix("raco_s_").lower()


def _sign(value: Any, column: str) -> int | None:
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, bool) and value in (-1, 0, 1):
        return int(value)
    if isinstance(value, str) and value.strip().lower() in _SIGNS:
        return _SIGNS[value.strip().lower()]
    raise BadRow("bad label", field=column, expected='-1, 0, 1, "a", "b", "tie" or null', found=value)


_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def hh(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    r"""Anthropic's HH-RLHF: `chosen, rejected`, each a transcript "\n\nHuman: ...\n\nAssistant: ..."; read as messages.

    One file labels one objective; its label is `chosen`.
    """

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        sides = [_transcript(need(record, name, str, "a transcript"), name) for name in ("chosen", "rejected")]
        prompt, a, b = split_prompt(*sides)
        if not prompt or a[0]["role"] != "assistant" or b[0]["role"] != "assistant":
            expected = "the same conversation up to a reply of the assistant"
            raise BadRow("transcripts part too early", field="rejected", expected=expected, found=(a or b)[0])
        options.facts["responses of several turns"] += len(a) > 1 or len(b) > 1
        labels = {CHOSEN: 1.0, **_given_labels(record, options)}
        return [{"prompt": prompt, "response_a": a, "response_b": b, "preferences": labels, **carried(record)}]

    return each(records, make)


def _transcript(text: str, name: str) -> list[dict[str, str]]:
    parts = _TURN.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip("\n"))
    if len(parts) < 3 or parts[0].strip():
        raise BadRow("not a transcript", field=name, expected='"\\n\\nHuman: ...\\n\\nAssistant: ..."', found=text)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": _ROLES[speaker], "content": content.strip()} for speaker, content in turns]


SAFERLHF_FIELDS = {"better_response_id": "helpful", "safer_response_id": "harmless"}


def pku_saferlhf(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """PKU-SafeRLHF: `prompt, response_0, response_1` with `better_response_id` (helpful) and `safer_response_id`
    (harmless), each 0 or 1; the single-dimension release has only the first.
    """

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        labels: dict[str, float | None] = {}
        for column, name in SAFERLHF_FIELDS.items():
            if column in record:
                labels[name] = _side(record[column], column)
        if not labels and options.needs_labels:
            expected = " or ".join(SAFERLHF_FIELDS)
            raise BadRow("missing field", field="better_response_id", expected=expected, found=sorted(record))
        sides = {"response_a": record.get("response_0"), "response_b": record.get("response_1")}
        return [{"prompt": record.get("prompt"), **sides, "preferences": labels, **carried(record)}]

    return each(records, make)


def _side(value: Any, column: str) -> float | None:
    """1 when the first (0) is preferred, 0 when the second (1) is."""
    if value is None or value != value:
        return None
    if isinstance(value, bool) or value not in (0, 1):
        raise BadRow("bad label", field=column, expected="0 or 1: the index of the preferred response", found=value)
    return 1.0 - float(value)
