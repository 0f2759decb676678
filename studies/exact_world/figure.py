"""Draws results.json as figure.svg. Needs matplotlib.

python studies/exact_world/figure.py [--out FILE]
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

COLOURS = {"linear": "#0072b2", "raco": "#d55e00", "cagrad": "#e69f00", "mgda": "#666666", "pcgrad": "#009e73"}
MARKS = {"linear": "o", "raco": "D", "cagrad": "s", "mgda": "^", "pcgrad": "v"}


def draw_paths(axes: Any, part: dict[str, Any], title: str) -> None:
    """Two lines per weighting, from the reference to a common end."""
    for row in part["rows"]:
        for name, style in (("linear", "-"), ("raco", "--")):
            x, y = zip(*row[f"path {name}"], strict=True)
            axes.plot(x, y, style, color=COLOURS[name], linewidth=1.2)
        end = row["end"]["linear"]
        axes.plot(*end, "ko", markersize=5, zorder=3)
    axes.plot([], [], "-", color=COLOURS["linear"], label="linear")
    axes.plot([], [], "--", color=COLOURS["raco"], label="RACO, c = 0.4")
    axes.plot([], [], "ko", markersize=5, label="the end of both")
    axes.plot(*part["rows"][0]["path linear"][0], "k+", markersize=10, label="reference")
    axes.set_title(title)


def draw_front(axes: Any, results: dict[str, Any], steps: int) -> None:
    """Mean of seeds per weighting, each combiner at the step size that serves its own weights best."""
    curve = results["ceiling"]["optimum's rewards, held-out prompts"]
    axes.plot(*zip(*curve, strict=True), color="black", linewidth=1, label="closed-form optimum")
    for name, colour in COLOURS.items():
        row = best_row(results["fronts"]["rows"], steps, name)
        axes.plot(
            *zip(*row["points"], strict=True),
            color=colour,
            linewidth=0.8,
            marker=MARKS[name],
            markersize=4.5,
            label=f"{name}, step {row['step size']:g}",
        )
    axes.set_title(f"Small batches, after {steps} steps (held out)")


def best_row(rows: list[dict[str, Any]], steps: int, combiner: str) -> dict[str, Any]:
    mine = [row for row in rows if row["steps"] == steps and row["combiner"] == combiner]
    return min(mine, key=lambda row: row["gap at its own weights"]["mean"])


def draw(results: dict[str, Any]) -> Any:
    figure, panels = pyplot.subplots(2, 2, figsize=(10.5, 9.5), layout="constrained")
    draw_paths(panels[0, 0], results["ends"]["tabular"], "Trained out, full gradients: a table")
    draw_paths(panels[0, 1], results["ends"]["low-rank"], "Trained out, full gradients: low rank")
    horizons = sorted({row["steps"] for row in results["fronts"]["rows"]})
    draw_front(panels[1, 0], results, horizons[0])
    draw_front(panels[1, 1], results, horizons[-1])
    for axes in panels.flat:
        axes.set_xlabel("expected reward of objective 1")
        axes.set_ylabel("expected reward of objective 2")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
