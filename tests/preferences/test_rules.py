"""Rules: what they prefer, ties, and that swapping the responses mirrors the label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.preferences.rules import RULES


@pytest.mark.parametrize(
    ("rule", "a", "b", "label"),
    [
        ("shorter", "abc", "abcd", 1.0), ("shorter", "abcd", "abc", 0.0), ("shorter", "abc", "xyz", 0.5),
        ("longer", "abc", "abcd", 0.0), ("longer", "abcd", "abc", 1.0), ("longer", "abc", "xyz", 0.5),
        ("fewer_words", "extraordinarily long", "a b c", 1.0), ("fewer_words", "a\nb  c", "d", 0.0),
        ("fewer_words", "a b", "  c  d ", 0.5),
    ],
)  # fmt: skip
def test_what_rules_prefer(rule: str, a: str, b: str, label: float) -> None:
    assert RULES[rule](a, b) == label


@pytest.mark.parametrize("rule", sorted(RULES))
@given(a=st.text(), b=st.text())
def test_swapping_the_responses_mirrors_the_label(rule: str, a: str, b: str) -> None:
    assert RULES[rule](a, b) + RULES[rule](b, a) == 1.0
