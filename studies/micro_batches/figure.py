"""Draws results.json and cells.jsonl as figure.png. Needs matplotlib.

python studies/micro_batches/figure.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from studies.exact import finished  # noqa: E402

COLOURS = {"linear": "#0072b2", "whole": "#d55e00", "1 row": "#000000", "2 rows": "#666666", "8 rows": "#aaaaaa"}
CONDITION = "default/equal/sgd"


def main() -> None:
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    cells = [cell for key, cell in finished(HERE / "cells.jsonl").items() if key.startswith(CONDITION)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for name, colour in COLOURS.items():
        points = np.mean([cell["points"][name] for cell in cells], 0)
        left.plot(*points.T, ".-", color=colour, linewidth=0.9, label=name)
        degrees = results["degrees by weighting"][CONDITION][name]["to linear"]
        right.plot(results["weightings"], degrees, ".-", color=colour, linewidth=0.9, label=name)
    left.set_xlabel("held-out reward of objective 1")
    left.set_ylabel("held-out reward of objective 2")
    right.set_xlabel("weight of objective 1")
    right.set_ylabel("degrees from the update to linear weighting")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "figure.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
