"""Do reward models of every kind reach the accuracy that nobody can exceed on labels with known noise?

    python studies/reward_models/run.py                          # all kinds and an ensemble: see README.md for the time
    python studies/reward_models/run.py --kinds pairwise --items 200 200

Responses of the world of `words.py` get noisy utilities u = κ r + Gumbel noise per objective, from their exact rewards
r. Then P(u_a > u_b) = σ(κ (r_a - r_b)) exactly, a ranking by u is Plackett and Luce's, and E u is κ r and a constant:
one file of scored rows serves every kind. Figures of held-out items go to results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from paretune.evaluation.statistics import bootstrap_interval  # noqa: E402
from paretune.pipelines.rewards.run import prepare_reward, run_reward  # noqa: E402
from paretune.pipelines.rewards.training import RewardConfig  # noqa: E402
from paretune.preferences.ensembles import tilted  # noqa: E402
from paretune.preferences.reward_models.sources import reward_model_source  # noqa: E402
from paretune.sandbox.labels import sigmoid  # noqa: E402
from paretune.sandbox.language import make_items  # noqa: E402
from paretune.sandbox.world import World  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.reward_models.words import WORDS_WORLD, write_base  # noqa: E402

KAPPA = 1.0
BOUND = 0.02  # a kind has reached the ceiling when the interval of its shortfall ends below this
RESPONSES, PAIRS = 4, 3  # of an item, in training; all six pairs of a held-out item count
TRAIN_ITEMS, HELD_ITEMS = 1500, 500
# name -> settings of `RewardConfig` beside the common ones
KINDS: dict[str, dict[str, Any]] = {
    "pairwise": {"kind": "pairwise", "centring": 0.01},
    "pairwise, token sum": {"kind": "pairwise", "token_level": "sum"},
    "pointwise": {"kind": "pointwise"},
    "listwise": {"kind": "listwise"},
    "ridge": {"kind": "ridge"},
}
COMMON: dict[str, Any] = {
    "learning_rate": 3e-3,
    "num_train_epochs": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "logging_steps": 50,
}


def draw_responses(world: World, prompts: int, seed: int, *, held_out: bool) -> list[dict[str, Any]]:
    """Per item four different responses, and their exact rewards, (K, m)."""
    rng = random.Random(f"{world.name} responses {seed}")
    found = []
    for item in make_items(world, prompts, seed=seed, held_out=held_out):
        texts = list(dict.fromkeys(world.demonstrate(item, rng) for _ in range(RESPONSES)))
        scores = [world.score(item, text) for text in texts]
        rewards = np.array([[one[name] for name in world.objectives] for one in scores])
        responses = [f" {text}" for text in texts]
        found.append({"prompt": item.prompt, "responses": responses, "rewards": rewards, "group": item.group})
    return found


def scored_rows(world: World, drawn: Sequence[dict[str, Any]], kappa: float, seed: int) -> list[dict[str, Any]]:
    """Rows with noisy utilities as scores."""
    rng = np.random.default_rng(seed)
    rows = []
    for one in drawn:
        utilities = kappa * one["rewards"] + rng.gumbel(size=one["rewards"].shape)
        scores = {name: utilities[:, i].tolist() for i, name in enumerate(world.objectives)}
        rows.append({"prompt": one["prompt"], "responses": one["responses"], "scores": scores, "group": one["group"]})
    return rows


def train(base: Path, rows: list[dict[str, Any]], out: str, own: dict[str, Any], seed: int, batch: int = 16) -> float:
    """One reward model in `out`; returns the seconds that it took."""
    started = time.perf_counter()
    pairs = own["kind"] == "pairwise"
    args = RewardConfig(
        output_dir=out, seed=seed, per_device_train_batch_size=batch * (PAIRS if pairs else 1), **{**COMMON, **own}
    )
    run_reward(prepare_reward(str(base), args, rows, data_options={"max_pairs": PAIRS} if pairs else {}))
    return time.perf_counter() - started


def rewards_of(model: str, name: str, held: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """One head's rewards of all held-out responses, as `paretune label` would ask for them."""
    source = reward_model_source(name, model, {"batch_size": 256})
    assert source.score is not None
    prompts = [one["prompt"] for one in held for _ in one["responses"]]
    responses = [response for one in held for response in one["responses"]]
    answers: dict[int, float] = dict(source.score(prompts, responses))  # type: ignore[arg-type]
    flat = iter([answers[i] for i in range(len(prompts))])
    return [np.array([next(flat) for _ in one["responses"]]) for one in held]


