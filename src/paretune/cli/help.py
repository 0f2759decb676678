"""The help of a command, made from the fields of its settings: their names, defaults and one-sentence help."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 112


def command_help(
    intro: str, groups: Mapping[str, Sequence[str]], kinds: Sequence[type], *, inherited: type | None = None
) -> str:
    """What `paretune COMMAND --help` prints.

    Args:
        intro: what the command does, with an example.
        groups: heading -> keys under it; keys of ours in no group come under "More".
        kinds: the dataclasses whose fields are the keys.
        inherited: a class whose own fields are listed by name only where no group names them.
    """
    fields = {field.name: field for kind in kinds for field in dataclasses.fields(kind) if field.init}
    base = {field.name: field for field in dataclasses.fields(inherited)} if inherited else {}
    theirs = set(base)
    brief = [field for field in fields.values() if base.get(field.name) is field]
    named = {key for keys in groups.values() for key in keys}
    rest = [key for key in fields if key not in named and key not in theirs]
    lines = [intro.strip(), ""]
    for heading, keys in [*groups.items(), ("More", rest)]:
        if keys:
            lines += [
                f"{heading}:",
                *(line for key in keys for line in _entry(fields[key], brief=fields[key] in brief)),
                "",
            ]
    others = sorted(theirs & set(fields) - named)
    if others:
        text = f"Every other field of transformers.{inherited.__name__ if inherited else ''} is a key too:"
        lines += [text, *textwrap.wrap(", ".join(others), WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
    return "\n".join(lines)


def _entry(field: dataclasses.Field[Any], *, brief: bool) -> list[str]:
    text = " ".join(str(field.metadata.get("help", "")).split())
    text = text if not brief else text.split(". ")[0].rstrip(".") + "."  # transformers explains at length
    default = _default(field)
    if default:
        text += f" [{default}]"
    head = f"  --{field.name} "
    if len(head) > 30:
        return [head.rstrip(), *textwrap.wrap(text, WIDTH, initial_indent=" " * 30, subsequent_indent=" " * 30)]
    return textwrap.wrap(text, WIDTH, initial_indent=f"{head:<30}", subsequent_indent=" " * 30) or [head]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING or value is None or value == "":
        return ""
    return str(value).lower() if isinstance(value, bool) else str(typing.cast(Any, getattr(value, "value", value)))
