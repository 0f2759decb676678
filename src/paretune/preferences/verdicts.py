"""Asks the sources of all labellers about all candidates and combines their answers to one verdict per objective."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.answers import AnswerStore, answer_key
from paretune.preferences.asking import Tally, ask, known, progress_line, requests
from paretune.preferences.candidates import Candidates
from paretune.preferences.ensembles import combined, rounding
from paretune.preferences.labels import Labels, first_opinion, known_to_all, pair_labels, weighted_sum
from paretune.preferences.similarity import references_of
from paretune.preferences.source import REFERENCE, Item, Pair, Source, Verdict, mean_wins
from paretune.preferences.specs import Labeller
from paretune.preferences.text_rules import Question

logger = logging.getLogger(__name__)


@dataclass
class Heard:
    """What one source said.

    Attributes:
        verdicts: by candidate number, of those that it was asked about.
        answers: of a comparing source, every ordered pair's answer, by candidate number.
        tally: what it took.
        unasked: ordered pairs with a reference that the row does not have: failures without a call.
    """

    verdicts: dict[int, Verdict] = field(default_factory=dict)
    answers: dict[int, dict[Pair, float]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    unasked: int = 0


def asked_about(labeller: Labeller, candidates: Sequence[Candidates], among: Sequence[int]) -> dict[str, list[int]]:
    """Source name -> numbers of the candidates that its labeller needs it for.

    What people have labelled needs none; of a choice only the chosen part is asked.
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
    """The candidates of which a pair has no label of an objective yet."""
    return [n for n, one in enumerate(candidates) if one.is_open(name)]


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
    return (source.schedule.calls(count) - lacking) * requests(source, one.columns)


def _count(source: Source, items: list[Item], store: AnswerStore | None, retry_failed: bool) -> tuple[int, int]:
    """The calls of items that repeat another one, and of different ones that were answered before."""
    if not source.cached:
        return 0, 0
    once = list({answer_key(source, item): item for item in items}.values())
    calls = [requests(source, item.columns) for item in once]
    found = sum(calls[i] for i in known(source, once, store, retry_failed=retry_failed))
    return sum(requests(source, item.columns) for item in items) - sum(calls), found


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
        for n, pair in todo:
            heard.answers[n][pair] = math.nan
        heard.unasked += len(todo) - len(can)
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
    return next(iter(references_of(Question("", "", one.columns), "reference")), None)


def _pair_item(one: Candidates, pair: Pair) -> Item:
    return Item(one.prompt, (_text(one, pair[0]) or "", _text(one, pair[1]) or ""), one.columns)


def opinions(
    labellers: Sequence[Labeller], n: int, one: Candidates, heard: Mapping[str, Heard]
) -> tuple[dict[str, Verdict], dict[str, Labels]]:
    """Verdicts and labels of candidate n by objective: what people gave, and of labellers what is missing there."""
    verdicts = {}
    labels = {name: dict(one.given.get(name, {})) for name in dict.fromkeys([*one.given, *one.scores])}
    for name, values in one.scores.items():
        verdicts[name] = Verdict(tuple(math.nan if value is None else value for value in values))
    for labeller in labellers:
        name = labeller.name
        if not one.is_open(name):
            continue
        verdicts[name], found = decide(labeller, n, one, heard)
        if one.given.get(name):  # scores of two scales: responses are ordered by what both say of pairs
            found |= one.given[name]
            verdicts[name] = Verdict(mean_wins(len(one.responses), found), found)
        labels[name] = found
    return verdicts, labels


def decide(labeller: Labeller, n: int, one: Candidates, heard: Mapping[str, Heard]) -> tuple[Verdict, Labels]:
    """A labeller's verdict about candidate n and the labels that follow from it."""
    count = len(one.responses)
    if labeller.source is not None:
        verdict = heard[labeller.source.name].verdicts[n]
        return verdict, pair_labels(verdict, labeller.options)
    if labeller.combination == "choose":
        part = labeller.part_for(one.columns)
        return decide(part, n, one, heard) if part is not None else (Verdict((math.nan,) * count), {})
    parts = [decide(part, n, one, heard) for part in labeller.parts]
    if labeller.combination == "gate":
        verdict = first_opinion(parts, count)
        return verdict, dict(verdict.pairs or {})
    if labeller.combination == "ensemble":
        members, how = [part.scores for part, _ in parts], (labeller.way, labeller.strength)
        verdict = Verdict(tuple(combined(members, *how).tolist()), rounding=tuple(rounding(members, *how).tolist()))
    else:
        verdict = weighted_sum([(part, w) for (part, _), w in zip(parts, labeller.weights, strict=True)], count)
    verdict = known_to_all(verdict, parts)
    return verdict, pair_labels(verdict, labeller.options)
