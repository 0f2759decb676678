"""Gates, sums, choices and ensembles of sources: what they make of failures, ties, rounding and both orders."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.pipelines.labelling import label_candidates
from paretune.preferences import specs
from paretune.preferences.candidates import Candidates
from paretune.preferences.judges.schedules import ONE_ORDER
from paretune.preferences.labels import LabelOptions, first_opinion, pair_labels, weighted_sum
from paretune.preferences.source import Pair, Source, Verdict
from paretune.preferences.specs import parse_sources
from paretune.preferences.verdicts import decide, hear
from tests.preferences.candidates_made import candidates

NAN = math.nan


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_gate_asks_the_next_only_about_ties() -> None:
    first = {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.5}
    second = {(0, 1): 0.0, (0, 2): 0.2}
    verdict = first_opinion([(Verdict((1, 0, 0)), first), (Verdict((0, 1, NAN)), second)], 3)
    assert verdict.pairs == {(0, 1): 1.0, (0, 2): 0.2}, "(1, 2) is tied by the first and unknown to the second"
    assert verdict.scores == (0.6, 0.0, 0.8)
    assert first_opinion([(Verdict((1, 0)), {}), (Verdict((0, 1)), {(0, 1): 0.0})], 2).pairs == {}, (
        "a failure is no tie"
    )


def test_a_sum_is_unknown_where_a_part_is() -> None:
    verdict = weighted_sum([(Verdict((1.0, 2.0, NAN)), 2.0), (Verdict((1.0, -1.0, 3.0)), -1.0)], 3)
    assert verdict.scores[:2] == (1.0, 5.0) and math.isnan(verdict.scores[2])
    assert pair_labels(weighted_sum([(Verdict((1e308, 1.0)), 10.0)], 2), LabelOptions()) == {}, "beyond the floats"


@pytest.mark.parametrize(
    ("scores", "options", "labels"),
    [
        ([(0.1, 0.0), (0.2, 0.0), (0.0, 0.3)], {}, {(0, 1): 0.5}),
        ([(0.1, 0.0), (0.2, 0.0), (0.0, 0.3)], {"soft": 9}, {(0, 1): 0.5}),
        ([(0.3, 0.0), (0.0, 0.1), (0.0, 0.1)], {"min_margin": 0.1}, {(0, 1): 1.0}),
        ([(0.3, 0.0), (0.1, 0.1), (0.0, 0.2)], {"tie": 0.1}, {(0, 1): 0.5}),
        ([(1e6, 1e6), (0.1, 0.0), (0.0, 0.1 + 1e-8)], {}, {(0, 1): 0.0}),
    ],
)
def test_rounding_is_no_vote(scores: list[Any], options: dict[str, Any], labels: dict[Pair, float]) -> None:
    verdict = weighted_sum([(Verdict(own), 1.0) for own in scores], 2)
    assert pair_labels(verdict, LabelOptions(**options)) == labels
    twice = weighted_sum([(verdict, 0.1), (Verdict((0.0, 0.0)), 1.0)], 2)
    assert len(twice.rounding) == 2 and min(twice.rounding) >= min(verdict.rounding) / 10


def judge(name: str, answers: dict[str, float], **options: Any) -> specs.Labeller:
    """P(first is better) by both texts, as "ab"; 1/2 where nothing is said."""

    def compare(prompts: list[str], pairs: list[tuple[str, str]], **_: Any) -> list[float]:
        return [answers.get(first + second, 0.5) for first, second in pairs]

    return specs.Labeller(name, LabelOptions(**options), source=Source(name, "j", compare=compare))


FAILS = {"ab": NAN, "ac": 0.9, "ca": 0.1, "bc": 0.2, "cb": 0.8}
SURE = {"ab": 0.9, "ba": 0.1, "ac": 0.7, "ca": 0.3, "bc": 0.6, "cb": 0.4}
TURNED = {**SURE, "ba": 0.8}


def labels_of(labeller: specs.Labeller) -> dict[Pair, float]:
    one = Candidates("w", "p", ("a", "b", "c"), {})
    return decide(labeller, 0, one, hear([labeller], [one], None))[1]


SUM, ENSEMBLE = {"combination": "sum", "weights": (1.0, 1.0)}, {"combination": "ensemble", "way": "mean"}


@pytest.mark.parametrize("how", [SUM, ENSEMBLE])
def test_a_sum_has_no_label_where_a_comparison_has_none(how: dict[str, Any]) -> None:
    """Win rates over other opponents do not stand for the comparison that failed."""

    def both(first: specs.Labeller, **options: Any) -> set[Pair]:
        parts = (first, judge("x.2", SURE))
        return set(labels_of(specs.Labeller("x", LabelOptions(**options), parts=parts, **how)))

    assert both(judge("x.1", FAILS)) == {(0, 2), (1, 2)}
    gate = specs.Labeller("x.1", LabelOptions(), combination="gate", parts=(judge("g", FAILS), judge("h", SURE)))
    assert both(gate) == {(0, 2), (1, 2)}
    assert both(judge("x.1", TURNED)) == {(0, 1), (0, 2), (1, 2)}
    assert both(judge("x.1", TURNED), consistent_only=True) == {(0, 2), (1, 2)}
    assert both(judge("x.1", TURNED, consistent_only=True)) == {(0, 2), (1, 2)}
    gate = specs.Labeller("x.1", LabelOptions(), combination="gate", parts=(judge("g", {}), judge("h", TURNED)))
    assert both(gate, consistent_only=True) == {(0, 2), (1, 2)}, "of a gate the part that decides"


# ---- as written ----


def verdict_of(entry: dict[str, Any], one: Candidates) -> tuple[Verdict, dict[Pair, float]]:
    (labeller,) = parse_sources({"x": entry})
    return decide(labeller, 0, one, hear([labeller], [one], None))


def test_combinations_as_written() -> None:
    one = candidates(1, topic="maths", reference="bb", urgent=True)[0]
    assert verdict_of({"rule": "shorter"}, one)[0].scores == (-1, -5, -5)
    tied = {"gate": [{"rule": "shorter", "tie": 4}, {"rule": "rouge", "soft": 1}]}
    assert verdict_of(tied, one)[1] == pytest.approx({(0, 1): sigmoid(-2 / 3), (0, 2): 0.5, (1, 2): sigmoid(2 / 3)})
    added = {"sum": [{"rule": "longer", "weight": 2}, {"rule": "fewer_words"}], "min_margin": 1}
    assert verdict_of(added, one)[0].scores == (1, 8, 8)
    assert verdict_of(added, one)[1] == {(0, 1): 0.0, (0, 2): 0.0}
    cases = {"maths": {"rule": "longer"}, "prose": {"rule": "shorter"}}
    assert verdict_of({"choose": "topic", "cases": cases}, one)[0].scores == (1, 5, 5)
    otherwise = {"choose": "nothing", "cases": cases, "otherwise": {"rule": "fewer_words"}}
    assert verdict_of(otherwise, one)[0].scores == (-1, -2, -2)
    assert verdict_of({"choose": "nothing", "cases": cases}, one)[1] == {}, "no case fits: no label"
    assert verdict_of({"choose": "urgent", "cases": {True: {"rule": "shorter"}}}, one)[0].scores == (-1, -5, -5)
    assert verdict_of({"choose": "urgent", "cases": {1: {"rule": "shorter"}}}, one)[1] == {}, "true is not 1"


def test_of_a_choice_only_the_chosen_source_is_asked() -> None:
    rows = [*candidates(2, topic="maths"), *candidates(1, topic="prose"), *candidates(1)]
    cases = {"maths": {"rule": "longer"}, "prose": {"rule": "shorter"}}
    labellers = parse_sources({"x": {"choose": "topic", "cases": cases}})
    heard = hear(labellers, rows, None)
    assert {name: sorted(one.verdicts) for name, one in heard.items()} == {"x.maths": [0, 1], "x.prose": [2]}
    rows[0] = Candidates("w", "p", ("a", "b"), {"topic": "maths"}, given={"x": {(0, 1): 1.0}}, is_pair=True)
    assert sorted(hear(labellers, rows, None)["x.maths"].verdicts) == [1], "people have said it already"


@pytest.mark.parametrize(("value", "case"), [(1, 1.0), (1.0, 1), (1.0, "1"), ("1", 1), (1.5, 1.5), ("1.0", "1.0")])
def test_a_case_is_a_value_however_it_is_spelled(value: Any, case: Any) -> None:
    (labeller,) = parse_sources({"x": {"choose": "t", "cases": {case: {"rule": "shorter"}}}})
    assert labeller.part_for({"t": value}) and not labeller.part_for({"t": 2}) and not labeller.part_for({"t": NAN})


def test_prompts_that_no_case_fits_are_counted() -> None:
    chosen = {"choose": "topic", "cases": {"maths": {"rule": "longer"}}}
    spec = {"x": {"sum": [chosen, {"rule": "shorter"}]}, "y": {"rule": "shorter"}}
    rows = [*candidates(1, topic="maths"), *candidates(2, topic="prose")]
    _, report = label_candidates(rows, parse_sources(spec), None)
    assert report.objectives["x"]["no_case_fits"] == 2 and "no_case_fits" not in report.objectives["y"]
    assert "x: no case fits 2 prompts, which have no label of it." in report.warnings


def test_consistent_only_is_for_pairs_asked_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str, value: Any, options: dict[str, Any]) -> Source:
        schedule = {"schedule": ONE_ORDER} if options else {}
        return Source(name, "j", compare=lambda *_, **__: [], **schedule)

    monkeypatch.setitem(specs.KINDS, "judge", made)
    own = {"consistent_only": True}
    for entry in ({"judge": "j", **own}, {"sum": [{"judge": "j", **own}, {"rule": "shorter"}], **own}):
        assert parse_sources({"x": entry})[0].options.consistent_only
    with pytest.raises(InputError, match="both orders"):
        parse_sources({"x": {"judge": "j", "schedule": "one-order", **own}})
