"""Draws results.json as figure.svg. Needs matplotlib.

python studies/many_objectives/figure.py
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
    "cagrad": "#e69f00",
    "pcgrad": "#009e73",
    "mgda": "#666666",
}


def draw_worth(axes: Any, rows: list[dict[str, Any]], world: str, level: float, what: str) -> None:
    """Mean over seeds of one figure by m, a line per arm."""
    for name, colour in COLOURS.items():
        own = [row for row in rows if (row["world"], row["level"], row["arm"]) == (world, level, name)]
        axes.plot([row["m"] for row in own], [row[what]["mean"] for row in own], "o-", color=colour, label=name, ms=4)
    axes.set_xlabel("objectives")
    axes.set_xticks([2, 3, 5, 8])


def draw_differences(axes: Any, part: dict[str, Any]) -> None:
    """RACO less each rival, mean and 95 % interval, against the band of equivalence."""
    axes.axhspan(-0.01, 0.01, color="#eeeeee")
    axes.axhline(0.0, color="black", linewidth=0.8)
    for k, (rival, claims) in enumerate(part["claims"].items()):
        at = [i + (k - 0.5) * 0.2 for i in range(len(claims))]
        means = [claim["mean"] for claim in claims.values()]
        errors = [[claim["mean"] - claim["low"] for claim in claims.values()]]
        errors += [[claim["high"] - claim["mean"] for claim in claims.values()]]
        axes.errorbar(at, means, errors, fmt="o", color=COLOURS[rival], label=f"raco − {rival}", capsize=3)
    axes.set_xticks(range(3), ["2", "3", "5"])
    axes.set_xlabel("objectives")
    axes.set_ylabel("difference of the reference-free score")
    axes.set_title("Confirmation: 30 seeds, 0.5 nats (grey: ±0.01)")


def draw_facts(axes: Any, rows: list[dict[str, Any]]) -> None:
    """How often clipping turns RACO's update, and how far the update lies from linear's."""
    own = [row for row in rows if row["world"] == "apart" and row["arm"] == "raco"]
    m = [row["m"] for row in own]
    axes.plot(
        m, [row["clipping acts"] for row in own], "o-", color=COLOURS["raco"], label="share of steps clipping acts"
    )
    for key, style in (("angle to linear", "s--"), ("radians where it does", "^:")):
        label = "angle to linear, rad" if key.startswith("angle") else "clipping's turn where it acts, rad"
        axes.plot(m, [row[key] for row in own], style, color="#333333", label=label)
    axes.set_xticks([2, 3, 5, 8])
    axes.set_xlabel("objectives")
    axes.set_title("What RACO's steps are like")


def draw(results: dict[str, Any]) -> Any:
    part = results["confirm"]
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 9), layout="constrained")
    draw_differences(panels[0, 0], part)
    draw_worth(panels[0, 1], part["fronts"], "apart", 0.5, "reference-free")
    panels[0, 1].set_ylabel("reference-free score, share of the ceiling")
    panels[0, 1].set_title("Fronts at 0.5 nats")
    draw_worth(panels[1, 0], part["fronts"], "apart", 0.5, "worst-off objective")
    panels[1, 0].set_ylabel("gain of the worst-off objective, mean of runs")
    panels[1, 0].set_title("The worst-off objective at 0.5 nats")
    draw_facts(panels[1, 1], part["steps"])
    for axes in panels.flat:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
