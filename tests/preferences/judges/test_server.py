"""Judges on a server over a real socket: as a model here, with every fault, within a budget, with a secret key."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore
from paretune.preferences.asking import Tally, ask
from paretune.preferences.judges import server as judge_server
from paretune.preferences.judges.judge import judge_source
from paretune.preferences.source import Item
from tests.preferences.judges.made import judge_model, responses
from tests.servers_made import ModelServer, serving

# of a random model's vocabulary, all of which our server lists
ALL = {"top_logprobs": 500, "max_tokens": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("judge") / "chat"
    return path, *judge_model(path)


@pytest.fixture
def server(saved: tuple[Path, Any, Any]) -> Iterator[ModelServer]:
    with serving(saved[1], saved[2]) as made:
        yield made


def items(n: int, seed: int = 0) -> list[Item]:
    rows = responses(n, seed=seed)
    return [Item(row["prompt"], tuple(row["responses"]), {"reference": row["reference"]}) for row in rows]


def judge(server: ModelServer, **options: Any) -> Any:
    given = {"server": server.url, "prefill": True, "request": ALL, "retries": 2, **options}
    return judge_source("x", "tiny", given)


def test_the_same_answers_as_here(saved: tuple[Path, Any, Any], server: ModelServer, tmp_path: Path) -> None:
    tally, here = Tally(), judge_source("x", str(saved[0]), {"protocol": "guided"})
    found = ask(judge(server, protocol="guided"), items(5), None, tally)
    assert found == pytest.approx(ask(here, items(5), None, Tally()), rel=1e-4) and len(set(found)) == 5
    assert tally.usage["requests"] == 5 and tally.usage["output_tokens"] <= 20
    assert "read from words" not in tally.usage
    model, tokenizer = judge_model(tmp_path / "plain", chat=False)
    with serving(model, tokenizer) as plain:
        there = judge(plain, prefill=False, api="completions", request={"logprobs": 500})
        local = judge_source("x", str(tmp_path / "plain"), {})
        assert ask(there, items(3), None, Tally()) == pytest.approx(ask(local, items(3), None, Tally()), rel=1e-4)


@pytest.mark.parametrize(
    ("fault", "requests", "retries"),
    [("429", 5, 1), ("500", 5, 1), ("503", 5, 1), ("timeout", 5, 1), ("slow", 5, 1), ("truncated", 5, 1), ("cut", 5, 1),
     ("empty", 5, 1), ("no_logprobs", 4, 0), ("400", 4, 0)],
)  # fmt: skip
def test_one_fault(server: ModelServer, fault: str, requests: int, retries: int) -> None:
    """Repeated faults do not show in the answers; words that name nothing, and a 400, are failures of their own."""
    whole = ask(judge(server, version=1), items(4), None, Tally())
    server.requests.clear()
    server.faults, server.stall, server.retry_after = ["ok", fault], 6.0, "0.01"
    tally = Tally()
    answers = ask(judge(server, concurrency=1, timeout=2.5), items(4), None, tally)
    lost = [1] if fault in ("no_logprobs", "400") else []
    assert [i for i, answer in enumerate(answers) if math.isnan(answer)] == lost
    assert all(answers[i] == whole[i] for i in range(4) if i not in lost)
    assert len(server.requests) == requests == tally.usage["requests"]
    assert tally.usage.get("retries", 0) == retries and tally.failed == len(lost)
    assert tally.usage.get("unreadable", 0) == (fault == "no_logprobs")
    assert tally.usage.get("failed requests", 0) == (fault == "400")


def test_a_server_that_goes_down_loses_no_finished_work(server: ModelServer, tmp_path: Path) -> None:
    store, source = AnswerStore(tmp_path / "a"), judge(server, concurrency=1, retries=0)
    server.faults = ["ok"] * 7 + ["500"] * 50
    with pytest.raises(InputError, match="does not answer"):
        ask(source, items(30), store, Tally())
    assert server.answered == 7 and len(server.requests) <= 7 + judge_server.IN_A_ROW + 2
    server.faults, tally = [], Tally()
    answers = ask(source, items(30), store, tally)
    assert (tally.found, tally.asked) == (7, 23) and server.answered == 30 and not any(map(math.isnan, answers))
    assert len({str(request["messages"]) for request in server.requests}) == 30


def test_what_is_refused_for_its_own_fault_blocks_nothing(
    server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All questions about one prompt that is too long are labels missing at once, and kept; 402 is no such refusal."""
    store, tally = AnswerStore(tmp_path / "a"), Tally()
    server.faults = ["400"] * 12 + ["ok"] * 3
    answers = ask(judge(server, concurrency=1), items(15), store, tally)
    assert [math.isnan(answer) for answer in answers] == [True] * 12 + [False] * 3
    assert tally.failed == tally.usage["failed requests"] == 12 and len(server.requests) == 15
    assert caplog.text.count("was refused, and has no label: BadRequestError") == 1
    again = Tally()
    ask(judge(server), items(15), store, again)
    assert again.found == 15, "nothing is asked again"
    server.faults = ["500"] * 7 + ["400"] + ["500"] * 7
    with pytest.raises(InputError, match="does not answer"):
        ask(judge(server, concurrency=1, retries=0, version=2), items(20), store, Tally())
    server.faults = ["402"] * 20
    with pytest.raises(InputError, match="does not answer"):
        ask(judge(server, concurrency=1, version=2), items(20), store, tally := Tally())
    assert tally.asked == 0, "none of them is kept"
    monkeypatch.setattr(judge_server, "REFUSED", 5)
    server.faults = ["400"] * 20
    with pytest.raises(InputError, match="refused all of the first 5 questions.*bad request"):
        ask(judge(server, concurrency=1, timeout=61), items(30, seed=3), store, tally := Tally())
    assert tally.asked == 5, "kept, so that the same command gets further"


