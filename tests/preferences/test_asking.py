"""The contract: what is asked once is kept, whatever happens, and failures are missing labels."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore, answer_key
from paretune.preferences.asking import Tally, ask, columns_told, known, progress_line
from paretune.preferences.source import ALL_ORDERED, Item, Source, win_rates

NAN = math.nan


def items(n: int, **columns: Any) -> list[Item]:
    return [Item(f"p{i}", (f"r{i}",), columns) for i in range(n)]


def lengths(calls: list[Any], **more: Any) -> Source:
    """Scores by length, and notes what it was given."""

    def score(prompts: list[str], responses: list[str], references: Any = None, **columns: Any) -> list[float]:
        calls.append((prompts, responses, references, columns))
        return [float(len(r)) for r in responses]

    return Source("long", "length 1", score=score, **more)


def test_answers_are_kept_and_found(tmp_path: Path) -> None:
    store, calls = AnswerStore(tmp_path / "new" / "a.sqlite"), []  # type: ignore[var-annotated]
    source = lengths(calls, batch_size=3)
    first, second = Tally(), Tally()
    asked = [*items(7), Item("p0", ("r0",))]  # one of them twice
    answers = ask(source, asked, store, first)
    assert answers == [2.0] * 8 and first.asked == 7 and first.found == 0
    assert [len(prompts) for prompts, *_ in calls] == [3, 3, 1]
    assert ask(source, asked, AnswerStore(tmp_path / "new" / "a.sqlite"), second) == answers
    assert second.asked == 0 and second.found == 7 and len(calls) == 3
    assert len(known(source, asked, store)) == 8
    assert not known(Source("long", "length 2", score=source.score), asked, store), "another version"
    assert ask(source, asked, None, Tally()) == answers and len(calls) == 6, "nothing kept, nothing found"


def test_what_a_source_reads_is_what_it_is_told_and_asked_by() -> None:
    calls: list[Any] = []
    plain, refers, all_of_it = (lengths(calls, reads=reads) for reads in ((), ("reference", "topic"), None))
    item, other = items(1, reference="R", topic="t", x=1)[0], items(1, reference="R", topic="t", x=2)[0]
    for source in (plain, refers, all_of_it):
        ask(source, [item], None, Tally())
    assert [call[2:] for call in calls] == [
        (None, {}), (["R"], {"topic": ["t"]}), (["R"], {"topic": ["t"], "x": [1]}),
    ]  # fmt: skip
    assert answer_key(plain, item) == answer_key(plain, other)
    assert answer_key(refers, item) == answer_key(refers, other) != answer_key(plain, item)
    assert answer_key(all_of_it, item) != answer_key(all_of_it, other)
    swapped = [Source("x", "f", compare=lambda *a, **k: [0.5])]
    keys = {answer_key(swapped[0], Item("p", pair)) for pair in (("a", "b"), ("b", "a"), ("ab", ""))}
    assert len(keys) == 3


def test_failures_are_missing_kept_and_retried_on_request(tmp_path: Path) -> None:
    store, told = AnswerStore(tmp_path / "a"), iter([[1.0, None, NAN], [5.0, 6.0]])
    source = Source("x", "f", score=lambda *a, **k: next(told))
    first, again, retried = Tally(), Tally(), Tally()
    assert str(ask(source, items(3), store, first)) == "[1.0, nan, nan]" and first.failed == 2
    assert str(ask(source, items(3), store, again)) == "[1.0, nan, nan]" and (again.asked, again.failed) == (0, 2)
    assert ask(source, items(3), store, retried, retry_failed=True) == [1.0, 5.0, 6.0]
    assert (retried.asked, retried.found, retried.failed) == (2, 1, 0)
    store.keep({answer_key(source, items(1)[0]): NAN})  # another process that failed
    assert known(source, items(1), store) == {0: 1.0}, "a number is not lost to a later failure"


def test_a_source_that_raises_loses_nothing_it_yielded(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a")

    def score(prompts: list[str], *_: Any, **__: Any) -> Iterator[tuple[int, float]]:
        yield 2, 20.0
        yield 0, 0.0
        raise ConnectionError("server gone")

    tally = Tally()
    with pytest.raises(ConnectionError):
        ask(Source("x", "f", score=score), items(4), store, tally)
    assert known(Source("x", "f", score=score), items(4), store) == {2: 20.0, 0: 0.0} and tally.asked == 2


@pytest.mark.parametrize(
    ("answers", "words"),
    [([1.0], "do not fit"), ([1.0, "high"], "no number"), ([1.0, math.inf], "not finite"), (iter([(0, 1)]), "1 of 2"),
     (iter([(5, 1)]), "no such item"), ({0: 1.0}, "1 of 2"), ({1: 1.0, 2: 0.5}, "no such item"),
     ({"r0": 1.0, "r1": 0.5}, "without positions"), (iter([1.0, 0.5]), "without positions"),
     (iter([(0.0, 1.0)]), "without positions"), (1.0, "no answers"), (None, "no answers"),
     ({1.0, 0.5}, "no answers"), ("12", "no answers")],
)  # fmt: skip
def test_bad_answers_are_refused(answers: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ask(Source("x", "f", score=lambda *a, **k: answers), items(2), None, Tally())


def test_a_mapping_is_a_portion_and_not_the_list_of_its_keys() -> None:
    assert ask(Source("x", "f", score=lambda *a, **k: {1: 10.0, 0: 20.0}), items(2), None, Tally()) == [20.0, 10.0]


def test_columns_called_as_arguments_have_an_underscore_more() -> None:
    calls: list[Any] = []
    columns = {"references": 1, "references_": 2, "prompts": 3, "responses": 4, "pairs": 5, "reference": "R"}
    ask(lengths(calls, reads=None), items(1, **columns), None, Tally())
    ((_, _, references, told),) = calls
    assert told == {"references_": [1], "references__": [2], "prompts_": [3], "responses_": [4], "pairs_": [5]}
    assert columns_told(references, told) == {name: [value] for name, value in columns.items()}
    ask(lengths(calls, reads=("references",)), items(1, **columns), None, Tally())
    assert calls[1][2:] == (None, {"references_": [1]})


def test_comparisons_answer_with_probabilities() -> None:
    with pytest.raises(InputError, match="no probability"):
        ask(Source("x", "f", compare=lambda *a, **k: [1.5]), [Item("p", ("a", "b"))], None, Tally())
    with pytest.raises(InputError, match="one of score and compare"):
        Source("x", "f")


def test_a_file_that_is_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("something else entirely, and long enough to have a header")
    with pytest.raises(InputError, match="cannot use the kept answers"):
        AnswerStore(tmp_path / "a")


def _slowly(path: str, log: str) -> None:
    """Asks 400 items, each answer yielded and logged; the log line is written before the answer is handed over."""

    def score(prompts: list[str], *_: Any, **__: Any) -> Iterator[tuple[int, float]]:
        for i, prompt in enumerate(prompts):
            with open(log, "a") as stream:
                stream.write(prompt + "\n")
            yield i, float(prompt[1:])

    answers = ask(Source("x", "f", score=score, batch_size=16), items(400), AnswerStore(path), Tally())
    assert answers == [float(i) for i in range(400)]


def test_killed_at_any_moment_no_more_than_the_call_in_flight_is_repeated(tmp_path: Path) -> None:
    path, log, kills = str(tmp_path / "a"), tmp_path / "log", 0
    context = multiprocessing.get_context("fork")
    log.touch()
    for _ in range(40):
        worker = context.Process(target=_slowly, args=(path, str(log)))
        worker.start()
        seen, end = len(log.read_text().splitlines()), time.monotonic() + 20
        while worker.is_alive() and len(log.read_text().splitlines()) < seen + 97 and time.monotonic() < end:
            time.sleep(0.001)
        if not worker.is_alive():
            break
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        kills += 1
    worker.join()
    calls = log.read_text().splitlines()
    assert worker.exitcode == 0 and kills >= 3
    assert len(calls) - len(set(calls)) <= kills and len(set(calls)) == 400
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_slowly, args=(str(tmp_path / "a"), str(tmp_path / f"log{k}"))) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    done = [len((tmp_path / f"log{k}").read_text().splitlines()) for k in range(2)]
    assert 400 <= sum(done) < 800, "what one has answered the other finds"


def test_a_biased_judge_is_unbiased_over_both_orders() -> None:
    """P = σ(quality gap + bias of the first slot): the averaged label has the gap's side, the scores its order."""
    quality, bias = [0.0, 0.3, 1.1, -0.4], 0.8

    def p(i: int, j: int) -> float:
        return 1 / (1 + math.exp(-(quality[i] - quality[j] + bias)))

    pairs = ALL_ORDERED.next_pairs(4, {}, 0)
    assert len(pairs) == ALL_ORDERED.calls(4) == 12
    answers = {(i, j): p(i, j) for i, j in pairs}
    assert ALL_ORDERED.next_pairs(4, answers, 0) == []
    verdict = win_rates(4, answers)
    assert verdict.pairs is not None and len(verdict.pairs) == 6
    for (i, j), value in verdict.pairs.items():
        assert (value > 0.5) == (quality[i] > quality[j])
        assert ((i, j) in verdict.inconsistent) == (abs(quality[i] - quality[j]) < bias)
    by_score = sorted(range(4), key=lambda k: verdict.scores[k])
    assert by_score == sorted(range(4), key=lambda k: quality[k])
    expected = sum(p(2, j) + 1 - p(j, 2) for j in (0, 1, 3)) / 6
    assert verdict.scores[2] == pytest.approx(expected, rel=1e-12)


def test_a_failed_order_is_a_missing_label() -> None:
    verdict = win_rates(3, {(0, 1): 0.9, (1, 0): NAN, (0, 2): 0.8, (2, 0): 0.4, (1, 2): NAN, (2, 1): NAN})
    assert verdict.pairs == {(0, 2): pytest.approx(0.7)}
    assert verdict.scores[0] == pytest.approx(0.7) and math.isnan(verdict.scores[1])


def test_calls_are_counted_as_they_are_announced() -> None:
    source = lengths([], reads=("reference",), requests=lambda columns: len(columns["reference"]))
    asked = [Item(f"p{i}", ("r",), {"reference": ["x"] * i}) for i in (0, 1, 3)]
    tally = Tally(planned=4)
    ask(source, asked, None, tally)
    assert (tally.asked, tally.calls) == (3, 4) and progress_line(source, tally).startswith("long: 4 of 4 calls")
