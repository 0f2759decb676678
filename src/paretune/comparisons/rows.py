"""The row: one comparison of two responses with one preference per objective, its meaning and its validation.

    {"prompt": str | [{"role", "content"}, ...], "response_a": str | [message, ...], "response_b": ...,
     "preferences": {objective: probability that a is preferred | None}}

1 is a, 0 is b, 0.5 is "judged equal" (it pulls the margin to 0), None or absent is "no opinion" (it contributes nothing
and is not counted in that objective's mean). Optional: `id`; `group` (a split never cuts one); `reference`;
`count_only`, the objectives that are counted in their mean although they pull nowhere. Only the `raco` layout with
`ties: release` writes it: the authors' code gives a tie the constant loss log 2 and divides by the whole batch.

Here a row is checked and brought to one shape; which file it came from is the business of `sources` and `formats`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.comparisons.columns import digests, numbers, stretches
from paretune.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]
Text = str | list[Message]

LABELS = 'a number in [0, 1], "a", "b", "tie", true, false, null, or a list of these (votes)'
_WORDS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class BadRow(Exception):  # noqa: N818 (a finding about one row, counted or turned into an InputError by the reader)
    """One row that cannot be used: what is wrong, in which field, what was expected and found."""

    def __init__(self, problem: str, *, field: str = "", expected: str = "", found: object = None, fix: str = ""):
        super().__init__(problem)
        self.problem, self.field, self.expected, self.fix = problem, field, expected, fix
        self.found = None if found is None else shorten(found)

    def to_input_error(self, where: str, more: str = "") -> InputError:
        problem = f"{self.problem} (field {self.field!r})" if self.field else self.problem
        fix = " ".join(part for part in (self.fix, more) if part)
        return InputError(problem, where=where, expected=self.expected, found=self.found, fix=fix)


class Words(str):
    """What was found, in words of ours: shown as it is, not quoted and cut as a value of the user's."""


def shorten(value: object, limit: int = 80) -> str:
    """A value as it is shown in a message: its repr, cut to `limit` characters."""
    if isinstance(value, Words):
        return str(value)
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def parse_label(value: Any, field: str = "preferences") -> float | None:
    """The probability that a is preferred, from any of the accepted spellings; None is "no opinion".

    A list holds several annotators' votes: those with an opinion are averaged to a soft label.

    Raises:
        BadRow: not one of `LABELS`; -1 is named with its fix, since many files mean "b" by it.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # NaN: how tables write a missing number
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        if 0.0 <= value <= 1.0:
            return float(value)
        fix = "Write 0 for b and 0.5 for a tie; the authors' -1/0/1 columns are read with format: raco." * (value == -1)
        raise BadRow("label out of range", field=field, expected=LABELS, found=value, fix=fix)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    if isinstance(value, list | tuple) and not any(isinstance(entry, list | tuple) for entry in value):
        votes = [vote for vote in (parse_label(entry, field) for entry in value) if vote is not None]
        return sum(votes) / len(votes) if votes else None
    raise BadRow("bad label", field=field, expected=LABELS, found=value)


def text_of(text: Text) -> str:
    """The words of a prompt or response: the string itself, or the messages' contents joined by newlines."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def clean_row(row: Mapping[str, Any], *, conversational: bool = False) -> dict[str, Any]:
    """The row in its one shape: text fields all strings or all messages, labels parsed, optional fields as strings.

    Args:
        row: a row as a layout made it; its preferences may still be in any accepted spelling.
        conversational: turn plain strings into a user and an assistant message, so that a chat template applies.

    Raises:
        BadRow: a field is missing, empty or of the wrong type, or a label is.
    """
    prompt, a, b = (_text(row, field) for field in ("prompt", "response_a", "response_b"))
    if conversational or any(isinstance(text, list) for text in (prompt, a, b)):
        prompt, a, b = _messages(prompt, "user"), _messages(a, "assistant"), _messages(b, "assistant")
    preferences = row.get("preferences")
    if not isinstance(preferences, Mapping):
        raise BadRow("no preferences", field="preferences", expected="{objective: label}", found=preferences)
    labels = {}
    for name, value in preferences.items():
        if not isinstance(name, str) or not name:
            raise BadRow("bad objective name", field="preferences", expected="a non-empty string", found=name)
        labels[_encodable(name, "preferences")] = parse_label(value, f"preferences.{name}")
    cleaned: dict[str, Any] = {"prompt": prompt, "response_a": a, "response_b": b, "preferences": labels}
    for field in ("id", "group", "reference"):
        value = row.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise BadRow("wrong type", field=field, expected="a string", found=value)
        cleaned[field] = value if value is None else _encodable(value, field)
    count_only = row.get("count_only")
    if count_only is not None and not (isinstance(count_only, list) and all(isinstance(n, str) for n in count_only)):
        raise BadRow("wrong type", field="count_only", expected="a list of objective names", found=count_only)
    cleaned["count_only"] = [_encodable(name, "count_only") for name in count_only or []]
    return cleaned


