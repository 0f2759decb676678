"""Draws results.json as figure.svg. Needs matplotlib.

python studies/noisy_gram/figure.py [--out FILE]
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

COLOURS = {"averaged": "#0072b2", "rows": "#009e73", "averaged, mixed": "#cc79a7"}
LABELS = {"batch": "batch Gram (the paper's)", "rows": "U-statistic over rows, projected", "shrunk": "shrinkage"}


def rows_of(results: dict[str, Any], step: int, condition: str, weight: float) -> list[dict[str, Any]]:
    """Figures of the exact world by batch size."""
    found = results["measure"]["found"]["rows"]
    chosen = [r for r in found if (r["step"], r["condition"], r["weight"]) == (step, condition, weight)]
    return sorted(chosen, key=lambda row: row["size"])


def draw_cosine(axes: Any, rows: list[dict[str, Any]]) -> None:
    """What a batch sees of the conflict, measured and as derived."""
    sizes = [row["size"] for row in rows]
    axes.axhline(rows[0]["cosine, true"], color="black", linewidth=1, label="full gradients")
    axes.axhline(rows[0]["cosine of the noise"], color="#999999", linewidth=1, linestyle=":", label="noise alone")
    axes.plot(sizes, [row["cosine, batch, predicted"] for row in rows], color="#d55e00", label="G + Σ/n, derived")
    means, spread = ([row["batch"][key] for row in rows] for key in ("cosine, mean", "cosine, deviation"))
    axes.errorbar(sizes, means, spread, fmt="o", color="#d55e00", capsize=3, label="batch Gram, mean and deviation")
    axes.set(xscale="log", xlabel="comparisons in the batch", ylabel="cosine of the two gradients", ylim=(-1.15, 1.15))
    axes.set_title("Noise hides the conflict (clean labels, at the start)")


def draw_angles(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Angles to RACO on full gradients."""
    sizes = [row["size"] for row in rows]
    for name, colour in (("batch", "#d55e00"), ("rows", "#009e73"), ("shrunk", "#cc79a7")):
        known = [row for row in rows if name in row]
        values = [row[name]["angle of the Gram"] for row in known]
        axes.plot([row["size"] for row in known], values, "o-", color=colour, label=f"of the Gram: {LABELS[name]}")
    axes.plot(sizes, [row["batch"]["angle of the update"] for row in rows], "k--", label="of RACO's update")
    without = [row["angle without Gram noise"] for row in rows]
    axes.plot(sizes, without, "k:", label="with full coefficients")
    axes.set(xscale="log", xlabel="comparisons in the batch", ylabel="degrees to RACO on full gradients", ylim=(0, 95))
    axes.set_title("The Gram's error is small beside the gradients' own")


def draw_claims(axes: Any, claims: list[dict[str, Any]], against: str, title: str) -> None:
    """Differences with their 95 % intervals, by cell."""
    cells = list(dict.fromkeys(row["cell"] for row in claims))
    arms = list(dict.fromkeys(row["arm"] for row in claims))
    for k, arm in enumerate(arms):
        for i, cell in enumerate(cells):
            (row,) = (r for r in claims if (r["cell"], r["arm"], r["against"]) == (cell, arm, against))
            y = -i - 0.22 * (k - 1)
            axes.plot([row["low"], row["high"]], [y, y], color=COLOURS[arm], linewidth=1.5)
            axes.plot(row["mean"], y, "o", color=COLOURS[arm], markersize=5, label=arm if i == 0 else None)
    axes.axvspan(-0.01, 0.01, color="#eeeeee", zorder=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([-i for i in range(len(cells))], cells)
    axes.set(xlabel="difference of ceiling-normalised hypervolume")
    axes.set_title(title)


def draw(results: dict[str, Any]) -> Any:
    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    rows = rows_of(results, 0, "clean", 0.3)
    draw_cosine(panels[0, 0], rows)
    draw_angles(panels[0, 1], rows)
    claims = results["confirm"]["found"]["claims"]
    draw_claims(panels[1, 0], claims, "matched", "Candidates − their matched linear")
    draw_claims(panels[1, 1], claims, "raco", "Candidates − the paper's RACO")
    for axes in panels.flat:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    figure_command(__doc__, HERE, draw)
