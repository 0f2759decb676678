"""TruthfulQA's label files -> pairs for training, validation and test, split by question and balanced over kinds.

A pair is of one of four kinds, by which labels of its two answers differ:

    conflict  one answer is truthful, the other informative: the objectives want opposite things
    agree     one answer has both
    truth     only truth differs: a label for `truthful`, none for `informative`
    info      only informativeness differs
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.comparisons.formats import read_comparisons

OBJECTIVES = ("truthful", "informative")
KINDS = ("conflict", "truth", "info", "agree")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
PER_QUESTION = 2  # most pairs of one kind from one question: no question, nor its one odd answer, dominates
PER_KIND = {"train": 560, "validation": 120, "test": 300}


def kind_of(preferences: Mapping[str, float | None]) -> str:
    """Which labels of the pair differ."""
    truthful, informative = (preferences[name] for name in OBJECTIVES)
    if informative is None:
        return "truth"
    if truthful is None:
        return "info"
    return "agree" if truthful == informative else "conflict"


def split_questions(questions: Iterable[str], seed: int) -> dict[str, str]:
    """Question -> part. A question, with all its answers, is in one part only."""
    order = sorted(set(questions))
    random.Random(seed).shuffle(order)
    parts: dict[str, str] = {}
    start = 0.0
    for name, share in SHARES.items():
        stop = start + share
        parts |= dict.fromkeys(order[round(start * len(order)) : round(stop * len(order))], name)
        start = stop
    return parts


def choose(rows: list[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    """At most `PER_QUESTION` pairs of each kind and question, at most `most` of each kind; sides are swapped at random.

    Sorted by length, so that evaluation in this order pads little; training shuffles anyway.
    """
    rng = random.Random(seed)
    rows = rows.copy()
    rng.shuffle(rows)
    chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    taken: Counter[tuple[str, str]] = Counter()
    for row in rows:
        kind = kind_of(row["preferences"])
        if len(chosen[kind]) < most and taken[kind, row["group"]] < PER_QUESTION:
            taken[kind, row["group"]] += 1
            chosen[kind].append(_swapped(row) if rng.random() < 0.5 else row)
    kept = [row for kind in KINDS for row in chosen[kind]]
    return sorted(kept, key=lambda row: len(row["prompt"] + row["response_a"] + row["response_b"]))


def _swapped(row: dict[str, Any]) -> dict[str, Any]:
    labels = {name: None if label is None else 1.0 - label for name, label in row["preferences"].items()}
    return {**row, "response_a": row["response_b"], "response_b": row["response_a"], "preferences": labels}


def write_parts(label_files: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Writes train.jsonl, validation.jsonl and test.jsonl; returns what they hold, for the results.

    Args:
        label_files: the folder with finetune_truth.jsonl and finetune_info.jsonl (and TruthfulQA.csv, whose reference
            answers are then left out).
        folder: where the parts go.
        seed: of the split and the choice.
    """
    rows, report = read_comparisons(label_files)
    part_of = split_questions(rows["group"], seed)
    by_part: dict[str, list[dict[str, Any]]] = {name: [] for name in SHARES}
    for row in rows:
        kept = {name: row[name] for name in ("prompt", "response_a", "response_b", "preferences", "group")}
        by_part[part_of[row["group"]]].append(kept)
    facts: dict[str, Any] = {"pairs_in_files": report.kept, "left_out": dict(report.facts), "parts": {}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in by_part.items():
        chosen = choose(pairs, PER_KIND[name], seed)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in chosen]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        kinds = Counter(kind_of(row["preferences"]) for row in chosen)
        questions = len({row["group"] for row in chosen})
        facts["parts"][name] = {"questions": questions, "pairs": len(chosen), "kinds": {k: kinds[k] for k in KINDS}}
    return facts


def read_part(path: Path) -> list[dict[str, Any]]:
    """The rows of a part, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
