"""Drawings of a world: the front, gains against KL, and what stood behind every point."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from paretune.evaluation.report import draw
from paretune.evaluation.report.blocks import Plots, method_name, number, seed_text, weights_text
from paretune.evaluation.report.draw import INK, MUTED, PAPER
from paretune.evaluation.report.facts import Group, effective_weights, groups, pairs, seeds_of, weighting
from paretune.evaluation.report.load import Point, World


def methods_of(world: World) -> list[str]:
    """The world's methods in order of appearance."""
    return list(dict.fromkeys(point.method for point in world.points))


def axis_name(world: World, name: str) -> str:
    """An objective with its unit, for an axis or a table's head."""
    return f"{name} ({short_unit(world, name)})"


def short_unit(world: World, name: str, longest: int = 20) -> str:
    """A unit where there is room for little: the text itself, or the range that it ends in, or "score".

    The whole text stands at the world's beginning.
    """
    unit = world.units.get(name) or "score"
    range_ = re.search(r"\(([^()]+)\)\s*$", unit)
    return unit if len(unit) <= longest else range_[1] if range_ and len(range_[1]) <= longest else "score"


def legend_of(world: World) -> list[tuple[str, str]]:
    """The methods' signs."""
    methods = methods_of(world)
    return [(draw.swatch(*draw.method_look(method, methods)), method_name(method)) for method in methods]


def group_tip(world: World, group: Group, what: str = "") -> str:
    """What a point of the front is: method (or `what` it is), weights, scores, KL, its runs."""
    n = len(group.points)
    seeds = ", ".join("not recorded" if seed is None else str(seed) for seed in seeds_of(group.points))
    lines = [f"{what or method_name(group.method)}, {'one seed' if n == 1 else f'mean of {n} runs'} (seed {seeds})"]
    lines += _weight_lines(world, group.weights)
    for name in world.objectives:
        values = [point.scores[name] for point in group.points]
        text = f"{name}: {number(group.mean(name))}"
        if n > 1:
            text += f" (runs {number(min(values))} to {number(max(values))})"
        elif name in group.points[0].ci:
            text += f" (95 % {number(group.points[0].ci[name][0])} to {number(group.points[0].ci[name][1])})"
        lines.append(text)
    if group.kl is not None:
        lines.append(f"KL to the reference: {number(group.kl, '.2f')} nats")
    lines += [f"run {point.run_name}" for point in group.points if point.run_name]
    return "\n".join(lines)


def point_tip(world: World, point: Point, what: str = "") -> str:
    """One run, or a mark such as the base, in words."""
    lines = [
        what or f"{method_name(point.method)}, one run, {seed_text(point.seed)}",
        *_weight_lines(world, point.weights),
    ]
    for name in world.objectives:
        interval = f" (95 % {number(point.ci[name][0])} to {number(point.ci[name][1])})" if name in point.ci else ""
        lines.append(f"{name}: {number(point.scores[name])}{interval}")
    if point.kl is not None:
        lines.append(f"KL to the reference: {number(point.kl, '.2f')} nats")
    lines += [f"{key}: {number(value)}" for key, value in point.extras.items()]
    return "\n".join([*lines, *([f"run {point.run_name}"] if point.run_name else [])])


def _weight_lines(world: World, weights: dict[str, float]) -> list[str]:
    return [f"weights: {', '.join(f'{name} {weights[name]:.3g}' for name in weights)}"] if weights else []


class _Marks:
    """Artists of one panel that say something when pointed at."""

    def __init__(self, axes: Axes):
        self.axes, self.tips = axes, dict[str, str]()

    def add(self, x: float, y: float, tip: str, marker: str, **style: Any) -> None:
        gid = f"point-{len(self.tips)}"
        self.tips[gid] = tip
        self.axes.plot([x], [y], marker=marker, linestyle="none", gid=gid, **style)


def front(world: World, key: str) -> Plots:
    """The front in every pair of objectives; a second row shows the methods alone where the rest crowds them."""
    found = groups(world)
    panels, near = [], []
    for i, (a, b) in enumerate(pairs(world.objectives)):
        panels.append(_front_panel(world, found, (a, b), f"{key}-front-{i}", whole=True))
        if _crowded(world, a, b):
            near.append(_front_panel(world, found, (a, b), f"{key}-near-{i}", whole=False))
    legend = legend_of(world)
    if world.base:
        legend.append((draw.swatch(INK, "*"), "base"))
    if world.ceilings:
        legend.append((draw.swatch(INK, "^", hollow=True), "trained on one objective alone"))
    if world.oracle:
        legend.append((draw.swatch(MUTED, "D", hollow=True), "oracle"))
    panels += near  # below what they enlarge, where three fit beside each other
    return Plots(panels, _front_caption(world, closer=bool(near)), legend, wide=len(world.objectives) == 2)


