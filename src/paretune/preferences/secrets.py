"""Keys of servers stay out of logs, files and errors."""

from __future__ import annotations

import os
import re

from paretune.errors import InputError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CERTAINLY_A_NAME = re.compile(r"[A-Z]+(_[A-Z]+)+")  # no digits: what is random has some


def key_in(variable: str | None) -> str:
    """The key that an environment variable holds; "" where no variable is named.

    A key may have been written where its variable's name belongs: what is not certainly a name is not shown.

    Raises:
        InputError: no name of a variable, or no key in it.
    """
    if variable is None:
        return ""
    if not _VARIABLE.fullmatch(variable):
        fix = "The key itself must stand nowhere else."
        raise InputError("bad api_key_env", expected="the name of an environment variable", fix=fix)
    key = os.environ.get(variable, "")
    if not key:
        shown = variable if _CERTAINLY_A_NAME.fullmatch(variable) else ""
        where = f"api_key_env {shown}".strip()
        fix = f"export {shown}=…" if shown else "export NAME=…, and give NAME, not the key."
        raise InputError("no such environment variable, or it is empty", where=where, fix=fix)
    return key


def without_key(text: str, secret: str) -> str:
    """The text without the key or the parts of it that servers repeat when they refuse one."""
    if not secret:
        return text
    text = text.replace(secret, "***")
    if len(secret) >= 12:
        for part in (secret[:8], secret[-4:]):
            text = text.replace(part, "***")
    return text
