"""Do reward models of every kind reach the accuracy that nobody can exceed on labels with known noise?

    python studies/reward_models/run.py                              # all kinds and an ensemble; README.md has the time
    python studies/reward_models/run.py --world safety --device cuda
    python studies/reward_models/run.py --kinds pairwise --items 200 200

Responses get noisy utilities u = κ r + Gumbel noise per objective, from their exact rewards r. Then P(u_a > u_b) =
σ(κ (r_a - r_b)) exactly, a ranking by u is Plackett and Luce's, and E u is κ r and a constant: one file of scored rows
serves every kind. Figures of held-out prompts go to results-WORLD.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
from paretune.sandbox.world import World  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.reward_models.settings import KINDS, QUIET, SETTINGS, TRUNKS, Setting, Texts, apart  # noqa: E402

BOUND = 0.02  # a kind has reached the ceiling when the interval of its shortfall ends below this


def scored_responses(world: World, texts: Texts) -> list[dict[str, Any]]:
    """Per item its responses, as rows take them, and their exact rewards, (K, m)."""
    found = []
    for item, responses in texts:
        scores = [world.score(item, text) for text in responses]
        rewards = np.array([[one[name] for name in world.objectives] for one in scores])
        given = [f" {text}" for text in responses]
        found.append({"prompt": item.prompt, "responses": given, "rewards": rewards, "group": item.group})
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


def train(base: Path, rows: list[dict[str, Any]], out: str, own: Mapping[str, Any], pairs: int, seed: int) -> float:
    """One reward model in `out`; returns the seconds that it took."""
    started = time.perf_counter()
    data_options = {"max_pairs": pairs} if apart(own) else {}
    args = RewardConfig(output_dir=out, seed=seed, **own)
    run_reward(prepare_reward(str(base), args, rows, data_options=data_options))
    return time.perf_counter() - started


def rewards_of(model: str, name: str, held: Sequence[dict[str, Any]], device: str) -> list[np.ndarray]:
    """One head's rewards of all held-out responses, as `paretune label` would ask for them."""
    source = reward_model_source(name, model, {"batch_size": 256, "device": device})
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


def study(
    setting: Setting, kinds: Sequence[str], *, seed: int = 0, device: str = "cpu", at_once: int = 1
) -> dict[str, Any]:
    """All kinds: {kind: {objective: figures, "seconds"}}, and the sizes.

    Args:
        at_once: models that are trained side by side, each in a process of its own; 1: in this one.
    """
    world = setting.world
    with tempfile.TemporaryDirectory() as folder:
        base = setting.base(Path(folder) / "base", seed)
        drawn, held = (
            scored_responses(world, setting.draw(world, base, prompts, responses, seed + out, bool(out), device))
            for out, (prompts, responses) in enumerate(zip(setting.items, setting.responses, strict=True))
        )
        rows = scored_rows(world, drawn, setting.kappa, seed)
        found: dict[str, Any] = {
            "train_prompts": len(drawn),
            "train_responses": sum(len(one["responses"]) for one in drawn),
            "held_out_prompts": len(held),
            "kinds": {},
        }
        to_train = [(kind, seed) for kind in kinds if kind not in TRUNKS]
        if len(kinds) == len(KINDS):  # the ensemble's others
            to_train += [("pairwise", seed + k) for k in range(1, setting.members)]
        told = Told(folder, rows, held, device, setting.pairs, setting.kappa, world.objectives)
        rewards: Rewards = {}
        for one in _mapped([(told, base, kind, setting.kinds[kind], number) for kind, number in to_train], at_once):
            rewards.update(one)
        for kind in (kind for kind in kinds if kind in TRUNKS):
            trunk = Path(told.place(TRUNKS[kind], seed)) if (TRUNKS[kind], seed) in rewards else base
            rewards.update(_trained((told, trunk, kind, setting.kinds[kind], seed)))
        for kind in kinds:
            own, seconds = rewards[kind, seed]
            found["kinds"][kind] = told.figures(own) | {"seconds": round(seconds, 1), "settings": setting.kinds[kind]}
        members = [rewards[key][0] for key in to_train if key[0] == "pairwise"]
        for way, tau in (("mean", math.inf), ("tilted, tau 1", 1.0), ("worst", 0.0)) if len(members) > 1 else ():
            combined = [
                [tilted([member[i][n] for member in members], tau) for n in range(len(held))]
                for i in range(len(world.objectives))
            ]
            found["kinds"][f"ensemble of {len(members)}, {way}"] = told.figures(combined)
    return found


Rewards = dict[tuple[str, int], tuple[list[list[np.ndarray]], float]]  # (kind, seed) -> per objective, seconds


@dataclass(frozen=True)
class Told:
    """What a process is told of a setting, whose world cannot be sent to it."""

    folder: str
    rows: list[dict[str, Any]]
    held: list[dict[str, Any]]
    device: str
    pairs: int
    kappa: float
    objectives: Sequence[str]

    def place(self, kind: str, seed: int) -> str:
        return f"{self.folder}/{kind.replace(', ', '-').replace(' ', '-')}-{seed}"

    def figures(self, rewards: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        return {name: judged(self.held, rewards[i], i, self.kappa) for i, name in enumerate(self.objectives)}


Task = tuple[Told, Path, str, Mapping[str, Any], int]  # (told, base, kind, its settings, seed)


def _mapped(tasks: Sequence[Task], at_once: int) -> Iterable[Rewards]:
    if at_once == 1:
        yield from map(_trained, tasks)
        return
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        yield from pool.map(_trained, tasks)


def _quiet() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _trained(task: Task) -> Rewards:
    """One model: trained, saved, and asked about what is held out."""
    told, base, kind, own, seed = task
    out = told.place(kind, seed)
    seconds = train(base, told.rows, out, {**QUIET, **own, "use_cpu": told.device == "cpu"}, told.pairs, seed)
    rewards = [rewards_of(out, objective, told.held, told.device) for objective in told.objectives]
    print(json.dumps({f"{kind} {seed}": _short(told.figures(rewards))}), flush=True)
    return {(kind, seed): (rewards, seconds)}


def _short(figures: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{one['accuracy']:.4f} of {one['ceiling']:.4f}, lacks "
        + " to ".join(f"{x:.4f}" for x in one["interval"])
        for name, one in figures.items()
        if isinstance(one, dict)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="words", choices=list(SETTINGS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--items", nargs=2, type=int, metavar=("TRAIN", "HELD_OUT"), help="prompts, if fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--at_once", type=int, default=1, help="models to train side by side")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    setting = SETTINGS[chosen.world]
    if chosen.items:
        setting = replace(setting, items=tuple(chosen.items))
    _quiet()
    started, began = time.process_time(), time.perf_counter()
    content: dict[str, Any] = {"commit": commit(), "versions": versions(), "world": chosen.world}
    content |= {"kappa": setting.kappa, "bound": BOUND, "seed": chosen.seed, "device": chosen.device}
    content |= study(setting, chosen.kinds, seed=chosen.seed, device=chosen.device, at_once=chosen.at_once)
    content["core_seconds"] = round(time.process_time() - started, 1)
    content["seconds"] = round(time.perf_counter() - began, 1)
    write_json(chosen.out or HERE / f"results-{chosen.world}.json", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
