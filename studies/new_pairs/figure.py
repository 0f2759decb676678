"""Draws results.json as figure.svg. Needs matplotlib.

python studies/new_pairs/figure.py
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

COLOURS = {"B only": "#d55e00", "B with replay": "#e69f00", "A and B": "#009e73", "A and B from the start": "#666666"}
STYLES = {"linear": "-", "raco": "--"}


def draw_case(axes: Any, rows: list[dict[str, Any]], case: str) -> None:
    """B's gain across, A's gain up: from the first model (the point where the lines begin) onwards."""
    for row in rows:
        combiner, way, *reference = row["arm"].split(", ")
        if row["case"] != case or (reference and reference[0] != "first model") or not reference:
            continue
        a, b = zip(*row["course"], strict=True)
        axes.plot(b, a, STYLES[combiner], color=COLOURS[way], label=f"{combiner}, {way}")
        axes.plot(b[0], a[0], "ko", markersize=4)
    for row in rows:
        if row["case"] == case and row["arm"].endswith("from the start"):
            combiner = row["arm"].split(",")[0]
            mark = "s" if combiner == "linear" else "D"
            label = f"{combiner}, both from the start (end)"
            axes.plot(row["B at the end"], row["A at the end"], mark, color="#666666", label=label)
    axes.set_xlabel("gain on file B's prompts and objectives")
    axes.set_ylabel("gain on file A's")
    axes.set_title({"prompts": "B asks other prompts", "objectives": "B is labelled by other objectives"}[case])
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def draw(results: dict[str, Any]) -> Any:
    cases = list(dict.fromkeys(row["case"] for row in results["rows"]))
    figure, panels = pyplot.subplots(1, len(cases), figsize=(11, 5.6), layout="constrained")
    for axes, case in zip(panels, cases, strict=True):
        draw_case(axes, results["rows"], case)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
