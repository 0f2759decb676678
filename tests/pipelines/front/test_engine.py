"""Real processes: results, exceptions, deaths; each ends its own job and no other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from paretune.errors import InputError
from paretune.pipelines.front.engine import Ended, Job, Processes, run_job


@pytest.fixture(scope="module")
def engine() -> Iterator[Processes]:
    made = Processes(1, prepare=abs)
    yield made
    made.close()


def ends(engine: Processes, n: int) -> dict[str, Ended]:
    found: dict[str, Ended] = {}
    until = time.monotonic() + 120
    while len(found) < n and time.monotonic() < until:
        found |= {end.name: end for end in engine.wait(5)}
    return found


def test_values_errors_and_deaths_each_end_their_own_job(engine: Processes) -> None:
    for job in [
        Job("value", divmod, (7, 2)),
        Job("error", int, ("seven",)),
        Job("death", os.abort),
        Job("status", os._exit, (3,)),
        Job("after", os.getpid),
    ]:
        engine.submit(job)
    assert engine.running() == ["value"], "one at a time"
    found = ends(engine, 5)
    assert found["value"].value == (3, 1) and found["value"].error is None
    assert found["error"].again and str(found["error"].error).startswith("ValueError: invalid literal")
    assert found["death"].again and "ended by signal 6" in str(found["death"].error)
    assert found["status"].again and "status 3" in str(found["status"].error)
    assert found["after"].error is None and found["after"].value != os.getpid()


def test_closing_ends_what_runs() -> None:
    engine = Processes(1, prepare=abs)
    engine.submit(Job("long", time.sleep, (600,)))
    (child,) = [p for p in psutil.Process().children() if p.pid == engine._busy["long"].process.pid]
    engine.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert engine.running() == []


def test_what_a_person_can_put_right_is_not_tried_again() -> None:
    def refuse() -> None:
        raise InputError("bad data", fix="Mend it.")

    assert run_job(Job("a", refuse)) == Ended("a", error="bad data. Mend it.", again=False)
    crashed = run_job(Job("b", lambda: 1 // 0))
    assert crashed.again and crashed.error and "ZeroDivisionError" in crashed.error and "test_engine" in crashed.error
