"""Asks a source what is not known yet, keeps every answer, and counts."""

from __future__ import annotations

import logging
import math
import operator
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from paretune.comparisons.progress import SECONDS
from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore, answer_key
from paretune.preferences.source import Answers, Item, Source

logger = logging.getLogger(__name__)

# What a source's function is given beside the columns. A column of such a name has one underscore more.
_OWN_NAME = re.compile(r"(prompts|responses|pairs|references)_*")


@dataclass
class Tally:
    """What asking one source took.

    Attributes:
        asked: items that the source was given now; found: those that had been answered before; failed: NaN among both.
        calls: made for the items asked: none where a row lacks the reference that a judge shows, several for several.
        seconds: spent in the source. usage: what it says it used (tokens, cost).
        planned: calls that were announced at most, for the progress line.
    """

    asked: int = 0
    found: int = 0
    failed: int = 0
    calls: int = 0
    seconds: float = 0.0
    usage: dict[str, float] = field(default_factory=dict)
    planned: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        rate = self.asked / self.seconds if self.seconds > 0 else None
        counts = {"asked": self.asked, "found": self.found, "failed": self.failed}
        return {**counts, "seconds": round(self.seconds, 3), "per_second": rate, "usage": dict(self.usage)}


def known(
    source: Source, items: Sequence[Item], store: AnswerStore | None, *, retry_failed: bool = False
) -> dict[int, float]:
    """The items that need no call, by position, and their answers."""
    if store is None or not source.cached:
        return {}
    keys = [answer_key(source, item) for item in items]
    found = store.find(list(dict.fromkeys(keys)))
    answers = {i: found[key] for i, key in enumerate(keys) if key in found}
    return {i: value for i, value in answers.items() if not (retry_failed and math.isnan(value))}


def ask(
    source: Source,
    items: Sequence[Item],
    store: AnswerStore | None,
    tally: Tally,
    *,
    retry_failed: bool = False,
) -> list[float]:
    """One answer per item, NaN for a failure. Equal items are asked once, of a source whose answers are kept.

    Whatever the source answered is kept before the next batch, or as each comes where it yields them: a process that
    is killed, or a source that raises, loses no more than the calls in flight. Before each batch it is looked up
    whether another process has answered it by now.

    Args:
        store: where answers are kept; None keeps none.
        tally: what this adds to.
        retry_failed: ask again what failed in an earlier run.

    Raises:
        InputError: an answer that is no number, no probability (of a comparison), or missing.
        Exception: whatever the source raises.
    """
    # what is quicker to compute than to find is quicker to compute than to hash, too
    keys = [answer_key(source, item) if source.cached else i.to_bytes(8) for i, item in enumerate(items)]
    first: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    answers: dict[bytes, float] = {}
    wanted = list(first)
    cached = store if source.cached else None
    said = time.monotonic()
    for start in range(0, len(wanted), source.batch_size):
        batch = wanted[start : start + source.batch_size]
        if cached is not None:
            found = cached.find(batch)
            found = {key: value for key, value in found.items() if not (retry_failed and math.isnan(value))}
            answers.update(found)
            tally.found += len(found)
            batch = [key for key in batch if key not in found]
        if batch:
            _ask_batch(source, batch, [items[first[key]] for key in batch], cached, answers, tally)
        if time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            logger.info("%s", progress_line(source, tally))
    tally.failed += sum(math.isnan(answers[key]) for key in wanted)
    return [answers[key] for key in keys]


def requests(source: Source, columns: Mapping[str, Any]) -> int:
    """The calls that one item of a row takes."""
    return 1 if source.requests is None else source.requests(columns)


def progress_line(source: Source, tally: Tally) -> str:
    """How far a source is, how fast, and what it has used."""
    rate = tally.calls / max(tally.seconds, 1e-9)
    of = f" of {tally.planned:,}" if tally.planned else ""
    used = "".join(f", {value:,.6g} {name}" for name, value in tally.usage.items())
    return f"{source.name}: {tally.calls:,}{of} calls, {rate:,.3g}/s{used}"


