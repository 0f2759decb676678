"""Draws results.json and cells.jsonl as figures. Needs matplotlib.

python studies/does_raco_win/figure.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from studies.does_raco_win.run import GRIDS, SHARES, WORLDS  # noqa: E402
from studies.exact import finished  # noqa: E402

COLOURS = {
    "linear": "#0072b2",
    "raco": "#d55e00",
    "cagrad": "#e69f00",
    "random": "#999999",
    "linear-matched": "#009e73",
    "linear-scheduled": "#56b4e9",
    "linear-replayed": "#cc79a7",
}
CONDITIONS = [f"{variant}/{optimizer}" for optimizer, variant in (name.split() for name in GRIDS)]


def fronts(cells: dict[str, Any], condition: str) -> dict[str, np.ndarray]:
    """Arm -> (seeds, levels)."""
    parts = [content["arms"] for key, content in cells.items() if key.rsplit("/", 1)[0] == condition]
    return {name: np.array([row for part in parts for row in part[name]["front"]]) for name in parts[0]}


def draw_differences(cells: dict[str, Any]) -> Any:
    """RACO less matched linear and less linear, against KL: mean and 95 % interval of each level."""
    figure, axes = pyplot.subplots(len(WORLDS), len(CONDITIONS), figsize=(18, 6), sharex=True)
    for i, world in enumerate(WORLDS):
        for j, condition in enumerate(CONDITIONS):
            panel, found = axes[i, j], fronts(cells, f"{world}/{condition}")
            for other in ("linear", "linear-matched"):
                gain = 100 * (found["raco"] - found[other])
                mean, half = gain.mean(0), 2.05 * gain.std(0, ddof=1) / len(gain) ** 0.5
                panel.plot(SHARES, mean, "o-", color=COLOURS[other], markersize=3, label=f"RACO − {other}")
                panel.fill_between(SHARES, mean - half, mean + half, color=COLOURS[other], alpha=0.25)
            panel.axhspan(-1, 1, color="#eeeeee", zorder=0)
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set_title(f"{world}, {condition}", fontsize=9)
            if i == len(WORLDS) - 1:
                panel.set_xlabel("KL, share of the late level")
        axes[i, 0].set_ylabel("points of % of the ceiling")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def draw_trajectories(cells: dict[str, Any]) -> Any:
    """How much of the ceiling each arm reaches at each KL, and where its points lie at the late level."""
    chosen = ("default/equal/sgd", "default/scaled/sgd", "default/noisy-one/sgd", "default/equal/adam")
    figure, axes = pyplot.subplots(2, len(chosen), figsize=(16, 7.5))
    for j, condition in enumerate(chosen):
        for name, values in fronts(cells, condition).items():
            axes[0, j].plot(SHARES, 100 * values.mean(0), "o-", color=COLOURS[name], markersize=3, label=name)
        axes[0, j].set_title(condition, fontsize=9)
        axes[0, j].set_xlabel("KL, share of the late level")
        parts = [content["points"] for key, content in cells.items() if key.rsplit("/", 1)[0] == condition]
        for name in ("linear", "raco", "linear-matched"):
            rows = np.array([[[x if x is not None else np.nan for x in p] for p in part[name]] for part in parts])
            axes[1, j].plot(*np.nanmean(rows, 0).T, ".-", color=COLOURS[name], linewidth=0.8, label=name)
        axes[1, j].set_xlabel("held-out reward of objective 1")
    axes[0, 0].set_ylabel("% of the ceiling's hypervolume at that KL")
    axes[1, 0].set_ylabel("held-out reward of objective 2")
    axes[0, 0].legend(fontsize=7)
    axes[1, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def main() -> None:
    cells = finished(HERE / "cells.jsonl")
    for name, draw in (("differences", draw_differences), ("trajectories", draw_trajectories)):
        figure = draw(cells)
        figure.savefig(HERE / f"{name}.png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
