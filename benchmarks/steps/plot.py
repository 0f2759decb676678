"""The README's figure: what a step costs as objectives are added, and what the gain over TRL is made of."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.steps.models import Case
from benchmarks.steps.timing import seconds, spread

OURS, TRL, NAIVE, FLOOR = "#1f6feb", "#57606a", "#bc4c00", "#54aeff"
BARS = (
    ("trl", "TRL,\none objective", TRL),
    ("scalar-flat", "ours, flat rows,\none loss", FLOOR),
    ("scalar-shared", "prompts shared,\none loss", FLOOR),
    ("ours-8", "prompts shared,\nall 8 gradients", OURS),
)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "step",
    "figure.dpi": 150,
}


def draw(results: Path, docs: Path) -> list[Path]:
    """Writes step.svg and step.png of the largest CPU size that was measured; returns their paths.

    Raises:
        FileNotFoundError: nothing was measured that could be drawn.
    """
    for size in ("full", "quick", "tiny"):
        path = results / f"step-{size}-qwen3.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"groups": {}}
        group = next((g for key, g in record["groups"].items() if key.startswith("lora/tldr/")), None)
        if group is not None and all(group["contestants"].get(name, {}).get("turns") for name, _, _ in BARS):
            return _draw(record, group, docs)
    raise FileNotFoundError(f"no step-*-qwen3.json with LoRA at tldr in {results}: run benchmarks/step.py first")


def _draw(record: dict[str, Any], group: dict[str, Any], docs: Path) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _against_m(left, group["contestants"])
        _attribution(right, group["contestants"])
        figure.text(0.5, -0.02, _caption(record, group), ha="center", va="top", fontsize=7, color="#57606a")
        docs.mkdir(parents=True, exist_ok=True)
        paths = [docs / "step.svg", docs / "step.png"]
        for path in paths:
            meta = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, bbox_inches="tight", metadata=meta)
    return paths


def _against_m(axes: Any, found: dict[str, Any]) -> None:
    for kind, label, colour in (("naive", "m backward passes", NAIVE), ("ours", "paretune, one pass", OURS)):
        points = sorted(
            (int(name.partition("-")[2]), found[name])
            for name in found
            if name.startswith(kind + "-") and found[name].get("turns")
        )
        if points:
            m, middle = [p[0] for p in points], [seconds(p[1]) for p in points]
            axes.plot(m, middle, "o-", color=colour, label=label, markersize=4)
            axes.annotate(f" {middle[-1]:.2f} s", (m[-1], middle[-1]), color=colour, va="center", fontsize=8)
    trl = seconds(found["trl"])
    axes.axhline(trl, color=TRL, linestyle="--", label="TRL, one objective")
    axes.set(xlabel="objectives m", ylabel="seconds per optimizer step", ylim=(0, None), xlim=(0, 18))
    axes.set_title("Step time against objectives", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _attribution(axes: Any, found: dict[str, Any]) -> None:
    trl, top = seconds(found["trl"]), max(seconds(found[name]) for name, _, _ in BARS)
    for index, (name, _, colour) in enumerate(BARS):
        middle, low, high = spread([wall for _, wall, _ in found[name]["turns"]])
        axes.bar(index, middle, color=colour, width=0.65)
        axes.errorbar(index, middle, [[middle - low], [high - middle]], color="#24292f", capsize=3, linewidth=1)
        axes.text(index, high + 0.02 * top, f"{middle:.2f} s\n{middle / trl:.2f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(BARS)), [label for _, label, _ in BARS], fontsize=7.5)
    axes.set(ylim=(0, 1.3 * top), ylabel="seconds per optimizer step")
    axes.set_title("What the gain is made of", loc="left", fontsize=10)


def _caption(record: dict[str, Any], group: dict[str, Any]) -> str:
    size, machine, case = record["model"], record["machine"], group["case"]
    prompt, response = Case(**case).lengths
    return (
        f"Qwen3 architecture, hidden {size['hidden_size']}, {size['num_hidden_layers']} layers; LoRA; "
        f"{case['comparisons']} comparisons, prompt {prompt}, responses {response}; {machine['processor']}, "
        f"{machine['threads']} thread(s); commit {(record['commit'] or 'unknown')[:7]}; "
        "medians and quartiles of turns, the naive way timed once"
    )
