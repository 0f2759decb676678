"""Are the language worlds fit for use whatever seed their base was trained from?

    python studies/world_fitness/run.py                    # two bases per world, one thread: under two minutes
    python studies/world_fitness/run.py --bases 0 1 2 3 4  # more of them

The suite checks one trained base per world, over seeds that vary prompts and responses (`paretune.sandbox.fitness`).
Here the base itself varies: its weights and demonstrations. Bases are kept in the cache, as the demo's are. The exit
status is 1 where a base is unfit; figures go to results.json beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from paretune.sandbox import WORLDS  # noqa: E402
from paretune.sandbox.fitness import Fitness, world_fitness  # noqa: E402
from paretune.sandbox.language import BASE_STEPS, train_base  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

SAMPLING_SEEDS = (0, 1, 2)


def figures(fitness: Fitness) -> dict[str, Any]:
    """One base's fitness in plain values; rooms and depths in standard deviations of its responses to one prompt."""
    names = fitness.world.objectives
    return {
        "problems": fitness.problems(),
        "base": {name: fitness.base[:, i].tolist() for i, name in enumerate(names)},  # per sampling seed
        "spread": dict(zip(names, fitness.spread.tolist(), strict=True)),
        "best": dict(zip(names, fitness.oracle.max(0).tolist(), strict=True)),
        "room_each": dict(zip(names, fitness.room_each().tolist(), strict=True)),
        "room_all": fitness.room_all(),
        "depth": {hack: fitness.depth(hack) for hack in fitness.hacks},
        "distinct": fitness.distinct,
        "ended": fitness.ended,
    }


def apart(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far the bases' mean scores lie apart, as a share of the least room above any of them, per objective."""
    names = next(iter(found.values()))["base"]
    shares = {}
    for name in names:
        means = [float(np.mean(one["base"][name])) for one in found.values()]
        room = min(one["best"][name] - mean for one, mean in zip(found.values(), means, strict=True))
        shares[name] = (max(means) - min(means)) / room
    return shares


def table(results: dict[str, Any]) -> str:
    """The figures of every base as a Markdown table; ranges go over a base's objectives or hacks that are no corner."""
    lines = ["| world | base | problems | room, each | room, all | hacks inside by | different | ended |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, world in results["worlds"].items():
        for seed, one in world["bases"].items():
            each = one["room_each"].values()
            inside = [depth for hack, depth in one["depth"].items() if hack not in WORLDS[name].corners]
            cells = [
                *(name, seed, "; ".join(one["problems"]) or "none", f"{min(each):.2f} to {max(each):.2f}"),
                *(f"{one['room_all']:.2f}", f"{min(inside):.2f} to {max(inside):.2f}"),
                *(f"{one['distinct']:.0%}", f"{one['ended']:.1%}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, nargs="+", default=[0, 1], metavar="SEED", help="seeds of bases")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS), help="some worlds")
    parser.add_argument("--prompts", type=int, default=32, help="held-out prompts per sampling seed")
    parser.add_argument("--steps", type=int, default=BASE_STEPS, help="of a base's training")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the figures go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.perf_counter()
    results: dict[str, Any] = {
        "command": " ".join(
            ["python studies/world_fitness/run.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(),
        "versions": versions(),
        "sampling_seeds": SAMPLING_SEEDS,
        "prompts": options.prompts,
        "worlds": {},
    }
    for world in options.worlds:
        found = {}
        for seed in options.bases:
            base = train_base(WORLDS[world], seed=seed, steps=options.steps)
            fitness = world_fitness(WORLDS[world], base, SAMPLING_SEEDS, n_prompts=options.prompts)
            found[str(seed)] = one = figures(fitness)
            print(f"{world}, base {seed}: {'; '.join(one['problems']) or 'fit'}", flush=True)
        results["worlds"][world] = {"bases": found, "apart": apart(found)}
    results["seconds"] = round(time.perf_counter() - began, 1)
    write_json(options.out, results)
    return int(any(one["problems"] for world in results["worlds"].values() for one in world["bases"].values()))


if __name__ == "__main__":
    sys.exit(main())
