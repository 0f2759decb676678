"""OpenAI's summarize_from_feedback, configuration `comparisons`: two summaries of one post and a labeller's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paretune.comparisons.layouts.shared import CHOSEN, LayoutOptions, need
from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import Item


def summarize(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """`info: {post, title, subreddit | article}, summaries: [{text}, {text}], choice` (0 or 1).

    Several labellers judged the same pair: their choices are votes, averaged to a soft label. The prompt is the post in
    the paper's form (arXiv 2009.01325, appendix B), ending in "TL;DR:". Its one label is `chosen`.
    """
    rows: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
    votes: dict[tuple[str, str, str], list[str]] = {}
    for where, record in records:
        if isinstance(record, BadRow):
            yield where, record
            continue
        try:
            prompt, texts, choice = _prompt(record), _summaries(record), _choice(record)
        except BadRow as bad:
            yield where, bad
            continue
        first, second = sorted(texts)
        key = (prompt, first, second)
        if key not in rows:
            votes[key] = []
            labels = {CHOSEN: votes[key]}
            rows[key] = where, dict(prompt=prompt, response_a=texts[0], response_b=texts[1], preferences=labels)
        else:
            options.facts["further votes on a pair"] += 1
        votes[key].append("a" if texts[choice] == rows[key][1]["response_a"] else "b")
    yield from rows.values()


def _prompt(record: Mapping[str, Any]) -> str:
    info = need(record, "info", Mapping, "{post, title, subreddit} or {article}")
    if info.get("post"):
        return f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}\n\nTL;DR:"
    if info.get("article"):
        return f"Article:\n{info['article']}\n\nTL;DR:"
    raise BadRow("missing field", field="info.post", expected="post or article", found=sorted(info))


def _summaries(record: Mapping[str, Any]) -> list[str]:
    summaries = need(record, "summaries", list, "two summaries")
    texts = [entry.get("text") if isinstance(entry, Mapping) else None for entry in summaries]
    if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadRow("bad summaries", field="summaries", expected='two of {"text": str}', found=summaries)
    return [str(text) for text in texts]


def _choice(record: Mapping[str, Any]) -> int:
    choice = record.get("choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise BadRow("bad label", field="choice", expected="0 or 1: the index of the better summary", found=choice)
    return int(choice)
