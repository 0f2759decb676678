"""From scores and comparisons to labels; sources as a person writes them; functions; schedules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.pipelines.labelling import label_candidates
from paretune.preferences import specs
from paretune.preferences.answers import AnswerStore
from paretune.preferences.asking import Tally, ask
from paretune.preferences.labels import LabelOptions, pair_labels
from paretune.preferences.source import REFERENCE, Item, Pair, Schedule, Source, Verdict, win_rates
from paretune.preferences.specs import parse_sources
from paretune.preferences.verdicts import decide, hear, plan
from tests.preferences.candidates_made import candidates

NAN = math.nan


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, {(0, 1): 0.0, (0, 2): 0.0, (1, 2): 0.5}),
        ({"tie": 1.5}, {(0, 1): 0.5, (0, 2): 0.5, (1, 2): 0.5}),
        ({"min_margin": 0.5}, {(0, 1): 0.0, (0, 2): 0.0}),
        ({"soft": True}, {(0, 1): sigmoid(-1), (0, 2): sigmoid(-1), (1, 2): 0.5}),
        ({"soft": 2}, {(0, 1): sigmoid(-2), (0, 2): sigmoid(-2), (1, 2): 0.5}),
    ],
)
def test_labels_of_scores(options: dict[str, Any], labels: dict[Pair, float]) -> None:
    assert pair_labels(Verdict((1.0, 2.0, 2.0, NAN)), LabelOptions(**options)) == pytest.approx(labels, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, {(0, 1): 0.9, (0, 2): 0.45}), ({"soft": False}, {(0, 1): 1.0, (0, 2): 0.0}),
        ({"soft": False, "tie": 0.2}, {(0, 1): 1.0, (0, 2): 0.5}), ({"min_margin": 0.2}, {(0, 1): 0.9}),
        ({"soft": 2}, {(0, 1): 81 / 82, (0, 2): 0.45**2 / (0.45**2 + 0.55**2)}),
        ({"consistent_only": True}, {(0, 1): 0.9}),
    ],
)  # fmt: skip
def test_labels_of_comparisons(options: dict[str, Any], labels: dict[Pair, float]) -> None:
    verdict = Verdict((0.6, 0.1, 0.55), {(0, 1): 0.9, (0, 2): 0.45}, frozenset({(0, 2)}))
    assert pair_labels(verdict, LabelOptions(**options)) == pytest.approx(labels, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=5), st.sampled_from([None, True, 0.3]))
def test_turning_the_responses_round_mirrors_the_labels(scores: list[float], soft: Any) -> None:
    k, options = len(scores), LabelOptions(soft=soft)
    forward, back = (pair_labels(Verdict(tuple(s)), options) for s in (scores, scores[::-1]))
    for (i, j), p in forward.items():
        assert p + back[k - 1 - j, k - 1 - i] == pytest.approx(1, abs=1e-12)


# ---- sources as written ----


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("shorter", "mapping with one of rule, function"), ({"rul": "x"}, "Did you mean 'rule'"),
        ({"rule": "shorter", "function": "a:b"}, "one of rule"),
        ({"rule": "shorter", "sof": 1}, "unknown option 'sof'"),
        ({"rule": "shorter", "soft": -1}, "bad soft"), ({"rule": "shorter", "tie": -1}, "bad tie"),
        ({"gate": [{"rule": "shorter"}]}, "at least two"), ({"gate": "shorter"}, "bad gate"),
        ({"gate": [{"rule": "shorter"}, {"rule": "longr"}]}, "'x.2'.*Did you mean 'longer'"),
        ({"gate": [{"rule": "shorter"}, {"rule": "longer"}], "sft": 1}, "Did you mean 'soft'"),
        ({"sum": [{"rule": "shorter", "weight": "big"}, {"rule": "longer"}]}, "bad weight"),
        ({"sum": [{"rule": "shorter", "weight": NAN}, {"rule": "longer"}]}, "bad weight"),
        ({"sum": [{"rule": "shorter", "weight": -math.inf}, {"rule": "longer"}]}, "bad weight"),
        ({"choose": "t", "cases": {"1": {"rule": "shorter"}, 1: {"rule": "longer"}}}, "bad cases"),
        ({"gate": [{"rule": "shorter"}, {"rule": "longer"}], "tie": 1}, "'tie' has no effect.*Give it to the parts"),
        ({"choose": "t", "cases": {"a": {"rule": "shorter"}}, "soft": 1}, "no effect.*Give it to the cases"),
        ({"sum": [{"rule": "shorter", "tie": 9}, {"rule": "longer"}]}, "'x.1'.*no effect.*Give it to the sum"),
        ({"ensemble": [{"rule": "shorter"}, {"rule": "longer", "soft": 1}]}, "'x.2'.*no effect.*Give it to the ensem"),
        ({"sum": [{"choose": "t", "cases": {1: {"rule": "shorter", "tie": 9}}}, {"rule": "longer"}]}, "'x.1.1'.*no"),
        ({"rule": "shorter", "consistent_only": True}, "no effect.*Leave it out"),
        ({"choose": "topic"}, "bad choice"), ({"choose": "t", "cases": {"a": {"rule": "x"}}}, "'x.a'.*unknown rule"),
        ({"function": "nowhere_at_all:f"}, "no such module"), ({"function": "math:nothing"}, "no such function"),
        ({"function": "math:pi"}, "not a function"), ({"function": "math"}, "module:name"),
        ({"function": "math:sin", "arguments": 1}, "bad arguments"),
        ({"function": "math:sin", "x": 1}, "unknown option"),
    ],
)  # fmt: skip
def test_bad_sources_are_named(entry: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        parse_sources({"x": entry})
    assert "'x" in str(error.value)


@pytest.mark.parametrize("spec", [{}, [], None, {"a/b": {"rule": "shorter"}}, {3: {"rule": "shorter"}}])
def test_bad_mappings_of_sources(spec: Any) -> None:
    with pytest.raises(InputError, match="bad"):
        parse_sources(spec)


# ---- functions ----

MODULE = """
calls = []

