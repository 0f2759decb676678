"""Runs one cell: trains or reads a policy, scores it, and writes `cell.json` last, whole or not at all."""

from __future__ import annotations

import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from paretune.evaluation.sample import sample
from paretune.files import write_text
from paretune.pipelines.demo import code_digest, oracle_front
from paretune.pipelines.front.plan import SINGLE, Cell, Plan
from paretune.pipelines.front.scoring import held_out_items, response_length, score_policy
from paretune.pipelines.methods import Outcome, Request, check_method, find_method, load_outcome, run_method
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.sandbox import WORLDS
from paretune.sandbox.labels import PRESETS
from paretune.sandbox.language import made_tokenizer, sample_rows, train_base
from paretune.training.config import RACOConfig
from paretune.training.record import commit, plain, versions, write_json
from paretune.training.rundir import run_record

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "checkpoint-*", "optimizer.pt", "parts", "base")


def run_cell(plan: Plan, cell: Cell, needs: dict[str, str], folder: Path) -> str:
    """Runs a cell in a worker.

    Args:
        needs: name of a finished cell that it needs -> its folder.
        folder: of the front.

    Returns:
        Its name; what it found is in its `cell.json`.
    """
    started = time.perf_counter()
    place = folder / cell.folder
    place.mkdir(parents=True, exist_ok=True)
    steps = {"base": _base, "train": _train, "trunk": _train, "read": _read}
    found = steps[cell.kind](plan, cell, needs, place)
    about = {"kind": cell.kind, "label": cell.label, "weights": cell.weights, "seed": cell.seed}
    record = {"digest": cell.digest, "meaning": dict(cell.meaning), "code": code_digest(), "commit": commit()}
    made = {"versions": versions(), "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    seconds = {"seconds": time.perf_counter() - started}
    write_json(place / "cell.json", {"cell": cell.name, **about, **record, **made, **seconds, **plain(found)})
    return cell.name


def _base(plan: Plan, cell: Cell, needs: dict[str, str], place: Path) -> dict[str, Any]:
    """Scores what training starts from; of a world, makes it, its comparisons and its oracle first."""
    model = base_model(plan, cell.seed)
    found: dict[str, Any] = {"run": None}
    if plan.world is not None:
        world = WORLDS[plan.world.name]
        labelling = PRESETS[plan.world.labelling].with_kappa(plan.world.kappa)
        rows = sample_rows(world, model, plan.world.prompts, plan.world.pairs_per_prompt, labelling, cell.seed)
        write_text(place / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        items = held_out_items(plan)
        many = sample(
            load_scored(model), load_tokenizer(model), [item.prompt for item in items], plan.world.oracle_of,
            max_new_tokens=response_length(plan), seed=cell.seed + 1,
        )  # fmt: skip
        found |= {"rows": len(rows), "oracle": oracle_front(world, items, many)}
    outcome = Outcome(load_scored(model), load_tokenizer(model))
    return {**found, **score_policy(plan, outcome, model, cell.seed)}


def base_model(plan: Plan, seed: int) -> str:
    """What training starts from: the model named, or a world's base for this seed, trained if it is not there."""
    if plan.world is None:
        return str(plan.model)
    return str(train_base(WORLDS[plan.world.name], seed=seed, steps=plan.world.base_steps))


def make_request(plan: Plan, cell: Cell, needs: dict[str, str], place: Path) -> Request:
    """What a training cell asks of its method."""
    entry, m = plan.entry(cell.label), len(plan.objectives)
    weights = cell.weights or tuple([1 / m] * m)
    objectives = [replace(o, weight=w) for o, w in zip(plan.objectives, weights, strict=True)]
    fixed = {"disable_tqdm": True, "report_to": "none", "output_dir": str(place), "seed": cell.seed}
    args = RACOConfig(**{"save_strategy": "no", **plan.config, **entry.settings, **fixed})
    data = plan.data
    if plan.world is not None:
        data = str(next(Path(where) for name, where in needs.items() if name.startswith("base-")) / "train.jsonl")
        betas = PRESETS[plan.world.labelling].betas(args.beta, m)
        objectives = [o if o.beta is not None else replace(o, beta=b) for o, b in zip(objectives, betas, strict=True)]
    # "single-1.000-0.000-s0": the weight 1 stands in the objective's place
    names = {tuple(float(j == i) for j in range(m)): o.name for i, o in enumerate(plan.objectives)}
    singles = {
        names[tuple(float(w) for w in name.split("-")[1:-1])]: where
        for name, where in needs.items()
        if name.startswith(f"{SINGLE}-")
    }
    return Request(
        method=entry.method,
        model=base_model(plan, cell.seed),
        args=args,
        objectives=objectives,
        train_dataset=data,
        peft_config=plan.adapter,
        ref_model=plan.ref_model,
        data_options=plan.reading,
        model_options=plan.loading,
        method_options=entry.options,
        singles=singles,
        resume=True,
    )


def _train(plan: Plan, cell: Cell, needs: dict[str, str], place: Path) -> dict[str, Any]:
    started = time.perf_counter()
    if run_record(place).get("status") != "finished" or not has_model(place):
        run_method(make_request(plan, cell, needs, place))
    found: dict[str, Any] = {"run": place.name, "train_seconds": time.perf_counter() - started}
    if cell.kind == "trunk":
        return found
    return {**found, **_scored(plan, cell, load_outcome(place))}


def _read(plan: Plan, cell: Cell, needs: dict[str, str], place: Path) -> dict[str, Any]:
    trunk = Path(needs[cell.needs[-1]])
    weights = dict(zip(plan.names, cell.weights or (), strict=True))
    return {"run": trunk.name, **_scored(plan, cell, load_outcome(trunk, weights))}


def _scored(plan: Plan, cell: Cell, outcome: Outcome) -> dict[str, Any]:
    return score_policy(plan, outcome, base_model(plan, cell.seed), cell.seed)


def has_model(place: Path) -> bool:
    """Whether a run's folder still holds what its method needs to answer."""
    method = run_record(place).get("method", {}).get("name")
    trained = any(place.glob("*.safetensors")) or any(place.glob("parts/*/*.safetensors"))
    return trained or (method is not None and find_method(str(method)).needs_singles)


def check_cells(plan: Plan, cells: list[Cell], folder: Path) -> dict[str, list[str]]:
    """Label -> what its method will do, in words; one cell of each is asked.

    Raises:
        InputError: what a method misses, before anything expensive.
    """
    said: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as made:
        if plan.world is not None:
            plan = _as_named(plan, Path(made))
        for cell in cells:
            if cell.kind in ("train", "trunk") and cell.label not in said:
                said[cell.label] = check_method(make_request(plan, cell, {}, folder / cell.folder))
    return said


def _as_named(plan: Plan, place: Path) -> Plan:
    """A world's plan before base and data are there: with its tokenizer, a model without weights, rows of its kind."""
    assert plan.world is not None
    world, rng = WORLDS[plan.world.name], random.Random(0)
    tokenizer = made_tokenizer(world)
    tokenizer.save_pretrained(place)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(place)
    rows = [
        {
            "prompt": world.make_item(rng).prompt,
            "response_a": " a",
            "response_b": " b",
            "preferences": {name: float((i + j) % 2) for j, name in enumerate(world.objectives)},
        }
        for i in range(4)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return replace(plan, world=None, model=str(place), data=str(place / "rows.jsonl"))
