"""What a reply says: log-probabilities of the labels first, words otherwise, and nothing rather than a guess."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.preferences.judges.judge import judge_source
from paretune.preferences.judges.protocols import Protocol, Question, load_protocol
from paretune.preferences.judges.reading import Reading, Token, read
from paretune.preferences.judges.requests import ServerSettings, cost_of, dearest_cost, request_body
from paretune.preferences.judges.spending import Budget, Cost

FREE = load_protocol("free", "x")
BARE = replace(FREE, answers=("First", "Second"))


def token(text: str, **top: float) -> Token:
    return Token(text, {name.replace("_", " "): math.log(p) for name, p in top.items()})


def spelled(*texts: str) -> list[Token]:
    return [Token(text, {text: math.log(0.9)}) for text in texts]


@pytest.mark.parametrize(
    ("protocol", "text", "p"),
    [
        (FREE, "Output (a)", 1.0), (FREE, " output (b).", 0.0), (FREE, "The better one is Output (b)", 0.0),
        (FREE, "b", 0.0), (FREE, "(a)", 1.0), (FREE, "**A**", 1.0), (FREE, "**Output (a)**\n\nOutput (b) is", 1.0),
        (FREE, "Output (b). It says more than Output (a).", 0.0), (FREE, "Output (a) is worse than Output (b)", None),
        (FREE, "Output (a), not Output (b)", None), (FREE, "Output (a)\nOutput (b)", None),
        (BARE, "First. Second is wrong", 1.0), (BARE, "First or Second", None),
        (FREE, "Between Output (a) and Output (b) I cannot", None), (FREE, "", None), (FREE, "Output (c)", None),
        (FREE, "a tie", None), (FREE, "neither", None), (BARE, "Second", 0.0), (BARE, "first!", 1.0),
        (BARE, "Secondly, I", None), (BARE, "ab", None),
    ],
)  # fmt: skip
def test_words(protocol: Protocol, text: str, p: float | None) -> None:
    reading = read(protocol, text, None, forced=False)
    assert reading == Reading(p, by_words=True) if p is not None else math.isnan(reading.p) and not reading.by_words


@pytest.mark.parametrize(
    ("text", "p"),
    [("a)", 1.0), ("b", 0.0), ("b) is right", 0.0), ("c)", None), ("ab", None), ("a) is worse than Output (b)", None)],
)
def test_words_after_a_prefix(text: str, p: float | None) -> None:
    found = read(FREE, text, None, forced=True).p
    assert math.isnan(found) if p is None else found == p


def test_log_probabilities_at_the_label() -> None:
    at = token("a", a=0.6, b=0.2, c=0.1)
    tokens = [*spelled(" Out", "put", " ("), at, *spelled(")")]
    assert read(FREE, " Output (a)", tokens, forced=False).p == pytest.approx(0.75, rel=1e-12)
    second = [*spelled("Output", " ("), token("b)", **{"a)": 0.1, "b)": 0.3, "a": 0.0001})]
    assert read(FREE, "Output (b)", second, forced=False).p == pytest.approx(0.25, rel=1e-12), "like with like"
    whole = [Token("Output (b)", {"Output (b)": math.log(0.7), "Output (a)": math.log(0.1)})]
    assert read(FREE, "Output (b)", whole, forced=False).p == pytest.approx(0.125, rel=1e-12)
    bare = [token(" b", **{" b": 0.5, " a": 0.25})]
    assert read(FREE, " b", bare, forced=False).p == pytest.approx(1 / 3, rel=1e-12)


def test_log_probabilities_after_a_prefix() -> None:
    said = [token("I", I=0.5, a=0.03, b=0.01)]
    assert read(FREE, "I", said, forced=True).p == pytest.approx(0.75, rel=1e-12), "whatever was drawn"
    assert math.isnan(read(FREE, "I", [token("I", I=0.9)], forced=True).p)


@pytest.mark.parametrize(
    ("drawn", "top", "p"),
    [
        ("both", {"both": -0.5, "a": -1.2, "b": -3.0}, 1 / (1 + math.exp(-1.8))), ("answer", {"answer": -0.01}, None),
        ("I", {"I": -0.1, "Based": -2.5, "and": -4.0}, None), ("because", {"because": -0.1, "as": -3.0}, None),
        ("a lot", {"a lot": -0.1, "b)": -3.0, "a)": -4.0}, 1 / (1 + math.e)),
        ("a)", {"a)": -0.1, "b)": -2.1, "a": -9.0, "b": -8.0}, 1 / (1 + math.exp(-2))),
        ("b", {"b": -0.1, "a": -2.1, "a)": -8.0, "b)": -9.0}, 1 / (1 + math.exp(2))),
    ],
)  # fmt: skip
def test_words_that_begin_with_a_label_are_no_labels(drawn: str, top: dict[str, float], p: float | None) -> None:
    found = read(FREE, drawn, [Token(drawn, top)], forced=True)
    assert math.isnan(found.p) if p is None else found == Reading(pytest.approx(p, rel=1e-12))


def test_labels_that_end_inside_a_word() -> None:
    sides = replace(FREE, answers=("Left", "Right"))
    assert sides.labels == ("Lef", "Righ")
    drawn = Token("Left", {"Left": -0.5, "Right": -1.5, "Leftover": -0.1})
    assert read(sides, "Left", [drawn], forced=False).p == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-12)


@pytest.mark.parametrize(("top", "p"), [({"a": 0.9}, 0.9), ({"a": 0.9, "x": 0.05}, 0.9 / 0.95), ({"b": 1.0}, 0.0)])
def test_a_label_that_is_not_listed_has_what_is_left(top: dict[str, float], p: float) -> None:
    assert read(FREE, "a", [token("a", **top)], forced=True).p == pytest.approx(p, abs=1e-8)


def test_a_label_marked_as_not_listed() -> None:
    top = {"a": -9999.0, "b": -9999.0, "I": -0.01}
    assert math.isnan(read(FREE, "I", [Token("I", top)], forced=True).p)


def test_words_where_the_tokens_do_not_fit() -> None:
    assert read(FREE, "Output (a)", spelled("Out", "x"), forced=False) == Reading(1.0, by_words=True)


# ---- what may be spent ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"request": {"max_tokens": None}, "limits": {"tokens": 9}}, "a limit of tokens, and replies of any length"),
        ({"request": {"max_tokens": None, "max_completion_tokens": None}, "limits": {"usd": 1}}, "a limit of usd"),
        ({"request": {"max_tokens": -1}}, "bad max_tokens in request"), ({"request": {"n": 4}}, "bad n in request"),
        ({"request": {"max_completion_tokens": "many"}}, "bad max_completion_tokens"),
        ({"request": {"best_of": 2}, "api": "completions"}, "bad best_of in request"),
    ],
)  # fmt: skip
def test_requests_without_a_highest_price_are_refused(options: dict[str, Any], words: str) -> None:
    given = {"server": "http://127.0.0.1:9/v1", "prices": {"input": 1, "output": 1}}
    with pytest.raises(InputError, match=words):
        judge_source("x", "m", given | options)


def test_requests_with_a_highest_price() -> None:
    given = {"server": "http://127.0.0.1:9/v1", "prices": {"input": 1, "output": 1}}
    for options in (
        {"request": {"max_tokens": None}, "limits": {"calls": 3}}, {"limits": {"tokens": 9}, "request": {"n": 1}},
        {"request": {"max_tokens": None, "max_completion_tokens": 7}, "limits": {"tokens": 9, "usd": 1}},
    ):  # fmt: skip
        judge_source("x", "m", given | options)
    body = request_body(ServerSettings("u", "m", request='{"max_completion_tokens": 70}'), FREE, Question("s", "u"))
    assert dearest_cost(body, Question("s", "u")).output_tokens == 70


@pytest.mark.parametrize(("written", "counted"), [(3, 3), (0, 0), (None, 16), (-1, 16), ("3", 16)])
def test_what_a_server_does_not_count_is_counted_at_its_dearest(written: Any, counted: int) -> None:
    reply = SimpleNamespace(usage=SimpleNamespace(prompt_tokens=5, completion_tokens=written))
    assert cost_of(reply, Cost(1, 40, 16)).output_tokens == counted


def test_limits_are_never_exceeded() -> None:
    budget = Budget({"calls": 3, "tokens": 100, "usd": 1e-3}, {"input": 5.0, "output": 20.0})
    dearest = Cost(1, 40, 8)
    assert budget.fits(dearest)
    budget.hold(dearest)
    assert budget.fits(dearest) and not budget.fits(Cost(1, 60, 0))
    budget.settle(dearest, Cost(1, 10, 1))
    assert budget.held == Cost() and budget.spent == Cost(1, 10, 1)
    assert budget.price(Cost(1, 10, 1)) == pytest.approx(7e-5, rel=1e-12)
    assert "11 of 100 tokens" in budget.said() and "1 of 3 calls" in budget.said()
    for _ in range(2):
        budget.hold(Cost(1))
    assert not budget.fits(Cost(1)), "calls"
    money = Budget({"usd": 1e-4}, {"input": 1.0, "output": 1.0})
    assert money.fits(Cost(1, 90, 10)) and not money.fits(Cost(1, 90, 11))
    assert Budget().fits(Cost(10**6, 10**9, 10**9))
