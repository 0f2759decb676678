"""Responses from an OpenAI-compatible server, such as vLLM's: one request per prompt, many at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from paretune.errors import InputError
from paretune.pipelines.sampling import Drawn, Progress, PromptRow, ResponseFile, SamplingSettings, tidy
from paretune.preferences.secrets import without_key

_IN_A_ROW = 8  # prompts that failed one after another: the server is gone


def sample_from_server(
    rows: Sequence[PromptRow],
    settings: SamplingSettings,
    file: ResponseFile,
    *,
    concurrency: int,
    api_key_env: str | None,
    timeout: float,
    retries: int,
) -> dict[str, int]:
    """Asks for all responses that are missing; each prompt is kept as it is answered.

    Messages go to `/chat/completions`, plain prompts to `/completions`. The client repeats a request that timed out,
    met a full server (429) or an error of it (5xx) `retries` times, waiting longer each time or as long as the server
    says. A prompt that failed all the same is left for the next run.

    Args:
        api_key_env: name of the environment variable that holds the key; None for a server that wants none. The key is
            in no file, message or log of ours.
        timeout: seconds for one request.

    Returns:
        counts of what was left out, `failed` prompts among them.

    Raises:
        InputError: no client installed, no key in that variable, a server that refuses the requests or is gone.
    """
    client, secret = _client(settings, api_key_env, timeout, retries)
    todo = iter([row for row in rows if row.key not in file.finished])
    counts: dict[str, int] = {}
    progress, in_a_row = Progress(len(rows), file), 0
    pool = ThreadPoolExecutor(concurrency)
    running: dict[Future[list[Drawn]], PromptRow] = {}
    try:
        while True:
            while len(running) < concurrency and (row := next(todo, None)) is not None:
                running[pool.submit(_request, client, row, settings)] = row
            if not running:
                return counts
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                row = running.pop(future)
                error = future.exception()
                if error is None:
                    file.add([(row, tidy(future.result(), settings, counts))])
                    in_a_row = 0
                    continue
                problem = _problem(error, secret)
                in_a_row += 1
                counts["failed"] = counts.get("failed", 0) + 1
                if _is_refusal(error) or in_a_row >= _IN_A_ROW:
                    fix = "What was answered is kept: the same command goes on."
                    raise InputError("the server does not answer", where=str(settings.server), found=problem, fix=fix)
            progress.at()
    finally:
        client.close()  # first: requests still running end at once
        pool.shutdown(wait=True, cancel_futures=True)


def _client(settings: SamplingSettings, api_key_env: str | None, timeout: float, retries: int) -> tuple[Any, str]:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise InputError("a server needs the client openai", fix="pip install 'paretune[judges]'.") from error
    secret = ""
    if api_key_env is not None:
        secret = os.environ.get(api_key_env, "")
        if not secret:
            where = f"api_key_env {api_key_env}"
            raise InputError("no such environment variable, or it is empty", where=where, fix=f"export {api_key_env}=…")
    # without a key of its own the client would take one for another server from OPENAI_API_KEY
    client = OpenAI(base_url=settings.server, api_key=secret or "none", timeout=timeout, max_retries=retries)
    return client, secret


def _request(client: Any, row: PromptRow, settings: SamplingSettings) -> list[Drawn]:
    """n responses; a server that answers with fewer (some ignore n) is asked again for the rest."""
    drawn: list[Drawn] = []
    while len(drawn) < settings.n:
        options: dict[str, Any] = {
            **{"model": settings.model, "n": settings.n - len(drawn), "temperature": settings.temperature},
            **{"top_p": settings.top_p, "max_tokens": settings.max_tokens},
            # the same draws again after a kill, where the server takes seeds; 31 bits, which all take
            "seed": (row.seed(settings.seed) + len(drawn)) % (1 << 31),
        }
        if isinstance(row.prompt, str):
            choices = client.completions.create(prompt=row.prompt, **options).choices
            texts = [choice.text for choice in choices]
        else:
            if settings.template_options:
                options["extra_body"] = {"chat_template_kwargs": dict(settings.template_options)}
            choices = client.chat.completions.create(messages=row.prompt, **options).choices
            texts = [choice.message.content for choice in choices]
        if not texts:
            raise ValueError("an answer without choices")
        for choice, text in zip(choices, texts, strict=True):
            drawn.append(Drawn(text or "", choice.finish_reason == "length"))
    return drawn[: settings.n]


def _is_refusal(error: BaseException) -> bool:
    """Whether the next request would fare no better: a wrong key, model or address (400 is often one prompt's)."""
    return getattr(error, "status_code", None) in (401, 403, 404, 405)


def _problem(error: BaseException, secret: str) -> str:
    return without_key(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", secret)[:300]
