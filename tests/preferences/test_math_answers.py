"""Answers that are expressions, by math-verify: what is equal, what is not, and what nobody can say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.preferences.rule_source import rule_source
from tests.cli.made import paretune, write_jsonl

pytest.importorskip("math_verify")


def scored(response: str, truth: Any, **options: Any) -> float:
    source = rule_source("right", "math_answer", options)
    assert source.score is not None
    column = options.get("column", "reference")
    told = {"references": [truth]} if column == "reference" else {column: [truth]}
    ((_, score),) = source.score(["?"], [response], **told)  # type: ignore[misc]
    return float(score)


@pytest.mark.parametrize(
    ("truth", "response", "right"),
    [
        ("x+2", r"So it is \boxed{2+x}.", 1), ("x+2", "The answer is 2", 0), (r"\frac{\pi}{2}", r"Hence $\pi/2$.", 1),
        (r"\frac{\pi}{2}", "The answer is 2", 0), (r"\{1,2\}", r"$\{2, 1\}$", 1), ("(3,4)", "$(4, 3)$", 0),
        ("5", "The answer is 5.", 1), (5, "It is 6", 0), ("0.5", "It is 1/2", 1), (["7", "x"], "$x$", 1),
        (r"\sin(x)^2 + \cos(x)^2", "$1$", 1), (r"so \boxed{3}", "3", 1), ("5", "I do not know.", 0),
        ("Paris", "Paris", math.nan), ("two thirds", "2/3", math.nan), ("", "1", math.nan), (None, "1", math.nan),
    ],
)  # fmt: skip
def test_equal_as_mathematics(truth: Any, response: str, right: float) -> None:
    assert scored(response, truth) == pytest.approx(right, nan_ok=True)


def test_an_answer_without_end_is_wrong_in_time() -> None:
    assert scored(r"$9^{9^{9^{9^{9}}}}$", "5") == 0


def test_from_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "Add 2 to x.", "responses": [r"\boxed{2x}", r"\boxed{x + 2}"], "truth": "2+x"}]
    data, out = write_jsonl(tmp_path / "r.jsonl", rows), tmp_path / "train.jsonl"
    sources = "{right: {rule: math_answer, column: truth}}"
    assert paretune("label", data, "--sources", sources, "--out", out) == 0
    (row,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert row["preferences"] == {"right": 0.0} and row["response_b"] == r"\boxed{x + 2}"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"math-verify is not installed.*paretune\[math\]"):
        rule_source("right", "math_answer", {})
