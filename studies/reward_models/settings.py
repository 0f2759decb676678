"""The worlds of this study: what is labelled, how noisily and how much of it, and how every kind is trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.evaluation.sample import sample
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.sandbox.language import make_items, train_base
from paretune.sandbox.safety import SAFETY
from paretune.sandbox.world import Item, World
from studies.reward_models.words import WORDS_WORLD, write_base

Texts = list[tuple[Item, list[str]]]  # items with responses, each response once
_ENOUGH = 20_000  # items, among which each of the safety world's 3,072 prompts is found but for one in a hundred


@dataclass(frozen=True)
class Setting:
    """One world's part of the study.

    Args:
        kappa: inverse noise of the labels, per unit of reward.
        items: how many prompts are asked, in training and held out.
        responses: of a prompt, likewise; all pairs of held-out ones count.
        pairs: of a prompt that pairwise models are trained on.
        members: pairwise models that ensembles join; 1: there are none.
        base: (folder, seed) -> what every kind starts from.
        draw: (world, base, prompts, responses, seed, held out, device) -> texts.
        kinds: settings of `RewardConfig` beside `QUIET`.
    """

    world: World
    kappa: float
    items: tuple[int, int]
    responses: tuple[int, int]
    pairs: int
    members: int
    base: Callable[[Path, int], Path]
    draw: Callable[[World, Path, int, int, int, bool, str], Texts]
    kinds: Mapping[str, Mapping[str, Any]]


def demonstrated(
    world: World, base: Path, prompts: int, responses: int, seed: int, held_out: bool, device: str
) -> Texts:
    """By the world itself."""
    rng = random.Random(f"{world.name} responses {seed}")
    items = make_items(world, prompts, seed=seed, held_out=held_out)
    return [(item, list(dict.fromkeys(world.demonstrate(item, rng) for _ in range(responses)))) for item in items]


def sampled(world: World, base: Path, prompts: int, responses: int, seed: int, held_out: bool, device: str) -> Texts:
    """By the world's base at temperature 1, as all comparisons of the sandbox are; prompts that differ, those that it
    ended at least two responses to."""
    items: dict[str, Item] = {}
    for item in make_items(world, _ENOUGH, seed=seed, held_out=held_out):
        items.setdefault(item.prompt, item)
    asked = list(items)[:prompts]
    model, tokenizer = load_scored(str(base)).to(device), load_tokenizer(str(base))
    drawn = sample(model, tokenizer, asked, 2 * responses, max_new_tokens=world.max_response + 1, seed=seed)
    found = []
    for prompt, texts, cut in zip(asked, drawn.texts, drawn.cut.tolist(), strict=True):
        ended = dict.fromkeys(text for text, late in zip(texts, cut, strict=True) if text and not late)
        if len(ended) > 1:
            found.append((items[prompt], list(ended)[:responses]))
    return found


def safety_base(folder: Path, seed: int) -> Path:
    return train_base(SAFETY, seed=seed)


KINDS: dict[str, dict[str, Any]] = {
    "pairwise": {"kind": "pairwise", "centring": 0.01},
    "pointwise": {"kind": "pointwise"},
    "pairwise, token sum": {"kind": "pairwise", "token_level": "sum"},
    "pairwise, all pairs": {"kind": "pairwise", "all_pairs": True, "centring": 0.01},
    "all pairs, token sum": {"kind": "pairwise", "all_pairs": True, "token_level": "sum"},
    "listwise": {"kind": "listwise"},
    "ridge, pointwise trunk": {"kind": "ridge"},
    "ridge, pairwise trunk": {"kind": "ridge"},
}
# What ridge heads are fitted on, as ArmoRM's are on a trained reward model. Theirs are regressions on scores without an
# intercept: a trunk that learned from scores has what they need, one that learned from pairs knows a prompt's responses
# only up to a constant. So the first is what the kind is judged by, and the second is shown.
TRUNKS = {"ridge, pointwise trunk": "pointwise", "ridge, pairwise trunk": "pairwise"}


def apart(own: Mapping[str, Any]) -> bool:
    """Whether pairs are elements of a batch by themselves."""
    return own["kind"] == "pairwise" and not own.get("all_pairs")


def _with(kind: str, rate: float, *, passes: float, batch: int) -> dict[str, Any]:
    given = {"learning_rate": rate, "num_train_epochs": passes, "per_device_train_batch_size": batch}
    return {**KINDS[kind], **given}


QUIET: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "logging_steps": 50,
}
SETTINGS: dict[str, Setting] = {
    "words": Setting(
        world=WORDS_WORLD,
        kappa=1.0,
        items=(1500, 500),
        responses=(4, 4),
        pairs=3,
        members=3,
        base=write_base,
        draw=demonstrated,
        kinds={name: _with(name, 3e-3, passes=4, batch=48 if apart(own) else 16) for name, own in KINDS.items()},
    ),
    "safety": Setting(
        world=SAFETY,
        kappa=6.0,  # as in `paretune demo`
        items=(3072, 3072),  # all that there are on each side
        responses=(48, 8),
        pairs=96,
        members=1,
        base=safety_base,
        draw=sampled,
        # from first looks and a first run on other seeds, see README.md
        kinds={
            "pairwise": _with("pairwise", 5e-4, passes=6, batch=128),
            "pairwise, token sum": _with("pairwise, token sum", 2e-3, passes=5, batch=256),
            "pointwise": _with("pointwise", 5e-4, passes=10, batch=4),
            "pairwise, all pairs": _with("pairwise, all pairs", 1e-3, passes=6, batch=4),
            "all pairs, token sum": _with("all pairs, token sum", 2e-3, passes=6, batch=4),
            "listwise": _with("listwise", 1e-3, passes=6, batch=4),
            **{name: KINDS[name] for name in TRUNKS},
        },
    ),
}