def _front_caption(world: World, *, closer: bool) -> str:
    several = len(seeds_of(world.points)) > 1
    behind = "Large marks are means over seeds, small ones the runs behind them" if several else "Each mark is one run"
    if not several and any(point.ci for point in world.points):
        behind += ", its bars 95 % intervals over prompts"
    caption = (
        f"The front: what each method reached at each weighting. {behind}. Upwards and to the right is better. Marks "
        "say their weights, scores and runs when pointed at; the table below lists them."
    )
    if len(methods_of(world)) > 1:
        caption += (
            " Equal nominal weights are different operating points for different methods: compare whole fronts, not "
            "marks of the same weights."
        )
    if len(world.objectives) > 2:
        caption += " With more than two objectives a point may lie inside every projection and still be on the front."
    if world.oracle:
        caption += " The oracle chooses answers by their exact scores, which no trained model sees."
    if closer:
        caption += " Pictures titled “the methods, closer” show the same without base, ceilings and oracle."
    return caption


def _crowded(world: World, a: str, b: str) -> bool:
    shown = [*world.points, *world.oracle, *world.every_ceiling, *([world.base] if world.base else [])]

    def spread(points: Sequence[Point], name: str) -> float:
        values = [point.scores[name] for point in points]
        return max(values) - min(values) if values else 0.0

    return any(0 < spread(world.points, name) < 0.45 * spread(shown, name) for name in (a, b))


def _front_panel(world: World, found: list[Group], names: tuple[str, str], key: str, *, whole: bool) -> str:
    a, b = names
    methods = methods_of(world)
    title = "" if whole else "the methods, closer"
    figure, axes = draw.panel(axis_name(world, a), axis_name(world, b), title=title, size=(4.5, 3.9))
    marks = _Marks(axes)
    if whole:
        _landmarks(world, marks, a, b)
    for method in methods:
        color, marker = draw.method_look(method, methods)
        own = [group for group in found if group.method == method]
        if len(world.objectives) == 2:  # a curve in more dimensions would be a tangle in each projection
            axes.plot([g.mean(a) for g in own], [g.mean(b) for g in own], color=color, alpha=0.55, linewidth=1.1)
        for group in own:
            x, y = group.mean(a), group.mean(b)
            if len(group.points) > 1:
                for point in group.points:
                    axes.plot([x, point.scores[a]], [y, point.scores[b]], color=color, alpha=0.3, linewidth=0.7)
                    tip = point_tip(world, point)
                    marks.add(point.scores[a], point.scores[b], tip, marker, color=color, alpha=0.5, markersize=3)
            else:
                _bars(axes, group.points[0], a, b, color)
            marks.add(x, y, group_tip(world, group), marker, color=color, markersize=7, markeredgecolor=PAPER)
    axes.margins(0.07)
    return draw.svg(figure, key, f"Front: {a} against {b}", marks.tips)


def _bars(axes: Axes, point: Point, a: str, b: str, color: str) -> None:
    x, y = point.scores[a], point.scores[b]
    if a in point.ci:
        axes.plot(point.ci[a], [y, y], color=color, alpha=0.45, linewidth=0.8)
    if b in point.ci:
        axes.plot([x, x], point.ci[b], color=color, alpha=0.45, linewidth=0.8)


def _landmarks(world: World, marks: _Marks, a: str, b: str) -> None:
    axes = marks.axes
    oracle = sorted(world.oracle, key=lambda point: (point.scores[a], -point.scores[b]))
    if len(world.objectives) == 2 and oracle:
        xs, ys = [p.scores[a] for p in oracle], [p.scores[b] for p in oracle]
        axes.plot(xs, ys, color=MUTED, linestyle="--", linewidth=1)
    hollow: Any = {"markerfacecolor": PAPER, "markersize": 6}
    for point in oracle:
        marks.add(point.scores[a], point.scores[b], point_tip(world, point, "oracle"), "D", color=MUTED, **hollow)
    for name, points in world.ceilings.items():
        ceiling, small = Group("ceiling", points[0].weights, points), hollow | {"markersize": 4}
        for point in points if len(points) > 1 else ():
            tip = point_tip(world, point, f"trained on {name} alone, one run, {seed_text(point.seed)}")
            marks.add(point.scores[a], point.scores[b], tip, "^", color=INK, alpha=0.5, **small)
        tip = group_tip(world, ceiling, f"trained on {name} alone")
        marks.add(ceiling.mean(a), ceiling.mean(b), tip, "^", color=INK, **(hollow | {"markersize": 8}))
    if world.base:
        tip = point_tip(world, world.base, "base, before training")
        marks.add(world.base.scores[a], world.base.scores[b], tip, "*", color=INK, markersize=11)


