"""What a language world is: items with exact rewards, and demonstrations that teach a small model its language.

A world is data and plain functions. Everything that samples, labels, trains or judges works for any world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One task: the prompt that the model reads, and the truth that the rewards are computed from."""

    prompt: str  # words of the world's vocabulary, separated by single spaces; no space at either end
    facts: Any  # the world's own: what `score` needs
    group: str  # items that must not be divided between training and evaluation share it


def _nothing(item: Item, response: str) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class World:
    """A language world. Texts are words of `vocabulary` separated by spaces; functions ignore outer spaces.

    Rewards are exact: `score` is a deterministic function of the item and the response text, higher is better, and it
    accepts any text (words in any order, words outside the vocabulary, nothing at all).
    """

    name: str
    description: str  # a sentence or two for a newcomer: what the model is asked, what its objectives pull at
    objectives: tuple[str, ...]
    units: Mapping[str, str]  # objective -> what its number means, with its range, for axes and captions
    vocabulary: tuple[str, ...]  # every word of prompts and responses, each once; specials are the tokenizer's
    max_prompt: int  # most tokens of a prompt
    max_response: int  # most tokens of a response, its end-of-sequence token not counted
    make_item: Callable[[random.Random], Item]
    demonstrate: Callable[[Item, random.Random], str]  # an imperfect response: what the base is trained to imitate
    score: Callable[[Item, str], dict[str, float]]  # objective -> reward
    worst: Mapping[str, float]  # objective -> the least that `score` can give: what an empty response gets
    hacks: Mapping[str, Callable[[Item], str]]  # scripted responses that a broken reward would pay for
    corners: tuple[str, ...]  # the hacks that are optimal for one objective by its definition, and declared so
    extras: Callable[[Item, str], dict[str, float]] = field(default=_nothing)  # further figures, NaN = not applicable
