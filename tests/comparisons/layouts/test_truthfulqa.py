"""TruthfulQA's two label files: made ones in exactly their layout, and the real ones where present."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts.truthfulqa import Questions, add_record
from paretune.comparisons.rows import split_groups
from paretune.comparisons.sources import TRUTHFULQA_FILES, Source, open_source
from paretune.errors import InputError
from paretune.objectives import Objective
from tests.shared_data import shared_data

# question, answer, truthful, informative
ANSWERS = [
    ("Sky?", "Blue.", "yes", "yes"),
    ("Sky?", "Green.", "no", "yes"),
    ("Sky?", "No comment.", "yes", "no"),
    ("Sky?", "", "yes", "no"),
    ("Sky?", "Both?", "yes", "yes"),
    ("Sky?", "Both?", "no", "yes"),
    ("Sea?", "Wet.", "yes", "yes"),
    ("Sea?", "I lie.", "no", "no"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tail, column in (("truth", "True:", 2), ("info", "Helpful:", 3)):
        lines = [
            json.dumps({"prompt": f"Q: {entry[0]}\nA: {entry[1]}\n{tail}", "completion": f" {entry[column]}"})
            for entry in ANSWERS
        ]
        (tmp_path / f"finetune_{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_answers_are_joined_and_paired_within_a_question(folder: Path) -> None:
    rows, report = read_comparisons(folder)
    made = {(row["response_a"], row["response_b"]): row["preferences"] for row in rows}
    assert made == {
        (" Blue.", " Green."): {"truthful": 1.0, "informative": None},
        (" Blue.", " No comment."): {"truthful": None, "informative": 1.0},
        (" Green.", " No comment."): {"truthful": 0.0, "informative": 1.0},
        (" Wet.", " I lie."): {"truthful": 1.0, "informative": 1.0},
    }
    assert rows[0]["prompt"] == "Q: Sky?\nA:" and set(rows["group"]) == {"Sky?", "Sea?"} and report.has_groups
    assert report.sources[0]["format"] == "truthfulqa" and report.labels == {"truthful": 3, "informative": 3}
    assert report.facts["answers with contradictory labels for truthful"] == 1 and report.facts["empty answers"] == 1
    assert any("contradictory labels for truthful" in warning for warning in report.warnings)


def test_the_two_files_may_be_named_and_ties_may_count(folder: Path) -> None:
    files = [folder / name for name in TRUTHFULQA_FILES[:2]]
    assert read_comparisons(files)[1].fingerprint == read_comparisons(folder)[1].fingerprint
    entries = [{"path": str(path), "format": "truthfulqa"} for path in files]
    rows, _ = read_comparisons(entries, ties="equal", objectives=[Objective("t", labels="truth")])
    assert [row["t"] for row in rows["preferences"]] == [1.0, 0.5, 0.0, 1.0]
    with pytest.raises(InputError, match="only one of TruthfulQA's label files"):
        read_comparisons(files[0])


def test_conversations_carry_the_bare_question(folder: Path) -> None:
    rows, _ = read_comparisons(folder, conversational=True)
    assert rows[0]["prompt"] == [{"role": "user", "content": "Sky?"}]
    assert rows[0]["response_a"] == [{"role": "assistant", "content": "Blue."}]


def test_references_are_given_and_never_compared(folder: Path) -> None:
    header = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    with (folder / "TruthfulQA.csv").open("w", newline="", encoding="utf-8") as stream:
        sky = ["t", "c", "Sky?", "It is blue", "blue; azure", "Green", "s"]
        sea = ["t", "c", "Sea?", "It is wet", "It is wet; Salty", "Dry", "s"]
        csv.writer(stream).writerows([header, sky, sea])
    rows, report = read_comparisons(folder)
    assert report.facts["answers that are references"] == 2  # Blue. and Green., whatever their case and full stop
    assert dict(zip(rows["group"], rows["reference"], strict=True)) == {"Sea?": "It is wet"}


def test_a_broken_line_is_named(folder: Path) -> None:
    path = folder / "finetune_info.jsonl"
    path.write_text(path.read_text().replace('" no"', '" maybe"', 1))
    with pytest.raises(InputError, match=r"finetune_info\.jsonl, line 3: bad label \(field 'completion'\)"):
        read_comparisons(folder)


# ---- the real files


@pytest.fixture(scope="module")
def real() -> Questions:
    found = Questions()
    for name in TRUTHFULQA_FILES:
        for where, record in open_source(Source(path=str(shared_data("truthfulqa") / name)), split="", streaming=False):
            assert isinstance(record, dict)
            add_record(found, record, where)
    return found


def test_the_real_files_join_as_documented(real: Questions) -> None:
    answers = [(q, answer) for q, by_text in real.answers.items() for answer in by_text.values()]
    assert sum(len(votes) for _, answer in answers for votes in answer.votes.values()) == 2 * 22_434
    both = [(q, answer) for q, answer in answers if len(answer.votes) == 2]
    assert len(both) == 18_311 and len(real.answers) == 817
    assert sum(answer.contradicts("truthful") for _, answer in both) == 27
    assert sum(answer.contradicts("informative") for _, answer in both) == 49
    assert sum(real.is_reference(q, answer.text) for q, answer in both) == 5_932


def test_the_real_conflict_is_as_documented(real: Questions) -> None:
    """26,611 pairs conflict and 692 agree: answers written by models, the first label of a contradictory duplicate."""
    kinds: Counter[str] = Counter()
    for question, by_text in real.answers.items():
        labels = [
            tuple(answer.votes[name][0] for name in ("truthful", "informative"))
            for answer in by_text.values() if not real.is_reference(question, answer.text)
        ]  # fmt: skip
        for a, b in itertools.combinations(labels, 2):
            product = (a[0] - b[0]) * (a[1] - b[1])
            kinds[{-1: "conflict", 1: "agree", 0: "other"}[product]] += 1
    assert kinds["conflict"] == 26_611 and kinds["agree"] == 692


def test_the_real_files_become_rows_of_every_kind() -> None:
    rows, report = read_comparisons(shared_data("truthfulqa"), max_pairs=8)
    assert report.facts["answers with contradictory labels for truthful"] == 27
    assert report.facts["answers with contradictory labels for informative"] == 49
    assert report.facts["answers that are references"] == 5_932
    kinds: Counter[str] = Counter()
    for labels in rows["preferences"]:
        truthful, informative = labels["truthful"], labels["informative"]
        if truthful is None or informative is None:
            kinds["truth only" if informative is None else "information only"] += 1
        else:
            kinds["agree" if truthful == informative else "conflict"] += 1
    assert len(kinds) == 4 and min(kinds["truth only"], kinds["information only"], kinds["conflict"]) > 1_000
    train, held_out = split_groups(rows, 0.1, seed=0)
    assert not set(train["group"]) & set(held_out["group"])
    assert abs(len(held_out) / len(rows) - 0.1) < 0.005
