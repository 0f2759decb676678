"""What goes to an OpenAI-compatible server, and what its replies and errors mean."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.errors import SHAPES, InputError
from paretune.preferences.judges.protocols import Protocol, Question
from paretune.preferences.judges.reading import Token
from paretune.preferences.judges.spending import Cost
from paretune.preferences.secrets import without_key

_LONGEST_WAIT = 120.0  # seconds that a server may ask for before that counts as "does not answer"
_REPEATED = (408, 409, 429)
_REFUSED = (401, 403, 404, 405)
_OVERHEAD = 64  # tokens of a chat template, at most
_LENGTHS = ("max_tokens", "max_completion_tokens")
_ANSWERS = ("n", "best_of")


@dataclass(frozen=True)
class ServerSettings:
    """One server and model; judges with equal settings share its pace and its budget.

    Args:
        url: base URL, as http://localhost:8000/v1.
        model: its name for the model.
        api: "chat", or "completions" for a model without a chat template.
        api_key_env: name of the environment variable that holds the key.
        prefill: put the beginning of the answer into the assistant's mouth (vLLM's continue_final_message).
        system_role: false: the system text stands before the user's, for templates without that role.
        concurrency: requests at a time.
        timeout: seconds for one request.
        retries: repetitions of a failed one.
        requests_per_minute: None: as many as come.
        limits, prices: of `Budget`.
        template_options: more arguments of the chat template.
        request: more parameters of the request, over ours; null leaves one of ours out.
    """

    url: str
    model: str
    api: str = "chat"
    api_key_env: str | None = None
    prefill: bool = False
    system_role: bool = True
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 5
    requests_per_minute: float | None = None
    limits: tuple[tuple[str, float], ...] = ()
    prices: tuple[tuple[str, float], ...] = ()
    template_options: str = "{}"
    request: str = "{}"

    @property
    def forced(self) -> bool:
        """Whether the reply begins with the label."""
        return self.prefill or self.api == "completions"


@dataclass(frozen=True)
class Failed:
    """A request that came to nothing; `gone`: nothing says that the server is there at all, or has room."""

    problem: str
    gone: bool


class Stop(Exception):  # noqa: N818 (the end of a run, with its reason)
    """No further request would fare better."""


def check_request(settings: ServerSettings, where: str) -> None:
    """Looks at what stands in `request` before it is sent, so that a request costs no more than is counted with.

    Raises:
        InputError: several answers, of which only one would be read; a longest reply that is no count; none at all,
            with a limit of tokens or usd.
    """
    given = json.loads(settings.request)
    for key in _ANSWERS:
        if given.get(key) not in (None, 1):
            expected = "1: of several answers that are paid for one is read"
            raise InputError(f"bad {key} in request", where=where, expected=expected, found=given[key])
    lengths = {key: given[key] for key in _LENGTHS if given.get(key) is not None}
    for key, most in lengths.items():
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            expected = "a whole number of at least 1, or null for none"
            raise InputError(f"bad {key} in request", where=where, expected=expected, found=most)
    unbounded = not lengths and given.get("max_tokens", 1) is None  # ours is left out, and none takes its place
    limited = [name for name, _ in settings.limits if name != "calls"]
    if unbounded and limited:
        raise InputError(
            f"a limit of {' and '.join(limited)}, and replies of any length",
            where=where,
            expected=f"one of {', '.join(_LENGTHS)} in request",
            fix="Without it no request has a highest price. request: {max_tokens: null, max_completion_tokens: 16}.",
        )


def request_body(settings: ServerSettings, protocol: Protocol, question: Question) -> dict[str, Any]:
    """The JSON of one request."""
    body: dict[str, Any] = {"model": settings.model, "temperature": 0, "max_tokens": 4 if settings.forced else 16}
    if settings.api == "completions":
        body |= {"prompt": f"{question.system}\n\n{question.user}\n\n{protocol.prefix}", "logprobs": 5}
    else:
        if settings.system_role:
            parts = [("system", question.system), ("user", question.user)]
        else:
            parts = [("user", f"{question.system}\n\n{question.user}")]
        if settings.prefill:
            parts.append(("assistant", protocol.prefix))
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        body |= {"messages": [{"role": role, "content": content} for role, content in parts]}
        body |= {"logprobs": True, "top_logprobs": 20}
        if options := json.loads(settings.template_options):
            body["chat_template_kwargs"] = options
    body |= json.loads(settings.request)
    return {key: value for key, value in body.items() if value is not None}


def dearest_cost(body: Mapping[str, Any], question: Question) -> Cost:
    """The most that a request can cost: a token per byte, and all that it may write."""
    written = max(body.get(key) or 0 for key in _LENGTHS)
    return Cost(1, len((question.system + question.user).encode()) + _OVERHEAD, written)


def reply_of(reply: Any, api: str) -> tuple[str, list[Token] | None]:
    """A reply's text and its tokens; None without log-probabilities, or with some that are none.

    Raises:
        ValueError: no reply in it.
    """
    try:
        text, tokens = _of_completion(reply) if api == "completions" else _of_chat(reply)
    except SHAPES as error:  # the client hands on whatever JSON the server sent
        raise ValueError(f"an answer of another shape: {type(error).__name__}") from error
    if not isinstance(text, str):
        raise ValueError("an answer that is no text")
    return text, tokens if tokens and all(map(_is_token, tokens)) else None


def _of_completion(reply: Any) -> tuple[Any, list[Token] | None]:
    text, given = reply.choices[0].text, reply.choices[0].logprobs
    if given is None or not given.top_logprobs or not given.tokens:
        return text or "", None
    pairs = zip(given.tokens, given.top_logprobs, strict=False)
    return text or "", [Token(token, dict(top or {})) for token, top in pairs if top]


def _of_chat(reply: Any) -> tuple[Any, list[Token] | None]:
    message, given = reply.choices[0].message, reply.choices[0].logprobs
    content = getattr(given, "content", None)
    if not content or not content[0].top_logprobs:
        return message.content or "", None
    return message.content or "", [
        Token(one.token, {top.token: top.logprob for top in reversed(one.top_logprobs)}) for one in content
    ]


def _is_token(token: Token) -> bool:
    """Texts, and log-probabilities: none is above 0, but for rounding."""
    numbers = all(isinstance(p, int | float) and not math.isnan(p) and p < 1e-3 for p in token.top.values())
    return numbers and all(isinstance(text, str) for text in (token.text, *token.top))


def cost_of(reply: Any, dearest: Cost) -> Cost:
    """What a request cost by the server's own counts; the dearest where it gives none that are counts."""
    usage = getattr(reply, "usage", None)
    asked, written = (getattr(usage, key, None) for key in ("prompt_tokens", "completion_tokens"))  # type: Any, Any
    written = dearest.output_tokens if written is None else written
    if not all(isinstance(count, int) and 0 <= count < 1 << 40 for count in (asked, written)):
        return dearest
    return Cost(1, asked, written)


