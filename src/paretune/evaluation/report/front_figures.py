"""Pictures of a front, as files: every pair of objectives with its seeds, and the indicators with their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paretune.evaluation.indicators_compare import INDICATORS
from paretune.files import whole_file

# Okabe and Ito's colours for all kinds of eyes (yellow left out: too light for a mark), and shapes for print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h", "p", "*")
_GREY = "#767676"
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "paretune",
    "legend.frameon": False,
}
_TITLES = {
    "hypervolume": "hypervolume (more is better)",
    "reference_free": "reference-free score (more is better)",
    "epsilon": "additive epsilon (less is better)",
    "igd_plus": "IGD+ (less is better)",
    "extent": "extent (more is wider)",
}


def write_figures(front: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws front.png, front.svg, indicators.png and indicators.svg.

    Args:
        front: content of front.json, with at least one temperature.
        folder: where they go.

    Returns:
        The files.
    """
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        for name, draw in (("front", front_figure), ("indicators", indicator_figure)):
            figure = draw(front)
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                extra: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
                with whole_file(path) as neighbour:
                    figure.savefig(neighbour, format=kind, bbox_inches="tight", facecolor="white", **extra)
                written.append(path)
    return written


def look(labels: Sequence[str], label: str) -> tuple[str, str]:
    """(colour, marker) of a method: no two share both before 84 of them."""
    i = labels.index(label)
    return _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]


