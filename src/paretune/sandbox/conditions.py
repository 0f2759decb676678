"""How conditioned methods are used in a world: words for the prefix, and ratings for the pairs.

A world's vocabulary has no numbers, so an objective's word is repeated as often as its level says: the prompt begins
`splash splash splash beware beware task : …`. The words change the base little where they stand: with five of one
before each of 64 prompts its mean rewards fell by 0.02 to 0.11 (coverage 0.20 to 0.18, faithfulness -0.18 to -0.25,
-0.26 and -0.29; helpful 0.41 to 0.36 and 0.33), less than with most others that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretune.errors import InputError
from paretune.sandbox.world import Item, World

# World -> objective -> word: the option `words` of cos-dpo, cos-raco and cpo.
CONDITION_WORDS: dict[str, dict[str, str]] = {
    "summaries": {"coverage": "vital", "faithfulness": "breaks", "conciseness": "idle"},
    "safety": {"helpful": "splash", "harmless": "beware"},
}


def with_ratings(world: World, rows: Sequence[dict[str, Any]], items: Sequence[Item]) -> list[dict[str, Any]]:
    """Rows of `sample_rows` with the exact rewards of both responses as `ratings`, which `cpo` learns from.

    Args:
        items: those that the rows were sampled for (`make_items` with the same number and seed).

    Raises:
        InputError: a row of another prompt.
    """
    by_prompt = {item.prompt: item for item in items}
    rated = []
    for row in rows:
        if row["prompt"] not in by_prompt:
            raise InputError("a row of a prompt that is not among the items", where=f"world {world.name}, {row['id']}")
        both = [world.score(by_prompt[row["prompt"]], row[side]) for side in ("response_a", "response_b")]
        rated.append({**row, "ratings": {name: [scores[name] for scores in both] for name in world.objectives}})
    return rated
