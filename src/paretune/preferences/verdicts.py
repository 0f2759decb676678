"""Asks the sources of all labellers about all candidates and combines their answers to one verdict per objective."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore, answer_key
from paretune.preferences.asking import Tally, ask, known, progress_line
from paretune.preferences.candidates import Candidates
from paretune.preferences.ensembles import combined
from paretune.preferences.labels import Labels, first_opinion, pair_labels, weighted_sum
from paretune.preferences.source import REFERENCE, Item, Pair, Source, Verdict
from paretune.preferences.specs import Labeller

logger = logging.getLogger(__name__)


@dataclass
class Heard:
    """What one source said.

    Attributes:
        verdicts: by candidate number, of those that it was asked about.
        answers: of a comparing source, every ordered pair's answer, by candidate number.
        tally: what it took.
    """

    verdicts: dict[int, Verdict] = field(default_factory=dict)
    answers: dict[int, dict[Pair, float]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


def asked_about(labeller: Labeller, candidates: Sequence[Candidates], among: Sequence[int]) -> dict[str, list[int]]:
    """Source name -> numbers of the candidates that its labeller needs it for.

    A comparison that has a label of the objective already needs none; of a choice only the chosen part is asked.
    """
    if labeller.source is not None:
        return {labeller.source.name: list(among)}
    needed: dict[str, list[int]] = {}
    for part in labeller.parts:
        own = among
        if labeller.combination == "choose":
            own = [n for n in among if labeller.part_for(candidates[n].columns) is part]
        needed.update(asked_about(part, candidates, own))
    return needed


def open_numbers(name: str, candidates: Sequence[Candidates]) -> list[int]:
    """The candidates that have no label of an objective yet."""
    return [n for n, one in enumerate(candidates) if not one.given.get(name)]


def plan(
    labellers: Sequence[Labeller],
    candidates: Sequence[Candidates],
    store: AnswerStore | None,
    *,
    seed: int,
    retry_failed: bool,
) -> dict[str, tuple[int, int]]:
    """Source name -> items in all, and how many of them were answered before, so that they need no call.

    Of a schedule whose later rounds depend on earlier answers, only the rounds that are known count as answered.
    """
    planned = {}
    for labeller in labellers:
        needed = asked_about(labeller, candidates, open_numbers(labeller.name, candidates))
        for source in labeller.sources():
            numbers = needed[source.name]
            if source.score is not None:
                items = [item for n in numbers for item in _score_items(candidates[n])]
                repeated, found = _count(source, items, store, retry_failed)
                planned[source.name] = (len(items) - repeated, found)
            else:
                total = sum(_calls(source, candidates[n], seed) for n in numbers)
                repeated, found = _simulate(source, candidates, numbers, store, seed, retry_failed)
                planned[source.name] = (total - repeated, found)
    return planned


def _calls(source: Source, one: Candidates, seed: int) -> int:
    """Calls that a schedule makes about one prompt; none for pairs with a reference that the row does not have."""
    count = len(one.responses)
    pairs = source.schedule.next_pairs(count, {}, _seed(one, seed))
    lacking = sum(_text(one, i) is None or _text(one, j) is None for i, j in pairs)
    return (source.schedule.calls(count) - lacking) * _requests(source, one.columns)


def _requests(source: Source, columns: Mapping[str, Any]) -> int:
    return 1 if source.requests is None else source.requests(columns)


def _count(source: Source, items: list[Item], store: AnswerStore | None, retry_failed: bool) -> tuple[int, int]:
    """The calls of items that repeat another one, and of different ones that were answered before."""
    if not source.cached:
        return 0, 0
    once = list({answer_key(source, item): item for item in items}.values())
    calls = [_requests(source, item.columns) for item in once]
    found = sum(calls[i] for i in known(source, once, store, retry_failed=retry_failed))
    return sum(_requests(source, item.columns) for item in items) - sum(calls), found


def _simulate(
    source: Source,
    candidates: Sequence[Candidates],
    numbers: Sequence[int],
    store: AnswerStore | None,
    seed: int,
    retry_failed: bool,
) -> tuple[int, int]:
    """The same of a schedule, as far as its rounds are known."""
    answers: dict[int, dict[Pair, float]] = {n: {} for n in numbers}
    repeated = found = 0
    going = list(numbers)
    while going:
        todo = _next(source, candidates, answers, going, seed)
        for n, pair in todo:
            if _text(candidates[n], pair[0]) is None or _text(candidates[n], pair[1]) is None:
                answers[n][pair] = math.nan
        todo = [(n, pair) for n, pair in todo if pair not in answers[n]]
        items = [_pair_item(candidates[n], pair) for n, pair in todo]
        more = _count(source, items, store, retry_failed)
        repeated, found = repeated + more[0], found + more[1]
        hits = known(source, items, store, retry_failed=retry_failed)
        short = {n for i, (n, _) in enumerate(todo) if i not in hits}
        for i, value in hits.items():
            answers[todo[i][0]][todo[i][1]] = value
        going = [n for n in dict.fromkeys(n for n, _ in todo) if n not in short]
    return repeated, found


def hear(
    labellers: Sequence[Labeller],
    candidates: Sequence[Candidates],
    store: AnswerStore | None,
    *,
    seed: int = 0,
    retry_failed: bool = False,
    planned: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Heard]:
    """Source name -> what it said. Sources are asked one after another, each about all candidates at once."""
    heard: dict[str, Heard] = {}
    for labeller in labellers:
        needed = asked_about(labeller, candidates, open_numbers(labeller.name, candidates))
        for source in labeller.sources():
            if source.name in heard:
                raise InputError("two sources of one name", found=source.name)
            own = Heard()
            total, found = (planned or {}).get(source.name, (0, 0))
            own.tally.planned = max(total - found, 0)
            heard[source.name] = own
            if source.score is not None:
                _score(source, candidates, needed[source.name], store, own, retry_failed)
            else:
                _compare(source, candidates, needed[source.name], store, own, seed, retry_failed)
            if source.cached and own.tally.asked:
                logger.info("%s", progress_line(source, own.tally))
    return heard


def _score_items(one: Candidates) -> list[Item]:
    return [Item(one.prompt, (response,), one.columns) for response in one.responses]


def _score(
    source: Source,
    candidates: Sequence[Candidates],
    numbers: Sequence[int],
    store: AnswerStore | None,
    heard: Heard,
    retry_failed: bool,
) -> None:
    items = [item for n in numbers for item in _score_items(candidates[n])]
    answers = ask(source, items, store, heard.tally, retry_failed=retry_failed)
    start = 0
    for n in numbers:
        count = len(candidates[n].responses)
        heard.verdicts[n] = Verdict(tuple(answers[start : start + count]))
        start += count


def _compare(
    source: Source,
    candidates: Sequence[Candidates],
    numbers: Sequence[int],
    store: AnswerStore | None,
    heard: Heard,
    seed: int,
    retry_failed: bool,
) -> None:
    """Rounds of the schedule, each over all candidates, so that batches are full."""
    heard.answers = {n: {} for n in numbers}
    while todo := _next(source, candidates, heard.answers, numbers, seed):
        can = [(n, pair) for n, pair in todo if _text(candidates[n], pair[0]) and _text(candidates[n], pair[1])]
        for n, pair in todo:  # without a reference there is nothing to ask: a failure without a call
            heard.answers[n][pair] = math.nan
        heard.tally.failed += len(todo) - len(can)
        items = [_pair_item(candidates[n], pair) for n, pair in can]
        for (n, pair), p in zip(can, ask(source, items, store, heard.tally, retry_failed=retry_failed), strict=True):
            heard.answers[n][pair] = p
    for n in numbers:
        heard.verdicts[n] = source.schedule.verdict(len(candidates[n].responses), heard.answers[n])


def _next(
    source: Source,
    candidates: Sequence[Candidates],
    answers: Mapping[int, Mapping[Pair, float]],
    numbers: Sequence[int],
    seed: int,
) -> list[tuple[int, Pair]]:
    todo = []
    for n in numbers:
        pairs = source.schedule.next_pairs(len(candidates[n].responses), answers[n], _seed(candidates[n], seed))
        if any(pair in answers[n] for pair in pairs):
            raise RuntimeError(f"the schedule of {source.name!r} asks twice about a pair")
        todo += [(n, pair) for pair in pairs]
    return todo


def _seed(one: Candidates, seed: int) -> int:
    """Of what a schedule draws for one prompt: a function of its texts, so that other rows do not matter."""
    text = json.dumps([seed, one.prompt, *one.responses], ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _text(one: Candidates, index: int) -> Text | None:
    if index != REFERENCE:
        return one.responses[index]
    reference = one.columns.get("reference")
    reference = reference[0] if isinstance(reference, list) and reference else reference
    return reference if isinstance(reference, str) and reference.strip() else None


def _pair_item(one: Candidates, pair: Pair) -> Item:
    return Item(one.prompt, (_text(one, pair[0]) or "", _text(one, pair[1]) or ""), one.columns)


def decide(labeller: Labeller, n: int, one: Candidates, heard: Mapping[str, Heard]) -> tuple[Verdict, Labels]:
    """A labeller's verdict about candidate n and the labels that follow from it."""
    count = len(one.responses)
    if labeller.source is not None:
        verdict = heard[labeller.source.name].verdicts[n]
    elif labeller.combination == "choose":
        part = labeller.part_for(one.columns)
        if part is None:
            return Verdict((math.nan,) * count), {}
        return decide(part, n, one, heard)
    else:
        parts = [decide(part, n, one, heard) for part in labeller.parts]
        if labeller.combination == "gate":
            verdict = first_opinion(parts, count)
            return verdict, dict(verdict.pairs or {})
        if labeller.combination == "ensemble":
            members = [part[0].scores for part in parts]
            verdict = Verdict(tuple(combined(members, labeller.way, labeller.strength).tolist()))
            return verdict, pair_labels(verdict, labeller.options)
        verdict = weighted_sum([(part[0], weight) for part, weight in zip(parts, labeller.weights, strict=True)], count)
    return verdict, pair_labels(verdict, labeller.options)
