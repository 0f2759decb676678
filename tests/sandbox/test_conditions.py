"""Conditioned methods in the worlds: words that the vocabulary has, ratings that are the exact rewards."""

from __future__ import annotations

import random

import pytest

from paretune.comparisons.conditions import check_prefix, make_prefix, rounded_shares
from paretune.comparisons.ratings import read_rated
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.sandbox import WORLDS
from paretune.sandbox.conditions import CONDITION_WORDS, with_ratings
from paretune.sandbox.language import made_tokenizer, make_items


@pytest.mark.parametrize("name", list(WORLDS))
def test_every_world_has_words_that_its_tokenizer_tells_apart(name: str) -> None:
    world, words = WORLDS[name], CONDITION_WORDS[name]
    prefix = make_prefix(world.objectives, None, words, default="", decimals=0)
    shares = {tuple(s) for s in rounded_shares([[i / 10, *[(1 - i / 10) / (len(words) - 1)] * (len(words) - 1)]
                                                for i in range(11)], 5).tolist()}  # fmt: skip
    texts = [prefix.text(dict(zip(world.objectives, s, strict=True))) for s in sorted(shares)]
    check_prefix(texts, made_tokenizer(world))
    longest = world.max_prompt + 5 + world.max_response + 1
    assert longest <= made_tokenizer(world).model_max_length


@pytest.mark.parametrize("name", list(WORLDS))
def test_ratings_are_the_rewards_of_both_responses(name: str) -> None:
    world, rng = WORLDS[name], random.Random(0)
    items = make_items(world, 5, seed=3, held_out=False)
    rows = [
        {"prompt": item.prompt, "id": str(i), "preferences": {},
         **{side: f" {world.demonstrate(item, rng)}" for side in ("response_a", "response_b")}}
        for i, item in enumerate(items)
    ]  # fmt: skip
    rated = read_rated(with_ratings(world, rows, items), [Objective(o) for o in world.objectives], {})
    for row, item, given in zip(rows, items, rated.ratings, strict=True):
        for side, name_of in enumerate(("response_a", "response_b")):
            assert given[side].tolist() == [world.score(item, row[name_of])[o] for o in world.objectives]
    with pytest.raises(InputError, match="a prompt that is not among the items"):
        with_ratings(world, rows, items[:2])
