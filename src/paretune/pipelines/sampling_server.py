"""Responses from an OpenAI-compatible server, such as vLLM's: one request per prompt, many at a time."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

from paretune.errors import InputError
from paretune.pipelines.sampling import Drawn, Progress, PromptRow, ResponseFile, SamplingSettings, tidy
from paretune.preferences.judges.requests import Failed, Stop, outcome_of, pause, together
from paretune.preferences.judges.server import Refused, own_fault
from paretune.preferences.secrets import key_in

logger = logging.getLogger(__name__)

_IN_A_ROW = 8  # prompts that failed one after another: the server is gone
_GOES_ON = "What was answered is kept: the same command goes on."


@dataclass(frozen=True)
class Access:
    """How a server is asked; nothing of it decides a response.

    Args:
        api_key_env: name of the environment variable that holds the key; None for a server that wants none. The key is
            in no file, message or log of ours.
        concurrency: requests at a time.
        timeout: seconds for one request, from its beginning to the end of its answer.
        retries: repetitions of a failed one.
    """

    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 5

    def secret(self) -> str:
        """The key, or "".

        Raises:
            InputError: there is none in the named variable.
        """
        return key_in(self.api_key_env)

    def options(self, url: str) -> dict[str, Any]:
        """For the client, which repeats nothing by itself.

        Raises:
            InputError: no client installed, no key.
        """
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise InputError("a server needs the client openai", fix="pip install 'paretune[judges]'.") from error
        # without a key of its own the client would take one for another server from OPENAI_API_KEY
        return {"base_url": url, "api_key": self.secret() or "none", "timeout": self.timeout, "max_retries": 0}


def sample_from_server(
    rows: Sequence[PromptRow], settings: SamplingSettings, file: ResponseFile, access: Access
) -> dict[str, int]:
    """Asks for all responses that are missing; each prompt is kept as it is answered.

    Messages go to `/chat/completions`, plain prompts to `/completions`. What is repeated is what judges on a server
    repeat: 429, 5xx, a time-out, a broken connection, half a JSON. A prompt that failed all the same, or that the
    server refuses for what is in it (400: too long, ...), is left for the next run.

    Returns:
        counts of what was left out, `failed` and `refused` prompts and `retries` among them.

    Raises:
        InputError: no client installed, no key in that variable, a server that refuses the requests or is gone.
    """
    session = _Session(rows, settings, file, access)
    # a thread of its own: the caller may have an event loop already (a notebook has)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, session.run())
        try:
            done.result()
        except Stop as stop:
            raise InputError(str(stop), where=str(settings.server), fix=_GOES_ON) from None
        except BaseException:  # ctrl-C comes here, not to that thread
            session.cancel()
            raise
    return session.counts


class _Session:
    """All requests of one call."""

    def __init__(self, rows: Sequence[PromptRow], settings: SamplingSettings, file: ResponseFile, access: Access):
        self.settings, self.file, self.access = settings, file, access
        self.todo: Iterator[PromptRow] = iter([row for row in rows if row.key not in file.finished])
        self.options, self.secret = access.options(str(settings.server)), access.secret()
        self.progress = Progress(len(rows), file)
        self.counts: dict[str, int] = {}
        self.in_a_row: list[Failed] = []
        self.cancel: Callable[[], object] = lambda: None

    async def run(self) -> None:
        from openai import AsyncOpenAI

        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        assert own is not None
        self.cancel = lambda: loop.is_closed() or loop.call_soon_threadsafe(own.cancel)
        async with AsyncOpenAI(**self.options) as self.client:
            await together([self._work() for _ in range(self.access.concurrency)])
        if self.in_a_row and all(failed.gone for failed in self.in_a_row):
            self._does_not_answer()

    async def _work(self) -> None:
        for row in self.todo:
            answer = await self._draws(row)
            if isinstance(answer, Refused):  # says nothing about other prompts, nor whether what failed will work
                self._report("refused", answer.problem)
                continue
            if not isinstance(answer, Failed):
                self.file.add([(row, tidy(answer, self.settings, self.counts))])
                self.in_a_row.clear()
                self.progress.at()
                continue
            self._report("failed", answer.problem)
            self.in_a_row.append(answer)
            if len(self.in_a_row) >= _IN_A_ROW:
                self._does_not_answer()

    def _does_not_answer(self) -> NoReturn:
        where, found = str(self.settings.server), self.in_a_row[-1].problem
        raise InputError("the server does not answer", where=where, found=found, fix=_GOES_ON)

    async def _draws(self, row: PromptRow) -> list[Drawn] | Failed | Refused:
        """n responses; a server that answers with fewer (some ignore n) is asked again for the rest."""
        drawn: list[Drawn] = []
        while len(drawn) < self.settings.n:
            answer = await self._repeated(functools.partial(self._request, row, len(drawn)))
            if isinstance(answer, Failed | Refused):
                return answer
            drawn += answer
        return drawn[: self.settings.n]

    async def _repeated(self, send: Callable[[], Awaitable[list[Drawn]]]) -> list[Drawn] | Failed | Refused:
        """One request, repeated as often as allowed.

        Raises:
            Stop: a server that refuses.
        """
        for attempt in range(self.access.retries + 1):
            try:
                async with asyncio.timeout(self.access.timeout):  # the client's own begins anew with every piece
                    return await send()
            except Exception as error:
                outcome, own = outcome_of(error, self.secret), own_fault(error)
            if isinstance(outcome, Stop):
                raise outcome
            failed, wait, _ = outcome
            if own:
                return Refused(failed.problem)
            if wait is None or attempt == self.access.retries:
                break
            self._count("retries")
            await asyncio.sleep(pause(wait, attempt))
        return failed

    async def _request(self, row: PromptRow, before: int) -> list[Drawn]:
        settings = self.settings
        options: dict[str, Any] = {
            **{"model": settings.model, "n": settings.n - before, "temperature": settings.temperature},
            **{"top_p": settings.top_p, "max_tokens": settings.max_tokens},
            # the same draws again after a kill, where the server takes seeds; 31 bits, which all take
            "seed": (row.seed(settings.seed) + before) % (1 << 31),
        }
        if isinstance(row.prompt, str):
            reply: Any = await self.client.completions.create(prompt=row.prompt, **options)
        else:
            if settings.template_options:
                options["extra_body"] = {"chat_template_kwargs": dict(settings.template_options)}
            messages: Any = row.prompt
            reply = await self.client.chat.completions.create(messages=messages, **options)
        return _drawn(reply, chat=not isinstance(row.prompt, str))

    def _report(self, what: str, problem: str) -> None:
        if not self.counts.get(what):
            logger.warning("a prompt %s: %s", "failed" if what == "failed" else "was refused", problem)
        self._count(what)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _drawn(reply: Any, *, chat: bool) -> list[Drawn]:
    """The choices of an answer.

    Raises:
        ValueError: there is none, or none of the shape of one; the client hands on whatever JSON the server sent.
    """
    try:
        texts = [choice.message.content if chat else choice.text for choice in reply.choices]
        cut = [choice.finish_reason == "length" for choice in reply.choices]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"an answer of another shape: {error}") from error
    if not texts or not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("an answer without text")
    return [Drawn(text or "", one) for text, one in zip(texts, cut, strict=True)]
