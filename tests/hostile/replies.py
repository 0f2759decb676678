"""What is fed to the parsing of judges' replies: whatever JSON a server sends, as the client hands it on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion

from paretune.preferences.judges.protocols import load_protocol, question
from paretune.preferences.judges.reading import read
from paretune.preferences.judges.requests import ServerSettings, cost_of, dearest_cost, reply_of, request_body
from tests.hostile.fuzz import Target
from tests.hostile.inputs import anything, spoilt, texts

PROTOCOL = load_protocol("free", "judge")
TOPS = [{"token": "a", "logprob": -0.1, "bytes": None}, {"token": "b", "logprob": -2.5, "bytes": None}]
TOKENS = [{"token": word, "logprob": -0.1, "top_logprobs": TOPS} for word in ("Output", " (", "a", ")")]
CHAT = {
    **{"id": "x", "object": "chat.completion", "created": 0, "model": "m"},
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Output (a)"},
         "logprobs": {"content": TOKENS}}
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
}  # fmt: skip
PLAIN = {
    **{"id": "x", "object": "text_completion", "created": 0, "model": "m", "usage": CHAT["usage"]},
    "choices": [
        {"index": 0, "text": "a)", "logprobs": {"tokens": ["a", ")"], "top_logprobs": [{"a": -0.1, "b": -3.0}, None]}}
    ],
}


def feed_reply(case: tuple[str, bool, Any], folder: Path) -> None:
    """A reply is read to a probability or to nothing (NaN), or is none: errors that count as a failed request."""
    api, forced, content = case
    kind: Any = ChatCompletion if api == "chat" else Completion
    reply = kind.construct(**content) if isinstance(content, dict) else content
    settings = ServerSettings("http://x", "m", api=api, prefill=forced)
    asked = question(PROTOCOL, "p", "a", "b")
    try:
        used = cost_of(reply, dearest_cost(request_body(settings, PROTOCOL, asked), asked))
        reading = read(PROTOCOL, *reply_of(reply, api), forced=settings.forced)
    except (ValueError, AttributeError):  # `outcome_of` counts these
        return
    assert math.isnan(reading.p) or 0.0 <= reading.p <= 1.0
    assert used.input_tokens >= 0 and used.output_tokens >= 0


def feed_words(case: tuple[str, bool], folder: Path) -> None:
    reading = read(PROTOCOL, case[0], None, forced=case[1])
    assert math.isnan(reading.p) or reading.p in (0.0, 1.0)


words = st.lists(st.one_of(st.sampled_from(["Output (a)", "output (b)", "(", "a", ")", " "]), texts), max_size=6)
TARGETS = {
    "judges' replies": Target(
        st.one_of(
            st.tuples(st.just("chat"), st.booleans(), spoilt([CHAT])),
            st.tuples(st.just("completions"), st.booleans(), spoilt([PLAIN])),
            st.tuples(st.sampled_from(["chat", "completions"]), st.booleans(), anything),
        ),
        feed_reply,
        few=150,
    ),
    "judges' words": Target(st.tuples(words.map("".join), st.booleans()), feed_words, few=100),
}