def front_figure(front: Mapping[str, Any]) -> Figure:
    """Means over seeds as large marks, seeds as small ones tied to them; a panel per pair of objectives.

    Where the oracle crowds the methods into less than half of a panel, a second one shows them without it.
    """
    pairs = list(itertools.combinations(front["objectives"], 2))
    wanted = [(a, b, True) for a, b in pairs] + [(a, b, False) for a, b in pairs if _crowded(front, a, b)]
    columns = min(3, max(len(pairs), min(2, len(wanted))))
    rows = -(-len(wanted) // columns)
    figure = Figure(figsize=(2.6 + 4.2 * columns, 4.2 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (a, b, whole) in zip(panels, wanted, strict=False):
        _panel(front, axes, a, b, whole=whole)
    for axes in panels[len(wanted) :]:
        axes.set_visible(False)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right upper", fontsize=9)
    return figure


def _crowded(front: Mapping[str, Any], a: str, b: str) -> bool:
    key, oracle = next(iter(front["temperatures"])), front["worlds"][0]["oracle"]

    def spread(points: list[Mapping[str, float]], name: str) -> float:
        values = [point[name] for point in points]
        return max(values) - min(values)

    cells = [cell["scores"][key]["scores"] for cell in front["cells"] if key in cell["scores"]]
    whole = [*cells, *(point["scores"] for point in oracle)]
    return bool(oracle) and any(spread(cells, name) < 0.5 * spread(whole, name) for name in (a, b))


def _panel(front: Mapping[str, Any], axes: Axes, a: str, b: str, *, whole: bool) -> None:
    key = next(iter(front["temperatures"]))
    labels = [entry["label"] for entry in front["methods"]]
    _landmarks(front, axes, a, b, key, oracle=whole)
    if not whole:
        axes.set_title("closer, without the oracle", loc="left")
    for label in labels:
        color, marker = look(labels, label)
        groups = _groups(front, label, key)
        if not groups:
            continue
        means = np.array(
            [[np.mean([c["scores"][key]["scores"][n] for c in cells]) for n in (a, b)] for cells in groups]
        )
        if len(front["objectives"]) == 2 and len(means) > 1:  # a line in more dimensions would be a tangle
            axes.plot(means[:, 0], means[:, 1], color=color, alpha=0.5, linewidth=1.1, zorder=2)
        for (x, y), cells in zip(means, groups, strict=True):
            _spread(axes, x, y, cells, (a, b), key, color, marker)
        axes.plot(
            means[:, 0], means[:, 1], marker, color=color, markersize=7, markeredgecolor="white", label=label, zorder=4
        )
    axes.set_xlabel(_axis(front, a))
    axes.set_ylabel(_axis(front, b))


def _axis(front: Mapping[str, Any], name: str) -> str:
    unit = str(front["units"].get(name, ""))
    return f"{name}: {unit}" if 0 < len(unit) <= 52 else name


def _groups(front: Mapping[str, Any], label: str, key: str) -> list[list[Mapping[str, Any]]]:
    """A method's scored cells by weighting, in the order of the grid."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for cell in front["cells"]:
        if cell["label"] == label and key in cell["scores"]:
            weights = None if cell["weights"] is None else tuple(cell["weights"].values())
            found.setdefault(weights, []).append(cell)
    return [found[weights] for weights in sorted(found, key=lambda w: w or ())]


def _spread(
    axes: Axes,
    x: float,
    y: float,
    cells: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    key: str,
    color: str,
    marker: str,
) -> None:
    """The seeds behind a mean; of one seed, its intervals over prompts."""
    a, b = names
    if len(cells) == 1:
        ci = cells[0]["scores"][key]["ci"]
        axes.plot(ci[a], [y, y], color=color, alpha=0.35, linewidth=0.8, zorder=1)
        axes.plot([x, x], ci[b], color=color, alpha=0.35, linewidth=0.8, zorder=1)
        return
    for cell in cells:
        u, v = (cell["scores"][key]["scores"][name] for name in names)
        axes.plot([x, u], [y, v], color=color, alpha=0.3, linewidth=0.7, zorder=1)
        axes.plot([u], [v], marker, color=color, alpha=0.45, markersize=3, zorder=3)


def _landmarks(front: Mapping[str, Any], axes: Axes, a: str, b: str, key: str, *, oracle: bool) -> None:
    """The base, the single-objective runs, and the oracle where all of it fits."""
    best = sorted((point["scores"][a], point["scores"][b]) for point in front["worlds"][0]["oracle"])
    if best and oracle:
        style: Any = {
            "color": _GREY,
            "markersize": 5,
            "markerfacecolor": "white",
            "label": "oracle: best of the base's samples",
        }
        line = "--" if len(front["objectives"]) == 2 else "none"
        axes.plot(*zip(*best, strict=True), marker="D", linestyle=line, linewidth=0.9, zorder=1, **style)
    for label, marker, text in (("single", "^", "one objective alone"), ("base", "*", "base")):
        for i, cells in enumerate(_groups(front, label, key)):
            points = np.array([[c["scores"][key]["scores"][n] for n in (a, b)] for c in cells])
            x, y = points.mean(0)
            hollow: Any = {"markerfacecolor": "white" if label == "single" else "black", "color": "black"}
            for u, v in points if len(points) > 1 else ():
                axes.plot([x, u], [y, v], color="black", alpha=0.3, linewidth=0.7, zorder=1)
            size = 8 if label == "single" else 11
            axes.plot([x], [y], marker, markersize=size, label=text if i == 0 else None, zorder=3, **hollow)


def indicator_figure(front: Mapping[str, Any]) -> Figure:
    """A panel per indicator: every method's estimate and interval, the largest hypervolume on top."""
    part = front["temperatures"][next(iter(front["temperatures"]))]
    found = part["indicators"]
    labels = [entry["label"] for entry in front["methods"]]
    order = sorted(found, key=lambda m: found[m]["hypervolume"]["mean"])
    figure = Figure(figsize=(13, 1.5 + 0.3 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(INDICATORS), sharey=True)
    for axes, name in zip(panels, INDICATORS, strict=True):
        for i, method in enumerate(order):
            color, marker = look(labels, method)
            one = found[method][name]
            axes.plot([one["low"], one["high"]], [i, i], color=color, linewidth=2, alpha=0.6)
            for value in part["by_seed"][method][name] if part["unit"] == "seeds" else ():
                axes.plot([value], [i], "|", color=color, markersize=7, alpha=0.8)
            axes.plot([one["mean"]], [i], marker, color=color, markersize=7, markeredgecolor="white")
        axes.set_title(_TITLES[name].replace(" (", "\n("))
        axes.set_yticks(range(len(order)), order)
        axes.margins(y=0.6 / max(1, len(order)))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=3, prune="both"))
    what = (
        f"{len(part['seeds'])} seeds (ticks)"
        if part["unit"] == "seeds"
        else "prompts, one seed: not a comparison of methods"
    )
    figure.supxlabel(f"in scaled scores; bars: 95 % bootstrap intervals over {what}", fontsize=9)
    return figure
