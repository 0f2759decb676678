"""Every combiner in the exact world, described without verdicts: 3 development seeds, 9 weightings, default world.

    python studies/does_raco_win/combiners.py   # combiners.json; a quarter of an hour on a busy core

Equal objectives, plain steps at linear's step size of `frozen.json`; fronts read at the study's two levels of KL.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.combine import COMBINERS  # noqa: E402
from paretune.sandbox.bandit import low_rank  # noqa: E402
from paretune.sandbox.bandit_fronts import held_out  # noqa: E402
from paretune.sandbox.bandit_runs import Run, train  # noqa: E402
from paretune.training.record import commit, write_json  # noqa: E402
from studies.exact import best_of, ceiling_of, read_at, rounded, setting, two_weights, volume  # noqa: E402

SEEDS, STEPS = (0, 1, 2), 120
CONTROLS = ("replay", "random_correction")  # the study has its own
SHARES = (0.25, 1.0)


def main() -> None:
    torch.set_num_threads(1)
    frozen = json.loads((HERE / "frozen.json").read_text(encoding="utf-8"))["sgd equal"]
    one, weights = setting("default", "equal", SEEDS), two_weights(9)
    data = dict(zip(one.seeds, one.data, strict=True))
    levels = [share * frozen["late level"] for share in SHARES]
    tops = [ceiling_of("default", 0, 2, level) for level in levels]
    kept = HERE / "combiners.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in COMBINERS:
        if name in CONTROLS or name in found:
            continue
        runs = [Run(name, tuple(w.tolist()), frozen["step size"]["linear"], seed) for seed in SEEDS for w in weights]
        paths = train(one.worlds[0], low_rank(), data, runs, steps=STEPS, betas=one.betas, batch_size=64, every=4)
        theta = paths.theta.view(len(paths.steps), len(SEEDS), len(weights), -1)
        read = read_at(one.worlds, theta, levels)
        last = held_out(one.worlds, theta[-1:])[1]
        shares = [
            [volume(read.points[k, s], top[0], top[1]["nadir - 10 %"]) for s in range(len(SEEDS))]
            for k, top in enumerate(tops)
        ]
        found[name] = {
            "early": rounded(shares[0]),
            "late": rounded(shares[1]),
            "best of, late": rounded([best_of(read.points[1, s], tops[1][0]) for s in range(len(SEEDS))]),
            "KL at the last step, least and largest": rounded([float(last.min()), float(last.max())], 3),
            "runs that do not get to the late level": int(read.points[1, ..., 0].isnan().sum()),
            "points, late": rounded(read.points[1].nanmean(0), 4),
            "commit": commit(),
        }
        write_json(kept, found)
        print(f"{name:20} {found[name]['late']}", flush=True)


if __name__ == "__main__":
    main()
