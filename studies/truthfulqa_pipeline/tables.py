"""results.json as the Markdown tables of README.md.

python studies/truthfulqa_pipeline/tables.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SUBSETS = ("all", "conflict", "agree", "truth", "info", "equal length")
SHORT = {"truthful": "T", "informative": "I"}


def main() -> None:
    results = json.loads(Path(__file__).with_name("results.json").read_text(encoding="utf-8"))
    for title, rows in (
        ("Learning rates tried", tried(results)),
        ("Accuracy", accuracies(results)),
        ("Margin", margins(results)),
        ("Pairs that only one objective labels", single(results)),
        ("Beside the baselines, all pairs", beside(results)),
        ("What the runs logged", logged(results)),
    ):
        print(f"\n**{title}**\n\n" + "\n".join(rows))


def tried(results: dict[str, Any]) -> list[str]:
    rows = []
    for cell in results["tried"]:
        chosen = " (chosen)" if results["rates"][cell["method"]] == cell["rate"] else ""
        accuracy = [f"{cell['validation_accuracy'][name]:.1%}" for name in SHORT]
        rows.append([cell["method"], f"{cell['rate']:g}{chosen}", f"{cell['validation_loss']:.4f}", *accuracy])
    return table(["", "rate", "validation loss", "T", "I"], rows)


def accuracies(results: dict[str, Any]) -> list[str]:
    """Accuracy in percent, the mean over seeds; for all pairs with its interval and the spread over seeds (±)."""
    head = ["", "weights T/I", *(f"{SHORT[o]} {s}" for s in SUBSETS for o in SHORT if _has(s, o))]
    rows = []
    for group in results["groups"]:
        rows.append([f"{group['method']}, {group['combiner']}", _weights(group), *_cells(group["test"])])
    for label, found in results["baselines"].items():
        rows += [[_baseline(name), label, *_cells(test)] for name, test in found.items()]
    return table(head, rows)


def _has(subset: str, objective: str) -> bool:
    return {"truth": "truthful", "info": "informative"}.get(subset, objective) == objective


def _cells(test: dict[str, Any]) -> list[str]:
    cells = []
    for subset in SUBSETS:
        for objective in SHORT:
            if _has(subset, objective):
                figure = test[subset][objective]["accuracy"]
                text = f"{100 * figure['value']:.1f}"
                if subset == "all":
                    text += f" [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"
                cells.append(text + (f" ± {100 * figure['sd']:.1f}" if "sd" in figure and subset == "all" else ""))
    return cells


def margins(results: dict[str, Any]) -> list[str]:
    rows = []
    for group in results["groups"]:
        cells = []
        for subset in SUBSETS[:-1]:
            for objective in SHORT:
                if _has(subset, objective):
                    figure = group["test"][subset][objective]["margin"]
                    interval = f" [{figure['low']:+.2f}, {figure['high']:+.2f}]" if subset == "all" else ""
                    cells.append(f"{figure['value']:+.2f}{interval}")
        rows.append([f"{group['method']}, {group['combiner']}", _weights(group), *cells])
    return table(["", "weights T/I", *(f"{SHORT[o]} {s}" for s in SUBSETS[:-1] for o in SHORT if _has(s, o))], rows)


def single(results: dict[str, Any]) -> list[str]:
    """Accuracy on truth-only and information-only pairs beside the baselines', and the share that length explains."""
    rows = []
    for group in results["groups"]:
        row = [f"{group['method']}, {group['combiner']}", _weights(group)]
        baselines = results["baselines"][_weights(group)]
        for subset, objective in (("truth", "truthful"), ("info", "informative")):
            mine = group["test"][subset][objective]["accuracy"]
            length, words = (baselines[n][subset][objective]["accuracy"]["value"] for n in ("length", "words"))
            row.append(f"{100 * mine['value']:.1f} [{100 * mine['low']:.0f}, {100 * mine['high']:.0f}]")
            row += [f"{100 * length:.1f}", f"{100 * words:.1f}"]
            row.append(f"{(length - 0.5) / (mine['value'] - 0.5):.0%}" if mine["low"] > 0.5 and length > 0.5 else "-")
        rows.append(row)
    columns = [f"{kind}{what}" for kind in ("T-only", "I-only") for what in ("", ", length", ", words", ", explained")]
    return table(["", "weights T/I", *columns], rows)


def beside(results: dict[str, Any]) -> list[str]:
    """Per group and baseline: accuracy gained over it, the share of accuracy above chance that it has too, …"""
    rows = []
    for group in results["groups"]:
        for name, found in group["beside"].items():
            row = [f"{group['method']}, {group['combiner']}", _weights(group), _baseline(name)]
            for objective in SHORT:
                it = found[objective]
                gain = it["gain"]
                row.append(f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]")
                # of a policy at chance there is nothing to explain, and a baseline below chance explains nothing
                above = group["test"]["all"][objective]["accuracy"]["low"] > 0.5 and (it["explained"] or 0) > 0
                row.append(f"{it['explained']:.0%}" if above else "-")
                row.append(" / ".join("-" if it[k] is None else f"{it[k]:.0%}" for k in ("where_right", "where_wrong")))
            rows.append([*row, f"{found['agreement']:.0%}"])
    columns = [f"{SHORT[o]} {what}" for o in SHORT for what in ("gain", "explained", "where right / wrong")]
    return table(["", "weights T/I", "baseline", *columns, "agree"], rows)


def logged(results: dict[str, Any]) -> list[str]:
    rows = []
    for group in results["groups"]:
        runs = group["runs"]

        def mean(read: Any, runs: list[Any] = runs) -> float:
            values = [value for run in runs if (value := read(run)) is not None]
            return sum(values) / len(values) if values else float("nan")

        row = [f"{group['method']}, {group['combiner']}", _weights(group)]
        for name in SHORT:
            for when in ("first", "last"):
                row.append(f"{mean(lambda r, n=name, w=when: r['train_margin'][n][w]):+.2g}")
        row.append(f"{mean(lambda r: r['cosine']):+.2f}")
        effective = [mean(lambda r, n=name: r["effective_weight"][n]) for name in SHORT]
        row.append("/".join(f"{weight:.2f}" for weight in effective))
        row.append(f"{mean(lambda r: r['clip_active']):.0%}")
        row.append(f"{math.degrees(mean(lambda r: r['angle_to_linear'])):.1f}°")
        loss = {name: group["test"]["all"][name]["loss"]["value"] for name in SHORT}
        row.append(f"{group['weight'] * loss['truthful'] + (1 - group['weight']) * loss['informative']:.4f}")
        rows.append(row)
    ends = [f"{SHORT[name]} {when}" for name in SHORT for when in ("first", "last")]
    names = ["cosine", "effective weights", "clip active", "angle to linear", "test loss"]
    return table(["", "weights T/I", *ends, *names], rows)


def _weights(group: dict[str, Any]) -> str:
    return f"{group['weight']:g}/{1 - group['weight']:g}"


def _baseline(name: str) -> str:
    return {"length": "length, free form", "words": "words"}.get(name, f"the {name} one")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


if __name__ == "__main__":
    main()
