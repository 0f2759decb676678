"""Queries: what they mean, what they choose, and what is said where they cannot be read or met."""

from __future__ import annotations

from typing import Any

import pytest

from paretune.errors import InputError
from paretune.pipelines.front.pick import Condition, choose, parse, told

NAMES = ["helpful", "harmless", "short answers"]


def cell(name: str, helpful: float, harmless: float, kl: float | None = 1.0, kind: str = "train") -> dict[str, Any]:
    scores = {"helpful": helpful, "harmless": harmless, "short answers": 0.0}
    part = {"scores": scores, "ci": {key: [value - 0.1, value + 0.1] for key, value in scores.items()}}
    weights = {"helpful": 0.5, "harmless": 0.5, "short answers": 0.0}
    about = {"name": name, "kind": kind, "weights": weights, "run": f"cells/{name}", "kl": kl}
    return {**about, "scores": {} if kind == "trunk" else {"1": part}}


FRONT = {
    "objectives": NAMES,
    "temperatures": {"1": {"scale": {"helpful": [0.0, 2.0], "harmless": [-1.0, 0.0], "short answers": [0.0, 1.0]}}},
    "cells": [
        *[cell("base", 9.0, 9.0, kind="base"), cell("trunk", 0, 0, kind="trunk")],
        *[cell("a", 1.0, -0.5), cell("b", 1.5, -0.8, kl=6.0), cell("c", 0.5, -0.1, kind="read"), cell("d", 0.9, -0.6)],
    ],
}


def test_queries_are_read() -> None:
    query = parse("max helpful where harmless >= -0.5 and kl <= 5e0", NAMES)
    assert (query.largest, query.name) == (True, "helpful")
    assert query.conditions == (Condition("harmless", ">=", -0.5, False), Condition("kl", "<=", 5.0, False))
    assert parse('MIN "short answers"', NAMES).name == "short answers"
    assert parse("min kl WHERE 'short answers'<.5 scaled AND helpful>1", NAMES).conditions == (
        Condition("short answers", "<", 0.5, True),
        Condition("helpful", ">", 1.0, False),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "max or min first"),
        ("helpful", "max or min first"),
        ("max", "a name after"),
        ("max helpfull", "Did you mean 'helpful'"),
        ("max helpful where harmles >= 1", "Did you mean 'harmless'"),
        ("max helpful when harmless >= 1", "expected where; found when"),
        ("max helpful where", "a condition after where"),
        ("max helpful where harmless >= much", "a number after >="),
        ("max helpful where harmless >= inf", "a number after >="),
        ("max helpful where harmless = 1", "NAME >= or"),
        ("max helpful where harmless", "NAME >= or"),
        ("max helpful where harmless >= 1 or kl < 2", "and, with another condition"),
        ("max helpful where harmless >= 1 and", "and, with another condition"),
        ("max helpful where kl <= 1 scaled", "kl in nats"),
        ('max "helpful', "words, signs and numbers"),
    ],
)
def test_queries_that_cannot_be_read_are_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(text, NAMES)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("max helpful", ["b", "a", "d", "c"]),
        ("min helpful", ["c", "d", "a", "b"]),
        ("max helpful where kl <= 5", ["a", "d", "c"]),
        ("max helpful where harmless >= -0.55", ["a", "c"]),
        ("max helpful where harmless >= 0.6 scaled", ["c"]),
        ("max harmless where helpful > 0.9", ["a", "b"]),
        ("max harmless where helpful >= 0.45 scaled and kl < 2", ["a", "d"]),
    ],
)
def test_the_best_that_satisfies_comes_first(text: str, names: list[str]) -> None:
    choice = choose(FRONT, text)
    assert choice.satisfied and [cell["name"] for cell in choice.cells] == names


def test_the_nearest_is_named_where_none_satisfies() -> None:
    choice = choose(FRONT, "max helpful where harmless >= 0 and helpful >= 1.4")
    # in scaled units: a lacks 0.5 + 0.2, b 0.8, c 0.1 + 0.45
    assert not choice.satisfied and choice.cells[0]["name"] == "c"
    with pytest.raises(InputError, match="no finished cell satisfies.*harmless >= 0 and helpful >= 1.4.*nearest is c"):
        told(FRONT, choice, "runs")


def test_a_choice_is_told_with_its_doubts() -> None:
    text = told(FRONT, choose(FRONT, "max helpful where harmless >= -0.55"), "runs/front")
    assert text.startswith("picked a\n  directory  runs/front/cells/a\n")
    assert "1 [0.9, 1.1], scaled 0.500" in text
    assert "harmless >= -0.55 is not certain" in text and "runner-up c" in text and "expect a little less" in text
    sure = told(FRONT, choose(FRONT, "max helpful where harmless >= -0.65"), "runs/front")
    assert "not certain" not in sure
    steered = told(FRONT, choose(FRONT, "max harmless"), "x")
    assert "read at    {helpful: 0.5, harmless: 0.5, short answers: 0}" in steered


def test_without_a_kl_there_is_nothing_to_bound_it_by() -> None:
    front = {**FRONT, "cells": [cell("a", 1, 1, kl=None), cell("b", 0, 0)]}
    assert [c["name"] for c in choose(front, "max helpful where kl < 2").cells] == ["b"]
    with pytest.raises(InputError, match="no finished cell has these scores"):
        choose({**FRONT, "cells": [cell("a", 1, 1, kl=None)]}, "max helpful where kl < 2")
