"""The row: what its labels mean, what is refused, and splits that cut no group."""

from __future__ import annotations

import math
import random
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.comparisons.rows import BadRow, clean_row, group_of, parse_label, split_groups, text_of
from paretune.errors import InputError


def row(**changes: Any) -> dict[str, Any]:
    made = {"prompt": "Why?", "response_a": "Because.", "response_b": "So.", "preferences": {"helpful": 1.0}, **changes}
    return {name: value for name, value in made.items() if value != "absent"}


@pytest.mark.parametrize(
    ("label", "meaning"),
    [
        (1, 1.0), (0, 0.0), (0.25, 0.25), (True, 1.0), (False, 0.0), ("a", 1.0), ("B", 0.0), (" tie ", 0.5),
        (None, None), (math.nan, None), ([1, 0, "a", None], 2 / 3), (["a", "b"], 0.5), ([], None), ([None], None),
    ],
)  # fmt: skip
def test_labels_mean_the_probability_of_a(label: Any, meaning: float | None) -> None:
    assert parse_label(label) == meaning


@pytest.mark.parametrize("label", [-1, 1.01, 2, "c", "1", {"a": 1}, [1, -1], math.inf])
def test_other_labels_are_refused(label: Any) -> None:
    with pytest.raises(BadRow):
        parse_label(label)


def test_minus_one_is_refused_with_its_fix() -> None:
    with pytest.raises(BadRow) as caught:
        parse_label(-1, "preferences.helpful")
    error = caught.value.to_input_error("train.jsonl, line 3")
    assert "raco" in str(error) and "Write 0 for b" in str(error) and "preferences.helpful" in str(error)


MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "absent"}, "prompt"),
        ({"response_b": None}, "response_b"),
        ({"response_a": "  \n"}, "response_a"),
        ({"response_a": 7}, "response_a"),
        ({"response_a": []}, "response_a"),
        ({"response_a": [{"role": "assistant", "content": ""}]}, "response_a"),
        ({"prompt": [{"content": "no role"}]}, "prompt[0]"),
        ({"prompt": [*MESSAGES, {"role": "user", "content": 3}]}, "prompt[1].content"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "prompt[0].content"),
        ({"response_a": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "response_a[0].tool_calls"),
        ({"response_a": "half a pair \ud83d"}, "response_a"),
        ({"preferences": "absent"}, "preferences"),
        ({"preferences": [1.0]}, "preferences"),
        ({"preferences": {"": 1.0}}, "preferences"),
        ({"preferences": {"helpful": 1.5}}, "preferences.helpful"),
        ({"group": 1.5}, "group"),
        ({"count_only": "helpful"}, "count_only"),
    ],
)
def test_a_bad_row_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRow) as caught:
        clean_row(row(**changes))
    assert caught.value.field == field


def test_a_good_row_keeps_its_content() -> None:
    cleaned = clean_row(row(id=7, group="g", unknown="dropped"))
    assert cleaned["prompt"] == "Why?" and cleaned["id"] == "7" and cleaned["group"] == "g"
    assert cleaned["preferences"] == {"helpful": 1.0} and "unknown" not in cleaned


def test_plain_responses_to_a_conversation_become_messages() -> None:
    cleaned = clean_row(row(prompt=[{"role": "user", "content": "Why?", "weight": 1}]))
    assert cleaned["prompt"] == MESSAGES
    assert cleaned["response_a"] == [{"role": "assistant", "content": "Because."}]
    assert clean_row(row(), conversational=True) == cleaned
    parts = clean_row(row(response_a=[{"role": "assistant", "content": [{"type": "text", "text": "Because."}]}]))
    assert parts == cleaned and text_of(parts["response_a"]) == "Because."


def grouped(sizes: list[int], named: bool) -> Dataset:
    rows = [(f"g{i}", f"p{i}.{j % 2}") for i, size in enumerate(sizes) for j in range(size)]
    columns: dict[str, list[Any]] = {"prompt": [prompt for _, prompt in rows], "index": list(range(len(rows)))}
    if named:
        columns["group"] = [group for group, _ in rows]
    return Dataset.from_dict(columns)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9)
)
def test_a_split_shares_out_every_row_and_cuts_no_group(sizes: list[int], fraction: float, seed: int) -> None:
    rows = grouped(sizes, named=True)
    train, held_out = split_groups(rows, fraction, seed)
    assert sorted([*train["index"], *held_out["index"]]) == list(range(len(rows)))
    assert not set(train["group"]) & set(held_out["group"])
    assert len(train) and len(held_out)
    again = split_groups(rows, fraction, seed)
    assert list(again[1]["index"]) == list(held_out["index"])


def test_a_split_is_about_as_large_as_asked_and_depends_on_the_seed() -> None:
    rows = grouped([3] * 100, named=True)
    sizes = [len(split_groups(rows, fraction, 0)[1]) for fraction in (0.1, 0.5, 0.9)]
    assert sizes == [30, 150, 270]
    assert list(split_groups(rows, 0.1, 1)[1]["index"]) != list(split_groups(rows, 0.1, 0)[1]["index"])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_is_that_of_lists_of_rows_by_group(named: bool, seed: int) -> None:
    rows = grouped([1, 4, 2, 2, 7, 1, 3] * 3, named=named)
    members: dict[str, list[int]] = {}
    for index, one in enumerate(rows):
        members.setdefault(group_of(one), []).append(index)
    groups = list(members.values())
    random.Random(seed).shuffle(groups)
    held = groups[0]
    for group in groups[1:-1]:
        if len(held) + len(group) / 2 > 0.4 * len(rows):
            break
        held = held + group
    assert list(split_groups(rows, 0.4, seed)[1]["index"]) == sorted(held)


def test_a_group_and_a_prompt_of_the_same_words_are_two() -> None:
    rows = Dataset.from_dict({"prompt": ["x", "y", "z"], "group": [None, "x", None]})
    train, held_out = split_groups(rows, 0.4, 0)
    assert (len(train), len(held_out)) == (2, 1)
    with pytest.raises(InputError, match="cannot be split"):
        split_groups(Dataset.from_dict({"prompt": ["x", "x"], "group": pa.array([None, None], pa.string())}), 0.4)


def test_without_groups_a_prompt_stays_whole() -> None:
    rows = grouped([4] * 10, named=False)
    train, held_out = split_groups(rows, 0.3, 0)
    assert not set(train["prompt"]) & set(held_out["prompt"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_split_needs_a_proper_share(fraction: float) -> None:
    with pytest.raises(InputError, match="bad evaluation share"):
        split_groups(grouped([1, 1], named=True), fraction)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(InputError, match="cannot be split"):
        split_groups(grouped([5], named=True), 0.5)
