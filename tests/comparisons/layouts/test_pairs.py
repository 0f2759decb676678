"""Layouts of pairs, on made rows in exactly the public layout."""

from __future__ import annotations

from typing import Any

import pytest

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts.pairs import split_prompt
from paretune.errors import InputError
from paretune.objectives import Objective


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def only(data: Any, layout: str, **options: Any) -> dict[str, Any]:
    """The single row of data whose layout must be recognised as `layout`."""
    rows, report = read_comparisons(data, **options)
    assert report.sources[0]["format"] == layout and len(rows) == 1
    row: dict[str, Any] = rows[0]
    return row


def test_native_rows_keep_optional_fields() -> None:
    row = {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"x": ["a", "b", "a"]}, "group": "g"}
    made = only([{**row, "id": 3, "reference": "r"}], "native")
    assert made["preferences"]["x"] == pytest.approx(2 / 3)
    assert (made["id"], made["group"], made["reference"]) == ("3", "g", "r")


def test_ratings_prefer_the_higher_where_no_preference_says_otherwise() -> None:
    row = {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {"w": None, "x": 0.2}}
    ratings = {"w": [1, 2], "x": [5, 1], "y": [3, 4.5], "z": [2, 2], "u": [None, 1], "v": None}
    made = only([{**row, "ratings": ratings}], "native")
    assert made["preferences"] == {"w": None, "x": 0.2, "y": 0.0, "z": 0.5, "u": None, "v": None}
    for bad in ([1, 2], {"x": 3}, {"x": [1, 2, 3]}, {"x": [1, "high"]}):
        with pytest.raises(InputError, match="ratings"):
            read_comparisons([{**row, "ratings": bad}])


def test_a_row_column_can_hold_an_objectives_labels() -> None:
    row = {"prompt": "p", "response_a": "a", "response_b": "b", "preferences": {}, "judge_7": "b"}
    made = only([row], "native", objectives=[Objective("faithful", labels="judge_7")])
    assert made["preferences"] == {"faithful": 0.0}


@pytest.mark.parametrize(
    ("record", "prompt", "a", "b"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", " blue.", " green."),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", " blue.", " green."),
        # the parting word is kept whole, where a plain common prefix would cut it after "bl"
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", " blue.", " black."),
        (
            {"prompt": [user("Sky?")], "chosen": [reply("Blue")], "rejected": [reply("Green")]},
            [user("Sky?")], [reply("Blue")], [reply("Green")],
        ),
        (
            {"chosen": [user("Sky?"), reply("Blue")], "rejected": [user("Sky?"), reply("Green")]},
            [user("Sky?")], [reply("Blue")], [reply("Green")],
        ),
        (  # a plain prompt beside whole conversations: the prompt is in them
            {"prompt": "Sky?", "chosen": [user("Sky?"), reply("Blue")], "rejected": [user("Sky?"), reply("Green")]},
            [user("Sky?")], [reply("Blue")], [reply("Green")],
        ),
        (
            {"prompt": "Sky?", "chosen": [reply("Blue")], "rejected": [reply("Green")]},
            [user("Sky?")], [reply("Blue")], [reply("Green")],
        ),
    ],
)  # fmt: skip
def test_trl(record: dict[str, Any], prompt: Any, a: Any, b: Any) -> None:
    made = only([record], "trl")
    assert (made["prompt"], made["response_a"], made["response_b"]) == (prompt, a, b)
    assert made["preferences"] == {"chosen": 1.0}


