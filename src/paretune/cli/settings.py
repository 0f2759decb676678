"""Settings of a command: a YAML file first, flags over it, every key known and every value of the right type.

    paretune train config.yaml --learning_rate 1e-5 --lora.r 8 --objectives '{helpful: 0.6, harmless: 0.4}'

A command's keys are the fields of its own dataclass and of a configuration class (`RACOConfig`); both bring their types
and one-sentence help with them, so neither is written down twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from paretune.cli.yaml_values import LONGEST, read_yaml
from paretune.errors import InputError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What was asked for, checked: values by key, and which of them belong to the configuration class.

    `own` is an instance of the command's dataclass; `config` holds keyword arguments of the configuration class.
    """

    own: Any
    config: dict[str, Any]


def resolve(
    argv: list[str],
    own: type,
    config: type | None,
    *,
    required: Iterable[str],
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings that a command line asks for.

    Args:
        argv: `[CONFIG.yaml] [--key value ...]`.
        own: the command's dataclass.
        config: the configuration class whose fields are keys too, or None.
        required: keys that must be given.
        base: values under those of the file and the flags.

    Raises:
        InputError: an unknown key (the nearest one is named), a value of the wrong type, a missing key, a bad file.
    """
    hints = {key: hint for kind in (config, own) if kind is not None for key, hint in hints_of(kind).items()}
    path, flags = parse_flags(argv, hints)
    values = {**(base or {}), **({} if path is None else read_config(path))}
    for key in values:
        _check_key(key, hints, path or "")
    merged = {key: convert(key, value, hints[key], path or "") for key, value in values.items()}
    for names, raw in flags:
        key = names[0]
        if len(names) == 1:
            merged[key] = _from_flag(key, raw, hints[key])
        else:
            new, inside, old = read_yaml(raw[-1], _flag(".".join(names))), names[1:], merged.get(key)
            if key == "objectives":
                old = _by_name(old)
                inside = [*inside, "weight"] if len(inside) == 1 and not isinstance(new, Mapping) else inside
            merged[key] = convert(key, _set_inside(old, inside, new), hints[key], _flag(key))
    for key in required:
        if merged.get(key) in (None, "", []):
            fix = f"Give it in the configuration file, or as {_flag(key)} VALUE."
            raise InputError(f"{key} is missing", where=path or "", fix=fix)
    names_own = {field.name for field in dataclasses.fields(own)}
    return Settings(
        own(**{key: value for key, value in merged.items() if key in names_own}),
        {key: value for key, value in merged.items() if key not in names_own},
    )


def make_config(kind: type, values: dict[str, Any]) -> Any:
    """The configuration object; whatever it refuses becomes an InputError."""
    try:
        return kind(**values)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError) as error:
        first, *more = [line.strip("- ") for line in str(error).strip().splitlines()] or [type(error).__name__]
        text = f"{first} {', '.join(more)}" if more else first
        text = re.sub(r"\b[A-Z]\w+\.([A-Z]+)\b", lambda found: found[1].lower(), text)  # IntervalStrategy.STEPS
        raise InputError(text, where="settings") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the most similar known name, or some of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(choices)}." if len(choices) <= 12 else ""


def hints_of(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


# ---- reading ----


def read_config(path: str) -> dict[str, Any]:
    """The settings of a configuration file, by key; dashes in keys mean underscores."""
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except FileNotFoundError as error:
        raise InputError("no such configuration file", where=path) from error
    except OSError as error:
        raise InputError(f"cannot read the configuration: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise InputError("invalid UTF-8", where=path, found=f"byte {error.start}") from error
    content = read_yaml(text, path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError("not a configuration", where=path, expected="a mapping of keys to values", found=content)
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def parse_flags(argv: list[str], hints: Mapping[str, Any]) -> tuple[str | None, list[tuple[list[str], list[str]]]]:
    """The configuration file's path and the flags in order, each as (key path, its raw values).

    A flag given several times collects its values. `--key=value` is the same as `--key value`, and a flag that can be
    true or false may stand alone.
    """
    path: str | None = None
    flags: dict[str, list[str]] = {}
    place = 0
    while place < len(argv):
        word = argv[place]
        place += 1
        if not word.startswith("--"):
            if path is not None or word.startswith("-"):
                raise InputError(
                    f"unexpected argument {word!r}",
                    expected="one configuration file, and --key value for everything else",
                )
            path = word
            continue
        name, equals, value = word[2:].partition("=")
        key, dot, rest = name.partition(".")
        key = key.replace("-", "_")
        _check_key(key, hints, "", flag=True)
        if not equals:
            following = argv[place] if place < len(argv) else None
            if _takes(following, hints[key], nested=bool(dot)):
                value = str(following)
                place += 1
            elif bool in _members(hints[key]) and not dot:
                value = "true"
            else:
                raise InputError(f"{_flag(name)} needs a value")
        flags.setdefault(key + dot + rest, []).append(value)
    return path, [(name.split("."), raw) for name, raw in flags.items()]


def _takes(following: str | None, hint: Any, *, nested: bool) -> bool:
    """Whether the next word is the flag's value: a switch takes true or false only, so a file name may follow it."""
    if following is None or following.startswith("--"):
        return False
    members = _members(hint)
    if nested or bool not in members:
        return True
    if set(members) <= {bool, type(None)}:
        return following.lower() in _WORDS
    return not following.endswith((".yaml", ".yml"))


def _from_flag(key: str, raw: list[str], hint: Any) -> Any:
    members = _members(hint)
    if len(raw) > 1:
        written = key == "objectives" or (dict in _plain(members) and any(text[:1] in ("[", "{") for text in raw))
        if list not in _plain(members) or written:  # several names are a list of them; several mappings are not
            raise InputError(f"{_flag(key)} is given {len(raw)} times", expected="one value")
        return convert(key, raw, hint, _flag(key))
    text = raw[0]
    if text in ("null", "~") and type(None) in members:
        return None
    if set(_plain(members)) <= {str, type(None)}:  # its words are never numbers or switches
        return convert(key, text, hint, _flag(key))
    value = read_yaml(text, _flag(key)) if text[:1] in "[{" or str not in members else _scalar(text)
    if isinstance(value, int | float) and not isinstance(value, bool) and not {int, float} & set(members):
        value = text
    return convert(key, value, hint, _flag(key))


def _scalar(text: str) -> Any:
    """A path or a name may hold what YAML gives a meaning to (': ', '#'); only plain words and numbers get one."""
    return read_yaml(text, "") if re.fullmatch(r"[\w.+-]+", text) else text


def _set_inside(value: Any, names: list[str], new: Any) -> Any:
    """The value with one entry of its nested mappings changed."""
    inside = dict(value) if isinstance(value, Mapping) else {}
    inside[names[0]] = new if len(names) == 1 else _set_inside(inside.get(names[0]), names[1:], new)
    return inside


def _by_name(objectives: Any) -> Any:
    """Objectives as name -> options, from any form that `parse_objectives` takes, so that one option can be changed."""
    if isinstance(objectives, list):
        entries = [{"name": entry} if isinstance(entry, str) else entry for entry in objectives]
        objectives = {e["name"]: {k: v for k, v in e.items() if k != "name"} for e in entries if "name" in e}
    if not isinstance(objectives, Mapping):
        return objectives
    return {
        name: dict(options) if isinstance(options, Mapping) else {} if options is None else {"weight": options}
        for name, options in objectives.items()
    }


_KEYS = ("hub_token", "push_to_hub_token")


def _check_key(key: str, known: Mapping[str, Any], where: str, *, flag: bool = False) -> None:
    if key in _KEYS:  # settings are written to records
        fix = "Leave it out: set HF_TOKEN, or log in with `hf auth login`."
        raise InputError(f"a secret key in the settings: {key}", where=where, fix=fix)
    if key not in known:
        shown = _flag(key) if flag else repr(key)
        raise InputError(f"unknown key {shown}", where=where, fix=nearest(key, known))


def _flag(key: str) -> str:
    return f"--{key}"


# ---- types ----


def convert(key: str, value: Any, hint: Any, where: str) -> Any:
    """The value as the type that the hint names.

    Raises:
        InputError: it is none of them; says what was expected and found.
    """
    members = _members(hint)
    if Any in members or (value is None and type(None) in members):
        return value
    for member in members:
        if isinstance(member, type) and issubclass(member, Enum) and value is not None:
            return _choice(key, value, [str(entry.value) for entry in member], where)
    for member in members:
        if typing.get_origin(member) is typing.Literal and value in typing.get_args(member):
            return value
    plain = _plain(members)
    if isinstance(value, bool):
        if bool in plain:
            return value
    elif isinstance(value, int | float):
        if int in plain and abs(value) < 1 << 63 and value == value // 1:
            return int(value)
        if float in plain:
            with contextlib.suppress(OverflowError):  # an integer beyond the floats
                return float(value)
        if str in plain:
            return str(value)
    elif isinstance(value, str):
        if str in plain:
            return value
        number = _number(value)
        if number is not None and (float in plain or (int in plain and number.is_integer())):
            return number if float in plain else int(number)
        if list in plain:
            return [value]
    elif isinstance(value, list):
        if list in plain:
            return value
    elif isinstance(value, dict) and dict in plain:
        return value
    expected = " or ".join(_NAMES[kind] for kind in plain if kind in _NAMES) or "another value"
    raise InputError(f"bad {key}", where=where, expected=expected, found=value)


def _choice(key: str, value: Any, choices: list[str], where: str) -> str:
    """YAML reads `no` as false: `save_strategy: no` means what it says."""
    text = {False: "no", True: "yes"}[value] if isinstance(value, bool) else str(value)
    if text not in choices:
        raise InputError(
            f"bad {key}", where=where, expected=f"one of {', '.join(choices)}", found=value, fix=nearest(text, choices)
        )
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(hint) for member in _members(part))
    return (hint,)


def _plain(members: Iterable[Any]) -> list[type]:
    """The members without their parameters: list[str] -> list."""
    kinds = [typing.get_origin(member) or member for member in members]
    return [kind for kind in kinds if isinstance(kind, type)]
