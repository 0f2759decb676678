"""A world in which a small model can learn all there is: words with values, and prompts that ask for a kind of word.

    kind b . answer :          bor dul gim        the response is three to seven different words

`worth` is the sum of the words' values, which no word shows; `fitting` is how many words are of the kind that the
prompt names, less those of the kind opposite to it. Both are exact, and both can be learnt from labels alone.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.sandbox.language import made_tokenizer
from paretune.sandbox.world import Item, World

KINDS = ("a", "b", "c", "d")
WORDS = tuple(f"{first}{second}" for first in "bdgk" for second in ("im", "or", "ul", "ase"))
_drawn = random.Random("the worth of words")
WORTH = {word: _drawn.gauss(0, 0.7) for word in WORDS}
KIND = {word: KINDS[i % 4] for i, word in enumerate(_drawn.sample(WORDS, len(WORDS)))}
OPPOSITE = {"a": "b", "b": "a", "c": "d", "d": "c"}


def make_item(rng: random.Random) -> Item:
    kind = rng.choice(KINDS)
    return Item(f"kind {kind} . answer :", kind, group=str(rng.getrandbits(64)))


def demonstrate(item: Item, rng: random.Random) -> str:
    return " ".join(rng.sample(WORDS, rng.randint(3, 7)))


def score(item: Item, response: str) -> dict[str, float]:
    words = [word for word in response.split() if word in WORTH]
    fits = [(KIND[word] == item.facts) - (KIND[word] == OPPOSITE[item.facts]) for word in words]
    return {"worth": sum(WORTH[word] for word in words), "fitting": float(sum(fits))}


WORDS_WORLD = World(
    name="words",
    description="Three to seven words, each with a value of its own and of a kind that a prompt may ask for.",
    objectives=("worth", "fitting"),
    units={"worth": "sum of the words' values", "fitting": "words of the kind asked for, less opposite ones"},
    vocabulary=("kind", ".", "answer", ":", *KINDS, *WORDS),
    max_prompt=5,
    max_response=7,
    make_item=make_item,
    demonstrate=demonstrate,
    score=score,
    worst={"worth": -8.0, "fitting": -7.0},
    hacks={},
    corners=(),
)


def write_base(folder: Path, seed: int) -> Path:
    """A base that knows nothing: random weights, the world's tokenizer."""
    tokenizer = made_tokenizer(WORDS_WORLD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, initializer_range=0.1,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
