"""What is to be labelled: prompts with several responses, or comparisons that may carry labels of people already."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paretune.comparisons.layouts import LAYOUTS, LayoutOptions, recognise
from paretune.comparisons.layouts.shared import check_count, preference
from paretune.comparisons.rows import BadRow, Text, clean_row, text_of
from paretune.comparisons.sources import Item, list_sources, open_source
from paretune.errors import InputError
from paretune.preferences.labels import Labels

_GIVEN = "labels that came with the rows"


@dataclass(frozen=True)
class Candidates:
    """A prompt and K responses to it.

    Args:
        where: the place it was read from.
        responses: all different.
        columns: the row's other columns, `reference` among them.
        given: {objective: labels of pairs} that came with the row; nothing overrides them.
        is_pair: a comparison: its pair is kept whatever pairs are chosen.
        scores: {objective: (K,) numbers of people, None where there is none}, from which `given` follows.
    """

    where: str
    prompt: Text
    responses: tuple[Text, ...]
    columns: Mapping[str, Any]
    given: Mapping[str, Labels] = field(default_factory=dict)
    is_pair: bool = False
    scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    def is_open(self, objective: str) -> bool:
        """Whether a pair lacks a label of the objective."""
        return len(self.given.get(objective, ())) < len(self.responses) * (len(self.responses) - 1) // 2


def read_candidates(
    data: Any, *, on_bad_row: str = "error", take: int | None = None, max_words: int | None = None
) -> tuple[list[Candidates], Counter[str]]:
    """All candidates of a file, hub id or list of rows, and counts of what was left out.

    Rows hold `prompt` and `responses`, with or without `scores`, or are comparisons in any layout that
    `read_comparisons` knows.

    Args:
        max_words: responses of more words (at white space) are left out; a comparison with one is, too.

    Raises:
        InputError: data that cannot be read, a bad row (with on_bad_row "error"), nothing that can be compared.
    """
    if on_bad_row not in ("error", "skip"):
        raise InputError("bad on_bad_row", expected="error or skip", found=on_bad_row)
    if max_words is not None and max_words < 1:
        raise InputError("bad max_words", expected="a positive whole number", found=max_words)
    counts: Counter[str] = Counter()
    found: list[Candidates] = []
    for source in list_sources(data, "auto"):
        records = open_source(source, split=source.split or "train", streaming=False)
        for where, record in itertools.islice(records, take):
            counts["rows read"] += 1
            try:
                if isinstance(record, BadRow):
                    raise record
                rows = [_responses(where, record)] if "responses" in record else list(_comparison(where, record))
                found += [row for row in (_usable(row, max_words, counts) for row in rows) if row is not None]
            except BadRow as bad:
                if on_bad_row == "error":
                    raise bad.to_input_error(where, "(on_bad_row: skip leaves bad rows out and counts them.)") from None
                counts["bad rows left out"] += 1
    if not found:
        found_instead = "; ".join(f"{count} x {what}" for what, count in counts.items())
        expected = "prompts with at least two different responses"
        raise InputError("nothing to label", expected=expected, found=found_instead or "no row")
    return found, counts


def _responses(where: str, record: Mapping[str, Any]) -> Candidates:
    responses = record["responses"]
    if not isinstance(responses, list):
        raise BadRow("wrong type", field="responses", expected="a list of responses", found=responses)
    check_count(len(responses))
    prompt: Any = None
    texts = []
    for i, response in enumerate(responses):
        if isinstance(response, str) and not response.strip():
            raise BadRow("empty response", field=f"responses[{i}]", expected="some text", found=response)
        # as one side of a comparison with itself: the checks of rows are those of responses
        row = {"prompt": record.get("prompt"), "response_a": response, "response_b": response, "preferences": {}}
        try:
            cleaned = clean_row(row)
        except BadRow as bad:
            field = bad.field.replace("response_a", f"responses[{i}]")
            raise BadRow(bad.problem, field=field, expected=bad.expected, found=bad.found, fix=bad.fix) from None
        prompt = cleaned["prompt"]
        texts.append(cleaned["response_a"])
    columns = {key: value for key, value in record.items() if key not in ("prompt", "responses")}
    scores = _scores(where, record) if len(texts) > 1 and record.get("scores") is not None else {}
    return Candidates(where, prompt if texts else "", tuple(texts), columns, scores=scores)


def _scores(where: str, record: Mapping[str, Any]) -> dict[str, tuple[float | None, ...]]:
    """Scores of people, (K,) per objective, as the layout of scored responses reads them."""
    ratings: list[Mapping[str, Sequence[float | None]]] = []
    for _, row in LAYOUTS["scores"].read(iter([(where, dict(record))]), LayoutOptions()):
        if isinstance(row, BadRow):
            raise row
        ratings.append(row["ratings"])  # [of i, of j] for (0, 1), (0, 2), …, (0, K - 1), and then pairs without 0
    others = ratings[: len(record["responses"]) - 1]
    return {name: (both[0], *(own[name][1] for own in others)) for name, both in others[0].items()}


def _comparison(where: str, record: dict[str, Any]) -> Iterator[Candidates]:
    layout = recognise(record, where)
    if layout in ("helpsteer2", "thumbs", "truthfulqa"):
        raise InputError(
            f"rows of the {layout} layout cannot be labelled one by one",
            where=where,
            expected="prompt and responses, or comparisons",
            fix="Write the responses to one prompt into one row's `responses`.",
        )
    one: Iterator[Item] = iter([(where, record)])
    for _, row in LAYOUTS[layout].read(one, LayoutOptions(needs_labels=False)):
        if isinstance(row, BadRow):
            raise row
        cleaned = clean_row(row)
        given = {name: {(0, 1): label} for name, label in cleaned["preferences"].items() if label is not None}
        own = ("prompt", "response_a", "response_b", "preferences", "count_only")
        columns = {key: value for key, value in row.items() if key not in own and not key.startswith("preferences.")}
        yield Candidates(
            where, cleaned["prompt"], (cleaned["response_a"], cleaned["response_b"]), columns, given, is_pair=True
        )


def _usable(row: Candidates, max_words: int | None, counts: Counter[str]) -> Candidates | None:
    """The row without repeated and long responses; None where fewer than two are left."""
    kept: dict[str, Text] = {}
    places = []
    for place, response in enumerate(row.responses):
        text = text_of(response)
        if max_words is not None and len(text.split()) > max_words:
            counts[f"responses of more than {max_words} words left out"] += 1
        elif text in kept:
            counts["repeated responses left out"] += 1
        else:
            kept[text] = response
            places.append(place)
    if len(kept) < 2:
        counts["prompts with fewer than two responses left out"] += 1
        return None
    scores = {name: tuple(values[place] for place in places) for name, values in row.scores.items()}
    given = row.given if row.is_pair else _given(scores)
    return replace(row, responses=tuple(kept.values()), given=given, scores=scores)


def _given(scores: Mapping[str, Sequence[float | None]]) -> dict[str, Labels]:
    """The labels that follow from scores; none of an objective that no pair has both scores of."""
    given: dict[str, Labels] = {}
    for name, values in scores.items():
        for i, j in itertools.combinations(range(len(values)), 2):
            label = preference(values[i], values[j])
            if label is not None:
                given.setdefault(name, {})[i, j] = label
    return given
