"""What reward models learn from: comparisons with preferences, or responses with scores.

    {"prompt": …, "response_a": …, "response_b": …, "preferences": {"helpful": 1}}      pairs, in any layout of pairs
    {"prompt": …, "responses": [K of them], "scores": {"helpful": [K numbers]}}         lists; null is missing
    {"prompt": …, "response": …, "scores": {"helpful": 3.5}}                            single responses

Suffixes: N examples, K responses of the longest, M objectives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.ratings import rated_rows, rating_pair
from paretune.comparisons.rows import BadRow, Text, clean_row, group_of, split_groups
from paretune.comparisons.sources import list_sources, open_source
from paretune.errors import InputError
from paretune.objectives import Objective

PLAIN = ("on_bad_row", "take", "split", "streaming")  # options that mean something of single responses


@dataclass(frozen=True)
class Examples:
    """N prompts with their responses and what is known of these.

    Args:
        names: of the M objectives.
        prompts, responses, groups: (N,); an example has 1 to K responses, of pairs a and b.
        scores: (N, K, M) float64, NaN where missing or no response is; of pairs without ratings all NaN.
        preferences: (N, M) float64 of pairs, the probability that a is better, NaN where missing; None of lists.
    """

    names: tuple[str, ...]
    prompts: list[Text]
    responses: list[list[Text]]
    groups: list[str]
    scores: np.ndarray
    preferences: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, places: Sequence[int]) -> Examples:
        """Some of them, in the given order."""
        at = np.array(places, dtype=np.int64)
        lists = ([values[i] for i in places] for values in (self.prompts, self.responses, self.groups))
        prompts, responses, groups = lists
        preferences = None if self.preferences is None else self.preferences[at]
        return Examples(self.names, prompts, responses, groups, self.scores[at], preferences)  # type: ignore[arg-type]

    def labelled(self) -> np.ndarray:
        """(N, M): labels of each example: of pairs 1 or 0, of lists how many responses are scored."""
        if self.preferences is not None:
            return (~np.isnan(self.preferences)).astype(np.int64)
        return (~np.isnan(self.scores)).sum(1)

    def conversational(self) -> bool:
        """Whether the texts are messages."""
        return any(isinstance(prompt, list) for prompt in self.prompts)

    def fingerprint(self) -> str:
        """A digest of texts and labels."""
        texts = json.dumps([self.names, self.prompts, self.responses, self.groups], ensure_ascii=False)
        numbers = self.scores.tobytes() + (b"" if self.preferences is None else self.preferences.tobytes())
        return hashlib.sha256(texts.encode() + numbers).hexdigest()


def split_places(groups: Sequence[str], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Places for training, and about `fraction` of them held out; no group is in both.

    Raises:
        InputError: as `split_groups`.
    """
    table = Dataset.from_dict({"group": list(groups), "prompt": [""] * len(groups), "place": range(len(groups))})
    train, held = split_groups(table, fraction, seed)
    return list(train["place"]), list(held["place"])


def read_pairs(
    data: Any, objectives: Sequence[Objective] | None, options: Mapping[str, Any], *, ratings: bool = False
) -> tuple[Examples, dict[str, Any]]:
    """Comparisons with a preference per objective, and what reading them found.

    Args:
        data, options: as `read_comparisons`.
        objectives: None takes every label that the rows have.
        ratings: preferences follow from ratings or scores, which are kept: for margins.

    Raises:
        InputError: bad data, no row, an objective without a label.
    """
    if ratings:
        return _rated_pairs(data, objectives, options)
    rows, report = read_comparisons(data, objectives=objectives, **options)
    names = tuple(report.objectives)
    labels = [[_number(row["preferences"].get(name)) for name in names] for row in rows]
    examples = Examples(
        names,
        list(rows["prompt"]),
        [[a, b] for a, b in zip(rows["response_a"], rows["response_b"], strict=True)],
        [group_of(row) for row in rows],
        np.full((len(rows), 2, len(names)), np.nan),
        np.array(labels, dtype=np.float64),
    )
    return examples, report.to_dict()


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _rated_pairs(
    data: Any, objectives: Sequence[Objective] | None, options: Mapping[str, Any]
) -> tuple[Examples, dict[str, Any]]:
    rows = [
        (clean_row({**row, "preferences": {}}, conversational=bool(options.get("conversational"))), where, row)
        for where, row in rated_rows(data, _fields(objectives).values(), options)
    ]
    names = _names(objectives, (row["ratings"] for _, _, row in rows))
    fields = _fields(objectives)
    table = [
        [rating_pair(row["ratings"].get(fields.get(name, name)), f"ratings.{name}", where) for name in names]
        for _, where, row in rows
    ]
    if not rows:
        raise InputError("no rated pair", where="data", expected="at least one")
    scores = np.array(table, dtype=np.float64).swapaxes(1, 2)
    sign = np.sign(scores[:, 0] - scores[:, 1])
    examples = Examples(
        names,
        [clean["prompt"] for clean, _, _ in rows],
        [[clean["response_a"], clean["response_b"]] for clean, _, _ in rows],
        [group_of(clean) for clean, _, _ in rows],
        scores,
        0.5 + 0.5 * sign,
    )
    return examples, _found(examples)