def polite(prompts, completions, topic, bonus=0.0, **kwargs):
    calls.append((prompts, completions, topic, sorted(kwargs)))
    text = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if "?" in t else float(t.count("please")) + bonus for t in text]
"""


def test_a_reward_function_of_trl_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    entry = {"function": "my_rewards_here:polite", "arguments": {"bonus": 0.5}}
    (labeller,) = parse_sources({"x": entry})
    source = labeller.source
    assert source is not None
    chat = [{"role": "user", "content": "go"}]
    asked = [
        Item("go", ("please",), {"topic": 1, "reference": "R"}),
        Item("go", ("what?",), {"topic": 2, "reference": None}),
        Item(chat, ("yes please please",), {"topic": 3}),
    ]  # fmt: skip
    assert str(ask(source, asked, None, Tally())) == "[1.5, nan, 2.5]"
    import my_rewards_here  # type: ignore[import-not-found]

    ((prompts, completions, topic, others),) = my_rewards_here.calls
    assert prompts == ["go", "go", chat] and topic == [1, 2, 3] and others == ["reference"]
    assert completions[0] == "please" and completions[2] == [{"role": "assistant", "content": "yes please please"}]
    fingerprints = {source.fingerprint}
    for more in ({"version": "2"}, {"arguments": {"bonus": 1}}):
        fingerprints.add(specs.KINDS["function"]("x", entry["function"], more).fingerprint)
    assert len(fingerprints) == 3


# ---- schedules ----


def _knock_out(count: int, answers: Any, seed: int) -> list[Pair]:
    """The champion so far against the next, in both orders: later questions depend on earlier answers."""
    best = 0
    for i in range(1, count):
        if (best, i) not in answers:
            return [(best, i), (i, best)]
        if answers[i, best] - answers[best, i] > 0 or math.isnan(answers[i, best]):
            best = i
    return []


KNOCK_OUT = Schedule(lambda count: 2 * (count - 1), _knock_out, win_rates)


def test_a_schedule_makes_the_announced_calls(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def compare(prompts: list[str], pairs: list[tuple[str, str]], **_: Any) -> list[float]:
        seen.extend(pairs)
        return [sigmoid(len(first) - len(second) + 0.5) for first, second in pairs]

    source = Source("x", "judge 1", compare=compare, schedule=KNOCK_OUT, batch_size=4)
    labeller = specs.Labeller("x", LabelOptions(), source=source)
    rows, store = candidates(5), AnswerStore(tmp_path / "a")
    told = {"seed": 0, "retry_failed": False}
    assert plan([labeller], rows, store, **told) == {"x": (20, 0)}
    heard = hear([labeller], rows[:3], store)["x"]
    assert len(seen) == 12 == heard.tally.asked
    assert plan([labeller], rows, store, **told) == {"x": (20, 12)}
    hear([labeller], rows, store)
    assert len(seen) == 20
    verdict, labels = decide(labeller, 0, rows[0], {"x": heard})
    assert labels[0, 1] < 0.5 and (0, 2) not in labels and verdict.pairs is not None


def test_an_anchor_that_is_missing_fails_without_a_call() -> None:
    def anchor(count: int, answers: Any, seed: int) -> list[Pair]:
        return [(i, REFERENCE) for i in range(count) if (i, REFERENCE) not in answers]

    def verdict(count: int, answers: Any) -> Verdict:
        return Verdict(tuple(answers[i, REFERENCE] for i in range(count)))

    seen: list[Any] = []

    def compare(prompts: list[str], pairs: list[tuple[str, str]], **_: Any) -> list[float]:
        seen.extend(pairs)
        return [0.25] * len(pairs)

    source = Source("x", "j", compare=compare, schedule=Schedule(lambda k: k, anchor, verdict))
    rows = [*candidates(1, reference=["", "the reference", "another"]), *candidates(1), *candidates(1, reference=4)]
    labeller = specs.Labeller("x", LabelOptions(), source=source)
    heard = hear([labeller], rows, None)["x"]
    assert seen == [(one, reference) for reference in ("the reference", "4") for one in ("a", "bb bb", "ccc 0")]
    assert heard.verdicts[0].scores == (0.25,) * 3 and all(map(math.isnan, heard.verdicts[1].scores))
    assert heard.tally.asked == 6 and heard.tally.failed == 0 and heard.unasked == 3
    made, report = label_candidates(rows, [labeller], None)
    assert report.warnings[0].startswith("x: 3 comparisons with a reference that the row lacks were not asked")
    assert [row["reference"] for row in made] == ["the reference"] * 3 + ["4"] * 3
