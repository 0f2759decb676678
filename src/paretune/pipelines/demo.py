"""The demo: trains the sandbox's base models, aligns them by several methods and weights, measures what each bought.

Everything is made and trained here, offline: worlds with exact rewards (`sandbox`), comparisons sampled from a small
base and labelled by the rewards, real runs of `RACOTrainer`, and scores of fresh samples for held-out prompts. Every
cell (a method, a weighting, a seed) is a run directory of its own with a `cell.json`; a finished cell is never
repeated. The whole ends in `result.json`, which `paretune report` draws.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.evaluation.sample import Samples, sample
from paretune.files import write_text
from paretune.objectives import Objective
from paretune.pipelines.workers import quiet_worker
from paretune.sandbox import WORLDS
from paretune.sandbox.labels import PRESETS, Labelling
from paretune.sandbox.language import BASE_STEPS, make_items, sample_rows, train_base
from paretune.sandbox.world import Item, World
from paretune.training.config import RACOConfig
from paretune.training.record import commit, plain, versions, write_json
from paretune.training.trainer import RACOTrainer


@dataclass(frozen=True)
class Plan:
    """How much the demo does; the defaults end within five minutes on two cores.

    `methods` take every weighting; "mgda" ignores weights and takes the even one only. `labelling` is a preset of
    `sandbox.labels` with `kappa` (inverse noise of the labellers) for these worlds' rewards, which differ by 0.1 to 1;
    a preset whose labels follow the rewards exactly keeps doing so.
    """

    worlds: tuple[str, ...] = ("summaries", "safety")
    methods: tuple[str, ...] = ("linear", "cagrad", "raco", "mgda")
    seeds: tuple[int, ...] = (0,)
    labelling: str = "clean"
    kappa: float = 6.0
    prompts: int = 400
    pairs_per_prompt: int = 3
    steps: int = 50
    batch: int = 32
    learning_rate: float = 1e-4
    beta: float = 0.1
    eval_prompts: int = 64
    eval_samples: int = 8
    oracle_of: int = 64
    base_steps: int = BASE_STEPS
    workers: int = 2

    def labels(self) -> Labelling:
        """How this plan's comparisons are labelled."""
        return PRESETS[self.labelling].with_kappa(self.kappa)

    def digest(self) -> str:
        """Identifies how a cell is computed, by which plan and code, so that a change of either starts afresh.

        Seeds name cells and workers change nothing: more of them go on from what is there.
        """
        content = {k: v for k, v in asdict(self).items() if k not in ("workers", "seeds")} | {"code": code_digest()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_digest() -> str:
    """Identifies the code that results come from: ours (but what only shows them), and the packages that compute."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(("cli/", "evaluation/report/")):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    used = {name: versions().get(name) for name in ("torch", "transformers")}
    digest.update(json.dumps(used, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Cell:
    """One run: a world, a method ("single" trains on one objective alone), weights on the simplex, a seed."""

    world: str
    method: str
    weights: tuple[float, ...]
    seed: int

    @property
    def name(self) -> str:
        return "-".join([self.method, *(f"{w:.2f}" for w in self.weights), f"s{self.seed}"])


def weightings(m: int) -> list[tuple[float, ...]]:
    """The even weighting, then each objective favoured with 0.6 against 0.4 for the rest together."""
    tilted = [tuple(0.6 if j == i else 0.4 / (m - 1) for j in range(m)) for i in range(m)]
    return [tuple([1 / m] * m), *tilted]


def make_cells(plan: Plan, world: World) -> list[Cell]:
    """Every run of one world: the single-objective ceilings, then methods by weightings, by seeds."""
    m = len(world.objectives)
    grid = weightings(m)
    cells = []
    for seed in plan.seeds:
        cells += [Cell(world.name, "single", tuple(float(j == i) for j in range(m)), seed) for i in range(m)]
        for method in plan.methods:
            cells += [Cell(world.name, method, w, seed) for w in (grid[:1] if method == "mgda" else grid)]
    return cells


def held_out(plan: Plan, world: World) -> list[Item]:
    """The prompts that scores are taken on, of groups that are never trained on."""
    return make_items(world, plan.eval_prompts, seed=0, held_out=True)


def score_samples(world: World, items: list[Item], samples: Samples) -> dict[str, Any]:
    """Mean exact rewards with 95 % intervals over prompts, further figures of the world, and the KL where known."""
    rewards = _rewards(world, items, samples)
    means = rewards.mean(1)  # (prompts, m): prompts are the independent units, not samples
    half = 1.96 * means.std(0, ddof=1) / math.sqrt(len(items))
    found: dict[str, list[float]] = {}
    for item, texts in zip(items, samples.texts, strict=True):
        for text in texts:
            for name, value in world.extras(item, text).items():
                found.setdefault(name, []).append(value)
    extras = {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}
    middle = means.mean(0)
    ends = np.stack([middle - half, middle + half], 1).tolist()
    out: dict[str, Any] = {
        "scores": dict(zip(world.objectives, middle.tolist(), strict=True)),
        "ci": dict(zip(world.objectives, ends, strict=True)),
        "extras": extras,
    }
    if samples.ref_logps is not None:
        out["kl"] = float(samples.kl().mean())
    return out


def _rewards(world: World, items: list[Item], samples: Samples) -> np.ndarray:
    """(prompts, samples, m) exact rewards."""
    pairs = zip(items, samples.texts, strict=True)
    return np.array(
        [[[world.score(item, text)[o] for o in world.objectives] for text in texts] for item, texts in pairs]
    )


def prepare_world(plan: Plan, name: str, folder: Path) -> dict[str, Any]:
    """Base, comparisons, base scores, oracle and hacks of one world; kept in `world.json`."""
    kept = folder / name / "world.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    world, started = WORLDS[name], time.perf_counter()
    base = train_base(world, seed=0, steps=plan.base_steps)
    trained = time.perf_counter() - started
    rows = sample_rows(world, base, plan.prompts, plan.pairs_per_prompt, plan.labels(), seed=0)
    data = folder / name / "train.jsonl"
    write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
    items = held_out(plan, world)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    prompts = [item.prompt for item in items]
    many = sample(model, tokenizer, prompts, plan.oracle_of, max_new_tokens=world.max_response + 1, seed=1)
    few = sample(model, tokenizer, prompts, plan.eval_samples, max_new_tokens=world.max_response + 1, seed=0)
    labels = np.array([[row["preferences"][o] for o in world.objectives] for row in rows], dtype=float)
    content = {
        "base": str(base),
        "rows": len(rows),
        "conflicting_share": _conflicting(labels),
        "seconds": {"base": trained, "all": time.perf_counter() - started},
        "base_scores": {**score_samples(world, items, few), "n": plan.eval_samples * len(items)},
        "base_texts": [texts[0] for texts in few.texts],
        "oracle": oracle_front(world, items, many),
        "hacks": {
            hack: {"scores": _mean_scores(world, [(item, respond(item)) for item in items])}
            for hack, respond in world.hacks.items()
        },
    }
    write_json(kept, content)
    return plain(content)


def _conflicting(labels: np.ndarray) -> float:
    """Share of rows on which at least one objective decides for a and another for b."""
    return float(((labels > 0.5).any(1) & (labels < 0.5).any(1)).mean())


def _mean_scores(world: World, pairs: Iterable[tuple[Item, str]]) -> dict[str, float]:
    scores = np.array([list(world.score(item, text).values()) for item, text in pairs])
    return dict(zip(world.objectives, scores.mean(0).tolist(), strict=True))


def oracle_front(world: World, items: list[Item], samples: Samples) -> list[dict[str, Any]]:
    """Best of n samples of the base per prompt, by the weighted sum of rewards in units of their spread: what choosing
    alone could reach, without training."""
    rewards = _rewards(world, items, samples)
    unit = rewards.reshape(-1, rewards.shape[2]).std(0)
    unit = np.where(unit > 0, unit, 1.0)  # an objective on which the base never varies decides nothing
    out = []
    m = len(world.objectives)
    corners = [tuple(float(j == i) for j in range(m)) for i in range(m)]
    for weights in [*corners, *weightings(m)]:
        best = (rewards / unit @ np.array(weights)).argmax(1)
        chosen = rewards[np.arange(len(items)), best].mean(0)
        out.append(
            {
                "weights": dict(zip(world.objectives, weights, strict=True)),
                "scores": dict(zip(world.objectives, chosen.tolist(), strict=True)),
            }
        )
    return out


def run_cell(plan: Plan, cell: Cell, base: str, folder: Path) -> dict[str, Any]:
    """Trains one cell and scores it; kept in `cell.json`."""
    run = folder / cell.world / cell.name
    kept = run / "cell.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    world = WORLDS[cell.world]
    args = RACOConfig(
        output_dir=str(run),
        combiner="linear" if cell.method == "single" else cell.method,
        beta=plan.beta,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch,
        gradient_accumulation_steps=1,
        max_steps=plan.steps,
        logging_steps=5,
        save_strategy="no",
        seed=cell.seed,
        precompute_ref_log_probs=True,
        disable_tqdm=True,
        report_to="none",
    )
    betas = plan.labels().betas(plan.beta, len(world.objectives))
    given = zip(world.objectives, cell.weights, betas, strict=True)
    objectives = [Objective(o, weight=w, beta=beta) for o, w, beta in given]
    trainer = RACOTrainer(base, args, objectives, str(folder / cell.world / "train.jsonl"))
    trainer.train()
    items, tokenizer = held_out(plan, world), AutoTokenizer.from_pretrained(base)
    reference = AutoModelForCausalLM.from_pretrained(base)
    samples = sample(
        trainer.model, tokenizer, [item.prompt for item in items], plan.eval_samples,
        max_new_tokens=world.max_response + 1, seed=cell.seed, reference=reference,
    )  # fmt: skip
    content = {**score_samples(world, items, samples), "texts": [texts[0] for texts in samples.texts]}
    write_json(kept, content)
    return plain(content)


def run_demo(folder: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs what is not yet there, in parallel processes, and writes `result.json`.

    Args:
        folder: where everything goes; cells of different plans or code do not meet, each has its own subfolder.
        plan: how much.
        say: receives a line of progress now and then.
    """
    place = folder / f"runs-{plan.digest()}"
    result = folder / "result.json"
    if result.exists():
        content = json.loads(result.read_text(encoding="utf-8"))
        if content.get("runs") == place.name and content.get("seeds") == list(plan.seeds):
            return content
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plan.workers, mp_context=context, initializer=quiet_worker) as pool:
        preparing: dict[Future[dict[str, Any]], str] = {
            pool.submit(prepare_world, plan, name, place): name for name in plan.worlds
        }
        worlds: dict[str, dict[str, Any]] = {}
        training: dict[Future[dict[str, Any]], Cell] = {}
        for done in as_completed(preparing):
            name = preparing[done]
            worlds[name] = done.result()
            seconds = worlds[name]["seconds"]["base"]
            say(f"{name}: base ready after {seconds:.0f} s, {worlds[name]['rows']} comparisons, "
                f"{worlds[name]['conflicting_share']:.0%} of them in conflict")  # fmt: skip
            for cell in make_cells(plan, WORLDS[name]):
                training[pool.submit(run_cell, plan, cell, worlds[name]["base"], place)] = cell
        found: dict[Cell, dict[str, Any]] = {}
        for done in as_completed(training):
            found[training[done]] = done.result()
            say(f"{len(found)} of {len(training)} runs ({time.perf_counter() - started:.0f} s)")
    content = {
        "kind": "demo",
        "runs": place.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions(),
        "command": " ".join(["paretune", *sys.argv[1:]]),
        "seeds": list(plan.seeds),
        "seconds": time.perf_counter() - started,
        "plan": asdict(plan),
        "worlds": [assemble(plan, WORLDS[name], worlds[name], found, place.name) for name in plan.worlds],
    }
    write_json(result, content)
    return plain(content)


