"""Draws results.json as figure.svg. Needs matplotlib.

python studies/groups/figure.py
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

COLOURS = {
    "linear": "#0072b2",
    "linear-matched": "#56b4e9",
    "raco": "#d55e00",
    "pcgrad": "#009e73",
    "mgda": "#666666",
}
GROUPS = ("A", "B", "C", "D", "E")


def draw_rule(axes: Any, rows: list[dict[str, Any]], rule: str, sizes: list[float]) -> None:
    """Each group's mean gain under one rule, a column of marks per combiner."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        row = next(one for one in rows if (one["rule"], one["combiner"]) == (rule, name))
        at = [g + (k - 2) * 0.14 for g in range(len(GROUPS))]
        axes.vlines(at, 0.0, row["gains"], color=colour, linewidth=1)
        axes.plot(at, row["gains"], "o", color=colour, markersize=5, label=name)
    axes.axhline(0.0, color="black", linewidth=0.8)
    names = [f"{name}\n{size:.0%}" for name, size in zip(GROUPS, sizes, strict=True)]
    axes.set_xticks(range(len(GROUPS)), names)
    axes.set_title(f"{rule} rule")


def draw(results: dict[str, Any]) -> Any:
    level = results["plan"]["level"]
    rows = [row for row in results["rows"] if row["level"] == level]
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    figure, panels = pyplot.subplots(1, len(rules), figsize=(14, 4.6), layout="constrained", sharey=True)
    for axes, rule in zip(panels, rules, strict=True):
        draw_rule(axes, rows, rule, results["plan"]["sizes"])
        axes.grid(color="#dddddd", linewidth=0.6, axis="y")
    panels[0].set_ylabel(f"gain at {level:g} nats (1: the best for that group alone)")
    panels[1].legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
