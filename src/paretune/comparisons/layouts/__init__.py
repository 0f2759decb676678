"""Public data layouts: name -> how to recognise one and turn its records into rows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from paretune.comparisons.layouts.pairs import SAFERLHF_FIELDS, hh, native, pku_saferlhf, raco, raco_name, trl
from paretune.comparisons.layouts.scored import helpsteer2, scores, thumbs, ultrafeedback
from paretune.comparisons.layouts.shared import CHOSEN, PAIR_CHOICES, LayoutOptions
from paretune.comparisons.layouts.summarize import summarize
from paretune.comparisons.layouts.truthfulqa import NAMES as TRUTHFULQA_NAMES
from paretune.comparisons.layouts.truthfulqa import TAILS, truthfulqa
from paretune.comparisons.sources import Item
from paretune.errors import InputError

__all__ = ["CHOSEN", "LAYOUTS", "PAIR_CHOICES", "Layout", "LayoutOptions", "check_format", "label_name", "recognise"]


class Layout(NamedTuple):
    """read: records -> rows; has: whether a record looks like this layout; fields: what to tell a user about it."""

    read: Callable[[Iterator[Item], LayoutOptions], Iterator[Item]]
    has: Callable[[Mapping[str, Any]], bool]
    fields: str


def _keys(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: all(name in record for name in names)


def _is_raco(record: Mapping[str, Any]) -> bool:
    return _keys("Summary_A", "Summary_B")(record) or any(str(key).startswith("raco_s_") for key in record)


def _is_hh(record: Mapping[str, Any]) -> bool:
    sides = (record.get("chosen"), record.get("rejected"))
    starts = ("\n\nHuman:", "Human:")
    return "prompt" not in record and all(isinstance(side, str) and side.startswith(starts) for side in sides)


def _is_truthfulqa(record: Mapping[str, Any]) -> bool:
    prompt = record.get("prompt")
    marked = isinstance(prompt, str) and prompt.startswith("Q: ") and prompt.endswith(tuple(TAILS))
    return (marked and "completion" in record and "label" not in record) or _keys("Best Answer", "Question")(record)


def _is_ultrafeedback(record: Mapping[str, Any]) -> bool:
    return _keys("instruction", "completions")(record) or _keys("chosen", "rejected", "score_chosen")(record)


# In the order in which they are tried: a layout that adds columns to another one comes first.
LAYOUTS: dict[str, Layout] = {
    "raco": Layout(raco, _is_raco, "chosen, rejected, raco_s_<objective>"),
    "native": Layout(native, _keys("response_a", "response_b"), "prompt, response_a, response_b, preferences"),
    "scores": Layout(scores, _keys("responses", "scores"), "prompt, responses, scores"),
    "ultrafeedback": Layout(ultrafeedback, _is_ultrafeedback, "instruction, completions"),
    "pku-saferlhf": Layout(
        pku_saferlhf, _keys("response_0", "response_1"), "response_0, response_1, better_response_id, safer_response_id"
    ),
    "helpsteer2": Layout(helpsteer2, _keys("response", "helpfulness"), "prompt, response, helpfulness"),
    "summarize": Layout(summarize, _keys("info", "summaries"), "info, summaries, choice"),
    "truthfulqa": Layout(truthfulqa, _is_truthfulqa, 'prompt "Q: ...\\nA: ...\\nTrue:", completion'),
    "thumbs": Layout(thumbs, _keys("completion", "label"), "prompt, completion, label"),
    "hh": Layout(hh, _is_hh, "chosen, rejected transcripts"),
    "trl": Layout(trl, _keys("chosen", "rejected"), "prompt?, chosen, rejected"),
}
# A first record that lacks a field still tells its layout by one of these, so that the message can name the field.
_TELLTALES = {
    "native": ("response_a", "response_b", "preferences"),
    "scores": ("responses", "scores"),
    "trl": ("chosen", "rejected"),
    "thumbs": ("completion",),
    "pku-saferlhf": ("response_0", "response_1"),
}


def check_format(name: str) -> None:
    """Raises InputError, naming the nearest layout, for an unknown format."""
    if name != "auto" and name not in LAYOUTS:
        near = difflib.get_close_matches(str(name), [*LAYOUTS, "auto"], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise InputError("unknown format", expected=f"auto, {', '.join(LAYOUTS)}", found=name, fix=hint)


def recognise(record: Mapping[str, Any], where: str) -> str:
    """The name of the layout that a file's first record is in.

    Raises:
        InputError: none fits; says which fields were found and what each layout needs.
    """
    for name, layout in LAYOUTS.items():
        if layout.has(record):
            return name
    for name, fields in _TELLTALES.items():
        if any(field in record for field in fields):
            return name
    known = "; ".join(f"{name}: {layout.fields}" for name, layout in LAYOUTS.items())
    found = f"fields {', '.join(sorted(record)) or '(none)'}"
    raise InputError(
        "the layout is not recognised",
        where=where,
        expected=f"the fields of one of these ({known})",
        found=found,
        fix="Name the layout with format: if it is one of them.",
    )


def label_name(layout: str, field: str) -> str:
    """The name under which a layout's rows carry the label that a user names by field or column."""
    if layout == "raco":
        return raco_name(field)
    aliases = {"pku-saferlhf": SAFERLHF_FIELDS, "truthfulqa": TRUTHFULQA_NAMES}.get(layout, {})
    if layout == "summarize" and field == "choice" or layout == "thumbs" and field == "label":
        return CHOSEN
    return aliases.get(field, field)
