"""Draws results.json as figure.svg. Needs matplotlib.

python studies/alignment_tax/figure.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from studies.drawing import figure_command  # noqa: E402

COLOURS = {"linear": "#0072b2", "raco": "#d55e00", "coverage alone": "#009e73", "conciseness alone": "#cc79a7"}
PANELS = {
    "loss": "held-out demonstrations: loss above the base's,\nnats per token",
    "faithfulness": "faithfulness (not trained), change",
    "coverage": "coverage (trained, but in 'conciseness alone'), change",
    "conciseness": "conciseness (trained, but in 'coverage alone'), change",
}


def draw(results: dict[str, Any]) -> Any:
    """One panel per figure, all against KL from the base: thin lines are seeds, thick ones their means."""
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7.6), layout="constrained")
    for axes, (key, title) in zip(panels.flat, PANELS.items(), strict=True):
        for arm, points in results["changes"].items():
            for seed in range(len(points[0]["KL"]["seeds"])):
                kl, change = ([0, *(point[k]["seeds"][seed] for point in points)] for k in ("KL", key))
                axes.plot(kl, change, color=COLOURS[arm], linewidth=0.6, alpha=0.5)
            kl, change = ([0, *(point[k]["mean"] for point in points)] for k in ("KL", key))
            axes.plot(kl, change, "o-", color=COLOURS[arm], linewidth=1.8, markersize=4, label=arm)
        axes.axhline(0, color="#666666", linewidth=0.6)
        axes.set_xlabel("KL from the base, nats per response")
        axes.set_title(title, fontsize=10)
        axes.grid(color="#dddddd", linewidth=0.6)
    panels[0, 0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
