"""The exact rewards of the world `summaries`, as functions that `paretune label` and `improve` call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paretune.evaluation.sample import sample
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.sandbox.language import make_items
from paretune.sandbox.summaries import SUMMARIES as WORLD

ITEMS = {item.prompt: item for item in make_items(WORLD, 120, seed=0, held_out=False)}


def write_prompts(path: Path) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ITEMS), encoding="utf-8")
    return path


def _scores(name: str, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [WORLD.score(ITEMS[p], c)[name] for p, c in zip(prompts, completions, strict=True)]


def coverage(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return _scores("coverage", prompts, completions)


def faithfulness(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return _scores("faithfulness", prompts, completions)


def conciseness(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return _scores("conciseness", prompts, completions)


def worst(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The least of the three per response: what no single one of them says."""
    every = [_scores(name, prompts, completions) for name in WORLD.objectives]
    return [min(scores) for scores in zip(*every, strict=True)]


def exact_rewards(model: Path) -> dict[str, float]:
    """Means over fresh samples for prompts of groups that nothing was trained on."""
    items = make_items(WORLD, 100, seed=1, held_out=True)
    asked = [item.prompt for item in items]
    drawn = sample(load_scored(str(model)), load_tokenizer(str(model)), asked, 4, max_new_tokens=24, seed=5)
    found = [WORLD.score(item, text) for item, texts in zip(items, drawn.texts, strict=True) for text in texts]
    return {name: sum(one[name] for one in found) / len(found) for name in WORLD.objectives}