def read_scored(
    data: Any, objectives: Sequence[Objective] | None, options: Mapping[str, Any]
) -> tuple[Examples, dict[str, Any]]:
    """Responses with scores, gathered by prompt, and what reading them found.

    Rows are those above, or any layout whose pairs carry ratings. A response that comes several times has the mean of
    its scores.

    Raises:
        InputError: bad data, rows without scores, an objective that nothing scores.
    """
    gathered: dict[str, dict[str, Any]] = {}
    for prompt, response, group, scores in _scored(data, objectives, options):
        key = json.dumps([prompt, group], ensure_ascii=False)
        one = gathered.setdefault(key, {"prompt": prompt, "group": group, "responses": {}})
        text = json.dumps(response, ensure_ascii=False)
        one["responses"].setdefault(text, (response, []))[1].append(scores)
    fields = _fields(objectives)
    every = (scores for one in gathered.values() for _, given in one["responses"].values() for scores in given)
    names = _names(objectives, every)
    if not gathered:
        raise InputError("no scored response", where="data", expected="at least one")
    widest = max(len(one["responses"]) for one in gathered.values())
    table = np.full((len(gathered), widest, len(names)), np.nan)
    for n, one in enumerate(gathered.values()):
        for k, (_, given) in enumerate(one["responses"].values()):
            for i, name in enumerate(names):
                known = [scores[field] for scores in given if (field := fields.get(name, name)) in scores]
                known = [value for value in known if not np.isnan(value)]
                if known:
                    table[n, k, i] = np.mean(known)
    examples = Examples(
        names,
        [one["prompt"] for one in gathered.values()],
        [[response for response, _ in one["responses"].values()] for one in gathered.values()],
        [one["group"] for one in gathered.values()],
        table,
    )
    for name, known in zip(names, ~np.isnan(table).all((0, 1)), strict=True):
        if not known:
            raise InputError(f"nothing scores {name!r}", where="data", expected=_EXPECTED)
    return examples, _found(examples)


_EXPECTED = "prompt, responses and scores: {objective: [one number per response]}"


def _fields(objectives: Sequence[Objective] | None) -> dict[str, str]:
    for objective in objectives or ():
        if objective.rule is not None:
            raise InputError("a rule needs no reward model", where=f"objective {objective.name!r}")
    return {objective.name: objective.labels or objective.name for objective in objectives or ()}


def _names(objectives: Sequence[Objective] | None, rows: Any) -> tuple[str, ...]:
    if objectives is not None:
        return tuple(objective.name for objective in objectives)
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _found(examples: Examples) -> dict[str, Any]:
    counts = dict(zip(examples.names, examples.labelled().sum(0).tolist(), strict=True))
    found = {"kept": len(examples), "responses": sum(map(len, examples.responses)), "labels": counts}
    return {**found, "fingerprint": examples.fingerprint(), "warnings": []}


def _scored(
    data: Any, objectives: Sequence[Objective] | None, options: Mapping[str, Any]
) -> Iterator[tuple[Text, Text, str, dict[str, float]]]:
    """Prompt, response, group and scores of each."""
    chat = bool(options.get("conversational"))
    plain = {key: value for key, value in options.items() if key in PLAIN}
    first = next((record for _, record in _records(data, {**plain, "take": 1})), None)
    if isinstance(first, Mapping) and "response" in first and isinstance(first.get("scores"), Mapping):
        for where, record in _records(data, plain):
            try:
                if isinstance(record, BadRow):
                    raise record
                yield _single(record, chat)
            except BadRow as bad:
                if plain.get("on_bad_row") != "skip":
                    raise bad.to_input_error(where) from bad
        return
    for where, row in rated_rows(data, _fields(objectives).values(), options):
        clean = clean_row({**row, "preferences": {}}, conversational=chat)
        sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for name, given in row["ratings"].items():
            for side, value in zip(sides, rating_pair(given, f"ratings.{name}", where), strict=True):
                side[name] = value
        for text, scores in zip((clean["response_a"], clean["response_b"]), sides, strict=True):
            yield clean["prompt"], text, group_of(clean), scores


def _records(data: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for source in list_sources(data, "auto"):
        opened = open_source(source, split=options.get("split", "train"), streaming=options.get("streaming", False))
        for number, item in enumerate(opened):
            if options.get("take") is not None and number >= options["take"]:
                break
            yield item


def _single(record: Mapping[str, Any], chat: bool) -> tuple[Text, Text, str, dict[str, float]]:
    given = record.get("scores")
    if not isinstance(given, Mapping):
        raise BadRow("missing field", field="scores", expected="{objective: number}", found=given)
    scores = {}
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        if value is not None and not number:
            raise BadRow("bad score", field=f"scores.{name}", expected="a finite number or null", found=value)
        scores[str(name)] = np.nan if value is None else float(value)
    response = record.get("response")
    clean = clean_row(
        {**record, "response_a": response, "response_b": response, "preferences": {}}, conversational=chat
    )
    return clean["prompt"], clean["response_a"], group_of(clean), scores
