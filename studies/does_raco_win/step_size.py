"""After the confirmation: what a smaller step size and fewer weightings do. Exploratory, development seeds.

    python studies/does_raco_win/step_size.py   # step_size.json; a few minutes

Adam and plain steps, equal objectives, default world, seeds 0 to 9; late level; fronts of 25, 13, 9 and 5 weightings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.training.record import commit, write_json  # noqa: E402
from studies.does_raco_win import run  # noqa: E402
from studies.exact import DEVELOPMENT, ceiling_of, read_at, record_steps, rounded, setting, two_weights, volume  # noqa: E402

CASES = (("adam", 0.05, 2), ("adam", 0.025, 4), ("sgd", 10.0, 2), ("sgd", 5.0, 4))  # steps: so many times the mark


def main() -> None:
    torch.set_num_threads(1)
    frozen = json.loads((HERE / "frozen.json").read_text(encoding="utf-8"))
    one, weights = setting("default", "equal", DEVELOPMENT), two_weights(25)
    found = {}
    for optimizer, lr, times in CASES:
        rule = frozen[f"{optimizer} equal"]
        steps, level = times * rule["mark"], rule["late level"]
        best, corners = ceiling_of("default", 0, 2, level)
        names = ("linear", "raco", "cagrad")
        arms = [run.arm(run.FIRST[name], weights, lr) for name in names]
        trace = run._train(one, arms, steps, record_steps(steps, steps), optimizer)
        for name, theta in zip(names, trace.theta.chunk(3, 2), strict=True):
            points = read_at(one.worlds, theta, [level]).points[0]
            found[f"{optimizer} {lr:g} {name}"] = {
                str(len(weights[::skip])): rounded(
                    sum(volume(p[::skip], best, corners["nadir - 10 %"]) for p in points) / len(points)
                )
                for skip in (1, 2, 3, 6)
            }
            print(optimizer, lr, name, found[f"{optimizer} {lr:g} {name}"], flush=True)
    write_json(HERE / "step_size.json", {"commit": commit(), "share of the ceiling by number of weightings": found})


if __name__ == "__main__":
    main()