def test_one_question_that_fails_is_a_failure(server: ModelServer, tmp_path: Path) -> None:
    store, tally = AnswerStore(tmp_path / "a"), Tally()
    server.faults = ["ok", "500", "ok"]
    answers = ask(judge(server, concurrency=1, retries=0), items(3), store, tally)
    assert [math.isnan(answer) for answer in answers] == [False, True, False] and tally.failed == 1
    again = ask(judge(server), items(3), store, Tally(), retry_failed=True)
    assert server.answered == 3 and again[0] == answers[0] and not math.isnan(again[1])


def test_who_is_not_there_and_who_refuses(server: ModelServer, tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a")
    gone = judge_source("x", "tiny", {"server": "http://127.0.0.1:9/v1", "retries": 0})
    with pytest.raises(InputError, match="does not answer"):
        ask(gone, items(2), store, Tally())
    server.faults = ["429"] * 9
    with pytest.raises(InputError, match="does not answer"):
        ask(judge(server, retries=0), items(2), store, Tally())
    server.faults = ["ok", "401"]
    with pytest.raises(InputError, match="refuses") as caught:
        ask(judge(server, concurrency=1), items(3), store, Tally())
    assert "What was answered is kept" in str(caught.value)
    with pytest.raises(InputError, match="refuses"):
        ask(judge_source("x", "huge", {"server": server.url}), items(1), None, Tally())
    server.faults, server.retry_after = ["429"], "3600"
    with pytest.raises(InputError, match="asks to wait 3,600 s"):
        ask(judge(server, concurrency=1), items(3), None, Tally())


def test_the_spending_cap(server: ModelServer, tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a")
    with pytest.raises(InputError, match="spending cap is reached: 4 of 4 calls"):
        ask(judge(server, limits={"calls": 4}), items(10), store, Tally())
    assert len(server.requests) == 4
    size = len(str(server.requests[0]["messages"]).encode()) + 500
    prices, tally = {"input": 1.0, "output": 2.0}, Tally()
    capped = judge(server, limits={"usd": 2 * size * 1e-6}, prices=prices)
    with pytest.raises(InputError, match="spending cap is reached"):
        ask(capped, items(10), store, tally)
    assert 1 <= tally.asked < 6 and tally.found == 4
    assert 0 < tally.usage["usd"] <= 2 * size * 1e-6
    cost = tally.usage["input_tokens"] * 1e-6 + tally.usage["output_tokens"] * 2e-6
    assert tally.usage["usd"] == pytest.approx(cost, rel=1e-9)
    answers = ask(judge(server), items(10), store, Tally())
    assert server.answered == 10 and not any(map(math.isnan, answers)), "nothing that was paid for is asked again"


def test_pace_and_concurrency(server: ModelServer) -> None:
    started = time.monotonic()
    ask(judge(server, requests_per_minute=1200), items(6), None, Tally())
    assert time.monotonic() - started >= 5 * 60 / 1200
    running, most, inner = [0], [0], server.answer

    def watched(path: str, body: dict[str, Any]) -> dict[str, Any]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        try:
            return inner(path, body)
        finally:
            running[0] -= 1

    server.answer = watched  # type: ignore[method-assign]
    ask(judge(server, concurrency=3), items(12), None, Tally())
    assert 2 <= most[0] <= 3


def test_what_is_sent(server: ModelServer) -> None:
    options = {"template_options": {"enable_thinking": False}, "system_role": False, "prefill": False}
    source = judge(server, **options, request={"max_tokens": None, "max_completion_tokens": 3, "seed": 7})
    ask(source, items(1), None, Tally())
    (sent,) = server.requests
    assert [message["role"] for message in sent["messages"]] == ["user"] and "max_tokens" not in sent
    assert (sent["seed"], sent["max_completion_tokens"], sent["temperature"], sent["top_logprobs"]) == (7, 3, 0, 20)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False} and "continue_final_message" not in sent


def test_the_key_is_shown_nowhere(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-verysecretkey-1234567890"
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    with pytest.raises(InputError, match="no such environment variable"):
        judge(server, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", key)
    source, store, tally = judge(server, api_key_env="MY_KEY"), AnswerStore(tmp_path / "a"), Tally()
    server.faults = ["401"]
    with pytest.raises(InputError, match="refuses") as caught:
        ask(source, items(2), store, tally)
    said = [str(caught.value), repr(caught.value), repr(source), source.fingerprint, str(tally.to_dict()), caplog.text]
    ask(source, items(2), store, tally)
    assert server.headers[-1]["authorization"] == f"Bearer {key}"
    assert not any("verysecret" in text for text in [*said, caplog.text])
    assert not any(b"verysecret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    ask(judge(server), items(1), None, Tally())
    assert "another" not in server.headers[-1]["authorization"]
    for url in (f"http://me:{key}@host/v1", f"http://host/v1?key={key}"):
        with pytest.raises(InputError, match="a key in it") as caught:
            judge_source("x", "m", {"server": url})
        assert key not in str(caught.value)
    for given in (key, "gsk_verysecret123", "AKIAVERYSECRET", "ключ_verysecret"):
        with pytest.raises(InputError, match="api_key_env") as caught:
            judge(server, api_key_env=given)
        assert "secret" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server": "localhost"}, "bad server"), ({"api": "responses"}, "bad api"), ({"context": 9}, "unknown option"),
        ({"api": "completions", "prefill": True}, "of api: chat"), ({"limits": {"usd": 1}}, "without prices"),
        ({"limits": {"cents": 1}}, "bad limits"), ({"limits": {"calls": 0}}, "bad limits"), ({"retries": -1}, "bad re"),
        ({"prices": {"input": -1}}, "bad prices"), ({"timeout": 0}, "bad timeout"), ({"prefill": "yes"}, "bad prefill"),
        ({"request": [1]}, "bad request"), ({"requests_per_minute": "many"}, "bad requests_per_minute"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        judge_source("x", "m", {"server": "http://127.0.0.1:9/v1", **options})
