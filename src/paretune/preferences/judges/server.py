"""An OpenAI-compatible server as a judge: many requests at a time, repeated where it makes sense, within a budget.

The requests run in an event loop of a thread of their own, so a caller may have one too (a notebook has). Each
answer is handed out as it comes; closing the iterator, ctrl-C included, cancels what is under way.

A request is repeated after 408, 409, 429, 5xx, a time-out, a broken connection or an answer that is no JSON: after what
Retry-After says, else after 0.5, 1, 2, ... up to 30 s. What comes of it:

    answered                          P from log-probabilities, else from words; NaN for words that name no answer
    refused (401, 403, 404, 405)      the run stops at once
    400, 413, 414, 422                NaN at once: this one question's fault (too long, stopped by a filter, ...)
    ... 256 times before any answer   the run stops: such a server refuses what all requests have in common
    failed after all repetitions      NaN, where the server answers others
    8 failures in a row               the run stops, and none of the 8 is kept: the next run asks them again
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.errors import InputError
from paretune.preferences.judges.protocols import Protocol, Question
from paretune.preferences.judges.reading import read
from paretune.preferences.judges.requests import (
    Failed,
    ServerSettings,
    Stop,
    cost_of,
    dearest_cost,
    outcome_of,
    pause,
    reply_of,
    request_body,
    together,
)
from paretune.preferences.judges.spending import Budget, Cost
from paretune.preferences.secrets import key_in

logger = logging.getLogger(__name__)

IN_A_ROW = 8
# Refusals before any answer. All orders of the pairs of 16 responses to one prompt that is too long are fewer.
REFUSED = 256
_OWN_FAULT = (400, 413, 414, 422)  # not 402: without money the server is as good as gone
_GOES_ON = "What was answered is kept: the same command goes on."


@dataclass
class Server:
    """What judges of one server share.

    Attributes:
        next_slot: time of the loop's clock before which no request goes.
        answered: whether it has answered any question.
        refused: questions that it refused for what is in them.
    """

    settings: ServerSettings
    budget: Budget = field(init=False)
    next_slot: float = 0.0
    answered: bool = False
    refused: int = 0

    def __post_init__(self) -> None:
        self.budget = Budget(dict(self.settings.limits), dict(self.settings.prices))

    def secret(self) -> str:
        """The key, read when it is needed and kept nowhere.

        Raises:
            InputError: there is none in the named variable.
        """
        return key_in(self.settings.api_key_env)


@dataclass(frozen=True)
class Refused:
    """A request that the server refused for what is in it; others may fare better."""

    problem: str


def own_fault(error: Exception) -> bool:
    """Whether a server that is there says that something in this one request is at fault."""
    return getattr(error, "status_code", None) in _OWN_FAULT


def ask_server(
    server: Server, protocol: Protocol, questions: Sequence[Question], usage: dict[str, float]
) -> Iterator[tuple[int, float]]:
    """(position, P(first is better)) of each question as it is known; NaN for a failure.

    Args:
        usage: what was used is added to.

    Raises:
        InputError: no client, no key, a server that refuses or does not answer, a spent budget. What was handed out
            until then stands.
    """
    secret = server.secret()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    session = _Session(server, protocol, questions, usage, secret, results)
    thread = threading.Thread(target=session.run, name="paretune judge", daemon=True)
    thread.start()
    failed: list[tuple[int, Failed]] = []  # in a row, not handed out yet
    where = f"{server.settings.url}, model {server.settings.model}"
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            i, answer = result
            if isinstance(answer, Refused):
                usage["failed requests"] = usage.get("failed requests", 0) + 1
                yield i, math.nan
                _count_refused(server, answer, where)
                continue
            if not isinstance(answer, Failed):
                server.answered = True
                yield from ((position, math.nan) for position, _ in failed)
                failed.clear()
                yield i, answer
                continue
            usage["failed requests"] = usage.get("failed requests", 0) + 1
            failed.append((i, answer))
            if len(failed) >= IN_A_ROW:
                raise _does_not_answer(where, answer)
        if failed and all(answer.gone for _, answer in failed):
            raise _does_not_answer(where, failed[-1][1])
        yield from ((position, math.nan) for position, _ in failed)
    except Stop as stop:
        raise InputError(str(stop), where=where, fix=_GOES_ON) from None
    finally:
        session.cancel()
        thread.join()


def _does_not_answer(where: str, answer: Failed) -> InputError:
    return InputError("the judge's server does not answer", where=where, found=answer.problem, fix=_GOES_ON)


def _count_refused(server: Server, answer: Refused, where: str) -> None:
    """Raises InputError where nothing but refusals has come: rather a wrong option than so many bad questions."""
    if not server.refused:
        logger.warning("%s: a question was refused, and has no label: %s", where, answer.problem)
    server.refused += 1
    if not server.answered and server.refused >= REFUSED:
        fix = "Refused questions are kept as missing labels: retry_failed asks them again, the same command the others."
        raise InputError(
            f"the judge's server refused all of the first {server.refused} questions",
            where=where,
            found=answer.problem,
            fix=fix,
        )


class _Session:
    """The requests of one call, in a thread with an event loop."""

    def __init__(
        self,
        server: Server,
        protocol: Protocol,
        questions: Sequence[Question],
        usage: dict[str, float],
        secret: str,
        results: queue.SimpleQueue[Any],
    ):
        self.server, self.protocol, self.questions, self.usage = server, protocol, questions, usage
        self.secret, self.results = secret, results
        self.loop: asyncio.AbstractEventLoop | None = None
        self.main: asyncio.Task[None] | None = None
        self.started = threading.Event()

    def run(self) -> None:
        """The thread: ends by putting None or an exception into the results."""
        end: BaseException | None = None
        try:
            asyncio.run(self._all())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: B902 (handed to the thread that waits)
            end = error
        finally:
            self.started.set()
            self.results.put(end)

    def cancel(self) -> None:
        """Ends what is under way."""
        self.started.wait()
        if self.loop is not None and self.main is not None and not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                self.loop.call_soon_threadsafe(self.main.cancel)

    async def _all(self) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise InputError("a server needs the client openai", fix="pip install 'paretune[judges]'.") from error
        settings = self.server.settings
        self.loop, self.main = asyncio.get_running_loop(), asyncio.current_task()
        self.started.set()
        # each loop has a clock of its own, and what an earlier one had under way is over
        self.server.next_slot, self.server.budget.held = 0.0, Cost()
        self.returned = asyncio.Condition()
        todo = iter(enumerate(self.questions))
        # without a key of its own the client would take one for another server from OPENAI_API_KEY
        self.client = AsyncOpenAI(
            base_url=settings.url, api_key=self.secret or "none", timeout=settings.timeout, max_retries=0
        )
        try:
            await together([self._work(todo) for _ in range(min(settings.concurrency, len(self.questions)))])
        finally:
            await self.client.close()

    async def _work(self, todo: Iterator[tuple[int, Question]]) -> None:
        for i, question in todo:
            self.results.put((i, await self._answer(question)))

    async def _answer(self, question: Question) -> float | Failed | Refused:
        """One question, repeated as often as allowed."""
        settings, answer = self.server.settings, Failed("", gone=True)
        body = request_body(settings, self.protocol, question)
        dearest = dearest_cost(body, question)
        for attempt in range(settings.retries + 1):
            if attempt:
                self._add("retries", 1)
            await self._turn(dearest)
            used = dearest
            try:
                async with asyncio.timeout(settings.timeout):  # the client's own starts anew with every piece it reads
                    reply = await self._send(body)
                used = cost_of(reply, dearest)
                return self._read(reply)
            except Exception as error:
                outcome = outcome_of(error, self.secret)
                if isinstance(outcome, Stop):
                    raise outcome from None  # its cause may hold the key
                answer, wait, charged = outcome
                used = dearest if charged else Cost(calls=1)
                if own_fault(error):
                    return Refused(answer.problem)
            finally:
                self.server.budget.settle(dearest, used)
                self._count(used)
                async with self.returned:
                    self.returned.notify_all()
            if wait is None or attempt == settings.retries:
                break
            if wait > 0:  # the server said so: it holds for all
                self.server.next_slot = max(self.server.next_slot, asyncio.get_running_loop().time() + wait)
            await asyncio.sleep(pause(wait, attempt))
        return answer

    async def _turn(self, dearest: Cost) -> None:
        """Waits until the budget and the pace allow one more request."""
        budget, settings = self.server.budget, self.server.settings
        async with self.returned:
            while not budget.fits(dearest):
                if budget.held == Cost():
                    raise Stop(f"the spending cap is reached: {budget.said()}, and the next request may cost more")
                await self.returned.wait()
            budget.hold(dearest)
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            if self.server.next_slot <= now:
                break
            await asyncio.sleep(self.server.next_slot - now)
        if settings.requests_per_minute is not None:
            self.server.next_slot = now + 60.0 / settings.requests_per_minute

    async def _send(self, body: Mapping[str, Any]) -> Any:
        given = {key: body[key] for key in ("model", "messages", "prompt") if key in body}
        rest = {key: value for key, value in body.items() if key not in given}
        if self.server.settings.api == "completions":
            return await self.client.completions.create(**given, extra_body=rest)
        return await self.client.chat.completions.create(**given, extra_body=rest)

    def _read(self, reply: Any) -> float:
        text, tokens = reply_of(reply, self.server.settings.api)
        reading = read(self.protocol, text, tokens, forced=self.server.settings.forced)
        self._add("read from words", reading.by_words)
        self._add("unreadable", math.isnan(reading.p))
        return reading.p

    def _count(self, used: Cost) -> None:
        self._add("requests", used.calls)
        self._add("input_tokens", used.input_tokens)
        self._add("output_tokens", used.output_tokens)
        if self.server.budget.prices:
            self._add("usd", self.server.budget.price(used))

    def _add(self, what: str, count: float) -> None:
        if count:
            self.usage[what] = self.usage.get(what, 0) + count
