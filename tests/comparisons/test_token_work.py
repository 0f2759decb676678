"""Tokenizing in several processes: when, with which result, and what is said when something goes wrong in one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from paretune.comparisons import token_work, tokens
from paretune.comparisons.token_work import processes, work_through
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.errors import InputError
from tests import tokenizers_made as made

WORDS = " The moon is made of rock."


def rows(n: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"Say {i}:",
                "response_a": WORDS * (1 + i % 3),
                "response_b": f" No {i}.",
                "preferences": {"x": 1.0},
            }
            for i in range(n)
        ]
    )


def test_processes_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_work, "BATCH", 5)
    pids: set[int] = set()
    receive = token_work._received
    monkeypatch.setattr(token_work, "_received", lambda result: pids.add(result[1].rows) or receive(result))
    found = []
    for count in (1, 3):
        monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / str(count)))  # or the second would find the first's
        data, report = tokenize_comparisons(rows(42), made.byte_bpe(), ["x"], max_length=20, num_proc=count)
        found.append((list(data), report))
    assert found[0] == found[1] and 0 < found[0][1].rows_dropped < 42
    assert pids == {5, 2}  # batches of rows that came from processes


def test_work_is_done_by_others_in_order() -> None:
    def work(start: int, end: int) -> tuple[Any, Any]:
        import pyarrow as pa

        return pa.record_batch({"row": range(start, end)}), (os.getpid(), os.environ["TOKENIZERS_PARALLELISM"])

    os_before = os.environ.get("TOKENIZERS_PARALLELISM")
    done = list(work_through(10_500, work, 2))
    assert [row for batch, _ in done for row in batch["row"].to_pylist()] == list(range(10_500))
    assert os.getpid() not in {pid for _, (pid, _) in done} and {said for _, (_, said) in done} == {"false"}
    assert os.environ.get("TOKENIZERS_PARALLELISM") == os_before


def test_as_many_processes_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [processes(None, n) for n in (1, 9_999, 10_000, 1_000_000)] == [1, 1, 2, 8]
    assert [processes(4, n) for n in (1, 2_500, 1_000_000)] == [1, 3, 4] and processes(0, 10) == 1
    monkeypatch.setattr(multiprocessing, "current_process", lambda: type("P", (), {"daemon": True}))
    assert processes(None, 1_000_000) == processes(4, 1_000_000) == 1


def test_what_a_row_has_wrong_is_said_as_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_work, "BATCH", 2)
    turn = {"role": "user", "content": "Hi."}
    good = {"prompt": [turn], "preferences": {"x": 1.0}}
    good |= {f"response_{side}": [{"role": "assistant", "content": side}] for side in "ab"}
    data = Dataset.from_list([good, good, good, {**good, "prompt": [turn, turn]}, good])
    with pytest.raises(InputError, match=r"row 3: the chat template refuses.*roles user, user"):
        tokenize_comparisons(data, made.gemma(), ["x"], max_length=None, num_proc=2)


def test_a_killed_process_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_work, "BATCH", 2)
    monkeypatch.setattr(tokens, "_tokenize", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match="was killed.*dataset_num_proc: 1"):
        tokenize_comparisons(rows(6), made.byte_bpe(), ["x"], max_length=None, num_proc=2)
