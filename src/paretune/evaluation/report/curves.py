"""Drawings of one run over its steps: losses, conflict, coefficients, angles, clipping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from paretune.evaluation.report import draw
from paretune.evaluation.report.blocks import Plots, number
from paretune.evaluation.report.draw import INK, MUTED, PAPER
from paretune.evaluation.report.facts import Curve, curve, pairs, thinned, train_curve
from paretune.evaluation.report.load import Run

STEP = "optimizer step"


def draw_curve(axes: Axes, full: Curve, color: str, line: Any = "-", **style: Any) -> None:
    """A curve; one of few points shows them."""
    shown = thinned(full)
    marker = "o" if len(shown.steps) < 8 else None
    axes.plot(shown.steps, shown.values, color=color, linestyle=line, marker=marker, markersize=3, **style)


def learning(run: Run, key: str) -> Plots | None:
    """Losses, margins and accuracies per objective, in training and on held-out rows."""
    asked = [
        ("loss", "loss/{}", "loss, nats", "Loss per objective"),
        ("margin", "rewards/margins/{}", "margin, beta × nats", "Margins"),
        ("accuracy", "rewards/accuracies/{}", "share of positive margins", "Accuracies"),
    ]
    panels, held_out = [], False
    for name, template, label, title in asked:
        figure, axes = draw.panel(STEP, label, title=title)
        drawn = False
        for i, objective in enumerate(run.objectives):
            color, line = draw.objective_look(i)
            train, held = (curve(run, prefix + template.format(objective)) for prefix in ("", "eval_"))
            if len(train.steps):
                draw_curve(axes, train, color, line)
            if len(held.steps):
                held_out = True
                style: Any = {"markersize": 6, "markerfacecolor": PAPER, "linewidth": 0.8, "alpha": 0.9}
                axes.plot(held.steps, held.values, color=color, linestyle=line, marker="o", **style)
            drawn = drawn or bool(len(train.steps) or len(held.steps))
        if drawn:
            panels.append(draw.svg(figure, f"{key}-{name}", f"{title} over time", {}))
    legend = _objective_legend(run)
    if held_out:
        legend.append((draw.swatch(INK, "o", hollow=True), "on held-out rows"))
    caption = (
        "What training did to each objective: its loss, the mean margin of the response it prefers over the other (the "
        "difference of implicit rewards), and how often that is positive."
    )
    caption += "" if held_out else " No rows were held out, so none of this says how the model does on new data."
    return Plots(panels, caption, legend) if panels else None


def clashes(run: Run, key: str) -> Plots | None:
    """Cosines and norms of the gradients of one run."""
    panels, legend = [], []
    figure, axes = draw.panel(STEP, "cosine, from −1 to 1", title="Conflict")
    for i, (a, b) in enumerate(pairs(run.objectives)):
        found = train_curve(run, f"grad/cosine/{a}~{b}")
        if len(found.steps):
            color, line = draw.objective_look(i) if len(run.objectives) > 2 else (INK, "-")
            draw_curve(axes, found, color, line)
            legend.append((draw.swatch(color, line), f"{a} and {b} (cosine)"))
    if legend:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(-1.05, 1.05)
        panels.append(draw.svg(figure, f"{key}-cosine", "Cosines of the gradients over time", {}))
    norms = [train_curve(run, f"grad/norm/{name}") for name in run.objectives]
    if any((norm.values > 0).any() for norm in norms):
        figure, axes = draw.panel(STEP, "norm, log scale", title="Gradient norms")
        for i, norm in enumerate(norms):
            draw_curve(axes, norm, *draw.objective_look(i))
        axes.set_yscale("log")
        _plain_log(axes, np.concatenate([norm.values for norm in norms]))
        panels.append(draw.svg(figure, f"{key}-norms", "Lengths of the gradients over time", {}))
        legend += _objective_legend(run)
    caption = (
        "The conflict over time: the cosine of the angle between the objectives' gradients (below 0 they conflict), "
        "and how long each gradient is, in units of loss per unit of parameter. A gradient three times as long gets "
        "its way more often than its weight says."
    )
    return Plots(panels, caption, legend) if panels else None


def combination(run: Run, key: str) -> Plots | None:
    """Effective weights against nominal ones, angle to linear and clip activity of one run."""
    panels, legend = [], _objective_legend(run)
    for what, label, title in (
        ("coefficient", "coefficient (no unit)", "Coefficients"),
        ("effective_weight", "effective weight, share", "Effective weights"),
    ):
        found = [train_curve(run, f"combine/{what}/{name}") for name in run.objectives]
        if any(len(c.steps) for c in found):
            figure, axes = draw.panel(STEP, label, title=title)
            for i, (name, values) in enumerate(zip(run.objectives, found, strict=True)):
                draw_curve(axes, values, *draw.objective_look(i))
                axes.axhline(run.weights[name], color=draw.objective_look(i)[0], linestyle=":", linewidth=1)
            axes.set_ylim(bottom=0)
            panels.append(draw.svg(figure, f"{key}-{what}", f"{title} over time", {}))
    legend.append((draw.swatch(MUTED, ":"), "nominal weight, or the limit asin(c)"))
    angle, clipped = train_curve(run, "combine/angle_to_linear"), train_curve(run, "combine/clip_active")
    if len(angle.steps):
        figure, axes = draw.panel(STEP, "angle to linear, degrees", title="Angle to linear")
        draw_curve(axes, Curve(angle.steps, np.degrees(angle.values)), INK)
        if run.method == "raco" and run.c:
            axes.axhline(math.degrees(math.asin(min(1.0, run.c))), color=MUTED, linestyle=":", linewidth=1.2)
        axes.set_ylim(bottom=0)
        panels.append(draw.svg(figure, f"{key}-angle", "Angle to the linear update over time", {}))
    if len(clipped.steps) and run.method == "raco":
        figure, axes = draw.panel(STEP, "steps with clipping, %", title="Clipping")
        draw_curve(axes, Curve(clipped.steps, 100 * clipped.values), INK)
        axes.set_ylim(-4, 104)
        panels.append(draw.svg(figure, f"{key}-clip", "Clipping over time", {}))
    caption = (
        "What the combination did: the coefficients put on the gradients, the same as shares (effective weights), the "
        "angle between the update and linear weighting's, and, for RACO, in how many steps clipping by the weights "
        "turned the update. Each value is a mean over the steps since the last logged line."
    )
    return Plots(panels, caption, legend) if panels else None


def _objective_legend(run: Run) -> list[tuple[str, str]]:
    return [
        (draw.swatch(*draw.objective_look(i)), f"{name} (weight {number(run.weights[name], '.3g')})")
        for i, name in enumerate(run.objectives)
    ]


def _plain_log(axes: Axes, values: np.ndarray) -> None:
    """Ticks in plain figures: powers would need a second font, and a narrow range would have no tick at all."""
    positive = values[values > 0]
    narrow = positive.max() < 30 * positive.min()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
