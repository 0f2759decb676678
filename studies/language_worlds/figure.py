"""Draws what run.py left: `python studies/language_worlds/figure.py` writes figure.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from analysis import ARMS, PAIRS

HERE = Path(__file__).resolve().parent
COLOURS = {
    "linear": "#4477aa",
    "linear-matched": "#66ccee",
    "cagrad": "#ccbb44",
    "raco": "#ee6677",
    "single": "#888888",
}


def trajectories(ax: Any, runs: list[dict[str, Any]], objectives: tuple[int, int], names: list[str]) -> None:
    """Mean over seeds of every arm's path in the plane of two objectives, from the base on."""
    base = np.mean([run["points"][0]["scores"] for run in runs if run["arm"] is None], 0)
    seen: set[str] = set()
    for key in sorted({tuple(run["key"][2:]) for run in runs if run["arm"]}):
        mine = [run for run in runs if tuple(run["key"][2:]) == key]
        path = np.vstack([base, np.mean([[point["scores"] for point in run["points"]] for run in mine], 0)])
        x, y = path[:, objectives].T
        label = key[0] if key[0] not in seen else None
        seen.add(key[0])
        ax.plot(x, y, marker="o", ms=3, lw=1.2, color=COLOURS[key[0]], label=label)
    ax.plot(*base[list(objectives)], "k*", ms=9, label="base")
    ax.set_xlabel(names[objectives[0]])
    ax.set_ylabel(names[objectives[1]])
    ax.legend(fontsize=7)


def differences(ax: Any, found: dict[str, Any]) -> None:
    for row, (ours, theirs) in enumerate(reversed(PAIRS)):
        d = found[f"{ours} - {theirs}"]["nadir"]
        ax.errorbar(
            d["mean"], row, xerr=[[d["mean"] - d["low"]], [d["high"] - d["mean"]]], fmt="o", color="k", capsize=3
        )
    ax.axvspan(-0.01, 0.01, color="#dddddd", zorder=0)
    ax.axvline(0, color="#999999", lw=0.8)
    ax.set_yticks(range(len(PAIRS)), [f"{ours} − {theirs}" for ours, theirs in reversed(PAIRS)])
    ax.set_xlabel("difference of normalised hypervolume at equal KL")


def main() -> None:
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    lines = (HERE / "runs-confirm.jsonl").read_text(encoding="utf-8").splitlines()
    everything = [json.loads(line) for line in lines]
    worlds = list(results["worlds"])
    names = {"safety": ["helpful", "harmless"], "summaries": ["coverage", "faithfulness", "conciseness"]}
    fig, axes = plt.subplots(len(worlds), 2, figsize=(11, 4.2 * len(worlds)), squeeze=False, layout="constrained")
    for (left, right), world in zip(axes, worlds, strict=True):
        runs = [run for run in everything if run["world"] == world]
        pair = (0, 1) if world == "safety" else (0, 2)
        trajectories(left, runs, pair, names[world])
        left.set_title(f"{world}: paths, mean of {len(results['worlds'][world]['seeds'])} seeds", fontsize=10)
        differences(right, results["worlds"][world]["differences"])
        right.set_title(f"{world}: paired differences, 95 % intervals", fontsize=10)
    fig.savefig(HERE / "figure.png", dpi=110)


assert set(ARMS) < set(COLOURS)
if __name__ == "__main__":
    main()
