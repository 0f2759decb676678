"""Draws results.json as figure.png. Needs matplotlib.

python studies/clipping/figure.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
COLOURS = {"knob 0.5": "#56b4e9", "knob 1": "#0072b2", "knob 2": "#000000", "untuned": "#d55e00"}


def main() -> None:
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.3))
    for world, colour in COLOURS.items():
        what = results["clipping"][f"2/{world}"]
        first = [w[0] for w in what["weightings"]]
        left.plot(first, [100 * x for x in what["by weighting"]], ".-", color=colour, label=world)
        middle.plot(first, what["degrees by weighting"], ".-", color=colour, label=world)
    left.set_ylabel("% of steps in which clipping acts")
    middle.set_ylabel("degrees it turns the update by, where it acts")
    for axes in (left, middle):
        axes.set_xlabel("weight of objective 1 (two objectives)")
    rows = results["verdicts"]["primary: raco - cagrad, late"]
    for i, (name, row) in enumerate(rows.items()):
        m, world = name.split("/")
        error = [[100 * (row["mean"] - row["low"])], [100 * (row["high"] - row["mean"])]]
        right.errorbar([i], [100 * row["mean"]], error, fmt="o", color=COLOURS[world], capsize=3)
    right.axhspan(-1, 1, color="#eeeeee", zorder=0)
    right.axhline(0, color="black", linewidth=0.6)
    right.set_xticks([1.5, 5.5, 9.5], ["2 objectives", "3 objectives", "5 objectives"])
    right.set_ylabel("RACO less CAGrad, points of % of the ceiling")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "figure.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