@pytest.mark.parametrize(
    "sides",
    [
        ("same start x", "same start y z"), ("Q: hi A: yes", "Q: hi A: yes indeed"), ("天空是蓝色", "天空是绿色"),
        ("ab", "cd"), ("a b", "a b"), ("x", "xy"),
    ],
)  # fmt: skip
def test_the_implicit_prompt_loses_nothing(sides: tuple[str, str]) -> None:
    prompt, a, b = split_prompt(*sides)
    assert (prompt + a, prompt + b) == sides and a and b
    assert not (prompt and prompt[-1].isascii() and prompt[-1].isalnum() and a[0].isalnum())


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [("Sky is blue.", "Sky is green.", "Sky is"), ("A:\nyes", "A:\nno", "A:\n"), ("a b c d", "a b e", "a b")],
)
def test_the_implicit_prompt_is_trls_where_texts_part_between_words(chosen: str, rejected: str, prompt: str) -> None:
    # what trl.extract_prompt (1.16.0) gives
    assert split_prompt(chosen, rejected) == (prompt, chosen.removeprefix(prompt), rejected.removeprefix(prompt))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, "missing field (field 'rejected')"),
        ({"prompt": "p", "chosen": "a", "rejected": [reply("b")]}, "differ in kind"),
        ({"chosen": "yes", "rejected": "no"}, "no prompt"),
        ({"prompt": "p", "chosen": 1, "rejected": "b"}, "wrong type (field 'chosen')"),
    ],
)
def test_trl_refuses(record: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_comparisons([record])
    assert said in str(caught.value)


def test_an_ordinary_dpo_file_with_an_inline_rule() -> None:
    rows = [
        {"prompt": "p", "chosen": "a longer answer", "rejected": "short"},
        {"prompt": "q", "chosen": "brief", "rejected": "not so brief"},
    ]
    objectives = [Objective("helpful", labels="chosen"), Objective("concise", rule="shorter")]
    made, report = read_comparisons(rows, objectives=objectives)
    assert made["preferences"][:] == [{"helpful": 1.0, "concise": 0.0}, {"helpful": 1.0, "concise": 1.0}]
    assert report.labels == {"helpful": 2, "concise": 2}


@pytest.mark.parametrize(
    ("ties", "quality", "count_only"),
    [("missing", None, None), ("equal", 0.5, None), ("release", None, ["quality"])],
)
def test_raco_columns(ties: str, quality: float | None, count_only: list[str] | None) -> None:
    sides = {"chosen": [user("post"), reply("one")], "rejected": [user("post"), reply("two")]}
    record = {**sides, "raco_s_quality": 0.0, "raco_s_verbosity": -1.0, "raco_s_faithfulness": 1.0}
    made = only([record], "raco", ties=ties)
    assert made["preferences"] == {"quality": quality, "verbosity": 0.0, "faithfulness": 1.0}
    assert made.get("count_only") == count_only
    assert (made["prompt"], made["response_a"], made["response_b"]) == ([user("post")], [reply("one")], [reply("two")])


@pytest.mark.parametrize("labels", [(1, -1), ("A", "B"), ("Summary_A", "Summary_B"), (1.0, "rejected")])
def test_raco_summaries(labels: tuple[Any, Any]) -> None:
    sides = {"Summary_A": [user("post"), reply("one")], "Summary_B": [user("post"), reply("two")]}
    record = {**sides, "Quality": labels[0], "Verbosity": labels[1]}
    assert only([record], "raco")["preferences"] == {"quality": 1.0, "verbosity": 0.0}
    objectives = [Objective("short", labels="Verbosity"), Objective("good", labels="raco_s_quality")]
    assert only([record], "raco", objectives=objectives)["preferences"] == {"short": 0.0, "good": 1.0}


def test_raco_counts_missing_labels_as_its_code_does_only_under_release() -> None:
    sides = {"Summary_A": [user("p"), reply("a")], "Summary_B": [user("p"), reply("b")]}
    record = {**sides, "Quality": 1, "Verbosity": None}
    assert only([record], "raco", ties="release")["count_only"] == ["verbosity"]
    assert only([record], "raco", ties="equal")["preferences"] == {"quality": 1.0, "verbosity": None}


def test_raco_refuses_other_numbers_and_other_layouts_refuse_its_ties() -> None:
    record = {"chosen": "p a", "rejected": "p b", "raco_s_quality": 2}
    with pytest.raises(InputError, match=r"bad label \(field 'raco_s_quality'\)"):
        read_comparisons([record])
    with pytest.raises(InputError, match="ties: release does not apply"):
        read_comparisons([{"chosen": "p a", "rejected": "p b"}], ties="release")


def test_hh() -> None:
    start = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: What is\n\na sky?\n\nAssistant:"
    record = {"chosen": start + " It is blue.", "rejected": start + " It is black."}
    made = only([record], "hh", objectives=[Objective("harmless")])
    assert made["prompt"] == [user("Hi there"), reply("Hello!"), user("What is\n\na sky?")]
    assert (made["response_a"], made["response_b"]) == ([reply("It is blue.")], [reply("It is black.")])
    assert made["preferences"] == {"harmless": 1.0}  # the file's only label goes to the only objective


@pytest.mark.parametrize(
    ("rejected", "said"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", "empty response"),
        ("\n\nHuman: Other\n\nAssistant: Hm", "part too early"),
        ("\n\nHuman: Hi", "part too early"),
        ("Hi", "not a transcript"),
    ],
)
def test_hh_refuses(rejected: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_comparisons([{"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": rejected}], format="hh")


PKU = {
    "prompt": "p", "response_0": "zero", "response_1": "one", "is_response_0_safe": True, "is_response_1_safe": False,
    "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip


def test_pku_saferlhf() -> None:
    made = only([PKU], "pku-saferlhf")
    assert (made["response_a"], made["response_b"]) == ("zero", "one")
    assert made["preferences"] == {"helpful": 0.0, "harmless": 1.0}
    renamed = [Objective("useful", labels="better_response_id"), Objective("safe", labels="harmless")]
    assert only([PKU], "pku-saferlhf", objectives=renamed)["preferences"] == {"useful": 0.0, "safe": 1.0}


def test_pku_saferlhf_as_messages_and_with_a_bad_id() -> None:
    made = only([PKU], "pku-saferlhf", conversational=True)
    assert (made["prompt"], made["response_b"]) == ([user("p")], [reply("one")])
    with pytest.raises(InputError, match=r"bad label \(field 'safer_response_id'\)"):
        read_comparisons([{**PKU, "safer_response_id": 2}])


SUMMARY: dict[str, Any] = {
    "info": {"id": "t3_1", "post": "I lost my keys.", "title": "Keys", "subreddit": "advice", "article": None},
    "summaries": [{"text": " lost keys", "policy": "ref", "note": None}, {"text": " keys, lost", "policy": "sup2"}],
    "choice": 1, "worker": "w1", "batch": "batch3", "split": "train", "extra": {"confidence": None},
}  # fmt: skip


def test_summarize() -> None:
    made = only([SUMMARY], "summarize", objectives=[Objective("quality")])
    assert made["prompt"] == "SUBREDDIT: r/advice\n\nTITLE: Keys\n\nPOST: I lost my keys.\n\nTL;DR:"
    assert (made["response_a"], made["response_b"]) == (" lost keys", " keys, lost")
    assert made["preferences"] == {"quality": 0.0}


def test_summarize_takes_further_labellers_as_votes() -> None:
    swapped = {**SUMMARY, "summaries": SUMMARY["summaries"][::-1], "choice": 1}
    made = only([SUMMARY, {**SUMMARY, "choice": 1}, swapped, {**SUMMARY, "choice": 0}], "summarize")
    assert made["preferences"] == {"chosen": 0.5}  # b, b, and a twice, once in the other order
    with pytest.raises(InputError, match="field 'choice'"):
        read_comparisons([{**SUMMARY, "choice": -1}])


def test_summarize_news() -> None:
    news = {**SUMMARY, "info": {"id": "x", "post": None, "title": "T", "subreddit": None, "article": "Rain fell."}}
    assert only([news], "summarize")["prompt"] == "Article:\nRain fell.\n\nTL;DR:"
