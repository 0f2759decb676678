"""Layouts that score single responses: pairs are made within a prompt and labelled by the difference of the scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from paretune.comparisons.layouts.pairs import trl
from paretune.comparisons.layouts.shared import (
    CHOSEN,
    LayoutOptions,
    carried,
    each,
    need,
    number_or_none,
    paired,
    scored_rows,
)
from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import Item
from paretune.errors import InputError


def scores(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """`prompt, responses` (K >= 2) and `scores: {objective: [K numbers]}`; equal is 0.5, a null score is missing."""

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        responses = need(record, "responses", list, "a list of at least two responses")
        given = need(record, "scores", Mapping, "{objective: [one number per response]}")
        if len(responses) < 2:
            raise BadRow("too few responses", field="responses", expected="at least two", found=responses)
        for index, response in enumerate(responses):
            if not response or (isinstance(response, str) and not response.strip()):
                raise BadRow("empty response", field=f"responses[{index}]", expected="some text", found=response)
        values: dict[str, list[float | None]] = {}
        for name, column in given.items():
            if column is None:  # a table fills the objectives that this row lacks with null
                continue
            if not isinstance(column, list) or len(column) != len(responses):
                expected = f"a list of {len(responses)} numbers, one per response"
                raise BadRow("scores do not fit the responses", field=f"scores.{name}", expected=expected, found=column)
            values[name] = [number_or_none(value, f"scores.{name}[{i}]") for i, value in enumerate(column)]
        return scored_rows(need(record, "prompt", (str, list), "a prompt"), responses, values, options, carried(record))

    return each(records, make)


def ultrafeedback(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """openbmb/UltraFeedback: `instruction`, `completions: [{response, annotations: {aspect: {"Rating": "4"}}}]`; each
    aspect is an objective, "N/A" is missing. A number beside `annotations` (`overall_score`) is one when asked for.

    Also its binarized form (`chosen, rejected` conversations with `score_chosen, score_rejected`): one label, `chosen`,
    at 0.5 where the two scores are equal and the order is therefore arbitrary.
    """

    def make(record: dict[str, Any]) -> list[dict[str, Any]]:
        if "completions" not in record:
            return _binarized(record, options)
        completions = need(record, "completions", list, "a list of completions")
        prompt = need(record, "instruction", str, "a string")
        responses = [_response(completion, i) for i, completion in enumerate(completions)]
        if len(responses) < 2:
            options.facts["prompts with fewer than two responses"] += 1
            return []
        table = [_ratings(completion, i, options.columns) for i, completion in enumerate(completions)]
        names = list(dict.fromkeys(name for ratings in table for name in ratings))
        values = {name: [ratings.get(name) for ratings in table] for name in names}
        return scored_rows(prompt, responses, values, options, carried(record))

    return each(records, make)


def _response(completion: Any, index: int) -> str:
    if not isinstance(completion, Mapping):
        expected = "an object with response and annotations"
        raise BadRow("wrong type", field=f"completions[{index}]", expected=expected, found=completion)
    response = completion.get("response")
    if not isinstance(response, str) or not response.strip():
        raise BadRow("empty response", field=f"completions[{index}].response", expected="some text", found=response)
    return response


def _ratings(completion: Mapping[str, Any], index: int, columns: frozenset[str]) -> dict[str, float | None]:
    where = f"completions[{index}]"
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        expected = '{aspect: {"Rating": "1".."5"}}'
        raise BadRow("missing field", field=f"{where}.annotations", expected=expected, found=annotations)
    ratings: dict[str, float | None] = {}
    for aspect, given in annotations.items():
        votes = given if isinstance(given, list) else [given]  # the first release lists one entry per run of the judge
        read = [
            number_or_none(vote.get("Rating") if isinstance(vote, Mapping) else vote, f"{where}.annotations.{aspect}")
            for vote in votes
        ]
        known = [value for value in read if value is not None]
        ratings[aspect] = sum(known) / len(known) if known else None
    for name in columns & set(completion):
        ratings.setdefault(name, number_or_none(completion[name], f"{where}.{name}"))
    return ratings


def _binarized(record: dict[str, Any], options: LayoutOptions) -> list[dict[str, Any]]:
    ((_, row),) = trl(iter([("", record)]), options)
    if isinstance(row, BadRow):
        raise row
    better, worse = (number_or_none(record.get(f"score_{side}"), f"score_{side}") for side in ("chosen", "rejected"))
    if better is not None and better == worse:
        options.facts["binarized pairs with equal scores, read as ties"] += 1
        row["preferences"][CHOSEN] = 0.5
    return [row]


HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def helpsteer2(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """nvidia/HelpSteer2: one response per record with five attributes of 0 to 4; the records of a prompt follow one
    another and are paired. A record that is skipped does not end its prompt's run.
    """
    start, prompt, run = "", None, []  # type: tuple[str, str | None, list[dict[str, Any]]]
    for where, record in records:
        if isinstance(record, BadRow):
            yield where, record
            continue
        try:
            own = need(record, "prompt", str, "a string")
            response = need(record, "response", str, "a string")
            ratings = _attributes(record, options)
        except BadRow as bad:
            yield where, bad
            continue
        if own != prompt:
            yield from paired(start, partial(_paired_run, prompt, run, options))
            start, prompt, run = where, own, []
        run.append({"response": response, "ratings": ratings, "carried": carried(record)})
    yield from paired(start, partial(_paired_run, prompt, run, options))


def _attributes(record: Mapping[str, Any], options: LayoutOptions) -> dict[str, float | None]:
    names = [name for name in record if name in HELPSTEER_ATTRIBUTES or name in options.columns]
    if not names:
        raise BadRow("missing field", field="helpfulness", expected="an attribute", found=sorted(record))
    return {name: number_or_none(record[name], name) for name in names}


def _paired_run(prompt: str | None, run: list[dict[str, Any]], options: LayoutOptions) -> list[dict[str, Any]]:
    if prompt is None or len(run) < 2:
        options.facts["prompts with fewer than two responses"] += prompt is not None
        return []
    names = list(dict.fromkeys(name for entry in run for name in entry["ratings"]))
    values = {name: [entry["ratings"].get(name) for entry in run] for name in names}
    return scored_rows(prompt, [entry["response"] for entry in run], values, options, run[0]["carried"])


def thumbs(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """`prompt, completion, label` (true: thumbs up), as for KTO: each liked completion against each disliked one of the
    same prompt. Its label is `chosen`.

    Raises:
        InputError: no prompt has both.
    """
    prompts: dict[str, tuple[str, Any]] = {}
    completions: dict[str, dict[bool, list[Any]]] = {}
    for where, record in records:
        if isinstance(record, BadRow):
            yield where, record
            continue
        try:
            prompt = need(record, "prompt", (str, list), "a string or messages")
            completion = need(record, "completion", (str, list), "a string or messages")
            if not isinstance(record.get("label"), bool):
                raise BadRow("bad label", field="label", expected="true or false", found=record.get("label"))
        except BadRow as bad:
            yield where, bad
            continue
        prompts.setdefault(str(prompt), (where, prompt))
        completions.setdefault(str(prompt), {True: [], False: []})[record["label"]].append(completion)
    made = 0
    for key, (where, prompt) in prompts.items():
        liked, disliked = completions[key][True], completions[key][False]
        made += bool(liked and disliked)
        values = {CHOSEN: [1.0] * len(liked) + [0.0] * len(disliked)}
        differing = replace(options, pairs="pareto")  # with one label: the pairs in which it differs
        yield from paired(where, partial(scored_rows, prompt, liked + disliked, values, differing, {}))
    options.facts["prompts without both a liked and a disliked completion"] += len(prompts) - made
    if prompts and not made:
        raise InputError(
            "no prompt has both a liked and a disliked completion",
            expected="pairs within a prompt",
            found=f"{len(prompts)} prompts with one kind each",
            fix="Thumbs can only be compared on the same prompt; sample more completions or label pairs.",
        )
