"""A judge on a server that speaks in words alone, over a real socket: what it says becomes the vote it should be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paretune.preferences.asking import Tally, ask
from paretune.preferences.judges.judge import judge_source
from paretune.preferences.source import Item
from tests.servers_made import serving


@pytest.mark.parametrize(
    ("said", "p"),
    [
        ("Output (a)", 1.0), ("Output (b).", 0.0), ("I prefer output (b)", 0.0), ("(a)", 1.0),
        ("Output (a) is worse than Output (b)", None), ("Neither.", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [None, {"content": None}])
def test_words_become_votes(said: str, p: float | None, listed: dict[str, Any] | None) -> None:
    choice = {"index": 0, "finish_reason": "stop", "logprobs": listed}
    usage = {"prompt_tokens": 50, "completion_tokens": 4, "total_tokens": 54}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny", "usage": usage}
    reply["choices"] = [{**choice, "message": {"role": "assistant", "content": said}}]
    tally = Tally()
    with serving(None, None) as server:
        server.answer = lambda path, body: reply  # type: ignore[method-assign]
        source = judge_source("x", "tiny", {"server": server.url})
        (answer,) = ask(source, [Item("p?", ("one", "two"))], None, tally)
        assert "prefill" not in str(server.requests) and server.requests[0]["messages"][-1]["role"] == "user"
    assert math.isnan(answer) if p is None else answer == p
    assert tally.usage.get("read from words", 0) == (p is not None) == 1 - tally.usage.get("unreadable", 0)
