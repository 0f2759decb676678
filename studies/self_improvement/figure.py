"""Draws what run.py left: `python studies/self_improvement/figure.py` writes figure.png."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from paretune.evaluation.statistics import paired_interval  # noqa: E402
from studies.exact import finished  # noqa: E402
from studies.self_improvement.analysis import MORE, MORE_RATES, OBJECTIVES, Seed, accuracy, reward, seeds_of  # noqa: E402

COLOURS = {"raco": "#ee6677", "linear": "#4477aa", "overall": "#ccbb44"}
QUALITIES = ("true", "paraphrased", "wrong-25", "wrong-50")


def bars(ax: Any, labels: list[str], values: list[list[float]]) -> None:
    """Means over seeds with 95 % intervals, and the seeds as points."""
    for place, own in enumerate(values):
        found = paired_interval(own)
        ax.plot(np.full(len(own), place), own, ".", color="#bbbbbb", ms=4, zorder=1)
        half = [[found.mean - found.low], [found.high - found.mean]]
        ax.errorbar(place, found.mean, yerr=half, fmt="o", color="k", ms=4, capsize=3)
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=7)


def judges(ax: Any, seeds: list[Seed]) -> None:
    names = [("free", "true", "free overall"), ("form", "true", "form")]
    names += [(f"guided,\n{q}", q, "guided overall") for q in QUALITIES]
    names += [(f"ROUGE,\n{q}", q, "rouge") for q in QUALITIES[:2]]
    values = [[accuracy(f"overall, {q}", source)(one) for one in seeds] for _, q, source in names]
    bars(ax, [label for label, *_ in names], values)
    ax.axhline(0.5, color="#999999", lw=0.8)
    ax.set_title("Judges: accuracy on new creatures", fontsize=10)


def policies(ax: Any, seeds: list[Seed]) -> None:
    names = [("more SFT,\nbest rate", "true", f"sft more {MORE_RATES[0]}")]
    names += [(arm, "true", arm) for arm in ("free", "rouge", "guided", "exact")]
    for quality in QUALITIES[1:]:
        names += [
            (f"{arm},\n{quality}", quality, key)
            for arm, key in (("SFT", "sft"), ("more SFT", MORE), ("guided", "guided"))
        ]
    values = [[reward(q, arm)(one) - reward("true", "sft")(one) for one in seeds] for _, q, arm in names]
    bars(ax, [label for label, *_ in names], values)
    ax.axhline(0.0, color="#999999", lw=0.8)
    ax.set_title("Policies: exact reward, less that of SFT on true references", fontsize=10)


def fronts(ax: Any, seeds: list[Seed]) -> None:
    arms = seeds[0]["front"]["arms"]
    mean = {
        arm: np.mean([[one["front"]["arms"][arm]["held out"][o] for o in OBJECTIVES] for one in seeds], 0)
        for arm in arms
    }
    for front, colour in COLOURS.items():
        points = np.array([mean[arm] for arm in arms if arm.startswith(front)])
        ax.plot(
            *points.T, "o-", color=colour, ms=4, lw=1, label=front if front != "overall" else "one judge, three betas"
        )
    ax.plot(*mean["sft"], "k*", ms=9, label="SFT")
    ax.set_xlabel("told"), ax.set_ylabel("careful")
    ax.legend(fontsize=7)
    ax.set_title("Fronts, held-out creatures", fontsize=10)


def main() -> None:
    seeds = list(seeds_of(finished(HERE / "cells.jsonl")).values())
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", width_ratios=(1, 1.3, 1))
    for draw, ax in zip((judges, policies, fronts), axes, strict=True):
        draw(ax, seeds)
    fig.savefig(HERE / "figure.png", dpi=100)


if __name__ == "__main__":
    main()
