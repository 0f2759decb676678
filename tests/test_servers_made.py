"""The server that others are tested with: a stream says what the whole answer says, and its faults act there too."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.preferences.judges.made import judge_model
from tests.servers_made import ModelServer, serving

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ModelServer]:
    with serving(*judge_model(tmp_path)) as made:
        yield made


def chat(server: ModelServer, **more: Any) -> Any:
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, seed=1, **more)


def answered(server: ModelServer, wanted: int) -> bool:
    """Once it has counted what the client may have read already."""
    end = time.monotonic() + 20
    while server.answered != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return server.answered == wanted


def test_a_stream_says_what_the_whole_answer_says(served: ModelServer) -> None:
    whole = chat(served, n=2)
    said = {0: "", 1: ""}
    for event in chat(served, n=2, stream=True):
        said[event.choices[0].index] += event.choices[0].delta.content or ""
    assert said == {choice.index: choice.message.content for choice in whole.choices}
    assert said[0] != said[1] and answered(served, 2)
    client = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)
    given: Any = {"model": "tiny", "prompt": "the cat", "max_tokens": 24, "seed": 1}
    text = "".join(event.choices[0].text for event in client.completions.create(**given, stream=True))
    assert text == client.completions.create(**given).choices[0].text


def test_faults_act_in_a_stream(served: ModelServer) -> None:
    served.stall, served.faults = 1.0, ["slow"]
    came = [time.monotonic() for _ in chat(served, stream=True)]
    assert came[-1] - came[0] >= 0.5, "piece by piece"
    assert answered(served, 1)
    for fault, error, words in (
        ("truncated", json.JSONDecodeError, "line 1 column"),
        ("cut", Exception, "incomplete|Connection"),
    ):
        served.faults = [fault]
        events = iter(chat(served, stream=True))
        assert next(events).choices, "half of it comes"
        with pytest.raises(error, match=words):
            list(events)
    served.faults = ["429"]
    with pytest.raises(openai.RateLimitError):
        chat(served, stream=True)
    assert answered(served, 1), "none of these was answered in full"


def test_by_hand_it_says_where_it_is() -> None:
    words = [sys.executable, "-m", "tests.servers_made", "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("model tiny at http://127.0.0.1:") and line.endswith("/v1; ctrl-C ends it\n")
            with urllib.request.urlopen(line.split()[3].removesuffix(";") + "/models", timeout=30) as answer:
                models = json.loads(answer.read())
            assert [one["id"] for one in models["data"]] == ["tiny"]
        finally:
            process.kill()