def assemble(
    plan: Plan, world: World, prepared: dict[str, Any], found: dict[Cell, dict[str, Any]], runs: str
) -> dict[str, Any]:
    """One world's part of `result.json`; `runs` is the folder of its runs, beside that file."""
    cells = make_cells(plan, world)
    points: list[dict[str, Any]] = []
    ceilings: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        weights = dict(zip(world.objectives, cell.weights, strict=True))
        figures = {k: v for k, v in found[cell].items() if k != "texts"}
        point = {
            "method": cell.method,
            "weights": weights,
            "seed": cell.seed,
            "run": f"{runs}/{world.name}/{cell.name}",
            **figures,
        }
        if cell.method == "single":
            ceilings.setdefault(max(weights, key=weights.__getitem__), []).append(point)
        else:
            points.append(point)
    return {
        "name": world.name,
        "description": world.description,
        "objectives": list(world.objectives),
        "units": dict(world.units),
        "base": prepared["base_scores"],
        "oracle": prepared["oracle"],
        "ceilings": ceilings,
        "hacks": prepared["hacks"],
        "points": points,
        "examples": _examples(plan, world, prepared, found),
        "data": {"rows": prepared["rows"], "conflicting_share": prepared["conflicting_share"]},
    }


def _examples(
    plan: Plan, world: World, prepared: dict[str, Any], found: dict[Cell, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The first ten held-out prompts with the first response of the base and of evenly weighted runs: not chosen."""
    items, even = held_out(plan, world), weightings(len(world.objectives))[0]
    texts = {"base": prepared["base_texts"]}
    for method in ("linear", "raco"):
        cell = Cell(world.name, method, even, plan.seeds[0])
        if cell in found:
            texts[method] = found[cell]["texts"]
    return [
        {"prompt": item.prompt, **{who: some[i] for who, some in texts.items()},
         "scores": {who: world.score(item, some[i]) for who, some in texts.items()}}
        for i, item in enumerate(items[:10])
    ]  # fmt: skip
