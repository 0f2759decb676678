"""How far a long pass over rows is, and how fast: lines of the log, which the commands show."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

SECONDS = 10.0  # between two lines
SILENT = 3.0  # a pass shorter than this says nothing


class Progress:
    """Logs a line every `SECONDS`, and one at the end of a pass that was not short.

    Args:
        what: is done with rows, as in "train.jsonl: rows read and checked".
        total: how many there are, where that is known.
    """

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total = what, total
        self.started = self.said = time.monotonic()

    def at(self, rows: int) -> None:
        """Says how far it is where the last line is long enough ago."""
        now = time.monotonic()
        if now - self.said >= SECONDS:
            self.said = now
            of = "" if self.total is None else f" of {self.total:,}"
            logger.info("%s: %s%s, %s", self.what, f"{rows:,}", of, self._rate(rows))

    def end(self, rows: int) -> None:
        """Says what was done and at which rate, unless it took no time worth a line."""
        seconds = time.monotonic() - self.started
        if seconds >= SILENT:
            logger.info("%s: %s in %.0f s, %s", self.what, f"{rows:,}", seconds, self._rate(rows))

    def _rate(self, rows: int) -> str:
        return f"{rows / max(time.monotonic() - self.started, 1e-9):,.0f} rows/s"
