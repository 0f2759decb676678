"""`paretune sample`: several responses to each prompt of a file, in a file that grows and is never begun anew.

The output is JSON lines, appended and synced as responses come: a process may be killed at any moment, and the same
command goes on. What a finished prompt got is never sampled again, and the finished file is a function of the prompts,
the model and the settings alone, whatever happened on the way. Beside it, NAME.sampling.json holds the settings, so
that a file does not mix two models unnoticed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.comparisons.progress import SECONDS
from paretune.comparisons.rows import BadRow, Text, clean_row
from paretune.comparisons.sources import list_sources, open_source
from paretune.errors import InputError
from paretune.files import said_if_full, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingSettings:
    """What decides the responses.

    Args:
        model: directory, hub id or a server's name for it; server: the base URL of an OpenAI-compatible one, or None.
        n: responses per prompt that are drawn; equal and empty ones are left out.
        temperature, top_p, max_tokens: of the draws; max_tokens counts the end of the response.
        seed: of the draws; a prompt's depend on it and the prompt's text alone.
        conversational: a plain prompt becomes a user message, and the chat template applies.
        template_options: more arguments of the chat template, as {enable_thinking: false}.
        drop_cut: leave out responses that max_tokens cut off.
    """

    model: str
    server: str | None = None
    n: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    conversational: bool = False
    template_options: Mapping[str, Any] | None = None
    drop_cut: bool = False

    def check(self) -> None:
        """Raises InputError for values out of range."""
        for key, least in (("n", 1), ("max_tokens", 1)):
            if getattr(self, key) < least:
                raise InputError(f"bad {key}", expected=f"at least {least}", found=getattr(self, key))
        if not 0.0 <= self.temperature < 100.0:
            raise InputError("bad temperature", expected="a number >= 0", found=self.temperature)
        if not 0.0 < self.top_p <= 1.0:
            raise InputError("bad top_p", expected="a number in (0, 1]", found=self.top_p)
        if self.temperature == 0.0 and self.n > 1:
            fix = "Set n: 1, or a temperature above 0."
            raise InputError("temperature 0 gives n times the same response", found=f"n {self.n}", fix=fix)


@dataclass(frozen=True)
class Drawn:
    """One response as it was drawn; cut: max_tokens came before its end."""

    text: str
    cut: bool


@dataclass(frozen=True)
class PromptRow:
    """A prompt and what else its row holds; key: of both."""

    prompt: Text
    columns: Mapping[str, Any]
    key: str

    def seed(self, seed: int) -> int:
        """For the draws of this prompt: of its text and the run's seed."""
        digest = hashlib.blake2b(json.dumps([seed, self.prompt]).encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big")


def read_prompts(
    data: Any, *, conversational: bool = False, take: int | None = None, on_bad_row: str = "error"
) -> tuple[list[PromptRow], dict[str, int]]:
    """The prompts of a file, hub id or list of rows; rows that repeat another are left out and counted.

    In rows of LLMBar's layout, which `paretune judge-bench` reads, `input` is the prompt: so references come for them.

    Raises:
        InputError: data that cannot be read, a row without a prompt or with responses already, no prompt at all.
    """
    if on_bad_row not in ("error", "skip"):
        raise InputError("bad on_bad_row", expected="error or skip", found=on_bad_row)
    rows: dict[str, PromptRow] = {}
    counts = {"repeated rows left out": 0, "bad rows left out": 0}
    for source in list_sources(data, "auto"):
        records = open_source(source, split=source.split or "train", streaming=False)
        for where, record in itertools.islice(records, take):
            try:
                if isinstance(record, BadRow):
                    raise record
                row = _prompt_row(record, conversational)
            except BadRow as bad:
                if on_bad_row == "error":
                    raise bad.to_input_error(where, "(on_bad_row: skip leaves bad rows out and counts them.)") from None
                counts["bad rows left out"] += 1
                continue
            counts["repeated rows left out"] += row.key in rows
            rows.setdefault(row.key, row)
    if not rows:
        raise InputError("no prompt", expected='rows of {"prompt": …}', found=f"{counts}")
    return list(rows.values()), {what: count for what, count in counts.items() if count}


def _prompt_row(record: Mapping[str, Any], conversational: bool) -> PromptRow:
    if "responses" in record:
        raise BadRow("the row has responses already", field="responses", expected="a prompt and columns of your own")
    if "prompt" not in record and {"input", "output_1", "output_2"} <= set(record):
        record = {"prompt" if name == "input" else name: value for name, value in record.items()}
    filled: dict[str, Any] = {"prompt": record.get("prompt"), "response_a": "-", "response_b": "-", "preferences": {}}
    prompt = clean_row(filled, conversational=conversational)["prompt"]
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with the assistant", field="prompt", expected="a last message of the user")
    return _keyed(prompt, {name: value for name, value in record.items() if name != "prompt"})


def _keyed(prompt: Text, columns: Mapping[str, Any]) -> PromptRow:
    content = json.dumps([prompt, columns], sort_keys=True, default=str)
    return PromptRow(prompt, columns, hashlib.blake2b(content.encode(), digest_size=16).hexdigest())


def tidy(drawn: Sequence[Drawn], settings: SamplingSettings, counts: dict[str, int]) -> list[str]:
    """Different, non-empty responses in the order of their first draw; what is left out is counted."""
    kept: dict[str, str] = {}
    for one in drawn:
        counts["cut"] = counts.get("cut", 0) + one.cut
        bare = one.text.strip()
        reason = "empty" if not bare else "repeated" if bare in kept else "cut" if one.cut and settings.drop_cut else ""
        if reason and reason != "cut":
            counts[reason] = counts.get(reason, 0) + 1
        if not reason:
            kept[bare] = one.text
    return list(kept.values())


class ResponseFile:
    """The growing output, locked against a second process.

    Raises:
        InputError: another process writes it, it was made with other settings, or it is not such a file.
    """

    def __init__(self, path: Path, settings: SamplingSettings, *, overwrite: bool = False):
        self.path = path
        self.beside = path.with_name(f"{path.name.removesuffix('.jsonl')}.sampling.json")
        self._lock = self._locked()
        try:
            self._begin(json.loads(json.dumps(dataclasses.asdict(settings))), overwrite)
            self.finished = self._read()
        except BaseException:
            self.close()
            raise

    def _begin(self, told: Mapping[str, Any], overwrite: bool) -> None:
        if overwrite:
            self.path.unlink(missing_ok=True)
            self.beside.unlink(missing_ok=True)
        if self.beside.exists():
            self._check_same(told)
        elif self.path.exists() and self.path.stat().st_size:
            fix = "Name another file, or replace it with --overwrite true."
            raise InputError("a file that `paretune sample` did not begin", where=str(self.path), fix=fix)
        write_text(self.beside, json.dumps(told, indent=2) + "\n")

    def _locked(self) -> Any:
        try:
            lock = self.path.with_name(f".{self.path.name}.lock").open("w")
        except OSError as error:
            raise InputError("cannot write there", where=str(self.path), found=str(error.strerror)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError("another process writes this file", where=str(self.path)) from None
        return lock

    def _check_same(self, told: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError("unreadable settings", where=str(self.beside), found=str(error)) from error
        for key, value in told.items():
            if before.get(key) != value:
                raise InputError(
                    f"the file was begun with another {key}",
                    where=str(self.path),
                    expected=f"{before.get(key)!r}, as before",
                    found=repr(value),
                    fix="Name another file, or begin anew with --overwrite true.",
                )

    def _read(self) -> dict[str, str]:
        """key -> line of the finished prompts. A line that a kill cut short is cut off."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
        finished = {}
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], start=1):
            try:
                row = json.loads(line)
                columns = {name: value for name, value in row.items() if name not in ("prompt", "responses")}
                finished[_keyed(row["prompt"], columns).key] = line
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError("not a row of responses", where=f"{self.path}, line {number}") from error
        return finished

    def add(self, rows: Iterable[tuple[PromptRow, list[str]]]) -> None:
        """Appends finished prompts; they are on disk when it returns."""
        lines = []
        for row, responses in rows:
            if row.key not in self.finished:
                self.finished[row.key] = _line({"prompt": row.prompt, "responses": responses, **row.columns})
                lines.append(self.finished[row.key] + "\n")
        if lines:
            with said_if_full(self.path), self.path.open("ab") as stream:
                stream.write("".join(lines).encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())

    def finish(self, rows: Sequence[PromptRow]) -> int:
        """Puts the rows in the prompts' order, whatever the order in which they came; returns how many there are.

        Rows whose prompts are not among these stay, at the end.
        """
        wanted = [row.key for row in rows if row.key in self.finished]
        others = [key for key in self.finished if key not in set(wanted)]
        write_text(self.path, "".join(self.finished[key] + "\n" for key in [*wanted, *others]))
        return len(wanted)

    def close(self) -> None:
        """Lets another process write."""
        self._lock.close()


@contextmanager
def open_responses(path: Path, settings: SamplingSettings, *, overwrite: bool) -> Iterator[ResponseFile]:
    """The output for a while."""
    file = ResponseFile(path, settings, overwrite=overwrite)
    try:
        yield file
    finally:
        file.close()


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair in some column: JSON can spell it, UTF-8 cannot
        return json.dumps(row)
    return text


class Progress:
    """A line of the log now and then."""

    def __init__(self, total: int, file: ResponseFile):
        self.total, self.file, self.before = total, file, len(file.finished)
        self.started = self.said = time.monotonic()

    def at(self) -> None:
        now = time.monotonic()
        if now - self.said >= SECONDS:
            self.said, done = now, len(self.file.finished)
            rate = (done - self.before) / (now - self.started)
            logger.info("%s of %s prompts, %.3g/s", f"{done:,}", f"{self.total:,}", rate)
