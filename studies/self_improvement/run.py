"""Do references make a small judge better, and a policy that learns from it? Cells per seed, resumable.

    python studies/self_improvement/run.py --seeds 0 1 --cells cells-develop.jsonl    # development
    python studies/self_improvement/run.py                                            # confirmation seeds
    python studies/self_improvement/run.py --part 0 2 & python studies/self_improvement/run.py --part 1 2
    python studies/self_improvement/run.py --seeds 1000 1001 1002 1003 1004 --parts true paraphrased \\
        --set second_words=0.5 --cells cells-both-words.jsonl --work studies/self_improvement/work/both  # afterwards
    python studies/self_improvement/run.py --results                                  # results.json from what is there

A finished cell is a line of cells.jsonl and is never repeated; models lie in work/ and are made again where missing.
What is declared stands in PROTOCOL.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

import torch  # noqa: E402

from paretune.training.record import commit, versions, write_json  # noqa: E402
from studies.exact import fill, finished  # noqa: E402
from studies.self_improvement.analysis import afterwards, results  # noqa: E402
from studies.self_improvement.judges import accuracies, bench_rows, form, sources, train_judge  # noqa: E402
from studies.self_improvement.policies import (  # noqa: E402
    Policies,
    align,
    draw,
    evaluate,
    imitate,
    imitate_more,
    label,
    references,
    train_base,
)
from studies.self_improvement.world import OBJECTIVES, RUBRICS, make_creatures, score  # noqa: E402

SEEDS = tuple(range(1000, 1010))
QUALITIES: dict[str, dict[str, float]] = {
    "true": {},
    "wrong-25": {"wrong": 0.25},
    "wrong-50": {"wrong": 0.5},
    "paraphrased": {"paraphrased": 0.5},
}
WEIGHTS = ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2))
BETAS = (0.05, 0.2)  # beside 0.1, with which the arm "guided" of true references is the same run
PARTS = ("judge", *QUALITIES, "front")


@dataclass(frozen=True)
class Plan:
    """What all cells share."""

    judge: Mapping[str, Any] = field(default_factory=lambda: {"rows": 12_800, "epochs": 2, "batch": 64, "rate": 2e-3})
    policies: Policies = field(default_factory=Policies)
    sizes: Mapping[str, int] = field(default_factory=lambda: {"judge": 240, "train": 160, "held out": 80})
    bench: int = 200  # pairs per rubric and quality


class Cell:
    """One seed's creatures and models; what other parts need too is kept in its folder."""

    def __init__(self, plan: Plan, seed: int, work: Path):
        self.plan, self.own, self.seed, self.folder = plan, plan.policies, seed, work / str(seed)
        self.creatures = make_creatures(seed, dict(plan.sizes))
        self.by_prompt = {one.prompt: one for some in self.creatures.values() for one in some}

    def kept(self, name: str, make: Any) -> str:
        """A model's directory, made where it is missing: moved to its place when it is whole."""
        path = self.folder / name
        if not path.exists():
            partial = self.folder / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            Path(make(partial)).rename(path)
            shutil.rmtree(partial)
        return str(path)

    def judge(self) -> str:
        return self.kept("judge", lambda out: train_judge(out, self.creatures["judge"], self.seed, self.plan.judge))

    def base(self) -> str:
        policy = [*self.creatures["train"], *self.creatures["held out"]]
        return self.kept("base", lambda out: train_base(out, policy, self.seed, self.own))

    def referred(self, quality: str) -> list[dict[str, str]]:
        return references(self.creatures["train"], self.seed, **QUALITIES[quality])

    def start(self, quality: str) -> str:
        made = f"sft {quality}"
        return self.kept(
            made, lambda out: imitate(self.base(), out / "sft", self.referred(quality), self.seed, self.own)
        )

    def exact(self, objective: str) -> dict[str, Any]:
        """The truth as a source: what the best judge would say."""

        def known(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
            return [score(self.by_prompt[p], c)[objective] for p, c in zip(prompts, completions, strict=True)]

        return {"function": known}

    def read(self, model: str, start: str) -> dict[str, dict[str, float]]:
        """Exact rewards on creatures that no reference was about, and on those of the references."""
        return {
            name: evaluate(model, start, self.creatures[name], draws, self.seed)
            for name, draws in self.own.eval_draws.items()
        }

    def aligned(self, name: str, start: str, rows: Any, weights: Mapping[str, float], **options: Any) -> Any:
        """One arm's figures; its model is not kept."""
        out = self.folder / f"{name}.arm"
        kept = [row for row in rows if any(row["preferences"][o] is not None for o in weights)]
        found = {"rows": len(kept)}
        if kept:
            found |= self.read(align(start, out, kept, weights, self.seed, self.own, **options), start)
        else:  # a source without any opinion leaves the start as it is
            found |= self.read(start, start)
        shutil.rmtree(out, ignore_errors=True)
        return found


def judge_cell(cell: Cell) -> dict[str, Any]:
    """Accuracies by rubric on creatures that the judge never saw, per quality of the references; and on its own."""
    asked = sources(cell.judge(), cell.base())
    new = [*cell.creatures["train"], *cell.creatures["held out"]]
    found: dict[str, Any] = {}
    for rubric in RUBRICS:
        guided, free = f"guided {rubric}", f"free {rubric}"
        for quality, options in QUALITIES.items():
            rows = bench_rows(new, rubric, cell.plan.bench, cell.seed, **options)
            wanted = {name: asked[name] for name in (guided, "rouge", "embeddings")}
            if quality == "true":
                wanted |= {free: asked[free], "form": form(rubric)}
            found[f"{rubric}, {quality}"] = accuracies(rows, wanted)
    own = bench_rows(cell.creatures["judge"], "overall", cell.plan.bench, cell.seed)
    found["overall, own creatures"] = accuracies(own, {name: asked[f"{name} overall"] for name in ("guided", "free")})
    return {"accuracy": found}


def quality_cell(cell: Cell, quality: str) -> dict[str, Any]:
    """From the start on these references: more of the same, and one round with each source of labels."""
    referred, start = cell.referred(quality), cell.start(quality)
    asked = sources(cell.judge(), cell.base())
    labelled_by = {"guided": asked["guided overall"]}
    if quality in ("true", "paraphrased"):
        labelled_by["rouge"] = asked["rouge"]
    if quality == "true":
        labelled_by |= {"free": asked["free overall"], "exact": cell.exact("overall")}
    candidates = draw(start, cell.folder / "draws" / quality, referred, cell.seed, cell.own)
    rows, _ = label(candidates, labelled_by)
    arms: dict[str, Any] = {"sft": cell.read(start, start)}
    for rate in cell.own.more_rates if quality == "true" else cell.own.more_rates[:1]:
        out = cell.folder / f"more {quality}.arm"
        arms[f"sft more {rate:g}"] = cell.read(imitate_more(start, out, referred, rate, cell.seed, cell.own), start)
        shutil.rmtree(out)
    if quality == "true":
        arms["base"] = cell.read(cell.base(), start)
    for name in labelled_by:
        arms[name] = cell.aligned(name, start, rows, {name: 1.0})
    return {"arms": arms, "labels right": {name: right_labels(cell, rows, name) for name in labelled_by}}


def right_labels(cell: Cell, rows: Sequence[Mapping[str, Any]], name: str, rubric: str = "overall") -> float | None:
    """Share of the pairs that differ in exact reward whose label is right; no label is half right."""
    right = []
    for row in rows:
        a, b = (score(cell.by_prompt[row["prompt"]], row[f"response_{side}"])[rubric] for side in "ab")
        if abs(a - b) > 1e-9:
            given = row["preferences"][name]
            right.append(0.5 if given is None else float((given > 0.5) == (a > b)))
    return sum(right) / len(right) if right else None


def front_cell(cell: Cell) -> dict[str, Any]:
    """Several judged objectives, combined at three weightings, against one judge of overall quality at three betas."""
    referred, start = cell.referred("true"), cell.start("true")
    asked = sources(cell.judge(), cell.base())
    candidates = draw(start, cell.folder / "draws" / "front", referred, cell.seed, cell.own)
    labelled_by = {rubric: asked[f"guided {rubric}"] for rubric in RUBRICS}
    rows, report = label(candidates, labelled_by)
    arms: dict[str, Any] = {"sft": cell.read(start, start)}
    for combiner in ("raco", "linear"):
        for weights in WEIGHTS:
            of = dict(zip(OBJECTIVES, weights, strict=True))
            arms[f"{combiner} {weights[0]:g}"] = cell.aligned("front", start, rows, of, combiner=combiner)
    for beta in BETAS:
        arms[f"overall {beta:g}"] = cell.aligned("front", start, rows, {"overall": 1.0}, beta=beta)
    right = {rubric: right_labels(cell, rows, rubric, rubric) for rubric in RUBRICS}
    return {"arms": arms, "labels right": right, "agreement": report.agreement}


def compute(plan: Plan, key: str, work: Path) -> dict[str, Any]:
    """A cell: "SEED PART"."""
    seed, part = key.split(" ", 1)
    cell, began = Cell(plan, int(seed), work), time.process_time()
    whole = {"judge": judge_cell, "front": front_cell}
    content = whole[part](cell) if part in whole else quality_cell(cell, part)
    return {**content, "core seconds": round(time.process_time() - began, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--part", nargs=2, type=int, metavar=("I", "N"), default=(0, 1), help="seeds I, I + N, ... alone"
    )
    parser.add_argument("--cells", default="cells.jsonl")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other numbers, for development")
    parser.add_argument("--results", action="store_true", help="only write results.json")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="models, not kept")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    path = HERE / chosen.cells
    if not chosen.results:
        changed = {key: json.loads(value) for key, value in (one.split("=") for one in chosen.set)}
        plan = replace(Plan(), policies=replace(Policies(), **changed))
        keys = [f"{seed} {part}" for seed in chosen.seeds[chosen.part[0] :: chosen.part[1]] for part in chosen.parts]
        fill(path, keys, lambda key: compute(plan, key, chosen.work))
    else:
        told = {"commit": commit(), "versions": versions(), "plan": asdict(Plan())}
        both = {"both words": afterwards(finished(HERE / "cells-both-words.jsonl"))}
        write_json(HERE / "results.json", {**told, **results(finished(path)), **both})
    return 0


if __name__ == "__main__":
    sys.exit(main())