def _ask_batch(
    source: Source,
    keys: list[bytes],
    items: list[Item],
    store: AnswerStore | None,
    answers: dict[bytes, float],
    tally: Tally,
) -> None:
    started, before = time.monotonic(), len(answers)
    try:
        for kept in answered(source, call(source, items), len(items)):
            new = {keys[i]: value for i, value in kept.items()}
            if store is not None:
                store.keep(new)
            answers.update(new)
    finally:  # a source that raised has answered some, and they count
        tally.asked += len(answers) - before
        done = (item for key, item in zip(keys, items, strict=True) if key in answers)
        tally.calls += sum(requests(source, item.columns) for item in done)
        tally.seconds += time.monotonic() - started
        if source.usage is not None:
            tally.usage = dict(source.usage())
    lacking = [i for i, key in enumerate(keys) if key not in answers]
    if lacking:
        raise InputError(
            f"{len(lacking)} of {len(keys)} items were not answered",
            where=f"source {source.name!r}",
            expected="one answer per item, NaN for a failure",
        )


def call(source: Source, items: Sequence[Item]) -> Answers:
    """The source's function on a batch, told what it reads.

    A column that is called as one of the function's own arguments is given with an underscore more: `references_`.
    """
    names: Iterable[str] = source.reads or ()
    if source.reads is None:
        names = dict.fromkeys(name for item in items for name in item.columns)
    columns: dict[str, Any] = {name: [item.columns.get(name) for item in items] for name in names}
    references = columns.pop("reference", None)
    told = {f"{name}_" if _OWN_NAME.fullmatch(name) else name: values for name, values in columns.items()}
    prompts = [item.prompt for item in items]
    if source.score is not None:
        return source.score(prompts, [item.responses[0] for item in items], references=references, **told)
    assert source.compare is not None
    return source.compare(prompts, [item.responses for item in items], references=references, **told)


def columns_told(references: Sequence[Any] | None, told: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What `call` gave a function, by the rows' own names: `reference` among them, where any row has one."""
    columns = {name[:-1] if name.endswith("_") and _OWN_NAME.fullmatch(name) else name: told[name] for name in told}
    return columns if references is None else {**columns, "reference": references}


def answered(source: Source, answers: Answers, count: int) -> Iterator[Mapping[int, float]]:
    """What a function returned or yields, in portions that are kept together.

    Raises:
        InputError: neither a list of `count` numbers nor {position: number} or (position, number) in portions.
    """
    where, expected = f"source {source.name!r}", f"{count} answers, one per item"
    portions: Any = [answers] if isinstance(answers, Mapping) else answers
    # a set has no order, and text of the right length would be read letter by letter
    if not isinstance(portions, Iterable) or isinstance(portions, str | bytes | Set):
        fix = "It must return or yield its answers; an async function can end on asyncio.run."
        raise InputError("no answers", where=where, expected=expected, found=type(answers).__name__, fix=fix)
    if hasattr(answers, "__len__") and not isinstance(answers, Mapping):
        values = list(portions)
        if len(values) != count:
            raise InputError("the answers do not fit the items", where=where, expected=expected, found=len(values))
        yield {i: _number(source, value) for i, value in enumerate(values)}
        return
    for portion in portions:
        pairs = list(portion.items()) if isinstance(portion, Mapping) else [portion]
        yield {_position(source, pair, count): _number(source, pair[1]) for pair in pairs}


def _position(source: Source, pair: Any, count: int) -> int:
    """Of a (position, answer)."""
    where = f"source {source.name!r}"
    try:
        given, _ = pair
        position = operator.index(given)
    except (TypeError, ValueError):
        expected = "(position, answer) or {position: answer}, by the items' places in the batch"
        raise InputError("answers without positions", where=where, expected=expected, found=repr(pair)) from None
    if not 0 <= position < count:
        raise InputError("no such item", where=where, expected=f"a position below {count}", found=position)
    return position


def _number(source: Source, value: Any) -> float:
    where = f"source {source.name!r}"
    if value is None:  # as a reward function of TRL says that it does not apply
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError("an answer that is no number", where=where, found=value) from None
    if math.isinf(number):
        raise InputError("an answer that is not finite", where=where, expected="a finite number, or NaN for a failure")
    if source.compare is not None and not (math.isnan(number) or 0.0 <= number <= 1.0):
        raise InputError("an answer that is no probability", where=where, expected="a number in [0, 1]", found=value)
    return number
