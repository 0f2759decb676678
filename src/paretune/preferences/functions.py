"""A user's own function as a source, with the signature of TRL's reward functions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.asking import columns_told
from paretune.preferences.source import Answers, Source

logger = logging.getLogger(__name__)

_OPTIONS = ("version", "batch_size", "arguments")


def function_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """`function: "module:name"`, a callable f(prompts, completions, **columns) -> list of float, as TRL takes them.

    The completions of a prompt in messages are messages, as there. None (TRL: "does not apply") and NaN are missing
    labels. The fingerprint is the name and the text of the module that it is named in (and of the one that it was
    written in), so that an edit is asked anew; what these import does not count, and `version` is there to say that
    it changed. Of a callable that no module's text accounts for (a closure, an instance with a state of its own)
    nothing is kept unless there is a version.

    Args:
        options: version (any text), batch_size, arguments (keyword arguments given with every call).

    Raises:
        InputError: no such module or function, an async one, an unknown option, a bad value.
    """
    where = f"source {name!r}"
    for key in options:
        if key not in _OPTIONS:
            raise InputError(f"unknown option {key!r}", where=where, expected=f"one of {', '.join(_OPTIONS)}")
    arguments = options.get("arguments", {})
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise InputError("bad arguments", where=where, expected="a mapping of names", found=arguments)
    batch_size = options.get("batch_size", 64)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError("bad batch_size", where=where, expected="a whole number of at least 1", found=batch_size)
    found = value if callable(value) else find_function(str(value), where)
    base, bound = _unwrapped(found)
    if any(map(inspect.iscoroutinefunction, (base, type(base).__call__))):
        fix = "Await inside it and return the scores: asyncio.run(...)."
        raise InputError("an async function", where=where, expected="one that returns its scores", fix=fix)
    if isinstance(value, str):
        label, text = value, _texts(sys.modules[value.partition(":")[0]], inspect.getmodule(base))
    else:
        label = ":".join(getattr(base, part, getattr(type(base), part)) for part in ("__module__", "__qualname__"))
        text = _texts(inspect.getmodule(base)) if _named(base) and _plain(bound) else ""
    told = f"{text} {options.get('version', '')} {sorted((k, _stable(v)) for k, v in arguments.items())!r}"
    told += "".join(f" {_stable(one)}" for one in bound)
    cached = options.get("version") not in (None, "") or (bool(text) and _plain(arguments))
    if not cached:
        logger.warning("%s: no answer of %s is kept: nothing tells its versions apart. Give `version`.", where, label)
    return Source(
        name,
        f"function {label} {hashlib.blake2b(told.encode(), digest_size=12).hexdigest()}",
        score=functools.partial(_scored, where, found, arguments),
        reads=None,
        batch_size=batch_size,
        cached=cached,
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


def _unwrapped(function: Any) -> tuple[Any, list[Any]]:
    """What partials are made of, and the arguments that each binds."""
    bound = []
    while isinstance(function, functools.partial):
        bound.append([list(function.args), dict(function.keywords)])
        function = function.func
    return function, bound


def _texts(*modules: ModuleType | None) -> str:
    """Of the modules' files; "" for one without: compiled, or typed into a console."""
    texts = []
    for module in dict.fromkeys(module for module in modules if module is not None):
        with contextlib.suppress(OSError, TypeError):
            texts.append(inspect.getsource(module))
    return "".join(texts)


def _named(function: Any) -> bool:
    """Whether it is what its module has under its name: no closure, no lambda, no method of one instance."""
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "<unnamed>").split("."):
        found = getattr(found, part, None)
    return found is function


def _plain(value: Any) -> bool:
    """Whether its repr says all of it, and the same in another process."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(_plain(one) for entry in value.items() for one in entry)
    return value is None or type(value) in (str, int, float, bool)


def _stable(value: Any) -> Any:
    return value if _plain(value) else type(value).__qualname__


def _scored(
    where: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    prompts: Sequence[Text],
    responses: Sequence[Text],
    /,
    references: Sequence[Any] | None = None,
    **told: Sequence[Any],
) -> Answers:
    columns = {name: list(values) for name, values in columns_told(references, told).items()}
    for name in columns:
        if name in ("prompts", "completions", *arguments):
            fix = "Rename the column in the rows" + (", or the argument." if name in arguments else ".")
            raise InputError(f"a column and an argument are both called {name!r}", where=where, fix=fix)
    completions = [
        [{"role": "assistant", "content": response}]
        if isinstance(prompt, list) and isinstance(response, str)
        else response
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    answers: Answers = function(prompts=list(prompts), completions=completions, **columns, **arguments)
    return answers