def gains_by_kl(world: World, key: str) -> Plots | None:
    """Gain over the base on each objective against KL; None where either is not known."""
    if world.base is None or not any(point.kl is not None for point in world.points):
        return None
    panels, methods = [], methods_of(world)
    for i, name in enumerate(world.objectives):
        gain = f"gain ({short_unit(world, name)})"
        figure, axes = draw.panel("KL(policy ‖ reference), nats", gain, title=name)
        marks, base = _Marks(axes), world.base.scores[name]
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for group in groups(world):
            color, marker = draw.method_look(group.method, methods)
            for point in group.points if len(group.points) > 1 else ():
                if point.kl is not None:
                    tip, y = point_tip(world, point), point.scores[name] - base
                    marks.add(point.kl, y, tip, marker, color=color, alpha=0.5, markersize=3)
            if group.kl is not None:
                tip, style = group_tip(world, group), {"color": color, "markeredgecolor": PAPER, "markersize": 7}
                marks.add(group.kl, group.mean(name) - base, tip, marker, **style)
        for trained, points in world.ceilings.items():
            ceiling = Group("ceiling", points[0].weights, points)
            if ceiling.kl is not None:
                tip = group_tip(world, ceiling, f"trained on {trained} alone")
                style = {"color": INK, "markerfacecolor": PAPER, "markersize": 8}
                marks.add(ceiling.kl, ceiling.mean(name) - base, tip, "^", **style)
        marks.add(0.0, 0.0, point_tip(world, world.base, "base, before training"), "*", color=INK, markersize=11)
        panels.append(draw.svg(figure, f"{key}-kl-{i}", f"Gain in {name} against KL", marks.tips))
    legend = [*legend_of(world), (draw.swatch(INK, "*"), "base")]
    if any(point.kl is not None for point in world.every_ceiling):
        legend.append((draw.swatch(INK, "^", hollow=True), "trained on one objective alone"))
    caption = (
        "What each method gained over the base on each objective, against how far it moved from the reference. Compare "
        "points above one another: a method that moves further may gain more for that alone."
    )
    return Plots(panels, caption, legend)


def effective(world: World, key: str) -> Plots | None:
    """Mean effective weight against nominal weight per objective; None where no run logged any.

    Only of runs that trained these objectives with the weights that their point stands for: behind a conditioned or
    averaged model stand others.
    """
    known = [
        (point, weights)
        for point in world.points
        if point.run
        and set(point.run.objectives) == set(world.objectives)
        and weighting(world, point.run.weights) == weighting(world, point.weights)
        and (weights := effective_weights(point.run))
    ]
    if not known:
        return None
    panels, methods = [], methods_of(world)
    for i, name in enumerate(world.objectives):
        figure, axes = draw.panel("nominal weight", "effective weight, run mean", title=name)
        marks = _Marks(axes)
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
        rng = np.random.default_rng(i)
        for point, weights in known:
            color, marker = draw.method_look(point.method, methods)
            tip = (
                f"{method_name(point.method)}, {seed_text(point.seed)}\n"
                f"nominal {weights_text(point.weights, world.objectives)}\n"
                f"effective {weights_text(weights, world.objectives)}\nrun {point.run_name}"
            )
            nudge = rng.uniform(-0.006, 0.006)  # runs at one weighting would hide each other
            x = point.weights.get(name, 0.0) + nudge
            marks.add(x, weights[name], tip, marker, color=color, alpha=0.75, markersize=5, markeredgecolor=PAPER)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        panels.append(draw.svg(figure, f"{key}-effective-{i}", f"Effective weight of {name}", marks.tips))
    caption = (
        "Effective weight (a_i over the sum of all a) of each run against the weight that was asked for; no units, "
        "both are shares. On the dotted line a method does what linear weighting does. Marks are moved sideways by up "
        "to 0.006, so that runs at one weighting can be told apart."
    )
    without = [method for method in methods if method not in {point.method for point, _ in known}]
    if without:
        caption += (
            f" Not here, because what they trained with is not the weights that they stand for, or is not logged: "
            f"{', '.join(map(method_name, without))}."
        )
    return Plots(panels, caption, [*legend_of(world), (draw.swatch(MUTED, ":"), "as asked for")])