def _text(row: Mapping[str, Any], field: str) -> Text:
    if field not in row or row[field] is None:
        expected, found = "a string or a list of messages", sorted(name for name in row if row[name] is not None)
        raise BadRow("missing field", field=field, expected=expected, found=found)
    value = row[field]
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"empty {field.split('_')[0]}", field=field, expected="some text", found=value)
        return _encodable(value, field)
    if not isinstance(value, list) or not value:
        raise BadRow("wrong type", field=field, expected="a string or a list of messages", found=value)
    messages = [_message(entry, f"{field}[{i}]") for i, entry in enumerate(value)]
    if not messages[-1]["content"].strip():
        raise BadRow(f"empty {field.split('_')[0]}", field=field, expected="some text in its last message", found=value)
    return messages


def _message(entry: Any, field: str) -> Message:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("role"), str) or "content" not in entry:
        raise BadRow("bad message", field=field, expected='{"role": str, "content": str}', found=entry)
    content = entry["content"]
    if isinstance(content, list):  # the multimodal spelling; only its text parts can be scored
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise BadRow("bad message", field=f"{field}.content", expected="a string or text parts", found=entry["content"])
    # A key that carries words for the template (a tool call) cannot be dropped unnoticed; bookkeeping keys can.
    for key in ("tool_calls", "tool_call_id"):
        if entry.get(key):
            raise BadRow("tool calls are not supported", field=f"{field}.{key}", expected="role and content only")
    return {"role": _encodable(entry["role"], f"{field}.role"), "content": _encodable(content, f"{field}.content")}


def _encodable(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer or table takes
        found = text[max(0, error.start - 10) : error.end + 10]
        raise BadRow("not valid text", field=field, expected="no lone surrogate", found=found) from None
    return text


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def group_of(row: Mapping[str, Any]) -> str:
    """What a split must not cut: the row's group, or its prompt where it has none."""
    group = row.get("group")
    if group is not None:
        return f"group:{group}"
    prompt = row["prompt"]
    return f"prompt:{prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)}"


def split_groups(rows: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Rows for training and for evaluation, the latter about `fraction` of them; no group (or prompt) is in both.

    A function of the rows and the seed alone.

    Raises:
        InputError: `fraction` outside (0, 1), or there is only one group to share out.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError("bad evaluation share", expected="a number in (0, 1)", found=fraction)
    number_R = _group_numbers(rows)
    sizes = np.bincount(number_R)
    if len(sizes) < 2:
        raise InputError(
            "the rows cannot be split",
            expected="at least two groups (or prompts)",
            found=f"{len(sizes)} group",
            fix="Give evaluation rows of their own.",
        )
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    target, held_out = fraction * len(rows), int(sizes[order[0]])
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[0]] = True
    for group in order[1:-1]:  # the last group always stays for training
        if held_out + sizes[group] / 2 > target:  # nearest to the target, not the first to pass it
            break
        held_out += int(sizes[group])
        chosen[group] = True
    chosen_R = chosen[number_R]
    return rows.select(np.flatnonzero(~chosen_R)), rows.select(np.flatnonzero(chosen_R))


def _group_numbers(rows: Dataset) -> np.ndarray:
    """(rows,): which group, in the order of their first rows, each row is in; `group_of` without a text per row.

    Groups are told apart by digests of 8 bytes: two that shared one would stay together, which no split forbids.
    """
    keys, grouped = [], "group" in rows.column_names
    for part in stretches(rows, ["prompt", *(["group"] if grouped else [])]):
        given = np.asarray(part["group"].is_valid()) if grouped else np.zeros(len(part["prompt"]), dtype=bool)
        key = np.empty(len(given), dtype=np.uint64)
        if grouped:
            key[:] = ~numbers(digests(part["group"], 8))  # turned: a group is no prompt of the same words
        if not given.all():
            key[~given] = numbers(digests(part["prompt"], 8))[~given]
        keys.append(key)
    _, first, number = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[number.reshape(-1)]
