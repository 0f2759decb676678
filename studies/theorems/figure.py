"""Draws results.json: bounds.svg (Theorems 3.1 and 3.2) and landscape.svg. Needs matplotlib.

python studies/theorems/figure.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parents[1])]

from studies.theorems import landscape as toy  # noqa: E402
from studies.theorems.run import CORRECTIONS, C  # noqa: E402

COLOURS = dict(zip(CORRECTIONS, ("#0072b2", "#d55e00", "#e69f00", "#999999", "#cc79a7", "#009e73"), strict=True))
COLOURS |= {"pcgrad": "#56b4e9", "mgda": "#666666"}


def draw_guarantee(axes: Any) -> None:
    """Gamma(rho) over the step size: what the theorem promises for a correction that helps, is neutral, or opposes."""
    share = np.linspace(0.02, 1.0, 50)
    for rho, style in ((1.0, "-"), (0.0, "--"), (-1.0, ":")):
        bound = share * (1 + C * rho - share / 2 * (1 + C * C + 2 * C * rho))
        axes.plot(share, bound, style, color=COLOURS["raco"], label=f"a correction with ρ = {rho:+.0f}")
    axes.plot(share, share * (1 - share / 2), color=COLOURS["linear"], label="none (linear)")
    axes.set_xlabel("step size in units of 1 / l_w")
    axes.set_ylabel("promised descent in units of ||g_0||² / l_w")
    axes.set_title(f"Theorem 3.1: η Γ(ρ), c = {C}")


def draw_ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Measured descent over the promised one: least, median and largest of all steps, per family and correction."""
    share = max(row["share"] for row in rows)
    families = list(dict.fromkeys(row["family"] for row in rows))
    for k, arm in enumerate(CORRECTIONS):
        at = [i + (k - 2.5) * 0.13 for i in range(len(families))]
        own = [next(r for r in rows if (r["family"], r["correction"], r["share"]) == (f, arm, share)) for f in families]
        low, middle, high = zip(*(row["descent over bound"] for row in own), strict=True)
        axes.vlines(at, low, high, color=COLOURS[arm], linewidth=1.5)
        axes.plot(at, middle, "o", color=COLOURS[arm], markersize=4, label=arm)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(families)), families, fontsize=8)
    axes.set_ylabel("measured descent over the bound")
    axes.set_title(f"Every step keeps its bound, whoever made it (η = {share:g} / l_w)")


def draw_times(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Median steps to tolerance over linear's, per family."""
    share = max(row["share"] for row in rows)
    families = list(dict.fromkeys(row["family"] for row in rows))
    arms = [arm for arm in CORRECTIONS if arm != "linear"]
    for k, arm in enumerate(arms):
        at = [i + (k - 2) * 0.15 for i in range(len(families))]
        own = [next(r for r in rows if (r["family"], r["arm"], r["share"]) == (f, arm, share)) for f in families]
        ratios = [row["weighted gradient"]["steps over linear's"] or [np.nan] * 3 for row in own]
        low, middle, high = zip(*ratios, strict=True)
        axes.vlines(at, low, high, color=COLOURS[arm], linewidth=1.5)
        axes.plot(at, middle, "o", color=COLOURS[arm], markersize=4, label=arm)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(families)), families, fontsize=8)
    axes.set_ylabel("steps over linear's")
    axes.set_title("Steps until ||∇L_w|| has fallen to a thousandth")


def draw_clipping(axes: Any, part: dict[str, Any]) -> None:
    """Least, median and largest Gamma(rho~) - Gamma(rho) where clipping acts."""
    rows = [(f"{r['family']}\nm = {r['objectives']}", r["gain of Gamma where it does"]) for r in part["paths"]]
    rows += [(f"random Grams\nm = {r['objectives']}", r["gain of Gamma"]) for r in part["random"]]
    for i, (_, values) in enumerate(rows):
        if values:
            axes.vlines(i, values[0], values[2], color=COLOURS["raco"], linewidth=2)
            axes.plot(i, values[1], "o", color=COLOURS["raco"], markersize=5)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [name for name, _ in rows], fontsize=7, rotation=40)
    axes.set_ylabel("Γ(ρ~) − Γ(ρ) where clipping acts")
    axes.set_title("Theorem 3.2: never below 0 for two objectives")


def draw_bounds(results: dict[str, Any]) -> Any:
    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    draw_guarantee(panels[0, 0])
    draw_ratios(panels[0, 1], results["descent"]["rows"])
    draw_times(panels[1, 0], results["descent"]["iterations"])
    draw_clipping(panels[1, 1], results["clipping"])
    for axes in panels.flat:
        axes.grid(color="#dddddd", linewidth=0.6)
    for axes in (panels[0, 0], panels[0, 1], panels[1, 0]):
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    return figure


def draw_landscape(part: dict[str, Any]) -> Any:
    """One panel per method: contours of the mean loss, the Pareto set, and the five paths."""
    rows = [row for row in part["rows"] if row["paths"]]
    columns = 3
    size = (11, 3.6 * -(-len(rows) // columns))
    figure, panels = pyplot.subplots(-(-len(rows) // columns), columns, figsize=size, layout="constrained")
    grid = np.linspace(-11, 11, 120)
    x, y = np.meshgrid(grid, grid)
    heights = toy.losses_and_slopes(np.stack((x.ravel(), y.ravel()), -1))[0].mean(-1).reshape(x.shape)
    for axes, row in zip(panels.flat, rows, strict=False):
        axes.contour(x, y, heights, levels=14, cmap="Greys", linewidths=0.6)
        axes.plot([-toy.PARETO_X, toy.PARETO_X], [toy.PARETO_Y] * 2, color="#bbbbbb", linewidth=5, zorder=1)
        for path in row["paths"]:
            across, along = zip(*path, strict=True)
            axes.plot(across, along, color="#d55e00" if row["arm"] == "raco" else "#0072b2", linewidth=1.3)
            axes.plot(across[0], along[0], "ko", markersize=4)
            axes.plot(across[-1], along[-1], "k*", markersize=8, zorder=4)
        axes.set_title(row["arm"])
        axes.set_xlabel("θ₁")
        axes.set_ylabel("θ₂")
    for axes in panels.flat[len(rows) :]:
        axes.set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    # the same results give the same file: no date, no random identifiers; text stays text
    matplotlib.rcParams.update({"svg.hashsalt": "paretune", "svg.fonttype": "none"})
    for name, figure in (("bounds", draw_bounds(results)), ("landscape", draw_landscape(results["landscape"]))):
        figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
