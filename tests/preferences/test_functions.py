"""Functions of a user's own: which columns they are given, what their answers are kept by, and what is refused."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore
from paretune.preferences.asking import Tally, ask
from paretune.preferences.functions import function_source
from paretune.preferences.source import Item, Source

MODULE = """
import asyncio, functools

def base(prompts, completions, word="?", **columns):
    return [float(c.count(word)) for c in completions]

class Scorer:
    def __init__(self, word):
        self.word = word
    def __call__(self, prompts, completions, **columns):
        return base(prompts, completions, self.word)

async def waits(prompts, completions, **columns):
    return base(prompts, completions)
"""
NAMED = """
import functools
from {module} import base, Scorer, waits

polite = functools.partial(base, word="please")
instance = Scorer("please")
late = functools.partial(waits, word="please")
"""


def of_base(*words: str) -> list[Callable[..., Any]]:
    """Closures over a word that look alike in everything but that."""

    def make(word: str) -> Callable[..., Any]:
        return lambda prompts, completions, **columns: [float(c.count(word)) for c in completions]

    return [make(word) for word in words]


def named(prompts: list[str], completions: list[str], word: str = "?", **columns: Any) -> list[float]:
    return [float(c.count(word)) for c in completions]


class Told:
    def __init__(self, word: str):
        self.word = word

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return named(prompts, completions, self.word)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "based_here.py").write_text(MODULE)

    def named_here(text: str = NAMED) -> Path:
        path = tmp_path / "named_here.py"
        path.write_text(text.format(module="based_here"))
        for name in ("based_here", "named_here"):
            monkeypatch.delitem(importlib.import_module("sys").modules, name, raising=False)
        importlib.invalidate_caches()
        return path

    return named_here


def answers(source: Source, store: AnswerStore | None = None, /, **columns: Any) -> tuple[list[float], int]:
    tally = Tally()
    return ask(source, [Item("p", ("please, a thank you?",), columns)], store, tally), tally.asked


@pytest.mark.parametrize("name", ["polite", "instance"])
def test_what_a_module_binds_is_part_of_its_text(name: str, modules: Callable[..., Path], tmp_path: Path) -> None:
    """`partial(base, word="please")` is kept by the text of the module that it is named in."""
    modules()
    store = AnswerStore(tmp_path / "kept.sqlite")
    assert answers(function_source("x", f"named_here:{name}", {}), store) == ([1.0], 1)
    assert answers(function_source("x", f"named_here:{name}", {}), store) == ([1.0], 0)
    modules(NAMED.replace("please", "a "))
    assert answers(function_source("x", f"named_here:{name}", {}), store) == ([1.0], 1), "asked anew"
    (tmp_path / "based_here.py").write_text(MODULE + "# another text of what was bound\n")
    modules(NAMED.replace("please", "a "))
    assert answers(function_source("x", f"named_here:{name}", {}), store) == ([1.0], 1), "asked anew"


def test_a_function_given_as_it_is_is_kept_by_its_name() -> None:
    module = __name__
    sources = [function_source("x", value, {}) for value in (named, f"{module}:named")]
    assert sources[0].fingerprint == sources[1].fingerprint and all(source.cached for source in sources)
    bound = [function_source("x", functools.partial(named, word=word), {}) for word in ("a", "b", "a")]
    assert bound[0].fingerprint == bound[2].fingerprint != bound[1].fingerprint != sources[0].fingerprint
    assert all(source.cached for source in bound)


@pytest.mark.parametrize(
    "two",
    [
        of_base("a", "please"), [Told("a"), Told("please")], [Told("a").__call__, Told("please").__call__],
        [functools.partial(Told(word)) for word in ("a", "please")],
        [functools.partial(named, word=word) for word in (object(), object())],
        [functools.partial(named, word=word) for word in (Path("a"), Path("please"))],
    ],
)  # fmt: skip
def test_what_has_a_state_of_its_own_is_kept_by_a_version_only(
    two: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [function_source("x", one, {}) for one in two]
    assert not any(source.cached for source in sources) and caplog.text.count("Give `version`") == 2
    kept = [function_source("x", one, {"version": v}) for v, one in enumerate(two, 1)]
    assert all(source.cached for source in kept) and kept[0].fingerprint != kept[1].fingerprint
    again = function_source("x", two[0], {"version": 1})
    assert again.fingerprint == kept[0].fingerprint


def test_arguments_that_do_not_say_what_they_are_are_kept_by_a_version_only() -> None:
    assert not function_source("x", named, {"arguments": {"word": object()}}).cached
    assert function_source("x", named, {"arguments": {"word": ["a", {"b": 1.5}]}}).cached
    prints = {function_source("x", named, {"arguments": {"word": object()}, "version": 1}).fingerprint for _ in "ab"}
    assert len(prints) == 1


def test_a_module_without_a_text_is_kept_by_a_version_only() -> None:
    assert not function_source("x", "math:sin", {}).cached and function_source("x", "math:sin", {"version": 1}).cached


def test_columns_may_be_called_as_our_own_arguments() -> None:
    told: dict[str, Any] = {}

    def noted(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        told.update(columns)
        return [1.0]

    columns = {"references": ["Blue"], "reference": "R", "function": "f", "arguments": 1, "responses_": 2, "where": 3}
    answers(function_source("x", noted, {}), **columns)
    assert told == {name: [value] for name, value in columns.items()}


@pytest.mark.parametrize("name", ["prompts", "completions", "word"])
def test_a_column_called_as_an_argument_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'x': a column and an argument are both called '{name}'"):
        answers(function_source("x", named, {"arguments": {"word": "a"}}), **{name: 1})


@pytest.mark.parametrize("size", ["abc", 2.5, True, 0, None])
def test_bad_batch_sizes_are_named(size: Any) -> None:
    with pytest.raises(InputError, match="'x': bad batch_size"):
        function_source("x", named, {"batch_size": size})


@pytest.mark.parametrize("name", ["waits", "late"])
def test_an_async_function_is_refused(name: str, modules: Callable[..., Path]) -> None:
    modules()
    with pytest.raises(InputError, match="'x': an async function"):
        function_source("x", f"named_here:{name}", {})


def test_an_async_call_is_refused() -> None:
    class Late:
        async def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [math.nan]

    with pytest.raises(InputError, match="an async function"):
        function_source("x", Late(), {})
