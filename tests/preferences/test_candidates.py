"""What can be labelled, and the labels of people that come with it."""

from __future__ import annotations

from typing import Any

import pytest

from paretune.errors import InputError
from paretune.pipelines.labelling import label_candidates
from paretune.preferences.candidates import Candidates, read_candidates
from paretune.preferences.labels import LabelOptions
from paretune.preferences.source import Source
from paretune.preferences.specs import Labeller, parse_sources
from tests.preferences.candidates_made import candidates


def test_what_can_be_labelled() -> None:
    chat = [{"role": "user", "content": "hi"}]
    data = [
        {"prompt": "p", "responses": ["a", "b", "a", "c c c"], "topic": 1},
        {"prompt": chat, "responses": ["a", "b"]},
        {"prompt": "p", "responses": ["only one"]},
        {"prompt": "p", "response_a": "a", "response_b": "b"},
        {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"x": "a", "y": None}, "id": 3},
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
    ]
    found, counts = read_candidates(data, max_words=2)
    assert [one.responses for one in found[:1]] == [("a", "b")] and found[0].columns == {"topic": 1}
    assert found[1].prompt == chat and found[1].responses[0] == [{"role": "assistant", "content": "a"}]
    assert [one.given for one in found[2:]] == [{}, {"x": {(0, 1): 1.0}}, {"chosen": {(0, 1): 1.0}}]
    assert [one.is_pair for one in found] == [False, False, True, True, True]
    assert counts["repeated responses left out"] == 1 and counts["prompts with fewer than two responses left out"] == 1
    assert counts["responses of more than 2 words left out"] == 1


def test_scores_of_people_are_labels_that_stay() -> None:
    """Of an objective that people scored in part a source fills the rest; the rest is labelled as ever."""
    seen: list[Any] = []

    def longer(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
        seen.extend(responses)
        return [float(len(one)) for one in responses]

    own = {"helpful": [1, 7, 5, 3], "kind": [2, 7, None, 1], "concise": [3, 2, 1, 0]}
    data = [{"prompt": "p", "responses": ["a", "a", "bbb", "cc"], "scores": own}]
    found, _ = read_candidates(data)
    assert found[0].scores == {"helpful": (1, 5, 3), "kind": (2, None, 1), "concise": (3, 1, 0)}
    labellers = [Labeller(name, LabelOptions(), source=Source(name, "l", score=longer)) for name in ("kind", "helpful")]
    rows, report = label_candidates(found, labellers, None)
    assert [row["preferences"] for row in rows] == [
        {"kind": 0.0, "helpful": 0.0, "concise": 1.0},  # a, bbb: the source's
        {"kind": 1.0, "helpful": 0.0, "concise": 1.0},  # a, cc: people's, whatever the source says
        {"kind": 1.0, "helpful": 1.0, "concise": 1.0},
    ]
    assert len(seen) == 3 and rows[0]["ratings"] == {"helpful": [1, 5], "kind": [2, None], "concise": [3, 1]}
    assert report.objectives["kind"]["share"] == {"people": 1 / 3, "source": 2 / 3}
    assert report.objectives["helpful"]["share"] == {"people": 1, "source": 0}
    rows, _ = label_candidates(found, labellers, None, pairs="best-worst")
    assert len(rows) == 3, "bbb over a, bbb over cc, a over cc: each objective has a best and a worst"
    alone, _ = read_candidates([{**data[0], "scores": {"concise": own["concise"]}}])
    rows, _ = label_candidates(alone, labellers[:1], None, pairs="best-worst")
    assert [(row["response_a"], row["response_b"]) for row in rows] == [("a", "bbb"), ("a", "cc")]


def test_pareto_pairs_have_a_label_of_every_objective_in_question() -> None:
    """A failure is no tie, and what is below a margin may be opposed; an objective of other rows has no say."""
    rows = [*candidates(1), Candidates("w", "p", ("a", "b"), {}, given={"kind": {(0, 1): 1.0}}, is_pair=True)]
    spec = {"short": {"rule": "shorter"}, "more": {"rule": "fewer_words"}}
    made, _ = label_candidates(rows, parse_sources(spec), None, pairs="pareto")
    assert len(made) == 3 and made[0]["preferences"] == {"short": 1.0, "more": 1.0, "kind": None}
    for unknown in ({"rule": "rouge"}, {"rule": "longer", "min_margin": 50}):
        made, _ = label_candidates(rows, parse_sources({**spec, "right": unknown}), None, pairs="pareto")
        assert len(made) == 1, "the comparison, which is kept whatever pairs are chosen"


def test_names_of_people_may_hold_what_joins_two() -> None:
    rows = [Candidates("w", f"{i}", ("a", "b b"), {}, given={"a~b": {(0, 1): 1.0}}, is_pair=True) for i in range(20)]
    _, report = label_candidates(rows, parse_sources({"short": {"rule": "shorter"}}), None)
    assert "short and a~b want the same on all 20 pairs." in report.warnings


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "responses": "text"}, "list of responses"),
        ({"prompt": "p", "responses": ["a", " "]}, r"responses\[1\]"),
        ({"responses": ["a", "b"]}, "prompt"), ({"prompt": "p"}, "not recognised"),
        ({"prompt": "p", "responses": ["a", 3]}, r"responses\[1\]"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}, "one number per response"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": {"x": [1]}}, "scores.x.*a list of 2 numbers"),
        ({"prompt": "p", "completion": "c", "label": True}, "one row"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        read_candidates([row])
    assert "row 1" in str(error.value)
    with pytest.raises(InputError, match="nothing to label"):
        read_candidates([{"prompt": "p", "responses": ["a"]}])
