"""Drawings of a world's runs over their steps: the conflict, the coefficients, the angle to linear, clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from paretune.evaluation.report import draw
from paretune.evaluation.report.blocks import Plots, method_name, seed_text, weights_text
from paretune.evaluation.report.curves import STEP, draw_curve
from paretune.evaluation.report.draw import MUTED, PAPER
from paretune.evaluation.report.facts import Curve, mean_curve, mean_of, pairs, thinned, train_curve, weighting
from paretune.evaluation.report.figures import methods_of
from paretune.evaluation.report.load import Run, World


def conflict(world: World, key: str) -> Plots | None:
    """Cosines per pair of objectives, a line per run and the mean of each method; None where none is logged."""
    panels = []
    for i, (a, b) in enumerate(pairs(world.objectives)):
        figure, axes = draw.panel(STEP, "cosine, from −1 to 1", title=f"{a} and {b}")
        if not _by_method(axes, world, f"grad/cosine/{a}~{b}", 1.0):
            continue
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(-1.05, 1.05)
        panels.append(draw.svg(figure, f"{key}-cosine-{i}", f"Cosine of the gradients of {a} and {b}", {}))
    caption = (
        "The conflict over time: the cosine of the angle between two objectives' gradients on the step's batch. Below "
        "0 they conflict, near 0 they hardly touch, above 0 they agree. Thin lines are runs (all weightings and "
        "seeds), thick ones their mean per method. At the first step all margins are 0, which can overstate it."
    )
    return Plots(panels, caption, _legend(world, _having(world, "grad/cosine/"))) if panels else None


def angles(world: World, key: str) -> Plots | None:
    """Angle to the linear update over time, and how often clipping acted per weighting."""
    panels, legend = [], _legend(world, [m for m in _having(world, "combine/angle_to_linear") if m != "linear"])
    texts = []
    figure, axes = draw.panel(STEP, "angle to linear, degrees", title="Angle to linear")
    if _by_method(axes, world, "combine/angle_to_linear", 180 / math.pi, without="linear"):
        bounds = {run.c for run in world.runs if run.method == "raco" and run.c}
        if len(bounds) == 1:
            axes.axhline(math.degrees(math.asin(min(1.0, bounds.pop()))), color=MUTED, linestyle=":", linewidth=1.2)
            legend.append((draw.swatch(MUTED, ":"), "RACO's limit, asin(c)"))
        axes.set_ylim(bottom=0)
        panels.append(draw.svg(figure, f"{key}-angle", "Angle to the linear update over time", {}))
        texts.append(
            "The angle between each update and linear weighting's (thin lines are runs, thick ones means); at 0 a "
            "method is linear weighting with another step length."
        )
    clipped = _clip_panel(world, key)
    if clipped is not None:
        panels.append(clipped)
        texts.append(
            "How often clipping by the weights turned RACO's update, a mark per run; at 0 it was weighted CAGrad there."
        )
    return Plots(panels, " ".join(texts), legend) if panels else None


def _clip_panel(world: World, key: str) -> str | None:
    found = [
        (point, clipped)
        for point in world.points
        if point.method == "raco" and point.run and (clipped := mean_of([point.run], "combine/clip_active")) is not None
    ]
    if not found:
        return None
    order = sorted({weighting(world, point.weights) for point, _ in found}, reverse=True)
    # weightings on the vertical axis: their names stay level, however many weights there are
    figure, axes = draw.panel("steps in which clipping acted, %", "nominal weights", title="Clipping (RACO)")
    color, marker = draw.method_look("raco", methods_of(world))
    tips = {}
    for i, (point, clipped) in enumerate(found):
        tips[f"clip-{i}"] = (
            f"RACO, {seed_text(point.seed)}\nweights {weights_text(point.weights, world.objectives)}\n"
            f"clipping acted in {100 * clipped:.1f} % of the steps\nrun {point.run_name}"
        )
        y = order.index(weighting(world, point.weights))
        axes.plot([100 * clipped], [y], marker, color=color, alpha=0.8, gid=f"clip-{i}", markeredgecolor=PAPER)
    axes.set_yticks(range(len(order)), [" / ".join(f"{w:.3g}" for w in weights) for weights in order])
    axes.set_xlim(-4, 104)
    axes.set_ylim(-0.5, len(order) - 0.5)
    return draw.svg(figure, f"{key}-clip", "Share of steps in which clipping acted", tips)


def coefficients(world: World, key: str) -> Plots | None:
    """RACO's coefficients over time at its outer weightings and the most even one, and the weights below them."""
    runs = [run for run in world.runs if run.method == "raco"]
    order = sorted({weighting(world, run.weights) for run in runs})
    if not order:
        return None
    even = min(order, key=lambda w: (max(w) - min(w), w))
    panels = []
    for k, chosen in enumerate(dict.fromkeys([order[0], even, order[-1]])):
        own = [run for run in runs if weighting(world, run.weights) == chosen]
        panel = _coefficient_panel(world, own, f"{key}-coefficients-{k}")
        panels += [panel] if panel else []
    legend = [(draw.swatch(*draw.objective_look(i)), name) for i, name in enumerate(world.objectives)]
    legend.append((draw.swatch(MUTED, ":"), "nominal weight, which linear weighting uses"))
    caption = (
        f"The coefficients a_i that RACO put on the objectives' gradients, at weights in the order "
        f"{' / '.join(world.objectives)}; they never lie below the weights. Thin lines are runs, thick ones their mean."
    )
    return Plots(panels, caption, legend) if panels else None


def _coefficient_panel(world: World, runs: Sequence[Run], key: str) -> str | None:
    title = f"RACO at {weights_text(runs[0].weights, world.objectives)}"
    figure, axes = draw.panel(STEP, "coefficient (no unit)", title=title)
    for i, name in enumerate(world.objectives):
        color, line = draw.objective_look(i)
        found = [c for run in runs if len((c := train_curve(run, f"combine/coefficient/{name}")).steps)]
        if not found:
            return None
        for single in found if len(found) > 1 else ():
            draw_curve(axes, single, color, alpha=0.25, linewidth=0.8)
        draw_curve(axes, mean_curve(found), color, line)
        axes.axhline(runs[0].weights[name], color=color, linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0)
    return draw.svg(figure, key, f"{title}: coefficients over time", {})


def _by_method(axes: Axes, world: World, key: str, scale: float, without: str = "") -> bool:
    """A thin line per run, a thick one per method; whether there was anything to draw."""
    methods, some = methods_of(world), False
    for method in methods:
        found = [train_curve(run, key) for run in world.runs if run.method == method and method != without]
        found = [Curve(c.steps, c.values * scale) for c in found if len(c.steps)]
        color, line = draw.method_line(method, methods)
        for single in found if len(found) > 1 else ():
            draw_curve(axes, thinned(single, 60), color, alpha=0.22, linewidth=0.7)
        if found:
            some = True
            draw_curve(axes, mean_curve(found), color, line, linewidth=2)
    return some


def _having(world: World, prefix: str) -> list[str]:
    with_key = {run.method for run in world.runs if any(k.startswith(prefix) for line in run.history for k in line)}
    return [method for method in methods_of(world) if method in with_key]


def _legend(world: World, shown: Sequence[str]) -> list[tuple[str, str]]:
    methods = methods_of(world)
    return [(draw.swatch(*draw.method_line(method, methods)), method_name(method)) for method in shown]
