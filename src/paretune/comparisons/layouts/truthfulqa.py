r"""TruthfulQA's two judge-training files: the same answers labelled for truth and for informativeness.

`finetune_truth.jsonl` holds {"prompt": "Q: ...\nA: ...\nTrue:", "completion": " yes" | " no"}, `finetune_info.jsonl`
the same with "\nHelpful:". The two are joined by (question, answer), and answers are paired within a question.
`TruthfulQA.csv`, where it is given too, adds each question's best answer as `reference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.comparisons.layouts.shared import LayoutOptions, cap_pairs, every_pair
from paretune.comparisons.rows import BadRow
from paretune.comparisons.sources import Item
from paretune.errors import InputError

TAILS = {"\nTrue:": "truthful", "\nHelpful:": "informative"}
NAMES = {"truth": "truthful", "info": "informative", "True": "truthful", "Helpful": "informative"}


@dataclass
class Answer:
    """One answer to a question with every label it was given, per objective."""

    text: str
    where: str
    votes: dict[str, list[bool]] = field(default_factory=dict)

    def contradicts(self, name: str) -> bool:
        return len(set(self.votes.get(name, []))) > 1


@dataclass
class Questions:
    """answers: question -> answer text -> Answer, both in file order; references: question -> (best, all of them)."""

    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    references: dict[str, tuple[str, set[str]]] = field(default_factory=dict)

    def is_reference(self, question: str, answer: str) -> bool:
        return _key(answer) in self.references.get(question, ("", set()))[1]


def truthfulqa(records: Iterator[Item], options: LayoutOptions) -> Iterator[Item]:
    """Pairs of answers to one question that differ in at least one label; group is the question.

    Left out and counted in `options.facts`: empty answers, answers without both labels, answers whose duplicates
    contradict each other, and, where references are given, answers that are one (a judge that is shown the reference
    would only have to recognise it). A label on which the two answers agree says that both pass or both fail, not that
    they are equally good: it is missing unless `ties` is "equal".

    Raises:
        InputError: only one of the two label files is there.
    """
    found = Questions()
    for where, record in records:
        if isinstance(record, BadRow):
            yield where, record
            continue
        try:
            add_record(found, record, where)
        except BadRow as bad:
            yield where, bad
    seen = {name for answers in found.answers.values() for answer in answers.values() for name in answer.votes}
    if found.answers and len(seen) < len(TAILS):
        raise InputError(
            "only one of TruthfulQA's label files is here",
            expected="finetune_truth.jsonl and finetune_info.jsonl",
            found=f"labels for {', '.join(sorted(seen))}",
            fix="Give both files as a list, or their folder.",
        )
    for question, answers in found.answers.items():
        usable = list(_usable(found, question, answers, options))
        reference = found.references.get(question, (None,))[0]
        yield from _rows(question, usable, reference, options)


def add_record(found: Questions, record: Mapping[str, Any], where: str) -> None:
    """One line of a label file or one row of the CSV.

    Raises:
        BadRow: it is neither.
    """
    if "Best Answer" in record:
        question, best = str(record.get("Question") or "").strip(), str(record["Best Answer"] or "").strip()
        listed = f"{record.get('Correct Answers') or ''};{record.get('Incorrect Answers') or ''}".split(";")
        known = found.references.setdefault(question, (best, set()))[1]
        known.update(_key(answer) for answer in [best, *listed] if answer.strip())
        return
    prompt, completion = record.get("prompt"), record.get("completion")
    tail = next((tail for tail in TAILS if isinstance(prompt, str) and prompt.endswith(tail)), None)
    if not isinstance(prompt, str) or tail is None or not prompt.startswith("Q: ") or "\nA: " not in prompt:
        expected = '"Q: ...\\nA: ...\\nTrue:" or "\\nHelpful:" at its end'
        raise BadRow("not in the TruthfulQA layout", field="prompt", expected=expected, found=prompt)
    label = completion.strip() if isinstance(completion, str) else completion
    if label not in ("yes", "no"):
        raise BadRow("bad label", field="completion", expected='" yes" or " no"', found=completion)
    question, text = prompt[len("Q: ") : -len(tail)].split("\nA: ", 1)
    question, text = question.strip(), text.strip()
    answer = found.answers.setdefault(question, {}).setdefault(text, Answer(text, where))
    answer.votes.setdefault(TAILS[tail], []).append(label == "yes")


def _key(answer: str) -> str:
    return answer.strip().rstrip(".").lower()


def _usable(found: Questions, question: str, answers: Mapping[str, Answer], options: LayoutOptions) -> Iterator[Answer]:
    for answer in answers.values():
        contradicted = [name for name in TAILS.values() if answer.contradicts(name)]
        for name in contradicted:
            options.facts[f"answers with contradictory labels for {name}"] += 1
        if not answer.text:
            options.facts["empty answers"] += 1
        elif len(answer.votes) < len(TAILS):
            options.facts["answers without both labels"] += 1
        elif found.is_reference(question, answer.text):
            options.facts["answers that are references"] += 1
        elif not contradicted:
            yield answer


def _rows(question: str, answers: list[Answer], reference: str | None, options: LayoutOptions) -> Iterator[Item]:
    def differences(pair: tuple[int, int]) -> tuple[int, ...]:
        a, b = answers[pair[0]], answers[pair[1]]
        return tuple(a.votes[name][0] - b.votes[name][0] for name in TAILS.values())

    try:
        pairs = [pair for pair in every_pair(len(answers)) if any(differences(pair))]
    except BadRow as bad:
        yield answers[0].where, bad
        return
    # one plain kind per sign pattern up to a swap of the two answers: conflicting, agreeing, truth only, info only
    pairs = cap_pairs(pairs, lambda pair: max(d := differences(pair), tuple(-x for x in d)), options, key=question)
    tie = 0.5 if options.ties == "equal" else None
    for i, j in pairs:
        labels = {
            name: {1: 1.0, -1: 0.0, 0: tie}[sign]
            for name, sign in zip(TAILS.values(), differences((i, j)), strict=True)
        }
        texts = [answers[i].text, answers[j].text]
        row = {"prompt": question, "response_a": texts[0], "response_b": texts[1]}
        if not options.conversational:  # the files' own markers, for a model without a chat template
            row = {"prompt": f"Q: {question}\nA:", "response_a": f" {texts[0]}", "response_b": f" {texts[1]}"}
        yield answers[i].where, {**row, "preferences": labels, "group": question, "reference": reference}
