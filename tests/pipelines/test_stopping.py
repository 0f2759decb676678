"""Signals wait for the place that asks for them; a second ctrl-C does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from paretune.pipelines import stopping
from paretune.pipelines.stopping import stops_between


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_its_place(number: int) -> None:
    before, done = signal.getsignal(number), []
    with pytest.raises(KeyboardInterrupt), stops_between() as stop_if_asked:
        stop_if_asked()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher's, in the same moment
        done.append("the line in the midst of which it came")
        stop_if_asked()
        done.append("more")
    assert len(done) == 1 and signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_AGAIN", 0.0)
    done = []
    with stops_between():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may repeat it; only a person is in a hurry
        done.append("first")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            done.append("second")
    assert done == ["first"]


def test_another_thread_changes_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stops_between() as stop_if_asked:
            stop_if_asked()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