def judged(held: Sequence[dict[str, Any]], rewards: Sequence[np.ndarray], i: int, kappa: float) -> dict[str, Any]:
    """Accuracy in expectation over the labels' noise, its ceiling, and what is lacking, with an interval over prompts.

    A pair is right with probability p = σ(κ Δr) if the model prefers a, else with 1 - p; nobody exceeds max(p, 1 - p).
    Pairs of equal rewards, whose labels are coins, count too: they are 1/2 for everybody.
    """
    sums = []
    for one, predicted in zip(held, rewards, strict=True):
        exact = one["rewards"][:, i]
        a, b = np.triu_indices(len(exact), 1)
        p = sigmoid(kappa * (exact[a] - exact[b]))
        share = 0.5 + 0.5 * np.sign(predicted[a] - predicted[b])
        sums.append((float((share * p + (1 - share) * (1 - p)).sum()), float(np.maximum(p, 1 - p).sum()), len(p)))
    right, best, count = np.array(sums).T

    def lacking(chosen: np.ndarray) -> float:
        return float((best[chosen] - right[chosen]).sum() / count[chosen].sum())

    everybody = np.arange(len(held))
    low, high = bootstrap_interval(lacking, len(held), seed=1)
    total = float(count.sum())
    return {
        "accuracy": float(right.sum()) / total,
        "ceiling": float(best.sum()) / total,
        "shortfall": lacking(everybody),
        "interval": [low, high],
        "pairs": int(total),
        "reached": high < BOUND,
    }


def study(kinds: Sequence[str], *, seed: int = 0, items: tuple[int, int] = (TRAIN_ITEMS, HELD_ITEMS)) -> dict[str, Any]:
    """All kinds: {kind: {objective: figures, "seconds"}}, and the sizes."""
    world = WORDS_WORLD
    drawn = draw_responses(world, items[0], seed, held_out=False)
    held = draw_responses(world, items[1], seed + 1, held_out=True)
    rows = scored_rows(world, drawn, KAPPA, seed)
    found: dict[str, Any] = {"train_items": len(drawn), "held_out_items": len(held), "kinds": {}}
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base", seed)
        members = []
        for kind in kinds:
            out = f"{folder}/{kind.replace(', ', '-').replace(' ', '-')}"
            started = base
            if kind == "ridge":  # as ArmoRM does it: on the frozen trunk of a reward model
                started = Path(folder) / "pairwise"
            seconds = train(started, rows, out, KINDS[kind], seed)
            rewards = [rewards_of(out, objective, held) for objective in world.objectives]
            found["kinds"][kind] = _figures(world, held, rewards) | {"seconds": round(seconds, 1)}
            if kind == "pairwise":
                members.append(rewards)
            print(json.dumps({kind: _short(found["kinds"][kind])}), flush=True)
        if len(kinds) == len(KINDS):
            members += [_another(base, rows, f"{folder}/member", world, held, seed + k) for k in (1, 2)]
            for way, tau in (("mean", math.inf), ("tilted, tau 1", 1.0), ("worst", 0.0)):
                combined = [
                    [tilted([m[i][n] for m in members], tau) for n in range(len(held))]
                    for i in range(len(world.objectives))
                ]
                found["kinds"][f"ensemble of 3, {way}"] = _figures(world, held, combined)
    return found


def _another(base: Path, rows: list[dict[str, Any]], out: str, world: World, held: Any, seed: int) -> Any:
    train(base, rows, f"{out}-{seed}", KINDS["pairwise"], seed)
    return [rewards_of(f"{out}-{seed}", objective, held) for objective in world.objectives]


def _figures(world: World, held: Any, rewards: Any) -> dict[str, Any]:
    return {name: judged(held, rewards[i], i, KAPPA) for i, name in enumerate(world.objectives)}


def _short(figures: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{one['accuracy']:.4f} of {one['ceiling']:.4f}, lacks "
        + " to ".join(f"{x:.4f}" for x in one["interval"])
        for name, one in figures.items()
        if isinstance(one, dict)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--items", nargs=2, type=int, default=[TRAIN_ITEMS, HELD_ITEMS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    started = time.process_time()
    content: dict[str, Any] = {"commit": commit(), "versions": versions(), "kappa": KAPPA, "bound": BOUND}
    content |= {"seed": chosen.seed, **study(chosen.kinds, seed=chosen.seed, items=tuple(chosen.items))}
    content["core_seconds"] = round(time.process_time() - started, 1)
    write_json(chosen.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
