"""The summaries world: what its rewards pay for, by cases worked out by hand and by properties over many items."""

from __future__ import annotations

import random

import pytest

from paretune.sandbox.summaries import MAX_RESPONSE, SUMMARIES, WORST, Fact, demonstrate, make_item, score
from paretune.sandbox.world import Item

# 4 + 2 + 1 + 1 = 8 points of importance; the first two can be merged
FACTS = (
    Fact("otter", "paints", "kettle", 4),
    Fact("otter", "paints", "ladder", 2),
    Fact("heron", "hides", "drum", 1),
    Fact("baker", "sells", "coin", 1),
)
ITEM = Item("notes : ... summary :", FACTS, "g")


@pytest.mark.parametrize(
    ("response", "coverage", "faithfulness"),
    [
        ("otter paints kettle .", 4 / 8, 1.0),
        (" otter  paints kettle", 4 / 8, 1.0),  # outer and repeated spaces, no final stop
        ("otter paints kettle and ladder .", 6 / 8, 1.0),
        ("otter paints ladder and kettle .", 6 / 8, 1.0),
        ("otter paints something .", 4 / 8 / 4, 0.25),  # vague: of the weightiest that it can mean
        ("otter paints something . otter paints something .", 4 / 8 / 4, (0.25 - 1) / 2),
        ("otter paints something . otter paints kettle .", 4 / 8, (0.25 + 1) / 2),  # made good later
        ("otter paints kettle . otter paints something .", (4 + 2 / 4) / 8, (1 + 0.25) / 2),
        ("otter paints kettle and ladder . otter paints something .", 6 / 8, (1 + 1 - 1) / 3),
        ("otter paints kettle . otter paints kettle .", 4 / 8, 0.0),  # a repeat is unsupported
        ("otter paints kettle and kettle .", 4 / 8, 0.0),
        ("otter paints drum .", 0.0, -2.0),  # contradicted: another object for this noun and verb
        ("heron sells drum .", 0.0, -1.0),  # unsupported: nothing is said of a heron that sells
        ("otter paints kettle and drum .", 4 / 8, (1 - 2) / 2),
        ("otter paints kettle . kettle otter .", 4 / 8, 0.0),  # a broken statement is unsupported
        ("otter paints kettle . heron hides", 4 / 8, 0.0),  # as is one that was cut
        ("otter paints kettle and something .", *(WORST[name] for name in ("coverage", "faithfulness"))),
    ],
)
def test_score_by_hand(response: str, coverage: float, faithfulness: float) -> None:
    scores = score(ITEM, response)
    assert scores["coverage"] == pytest.approx(coverage)
    assert scores["faithfulness"] == pytest.approx(faithfulness)


@pytest.mark.parametrize("response", ["", "   ", ".", ". . .", "no", "vital otter paints kettle .", "<unk> <eos>", "é"])
def test_nothing_well_formed_gets_the_least(response: str) -> None:
    assert score(ITEM, response) == WORST


def test_conciseness_counts_every_word() -> None:
    assert score(ITEM, "otter paints kettle .")["conciseness"] == -4 / 20
    assert score(ITEM, "otter paints kettle and ladder .")["conciseness"] == -6 / 20
    assert score(ITEM, "otter paints kettle . " * 10)["conciseness"] == WORST["conciseness"]


def test_items_are_what_they_say() -> None:
    rng = random.Random(0)
    for item in (make_item(rng) for _ in range(500)):
        words = item.prompt.split()
        assert " ".join(words) == item.prompt
        assert len(words) <= SUMMARIES.max_prompt
        assert set(words) <= set(SUMMARIES.vocabulary)
        assert 5 <= len(item.facts) <= 7
        assert len({(f.noun, f.verb, f.object) for f in item.facts}) == len(item.facts)
        assert len(item.facts) - len({(f.noun, f.verb) for f in item.facts}) in (1, 2)  # mergeable pairs
        for fact in item.facts:
            assert f"{fact.noun} {fact.verb} {fact.object} ." in item.prompt
    assert 100 <= len(SUMMARIES.vocabulary) == len(set(SUMMARIES.vocabulary)) <= 140


def test_rewards_stay_in_their_ranges_whatever_the_words() -> None:
    rng = random.Random(1)
    best = {"coverage": 1.0, "faithfulness": 1.0, "conciseness": 0.0}
    for _ in range(2000):
        item = make_item(rng)
        words = [*item.prompt.split(), *rng.sample(SUMMARIES.vocabulary, 5)]
        scores = score(item, " ".join(rng.choices(words, k=rng.randint(0, 30))))
        assert all(WORST[name] <= scores[name] <= best[name] for name in SUMMARIES.objectives), scores


def test_demonstrations_are_parsed_vary_and_err() -> None:
    rng = random.Random(2)
    items = [make_item(rng) for _ in range(1000)]
    texts = [demonstrate(item, rng) for item in items]
    assert max(len(text.split()) for text in texts) <= MAX_RESPONSE
    scores = [score(item, text) for item, text in zip(items, texts, strict=True)]
    assert all(
        s["conciseness"] > WORST["conciseness"] or len(t.split()) == MAX_RESPONSE
        for s, t in zip(scores, texts, strict=True)
    )
    faithful = sum(s["faithfulness"] == 1 for s in scores) / len(scores)
    assert 0.2 < faithful < 0.8
    assert sum(" and " in text for text in texts) > 20
    assert sum(" something " in text for text in texts) > 100


def test_the_corner_is_a_full_copy_and_the_others_are_worse_than_it() -> None:
    rng = random.Random(3)
    for item in (make_item(rng) for _ in range(100)):
        full = score(item, SUMMARIES.hacks["copy everything"](item))
        assert full["faithfulness"] == 1
        for name in ("empty", "repeat", "vague", "verbatim"):
            other = score(item, SUMMARIES.hacks[name](item))
            assert other["faithfulness"] < full["faithfulness"]
            assert other["coverage"] < full["coverage"]


def test_merging_says_the_same_in_fewer_words() -> None:
    apart = score(ITEM, "otter paints kettle . otter paints ladder .")
    merged = score(ITEM, "otter paints kettle and ladder .")
    assert merged["conciseness"] > apart["conciseness"]
    assert {k: v for k, v in merged.items() if k != "conciseness"} == {
        k: v for k, v in apart.items() if k != "conciseness"
    }
