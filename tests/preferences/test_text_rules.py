"""Rules: each against cases worked out by hand, ROUGE-L against rouge-score, programs run within limits."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.preferences.asking import Tally, ask
from paretune.preferences.rule_source import TEXT_RULES, rule_source
from paretune.preferences.rules import RULES
from paretune.preferences.similarity import longest_common_subsequence, rouge_l
from paretune.preferences.source import Item
from paretune.preferences.verifiers import final_number, run_tests
from tests.tokenizers_made import byte_bpe

NAN = math.nan


def scored(rule: str, response: Any, options: dict[str, Any] | None = None, /, **columns: Any) -> float:
    source = rule_source("x", rule, options or {})
    return ask(source, [Item("a prompt", (response,), columns)], None, Tally())[0]


@pytest.mark.parametrize(
    ("rule", "options", "response", "expected"),
    [
        ("shorter", {}, "four", -4), ("longer", {"unit": "words"}, "two  words", 2), ("fewer_words", {}, "a b\nc", -3),
        ("length", {"least": 2, "most": 4}, "one", -1), ("length", {"least": 2, "most": 4}, "a b c d e f", -2),
        ("length", {"most": 3}, "a b c", 0),
        ("format", {"starts": "Dear", "ends": ".", "most_lines": 2}, "Dear you\n\nbye.", 1),
        ("format", {"starts": "Dear", "ends": "!", "contains": ["you", "me"]}, "Dear you.", 0.5),
        ("format", {"bullets": True}, "- a\n- b\n\n2. c", 1), ("format", {"bullets": True}, "- a\nb", 0),
        ("format", {"bullets": False}, "a - b\nc", 1),
        ("regex", {"pattern": r"\d{3}"}, "call 911 or 112", 1), ("regex", {"pattern": r"\d", "absent": True}, "a1", 0),
        ("regex", {"pattern": r"\d{3}", "count": True}, "call 911 or 112", 2),
        ("regex", {"pattern": r"yes|no", "whole_text": True}, "yes, no", 0),
        ("json", {}, '{"a": 1}', 1), ("json", {}, "{'a': 1}", 0), ("json", {}, '```json\n{"a": 1}\n```', 1),
        ("json", {"fenced": False}, '```json\n{"a": 1}\n```', 0), ("json", {"keys": ["a", "b"]}, '{"a": null}', 0.75),
        ("json", {"keys": {"a": "number", "b": "string"}}, '{"a": true, "b": "x"}', 0.75),
        ("json", {}, '{"a": NaN}', 0), ("json", {}, "-Infinity", 0), ("json", {}, '"NaN"', 1),
        ("keywords", {"words": "refund"}, "a fund", 0),
        ("json", {"keys": ["a"]}, "[1]", 0), ("json", {}, "[" * 100_000, 0),
        ("keywords", {"words": ["Refund", ["two weeks", "14 days"]]}, "A refund in two\nweeks.", 1),
        ("keywords", {"words": ["fund", "c++"]}, "A refund for C++ books", 0.5),
        ("keywords", {"column": "facts"}, "Paris it is", 0.5),
        ("repetition", {}, "a b c a b c", -0.25), ("repetition", {"n": 1}, "no no no no", -0.75),
        ("repetition", {}, "too short", 0),
        ("word_list", {}, "You idiot, shut  up!", -0.5), ("word_list", {"words": ["ass"]}, "a classic", 0),
        ("language", {"code": "en"}, "This is the house that was not for you", 1),
        ("language", {"code": "de"}, "This is the house that was not for you", 0),
        ("language", {"code": "de"}, "Das ist nicht der Weg, und wir gehen nicht.", 1),
        ("language", {"code": "fr"}, "Это не по-французски", 0), ("language", {"code": "ru"}, "да yes", 0.4),
        ("language", {"code": "ja"}, "日本語です", 1), ("language", {"code": "zh"}, "日本語です", 0),
        ("language", {"code": "zh"}, "今天", 1),
        ("language", {"code": "en"}, "xyzzy", NAN), ("language", {"code": "en"}, "12 + 5", NAN),
        ("numeric_answer", {}, "2 + 2 = 4, so the answer is 1,234.50.", 1), ("numeric_answer", {}, "no idea", 0),
        ("numeric_answer", {"column": "facts"}, "1", NAN), ("numeric_answer", {"column": "nothing"}, "1", NAN),
        ("exact_match", {}, "1 234 5", 0), ("exact_match", {}, "#### 1234.5", 1), ("rouge", {}, "1234", 2 / 3),
        ("rouge", {"column": "nothing"}, "1234", NAN),
    ],
)  # fmt: skip
def test_what_rules_say(rule: str, options: dict[str, Any], response: str, expected: float) -> None:
    found = scored(rule, response, options, reference="#### 1234.5", facts=["paris", "rome"])
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_lists_of_words_and_tokenizers_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# rude words\nblast\nblast it all\n\n")
    assert scored("word_list", "Blast it all, and blast", {"path": str(tmp_path / "list.txt")}) == -2 / 5
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    options = {"unit": "tokens", "tokenizer": str(tmp_path / "model")}
    text = "The cat sat on the mat"
    assert scored("longer", text, options) == len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("name", ["references", "references_", "rule", "prompts", "responses", "texts", "pairs"])
def test_a_row_may_have_columns_of_any_name(name: str) -> None:
    assert scored("rouge", "Blue", {"column": name}, **{name: ["Red", "Blue"]}) == 1
    assert scored("code", ADD, {"run": True, "column": name}, **{name: "assert add(1, 2) == 3"}) == 1


def test_messages_are_read_as_their_text() -> None:
    assert scored("longer", [{"role": "assistant", "content": "four"}]) == 4


@settings(max_examples=30)
@given(a=st.text(min_size=1), b=st.text(min_size=1))
@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_of_training_data_agree_with_those_of_labelling(rule: str, a: str, b: str) -> None:
    """`rule: shorter` of an objective and of a source are one rule."""
    score = [scored(rule, text) for text in (a, b)]
    assert RULES[rule](a, b) == 0.5 + 0.5 * ((score[0] > score[1]) - (score[0] < score[1]))


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("shortr", {}, "Did you mean 'shorter'"), ("shorter", {"unt": "words"}, "Did you mean 'unit'"),
        ("shorter", {"unit": "pages"}, "bad unit"), ("longer", {"unit": "tokens"}, "tokenizer"),
        ("regex", {}, "'pattern' is missing"), ("regex", {"pattern": "("}, "regular expression"),
        ("length", {"least": 5, "most": 3}, "bad most"), ("format", {}, "no requirement"),
        ("format", {"most_lines": "two"}, "bad most_lines"), ("format", {"starts": 5}, "bad starts"),
        ("format", {"ends": True}, "bad ends"), ("format", {"bullets": "yes"}, "bad bullets"),
        ("regex", {"pattern": "a", "count": True, "whole_text": True}, "count and whole_text"),
        ("regex", {"pattern": "a", "absent": 1}, "bad absent"), ("regex", {"pattern": 5}, "bad options"),
        ("rouge", {"column": ["a"]}, "bad column"), ("json", {"fenced": "no"}, "bad fenced"),
        ("keywords", {"words": {"a": 1}}, "bad words"), ("keywords", {}, "no keywords"),
        ("keywords", {"words": [""]}, "bad keyword"), ("json", {"keys": {"a": "text"}}, "bad type of key 'a'"),
        ("word_list", {"path": "nowhere.txt"}, "cannot read the list"),
        ("language", {"code": "xx"}, "unknown language"), ("fewer_words", {"n": 1}, "no options"),
        ("code", {}, "run: true"), ("code", {"run": True, "seconds": 0}, "bad seconds"),
        ("numeric_answer", {"tolerance": "high"}, "bad tolerance"), ("repetition", {"n": 0}, "bad n"),
    ],
)  # fmt: skip
def test_bad_options_are_named(rule: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        rule_source("mine", rule, options)
    assert "'mine'" in str(error.value)


def test_every_rule_says_what_it_does() -> None:
    assert all(make.__doc__ for make in TEXT_RULES.values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"Thus \boxed{\frac{3}{4}} of them, 12 in all", 0.75), ("3 apples and 4 pears.\n#### 7\nIn all 2 kinds", 7),
        ("The answer is 12 because 3 * 4 = 12 and 5 > 2", 12), ("Answer: -3.5e2", -350), ("costs $1,234", 1234),
        ("half, or 1/2", 0.5), ("it is 50%", 0.5), ("in 1,2 or 3", 3), ("−7", -7), ("none", None), ("v2x", None),
        ("1e99999999", None), ("1/0", None), ("the final answer is: 42.", 42), (r"\boxed{x} so 5", 5), ("3.", 3),
        ("I will answer in 2 steps. 3*4 gives 12", 12), (r"\boxed{\frac12}", 0.5), (r"\dfrac1{4}", 0.25),
        ("3 1/2", 3.5),
        (r"-3\frac{1}{2}", -3.5), ("-3 1/2 of 5, 6/4", 1.5), (r"25\%", 0.25), ("25 percent", 0.25), ("e5", None),
        (r"r = 2, so \boxed{2\pi}", None), (r"It is 3\sqrt{2}", None), ("x + 2", None), ("2x", None), ("10-12", None),
        (r"\frac{\pi}{2}", None), (r"\boxed{3, 4}", None), (r"\boxed{x = 5}", 5), (r"\boxed{\frac12 = 0.5}", 0.5),
        (r"\boxed{5\text{ cm}}", 5), (r"10{,}000", 10000), (r"3 \times 10^{-2}", 0.03), ("2**3 + 4**2 = 24", 24),
        ("The answer is 3 * 4 = 12.", 12), ("**Answer**: **7** of 9", 7), ("The answer is 3. No, the answer is 4.", 4),
        ('{"answer": 5, "certainty": 0.9}', 5), ("<answer>5</answer> in 2 steps", 5), ("#### Step 2\nso 5", 5),
        ("The answer is 12 - I checked 3 times", 12), ("(5)", 5), ("a\n- 12 apples", 12),
    ],
)  # fmt: skip
def test_final_numbers(text: str, number: float | None) -> None:
    found = final_number(text)
    assert found is None if number is None else float(found or 0) == pytest.approx(number, rel=1e-12)


def test_percent_and_share_are_one_answer() -> None:
    assert (
        scored("numeric_answer", "It is 25%", reference="25") == scored("numeric_answer", "0.25", reference="25%") == 1
    )
    assert scored("numeric_answer", "It is 0.25", reference="25") == 0
    assert scored("numeric_answer", "With 100% certainty the answer is 5.", reference="500") == 0
    assert scored("numeric_answer", "50%", reference="5000%") == 0
    assert scored("numeric_answer", "50%", reference="0.5") == scored("numeric_answer", "50%", reference="50%") == 1
    assert scored("numeric_answer", "3.1416", {"tolerance": 1e-4}, reference=["2.7", "3.14159"]) == 1


@pytest.mark.parametrize(
    ("truth", "right"),
    [
        (r"\frac{\pi}{2}", NAN), ("x+2", NAN), (r"2\pi", NAN), ("2x", NAN), ("(2, 3)", NAN), ("2 or 3", NAN),
        ("2 km", NAN),
        (r"\boxed{x+2}", NAN), ("It is 2.", NAN), ("2^2", NAN), ("1/0", NAN), ("", NAN), ([r"x", "2"], 1),
        (2, 1), (2.0, 1),
        ("2.", 1), ("$2$", 1), (r"\$2.00", 1), (r"2^\circ", 1), ("It is 4/2\n#### 2", 1), (r"so \boxed{\frac42}", 1),
        ("The answer is 2.", 1), (r"200\%", 1), ("3", 0),
    ],
)  # fmt: skip
def test_a_truth_is_a_number_or_there_is_no_verdict(truth: Any, right: float) -> None:
    assert scored("numeric_answer", "It is 2", reference=truth) == pytest.approx(right, nan_ok=True)


def test_long_texts_are_read_in_time() -> None:
    started = time.process_time()
    for part in ("answer is ", "####", "#### ", "1,", "1 ", "**", "\\boxed{", "1+", ". "):
        final_number(part * 10_000)
    assert time.process_time() - started < 20


# ---- ROUGE-L ----

_LETTERS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(a=_LETTERS, b=_LETTERS)
def test_common_subsequences(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(a, b) == table[-1][-1]


@pytest.mark.skipif(importlib.util.find_spec("rouge_score") is None, reason="rouge-score is not installed")
def test_rouge_l_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"]), random.Random(0)
    words = ["The", "cat", "sat,", "on", "a_b", "it's", "mat.", "9", "and", "--"]
    for _ in range(300):
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 15))) for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(scorer.score(b, a)["rougeL"].fmeasure, rel=1e-12, abs=1e-12)


# ---- code ----

ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


def test_programs_are_scored_by_their_tests() -> None:
    tests = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add(1, 1) == 3"]
    assert scored("code", ADD, {"run": True}, tests=tests) == pytest.approx(2 / 3)
    assert scored("code", "def add(a, b): return 3", {"run": True}, tests=tests[0]) == 1
    assert scored("code", "def add(a, b) return 3", {"run": True}, tests=tests) == 0
    assert math.isnan(scored("code", ADD, {"run": True}))


def test_programs_have_limits(tmp_path: Path) -> None:
    started = time.monotonic()
    trace = tmp_path / "trace"
    hostile = {
        "while True: pass": 0.5,
        "x = 'a' * (1 << 31)": 5.0,
        "import os; os._exit(0)": 5.0,
        "import sys; sys.exit()": 5.0,
        "print('[true]'); raise SystemExit": 5.0,
        f"import os, time\nif not os.fork():\n  time.sleep(2); open({str(trace)!r}, 'w')": 1.0,
    }
    os.environ["SOME_API_KEY"] = "secret"
    try:
        for program, seconds in hostile.items():
            run_tests(program, ["pass"], seconds=seconds, megabytes=256)
            if "fork" not in program:
                assert run_tests(program, ["pass"], seconds=seconds, megabytes=256) == [False], program
        look = ["import os; assert 'SOME_API_KEY' not in os.environ and os.listdir() == []"]
        assert run_tests("", look, seconds=10, megabytes=256) == [True]
    finally:
        del os.environ["SOME_API_KEY"]
    time.sleep(max(0.0, started + 2.5 - time.monotonic()))
    time.sleep(2)
    assert not trace.exists(), "what a program started ends with it"


def test_the_limit_on_time_is_the_processors() -> None:
    """A program that has to wait for the processor, here asleep, is not failed for it, but does not wait for ever."""
    assert run_tests("import time; time.sleep(2.5)", ["pass"], seconds=2.0, megabytes=256) == [True]
    started = time.monotonic()
    assert run_tests("import time; time.sleep(60)", ["pass"], seconds=0.3, megabytes=256) == [False]
    assert time.monotonic() - started < 30


def test_what_a_program_writes_does_not_fill_our_memory() -> None:
    tracemalloc.start()
    try:
        program = "import os\nwhile True: os.write(1, b'x' * 65536)"
        assert run_tests(program, ["pass"], seconds=1.0, megabytes=256) == [False]
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


@settings(max_examples=50)
@given(text=st.text())
def test_no_text_breaks_a_rule(text: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "format": {"bullets": True}, "regex": {"pattern": "a+"},
        "keywords": {"words": ["a"]}, "language": {"code": "en"},
    }  # fmt: skip
    for rule in set(TEXT_RULES) - {"code"}:
        value = scored(rule, text, options.get(rule), reference=text)
        assert math.isnan(value) or math.isfinite(value)
