"""Whoever serves a round's model while it is drawn from: a server that is started and ended, or one that is told."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.pipelines.improve import guard
from paretune.pipelines.sampling_server import Access
from paretune.preferences.secrets import without_key

_POLL = 0.2  # seconds
_GONE = 15.0  # seconds that a server of a killed run has to end
_HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Serving:
    """Where draws come from.

    Args:
        url: base URL of an OpenAI-compatible server.
        command: serves a model, or tells a server to; "{model}" in it becomes the model's directory. A command that
            goes on running is the server, and is ended when the round's draws are there; one that ends (with status
            0) has told another. None: the server is there, and serves the first model.
        name: the model's name in requests, "{model}" as in the command.
        seconds: until the server must list that name.
        access: how it is asked.
    """

    url: str
    command: str | None = None
    name: str = "{model}"
    seconds: float = 600.0
    access: Access = field(default_factory=Access)

    def name_of(self, model: str) -> str:
        """What the server calls a model."""
        return self.name.replace("{model}", model)

    def check(self, rounds: int, *, supervised: bool) -> None:
        """Raises InputError for what could not work, before anything is trained."""
        self.access.options(self.url)
        if self.command is None:
            if rounds > 1 or supervised:
                which = "the supervised start's" if supervised else "round 1's"
                raise InputError(
                    f"draws from {which} model, which this server does not serve",
                    where=f"server {self.url}",
                    fix="Give serve, a command with {model} in it that serves a model or tells the server to; or leave "
                    "server out: draws are then made here, and judges may be on a server all the same.",
                )
            return
        if (secret := self.access.secret()) and secret in self.command:  # the command is kept with the settings
            fix = f"Let a shell put it in: serve: bash -c '… ${self.access.api_key_env}'."
            raise InputError("a key in serve", fix=fix)
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"bad serve: {error}", found=self.command) from error
        if "{model}" not in self.command or not words:
            raise InputError("bad serve", expected="a command with {model} in it", found=self.command)
        if shutil.which(words[0]) is None:
            raise InputError("no such program", where="serve", found=words[0])


@contextmanager
def served(serving: Serving, model: str, log: Path, *, keys: Collection[str] = ()) -> Iterator[None]:
    """Has a model served for a while.

    Args:
        log: receives what the command says. Where it is there already, an earlier run was cut off.
        keys: environment variables with keys that the log must not hold, beside the server's own and the hub's.

    Raises:
        InputError: the command fails, or the server does not list the model in time.
    """
    if serving.command is None:
        _wait(serving, model, None, log, was_there=False)
        yield
        return
    was_there = _listed(serving) is not None
    until = time.monotonic() + _GONE
    while was_there and log.exists() and time.monotonic() < until:  # the killed run's server, which is about to end
        time.sleep(_POLL)
        was_there = _listed(serving) is not None
    words = [word.replace("{model}", model) for word in shlex.split(serving.command)]
    secret = ",".join(sorted({*keys, *_HUB_KEYS, serving.access.api_key_env or ""} - {""}))
    with log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, secret, *words], stdin=subprocess.PIPE, stdout=said, stderr=said
        )
    try:
        _wait(serving, model, process, log, was_there=was_there)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _wait(serving: Serving, model: str, process: subprocess.Popen[bytes] | None, log: Path, *, was_there: bool) -> None:
    """Until the server lists the model.

    A server that was there before the command may list another round's model under the same name, so the command must
    have ended: had it been a server itself, it would have found the place taken.
    """
    name, until = serving.name_of(model), time.monotonic() + (serving.seconds if process is not None else 0.0)
    while True:
        status = None if process is None else process.poll()
        if status:
            fix = f"See {log}." + (" Something answers at that address already." if was_there else "")
            raise InputError("the command failed", where=f"serve: {serving.command}", found=_tail(log), fix=fix)
        names = _listed(serving)
        if names is not None and name in names and (not was_there or status == 0):
            return
        if time.monotonic() >= until:
            found = "no answer" if names is None else ", ".join(sorted(names)) or "no model"
            fix = "Is it served under another name? Say which: server_model."
            raise InputError("the model is not served", where=serving.url, expected=name, found=found, fix=fix)
        time.sleep(_POLL)


def _listed(serving: Serving) -> set[str] | None:
    """The names of the server's models; None where it does not answer, or is still loading.

    Raises:
        InputError: it refuses the key.
    """
    import openai

    options: dict[str, Any] = {**serving.access.options(serving.url), "timeout": 10.0}
    try:
        with openai.OpenAI(**options) as client:
            return {one.id for one in client.models.list().data}
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        found = without_key(str(error), serving.access.secret())
        raise InputError("the server refuses the key", where=serving.url, found=found[:300]) from None
    except (openai.APIError, ValueError):
        return None


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines[-3:]) or "it said nothing"