def outcome_of(error: Exception, secret: str) -> Stop | tuple[Failed, float | None, bool]:
    """What an error means: the end; or the failure, the seconds to wait before repeating (None: do not; -1: ours to
    choose), and whether it may be on the bill."""
    import openai

    problem = without_key(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", secret)[:300]
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        if status in _REFUSED:
            return Stop(f"the server refuses: {problem}")
        if status in _REPEATED or status >= 500:
            wait = _retry_after(error.response.headers)
            if wait is not None and wait > _LONGEST_WAIT:
                return Stop(f"the server asks to wait {wait:,.0f} s: {problem}")
            return Failed(problem, gone=status == 429), -1.0 if wait is None else wait, False
        return Failed(problem, gone=False), None, False
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Failed(problem, gone=False), -1.0, True
    if isinstance(error, openai.APIConnectionError):
        return Failed(problem, gone=True), -1.0, True
    if isinstance(error, ValueError | AttributeError | openai.APIError):  # no JSON, or not the JSON of an answer
        return Failed(problem, gone=False), -1.0, True
    raise error


def pause(wait: float, attempt: int) -> float:
    """Seconds before a repetition: what the server asked for, else (-1) longer after each attempt, up to 30."""
    return wait if wait >= 0 else min(30.0, 0.5 * 2**attempt) * (1 - 0.25 * random.random())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):  # absent, or a date
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs all of it side by side; when one raises, or this is cancelled, the others are cancelled and waited for."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
