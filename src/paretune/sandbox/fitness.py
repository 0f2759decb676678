"""Whether a world is fit for use: looked at before any method runs, because no method's result can show it.

A world is fit where its base leaves room on every objective and on all of them together, answers in enough different
ways for pairs to be formed, and where no scripted hack does as well as honest answers do. "Honest answers" are the best
of 64 of the base's own, chosen by exact rewards under many weightings: the oracle.

Seeds here are seeds of sampling: they vary the held-out prompts and the responses of one trained base. Whether a base
trained from another seed is fit too is asked by `studies/world_fitness`, whose answer the demo leans on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paretune.evaluation.sample import sample
from paretune.policy.loading import load_policy, load_tokenizer
from paretune.sandbox.language import make_items
from paretune.sandbox.world import Item, World

Floats = npt.NDArray[np.float64]
# What "well below" means, in standard deviations of the base's own responses to one prompt.
ROOM_EACH = 0.5
ROOM_ALL = 0.25
VARIED = 0.5


@dataclass(frozen=True)
class Fitness:
    """One base's; S sampling seeds, m objectives in the world's order, W weightings. Scores are means over held-out
    prompts.

    Args:
        base: (S, m).
        spread: (m,) standard deviation of the base's rewards among its responses to one prompt.
        weights, oracle: (W, m) weightings and the scores of the best of n responses under each.
        hacks: hack -> (m,) scores.
        distinct: share of different texts among the base's responses to one prompt.
        ended: share of the base's responses that end in time.
    """

    world: World
    base: Floats
    spread: Floats
    weights: Floats
    oracle: Floats
    hacks: dict[str, Floats]
    distinct: float
    ended: float

    def room_each(self) -> Floats:
        """(m,) how far the best-of-n oracle of each objective alone lies above the best sampling seed, in spreads."""
        return (self.oracle.max(0) - self.base.max(0)) / self.spread

    def room_all(self) -> float:
        """The most that one oracle raises the best sampling seed's scores on every objective at once, in spreads."""
        return float(((self.oracle - self.base.max(0)) / self.spread).min(1).max())

    def depth(self, hack: str) -> float:
        """How far inside the oracle's front a hack lies, in spreads: the most by which one oracle beats it on every
        objective. Not positive: on the front or beyond it."""
        return float(((self.oracle - self.hacks[hack]) / self.spread).min(1).max())

    def problems(self) -> list[str]:
        """What makes the world unfit, each in words; none where it is fit."""
        found = [
            f"{name}: the oracle is only {room:.2f} spreads above the base, not {ROOM_EACH:g}"
            for name, room in zip(self.world.objectives, self.room_each(), strict=True)
            if not room >= ROOM_EACH
        ]
        if not self.room_all() >= ROOM_ALL:
            found.append(f"no oracle is {ROOM_ALL:g} spreads above the base on every objective: {self.room_all():.2f}")
        if self.distinct < VARIED:
            found.append(f"only {self.distinct:.0%} of the base's responses to one prompt differ")
        for hack in self.hacks:
            inside = self.depth(hack) > 0
            if not inside and hack not in self.world.corners:
                found.append(f"the hack {hack!r} is not inside the oracle's front")
            if inside and hack in self.world.corners:
                found.append(f"the hack {hack!r} is declared a corner, and is none")
        return found


def world_fitness(
    world: World, base_path: str | Path, seeds: Sequence[int], *, n_prompts: int = 64, best_of: int = 64
) -> Fitness:
    """Samples one base on held-out prompts, anew for each seed, and scores exactly.

    Args:
        seeds: of prompts and responses; the base is the same for all.
        n_prompts: per seed.
        best_of: responses per prompt that the oracle chooses from.
    """
    model, tokenizer = load_policy(str(base_path), full=True), load_tokenizer(str(base_path))
    grid = simplex_grid(len(world.objectives))
    base, spread, oracle, distinct, ended = [], [], [], [], []
    items_of_all: list[Item] = []
    for seed in seeds:
        items = make_items(world, n_prompts, seed=seed, held_out=True)
        drawn = sample(
            model,
            tokenizer,
            [item.prompt for item in items],
            best_of,
            max_new_tokens=world.max_response + 1,
            seed=seed,
        )
        rewards = np.array(
            [[_vector(world, item, text) for text in texts] for item, texts in zip(items, drawn.texts, strict=True)]
        )  # (P, n, m)
        base.append(rewards.mean((0, 1)))
        spread.append(rewards.std(1).mean(0))
        best = (rewards @ grid.T).argmax(1)  # (P, W)
        oracle.append(np.take_along_axis(rewards, best[:, :, None], 1).mean(0))  # (W, m)
        distinct.append(np.mean([len(set(texts)) / best_of for texts in drawn.texts]))
        ended.append(1.0 - drawn.cut.double().mean().item())
        items_of_all += items
    hacks = {
        name: np.mean([_vector(world, item, hack(item)) for item in items_of_all], axis=0)
        for name, hack in world.hacks.items()
    }
    return Fitness(
        world,
        np.array(base),
        np.mean(spread, axis=0),
        grid,
        np.mean(oracle, axis=0),
        hacks,
        float(np.mean(distinct)),
        float(np.mean(ended)),
    )


def simplex_grid(m: int, steps: int = 8) -> Floats:
    """(W, m) all weightings in multiples of 1/steps."""
    rows = [row for row in itertools.product(range(steps + 1), repeat=m) if sum(row) == steps]
    return np.array(rows, dtype=np.float64) / steps


def _vector(world: World, item: Item, text: str) -> Floats:
    scores = world.score(item, text)
    return np.array([scores[name] for name in world.objectives])
