"""Ctrl-C and SIGTERM that wait for a place where nothing is half done.

Python raises KeyboardInterrupt wherever the main thread happens to be: with a line half written, or in a library that
keeps it to itself. Ray has been seen to go on as if nothing had come.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN = 1.0  # seconds: a terminal's ctrl-C and a launcher's own are one


@contextmanager
def stops_between() -> Iterator[Callable[[], None]]:
    """Gives a function for those places, which raises KeyboardInterrupt there if a signal has come.

    A ctrl-C at least a second after the first signal is obeyed at once. Signals reach a process's main thread only: in
    another one they mean what they meant before.
    """
    asked: list[float] = []

    def hear(number: int, frame: Any) -> None:
        now = time.monotonic()
        if asked and number == signal.SIGINT and now - asked[0] > _AGAIN:
            raise KeyboardInterrupt
        asked.append(now)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
