"""Answers kept on disk by what was asked: paid for once, whoever asks again.

One SQLite file holds a hash and a number per answer; no text and no key of a server is in it. Each `keep` is a
transaction on disk before it returns, so a process may be killed at any moment; several processes of one
machine may share the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paretune.comparisons.cache import cache_root
from paretune.errors import InputError
from paretune.files import disk_full, is_full
from paretune.preferences.source import Item, Source

_WAIT = 120.0  # seconds for another process to finish its transaction
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value REAL) WITHOUT ROWID"
_KEEP = "INSERT INTO answers VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = coalesce(value, excluded.value)"
_ASKED_AT_ONCE = 500  # SQLite takes a limited number of values in a query


def default_path() -> Path:
    """Where answers are kept unless a place is named."""
    return cache_root() / "answers.sqlite"


def answer_key(source: Source, item: Item) -> bytes:
    """16 bytes that tell one question to one source from all others: its fingerprint, the texts and what it reads."""
    columns = item.columns if source.reads is None else {name: item.columns.get(name) for name in source.reads}
    kind = "score" if source.score is not None else "compare"
    question = [source.fingerprint, kind, item.prompt, *item.responses, columns]
    text = json.dumps(question, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class AnswerStore:
    """The file, opened by one thread of one process. Failures are answers too: NaN, kept as null.

    Raises:
        InputError: the file cannot be made or is not one of ours.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser()
        with self._said():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_WAIT)
            # WAL: a reader need not wait for a writer, and keeping an answer is one fsync
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(_TABLE)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Those of the keys that were answered."""
        found: dict[bytes, float] = {}
        with self._said():
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                some = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._connection.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", list(some))
                found.update((key, math.nan if value is None else float(value)) for key, value in rows)
        return found

    def keep(self, answers: Mapping[bytes, float]) -> None:
        """Writes answers; an earlier failure under the same key gives way, an earlier number stays."""
        values = [(key, None if math.isnan(value) else value) for key, value in answers.items()]
        with self._said(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_KEEP, values)

    @contextmanager
    def _said(self) -> Iterator[Any]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            if is_full(error):
                raise disk_full(error, self.path) from error
            fix = "Name another file with --cache, or remove this one: its answers are then asked for again."
            raise InputError("cannot use the kept answers", where=str(self.path), found=str(error), fix=fix) from error
