"""YAML (and JSON) as plain values: nothing is run, nothing grows, and what is not read is said with its line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from paretune.errors import InputError

LONGEST = 1 << 20  # characters; PyYAML reads a megabyte in some seconds
_MOST_NODES = 100_000  # with every alias written out: nine lines of aliases of aliases stand for a billion
_NOT_TEXT = re.compile("[\\0\\ud800-\\udfff]")  # in no path and no file


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number (YAML 1.1 wants 1.0e-5) and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise yaml.constructor.ConstructorError(None, None, f"bad key {key!r}", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML (or JSON) text.

    Raises:
        InputError: not YAML, or more than settings are; the line is named.
    """
    if len(text) > LONGEST:
        raise InputError("too long for settings", where=where, expected=f"at most {LONGEST:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check_node(node, {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or "not YAML"
        raise InputError(f"unreadable YAML: {problem}", where=place) from error
    except RecursionError as error:
        raise InputError("unreadable YAML: nested too deeply", where=where) from error
    except Exception as error:  # of a tag's text: whatever int(), float() or date() raise
        raise InputError(f"unreadable YAML: {_first_line(error)}", where=where) from error


def _check_node(node: yaml.Node | None, sizes: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for, its aliases written out.

    Args:
        sizes: of nodes that were counted; None while one is.

    Raises:
        ConstructorError: too many, one that holds itself, text that no file can hold.
    """
    if node is None:
        return 0
    if node in sizes:
        if sizes[node] is None:
            raise yaml.constructor.ConstructorError(None, None, "a value that holds itself", node.start_mark)
        return sizes[node] or 0
    sizes[node] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        if _NOT_TEXT.search(node.value):
            raise yaml.constructor.ConstructorError(None, None, "NUL, or half a character", node.start_mark)
    else:
        inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    size = 1
    for part in inner:
        size += _check_node(part, sizes)
        if size > _MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, "aliases for too many values", node.start_mark)
    sizes[node] = size
    return size


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
