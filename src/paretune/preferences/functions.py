"""A user's own function as a source, with the signature of TRL's reward functions."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.source import Answers, Source

_OPTIONS = ("version", "batch_size", "arguments")


def function_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """`function: "module:name"`, a callable f(prompts, completions, **columns) -> list of float, as TRL takes them.

    The completions of a prompt in messages are messages, as there. None (TRL: "does not apply") and NaN are missing
    labels. The fingerprint is the name and the text of its module's file, so that an edit is asked anew; what the
    module imports does not count, and `version` is there to say that it changed.

    Args:
        options: version (any text), batch_size, arguments (keyword arguments given with every call).

    Raises:
        InputError: no such module or function, an unknown option.
    """
    where = f"source {name!r}"
    for key in options:
        if key not in _OPTIONS:
            raise InputError(f"unknown option {key!r}", where=where, expected=f"one of {', '.join(_OPTIONS)}")
    arguments = options.get("arguments", {})
    if not isinstance(arguments, dict):
        raise InputError("bad arguments", where=where, expected="a mapping", found=arguments)
    found = value if callable(value) else find_function(str(value), where)
    label = value if isinstance(value, str) else f"{found.__module__}:{getattr(found, '__qualname__', type(found))}"
    version = f"{_text_of_module(found)} {options.get('version', '')} {sorted(arguments.items())!r}"
    return Source(
        name,
        f"function {label} {hashlib.blake2b(version.encode(), digest_size=12).hexdigest()}",
        score=functools.partial(_scored, found, arguments),
        reads=None,
        batch_size=options.get("batch_size", 64),
    )


def find_function(name: str, where: str) -> Callable[..., Any]:
    """The function that "module:name" names; modules in the working folder are found.

    Raises:
        InputError: there is none.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError("bad function", where=where, expected='"module:name"', found=name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it; a script that was installed does not
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            fix = "Modules are looked for in the working folder and where Python finds them."
            raise InputError("no such module", where=where, found=module_name, fix=fix) from error
        raise
    except AttributeError as error:
        raise InputError("no such function", where=where, found=name) from error
    if not callable(found):
        raise InputError("not a function", where=where, found=name)
    function: Callable[..., Any] = found
    return function


def _text_of_module(function: Callable[..., Any]) -> str:
    try:
        module = inspect.getmodule(function)
        return inspect.getsource(module if module is not None else function)
    except (OSError, TypeError):  # a builtin, or typed into a console
        return ""


def _scored(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    prompts: Sequence[Text],
    responses: Sequence[Text],
    references: Sequence[Any] | None = None,
    **columns: Any,
) -> Answers:
    completions = [
        [{"role": "assistant", "content": response}]
        if isinstance(prompt, list) and isinstance(response, str)
        else response
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    if references is not None:
        columns["reference"] = list(references)
    answers: Answers = function(prompts=list(prompts), completions=completions, **columns, **arguments)
    return answers
