"""Creatures with facts that no prompt shows: what is said about one can be checked only by who knows it, or is told.

    about dalo :          red - seeds loud -        a response has a place for each of five properties: a value, or "-"

A seed draws a creature's facts, and which of them the policy's first demonstrations know: of a known property they
name the true value in most cases, of another one any value. So a policy knows something of every creature, a judge
nothing of creatures that it was not trained on, and a reference tells a judge what it lacks.

`told` is the share of the five properties whose true value is named, `careful` minus the share of which another one
is. Naming more is the knob; naming what one knows, and being silent about the rest, is the skill.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Per property, five values; each has two words, the first is the plain one.
PROPERTIES = (
    (("red", "crimson"), ("blue", "azure"), ("green", "verdant"), ("grey", "ashen"), ("white", "snowy")),
    (("cave", "grotto"), ("tree", "trunk"), ("marsh", "bog"), ("cliff", "crag"), ("field", "meadow")),
    (("seeds", "grain"), ("fish", "trout"), ("roots", "tubers"), ("insects", "bugs"), ("fruit", "berries")),
    (("loud", "noisy"), ("silent", "mute"), ("humming", "droning"), ("hoarse", "husky"), ("shrill", "piercing")),
    (("dawn", "sunrise"), ("noon", "midday"), ("dusk", "sunset"), ("night", "darkness"), ("always", "ever")),
)
COUNT, VALUES = len(PROPERTIES), len(PROPERTIES[0])
MEANING = {word: (k, v) for k, values in enumerate(PROPERTIES) for v, words in enumerate(values) for word in words}
NAMES = tuple(a + b + c + d for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst" for d in "ao")
OBJECTIVES = ("told", "careful")
RUBRICS = {"told": "fuller", "careful": "truer", "overall": "better"}  # a judge's rubric: one word
PAD, EOS, UNKNOWN, SILENT = "<pad>", "<eos>", "<unk>", "-"
_FRAME = ("about", ":", "compare", "asked", "reference", "first", "second", "verdict", "a", "b", "---", "begin", "end")

KNOWN, SURE = 0.6, 0.9  # share of facts that the demonstrations know, and how often they then name the true value
SAYS = 0.75  # how often demonstrations and references mention a property


@dataclass(frozen=True)
class Creature:
    """A name with its facts: the true value of each property; known: to the policy's demonstrations."""

    name: str
    facts: tuple[int, ...]
    known: tuple[bool, ...]

    @property
    def prompt(self) -> str:
        return f"about {self.name} : "  # a response follows without a space of its own


def make_creatures(seed: int, sizes: dict[str, int]) -> dict[str, list[Creature]]:
    """Disjoint sets of creatures by the set's name."""
    rng = random.Random(f"creatures {seed}")
    names = rng.sample(NAMES, sum(sizes.values()))
    made = [
        Creature(
            name, tuple(rng.randrange(VALUES) for _ in range(COUNT)), tuple(rng.random() < KNOWN for _ in range(COUNT))
        )
        for name in names
    ]
    found, start = {}, 0
    for key, size in sizes.items():
        found[key] = made[start : start + size]
        start += size
    return found


def score(creature: Creature, response: str) -> dict[str, float]:
    """Exact rewards of any text: five places, one for each property; what lies beyond them is wrong."""
    words = response.split()
    said = [(k, word) for k, word in enumerate(words) if word != SILENT]
    right = sum(MEANING.get(word) == (k, creature.facts[k]) for k, word in said if k < COUNT)
    told, careful = right / COUNT, -(len(said) - right) / COUNT
    return {"told": told, "careful": careful, "overall": told + careful}


def other_than(value: int, rng: random.Random) -> int:
    """Another value of the same property."""
    return (value + rng.randrange(1, VALUES)) % VALUES


def write(values: Mapping[int, int], rng: random.Random, paraphrased: float = 0.0) -> str:
    """Values by property as a response; each in its other word with probability `paraphrased`."""
    words = [SILENT] * COUNT
    for k, v in sorted(values.items()):
        words[k] = PROPERTIES[k][v][rng.random() < paraphrased]
    return " ".join(words)


def demonstrate(creature: Creature, rng: random.Random, paraphrased: float = 0.0) -> str:
    """What the policy starts from: half-knowledge."""
    values = {}
    for k, (true, known) in enumerate(zip(creature.facts, creature.known, strict=True)):
        if rng.random() < SAYS:
            values[k] = true if known and rng.random() < SURE else rng.randrange(VALUES)
    return write(values, rng, paraphrased)


def refer(creature: Creature, rng: random.Random, *, wrong: float = 0.0, paraphrased: float = 0.0) -> str:
    """A reference: what it mentions is true but for a share of its facts; few mention everything, none nothing."""
    while True:
        values = {
            k: other_than(true, rng) if rng.random() < wrong else true
            for k, true in enumerate(creature.facts)
            if rng.random() < SAYS
        }
        if values:
            return write(values, rng, paraphrased)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = (PAD, EOS, UNKNOWN, SILENT, *_FRAME, *RUBRICS.values(), *MEANING, *NAMES)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=128,
    )  # fmt: skip
