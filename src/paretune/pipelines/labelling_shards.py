"""`paretune label` on an engine: what a source is asked is cut into shards, and each shard is a job.

Only the asking goes elsewhere. Which questions there are, which of them were answered before, what is kept and what
rows the answers come to is decided here, so the rows are those of a local run. A shard is whole batches of its source,
in their order: batches decide the last bits of what a model says.

Servers are asked from here, whatever the engine: waiting for them takes no machine, their pace and their spending cap
hold for all questions together, and no key leaves this machine. What is quicker to compute than to find is computed
here, too.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.pipelines.front.engine import Engine, Job
from paretune.pipelines.stopping import stops_between
from paretune.preferences.asking import answered
from paretune.preferences.source import Portion, Source
from paretune.preferences.specs import Labeller, parse_source

logger = logging.getLogger(__name__)

RETRIES = 2  # of a shard whose process or machine is lost
_ROUNDS = 4  # shards per job at once, so that the last ones end at about the same time
_MOST_BATCHES = 16  # in a shard: the answers of one that is lost are asked for again
_NO_LIMIT = 2**62  # all questions at once, for shards to be cut from
_TURN = 1.0  # seconds


def goes_elsewhere(labeller: Labeller) -> bool:
    """Whether a source, or one of a combination, is asked in shards."""
    if labeller.source is None:
        return any(goes_elsewhere(part) for part in labeller.parts)
    if callable(labeller.entry.get("function")):
        return False  # an object of this process, which another one could not make from its name
    return labeller.source.cached and labeller.entry.get("server") is None


def spread(labeller: Labeller, engine: Engine, at_once: int) -> Labeller:
    """The same labeller, whose sources are asked in shards where they can be.

    Args:
        at_once: jobs that the engine runs at a time.
    """
    if labeller.source is None:
        return replace(labeller, parts=tuple(spread(part, engine, at_once) for part in labeller.parts))
    if not goes_elsewhere(labeller):
        return labeller
    usage: Counter[str] = Counter()
    ask = functools.partial(
        _ask_shards, engine, at_once, labeller.source, json.dumps(labeller.entry, default=str), usage
    )
    function: dict[str, Any] = {"score": ask} if labeller.source.score is not None else {"compare": ask}
    return replace(
        labeller,
        source=replace(labeller.source, batch_size=_NO_LIMIT, usage=lambda: usage, **function),
    )


def _ask_shards(
    engine: Engine,
    at_once: int,
    source: Source,
    entry: str,
    usage: Counter[str],
    prompts: Sequence[Text],
    responses: Sequence[Any],
    /,  # columns may have any of these names
    references: Sequence[Any] | None = None,
    **columns: Sequence[Any],
) -> Iterator[Portion]:
    """As a source's own function: the answers by position, a shard's at a time."""
    batches = math.ceil(len(prompts) / source.batch_size)
    size = source.batch_size * min(_MOST_BATCHES, math.ceil(batches / (_ROUNDS * at_once)))
    jobs: dict[str, tuple[int, Job]] = {}
    for start in range(0, len(prompts), size):
        own = slice(start, start + size)
        told = {name: list(values[own]) for name, values in columns.items()}
        given = (list(prompts[own]), list(responses[own]), None if references is None else list(references[own]), told)
        name = f"{source.name} {start}"
        jobs[name] = start, Job(name, answer_shard, (source.name, entry, source.fingerprint, *given))
    tries: Counter[str] = Counter()
    total = len(jobs)
    with stops_between() as stop_if_asked:
        for _, job in jobs.values():
            engine.submit(job)
        while jobs:
            for end in engine.wait(_TURN):
                start, job = jobs.pop(end.name)
                if end.error is None:
                    answers, used = end.value
                    usage.update(used)
                    logger.info("%s: %d of %d shards", source.name, total - len(jobs), total)
                    yield {start + i: value for i, value in answers.items()}
                    continue
                tries[end.name] += 1
                if not end.again or tries[end.name] > RETRIES:
                    raise InputError(end.error, where=f"source {source.name!r}")
                again = f"{tries[end.name]} of {RETRIES}"
                logger.warning("%s: a shard is asked again (%s): %s", source.name, again, end.error.splitlines()[0])
                jobs[end.name] = start, job
                engine.submit(job)
            stop_if_asked()


# ---- in a job ----


def answer_shard(
    name: str,
    entry: str,
    fingerprint: str,
    prompts: list[Text],
    responses: list[Any],
    references: list[Any] | None,
    columns: Mapping[str, list[Any]],
) -> tuple[dict[int, float], dict[str, float]]:
    """Asks a source, made anew from what was written (JSON), batch by batch.

    Returns:
        The answers by position, and what the source used for them.

    Raises:
        InputError: the source is another one here than where the command was started.
    """
    source = _made(name, entry)
    if source.fingerprint != fingerprint:
        fix = "Models and modules that it names must be the same on all machines."
        raise InputError("another source than the command's", expected=fingerprint, found=source.fingerprint, fix=fix)
    function = source.score or source.compare
    assert function is not None
    before = dict(source.usage()) if source.usage is not None else {}
    answers: dict[int, float] = {}
    for start in range(0, len(prompts), source.batch_size):
        own = slice(start, start + source.batch_size)
        told = {key: values[own] for key, values in columns.items()}
        shown = None if references is None else references[own]
        said = function(prompts[own], responses[own], references=shown, **told)
        for portion in answered(source, said, len(prompts[own])):
            answers.update({start + i: value for i, value in portion.items()})
    after = dict(source.usage()) if source.usage is not None else {}
    return answers, {key: value - before.get(key, 0) for key, value in after.items()}


@functools.lru_cache(maxsize=1)  # a model stays in memory from shard to shard, and no longer
def _made(name: str, entry: str) -> Source:
    source = parse_source(name, json.loads(entry)).source
    assert source is not None
    return source
