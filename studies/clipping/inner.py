"""After the confirmation: the same comparison where every objective has weight. Exploratory, development seeds.

    python studies/clipping/inner.py   # inner.json; a few minutes

The study's weightings include ends and, for five objectives, nothing but faces of the simplex: there clipping removes
whatever the dual gives to objectives of weight 0. Here each weighting is three quarters of its own plus a quarter of
the even one. Seeds 0 to 9, knob 1, everything else as in run.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.training.record import commit, write_json  # noqa: E402
from studies.clipping import run  # noqa: E402
from studies.exact import DEVELOPMENT, ceiling_of, read_at, rounded, setting, volume  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    levels = json.loads((HERE / "frozen.json").read_text(encoding="utf-8"))["late level"]
    plain, found = run.weightings, {}
    for m in run.OBJECTIVES:
        run.weightings = lambda count: 0.75 * plain(count) + 0.25 / count
        one = setting("knob 1", "equal", DEVELOPMENT, m)
        paths, watched = run.trained(one, m, run.STEPS)
        level = levels[f"{m}/knob 1"]
        best, corners = ceiling_of("knob 1", 0, m, level)
        fronts = {
            name: [
                volume(points, best, corners["nadir - 10 %"])
                for points in read_at(one.worlds, theta, [level]).points[0]
            ]
            for name, theta in paths.items()
        }
        acts = torch.as_tensor(watched.acts)
        found[str(m)] = {
            "front": rounded(fronts["raco"]),
            "raco - cagrad, mean": rounded(
                sum(a - b for a, b in zip(fronts["raco"], fronts["cagrad"], strict=True)) / 10
            ),
            "raco - cagrad, seeds": rounded([a - b for a, b in zip(fronts["raco"], fronts["cagrad"], strict=True)]),
            "raco - linear, mean": rounded(
                sum(a - b for a, b in zip(fronts["raco"], fronts["linear"], strict=True)) / 10
            ),
            "share of steps": rounded(float(acts.mean()) / run.STEPS),
            "share of steps it lowers alignment": rounded(float(torch.as_tensor(watched.lowers).mean()) / run.STEPS),
            "degrees where it acts": rounded(float((torch.as_tensor(watched.turned).sum() / acts.sum()).rad2deg()), 2),
        }
        print(m, found[str(m)], flush=True)
    write_json(HERE / "inner.json", {"commit": commit(), **found})


if __name__ == "__main__":
    main()
