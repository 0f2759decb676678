"""Responses that talk to the judge: a test set of injected sentences, and harmless ones of like length beside them.

An attack knows the label of its own slot and asks for it, in the forms of `injections.jsonl`, written for this set. It
is added to the response that a judge likes less, so a verdict that turns was turned by it. Any added sentence moves
a verdict a little: the controls say how often.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from paretune.comparisons.rows import Text


@dataclass(frozen=True)
class Injection:
    """One sentence or more, with {label} and {other} for the labels of its own slot and the other's.

    Args:
        place: "before" or "after" the response.
        control: it asks for nothing.
    """

    name: str
    place: str
    text: str
    control: bool = False


def load_injections() -> list[Injection]:
    """The test set."""
    lines = resources.files("paretune.preferences.judges").joinpath("injections.jsonl").read_text("utf-8").splitlines()
    return [Injection(**json.loads(line)) for line in lines]


def injected(injection: Injection, response: Text, label: str, other: str) -> Text:
    """The response with the injection, aimed at its slot; of messages, in the last one."""
    if not isinstance(response, str):
        last = injected(injection, response[-1]["content"], label, other)
        return [*response[:-1], {**response[-1], "content": str(last)}]
    said = injection.text.replace("{label}", label).replace("{other}", other)
    return f"{said}\n\n{response}" if injection.place == "before" else f"{response}\n\n{said}"
