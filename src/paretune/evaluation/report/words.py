"""What the figures say, in sentences: how much the objectives conflict, what RACO did about it, what to try.

The sentences claim no more than was measured. One seed is called one seed; a difference between methods is stated with
its interval over seeds or not at all; and the stationary points are linear weighting's whatever the figures look like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from paretune.evaluation.report.blocks import method_name, number, share
from paretune.evaluation.report.facts import (
    Conflict,
    Volumes,
    conflicts,
    equal_kl,
    mean_of,
    norm_ratio,
    paired_difference,
    seeds_of,
    volumes,
    weight_shift,
)
from paretune.evaluation.report.give_way import Change, above_linear, run_changes, world_changes
from paretune.evaluation.report.load import Run, World
from paretune.evaluation.statistics import paired_interval

SAME_POINTS = (
    "With c below 1, RACO and linear weighting with the same weights have the same stationary points: RACO can rest "
    "only where linear weighting can. Differences between them are differences of the path: steps that are limited, "
    "noise, and effective weights drawn towards the middle."
)


def in_short(world: World) -> list[str]:
    """A world's summary."""
    raco = [run for run in world.runs if run.method == "raco"]
    lines = conflict_words(conflicts(raco or world.runs, world.objectives))
    lines += raco_words(raco)
    lines += give_way_words(world_changes(world, "raco" if raco else "linear"), "RACO" if raco else "linear weighting")
    lines += gain_words(world)
    lines += above_linear_words(world)
    lines += difference_words(world, volumes(world))
    lines += [SAME_POINTS] if raco else []
    return lines


def run_in_short(run: Run) -> list[str]:
    """A run's summary."""
    lines = conflict_words(conflicts([run], run.objectives))
    if run.method == "raco":
        lines += [*raco_words([run]), SAME_POINTS]
    return [*lines, *give_way_words(run_changes(run), None), seeds_words([run.seed])]


def conflict_words(found: Sequence[Conflict]) -> list[str]:
    """A sentence or two per pair of objectives."""
    if not found:
        return ["How much the objectives conflict is not known: no run here logged the cosines of their gradients."]
    lines = []
    for pair in found:
        text = f"The gradients of {pair.a} and {pair.b} {_conflict_verb(pair.mean)}: their cosine was "
        text += f"{number(pair.mean, '+.2f')} on average and below 0 in {share(pair.negative)} of what was logged"
        if abs(pair.last - pair.first) > 0.1:
            text += f", from {number(pair.first, '+.2f')} in the first tenth to {number(pair.last, '+.2f')} in the last"
        lines.append(text + ".")
    return lines


def _conflict_verb(cosine: float) -> str:
    if abs(cosine) < 0.05:
        return "hardly touch"
    how = "strongly" if abs(cosine) > 0.5 else "clearly" if abs(cosine) > 0.2 else "weakly"
    return f"{'conflict' if cosine < 0 else 'agree'} {how}"


def raco_words(runs: Sequence[Run]) -> list[str]:
    """How far RACO's update lay from linear's, whether clipping acted, where the weights went."""
    lines = []
    angle, clipped, shift = (
        *(mean_of(runs, f"combine/{k}") for k in ("angle_to_linear", "clip_active")),
        weight_shift(runs),
    )
    if angle is not None:
        degrees, bounds = math.degrees(angle), {run.c for run in runs if run.c is not None}
        text = f"RACO's update lay {number(degrees, '.1f')} degrees from linear weighting's on average"
        if len(bounds) == 1 and 0 < (c := bounds.pop()) < 1:
            text += f" (c = {c:g} allows at most {math.degrees(math.asin(c)):.1f})"
        lines.append(
            text + (": these runs were nearly linear weighting with another step length." if degrees < 2 else ".")
        )
    if clipped is not None:
        if clipped == 0:
            lines.append("Clipping by the weights never acted: RACO was weighted CAGrad in these runs.")
        else:
            lines.append(f"Clipping by the weights acted in {_rounded_share(clipped)} of RACO's steps.")
    if shift is not None and shift > 0.02:
        text = f"RACO's effective weights stood up to {number(shift, '.2f')} from the nominal ones, "
        lines.append(text + "so equal nominal weights are not equal operating points.")
    return lines


def give_way_words(changes: Sequence[Change], method: str | None) -> list[str]:
    """Which objective gave way. Of a world's method the gains are of scores, of a run alone its losses' fall."""
    if len(changes) < 2:
        return []
    least, most = min(changes, key=lambda c: c.gain), max(changes, key=lambda c: c.gain)
    listed = ", ".join(f"{c.objective} {number(c.gain, '+.3f')}" for c in changes)
    if method is None:
        lost = [c.objective for c in changes if c.lost]
        text = f"{' and '.join(lost)} gave way: the loss rose" if lost else "No objective gave way: every loss fell"
        return [f"{text} from the first to the last tenth of the run (the losses fell by {listed})."]
    text = f"At the most even weights {method} gained over the base (1: what training on an objective alone gains): "
    if least.lost:
        return [f"{text}{listed}. {least.objective} gave way."]
    if least.gain < 0.5 * most.gain:
        return [f"{text}{listed}. {least.objective} gave way the most, though it gained."]
    return [f"{text}{listed}. No objective gave way."]


def above_linear_words(world: World) -> list[str]:
    """How far RACO's points lie above or below linear weighting's front at equal KL."""
    found = above_linear(world, "raco")
    if found is None:
        return []
    values = list(found.values())
    mean = sum(values) / len(values)
    text = (
        f"RACO's points lay {number(abs(mean), '.3f')} {'above' if mean >= 0 else 'below'} linear weighting's front at "
    )
    text += "equal KL (what mixtures of its points reach; 1 is what training on one objective alone gains"
    if len(values) < 2:
        return [text + "; one seed, so this may be chance)."]
    interval = paired_interval(values)
    text += (
        f"; 95 % interval over {interval.n} seeds {number(interval.low, '+.3f')} to {number(interval.high, '+.3f')})"
    )
    if interval.low <= 0 <= interval.high:
        return [text + ": the interval contains 0, so no difference is shown."]
    return [text + ". More weightings of linear could only raise its front: add some before this is believed."]


def gain_words(world: World) -> list[str]:
    """What RACO and linear weighting gained within the same KL, in figures."""
    found = equal_kl(world)
    if found is None:
        return []
    budget, gains, _ = found
    parts = []
    for method in [m for m in gains if m in ("linear", "raco")] or list(gains):
        best = ", ".join(f"{number(gains[method][name][0], '+.3f')} in {name}" for name in world.objectives)
        parts.append(f"{method_name(method)} {best}")
    text = f"Within {number(budget, '.2f')} nats of the reference, the most that any point of a method gained over the "
    text += f"base was: {'; '.join(parts)}. These are the best points per objective, not one model, without intervals."
    return [text]


def difference_words(world: World, found: Volumes | None) -> list[str]:
    """RACO beside linear weighting by hypervolume, with an interval over seeds; else why there is none."""
    seeds = seeds_of(world.points)
    if len(seeds) < 2:
        return [seeds_words(seeds)]
    if found is None or not {"raco", "linear"} <= set(found.shares):
        return [f"{len(seeds)} seeds."]
    compared = paired_difference(found.shares["raco"], found.shares["linear"])
    if compared is None:
        return ["RACO and linear weighting share fewer than two complete seeds, so their difference has no interval."]
    interval = f"{number(compared.low, '+.3f')} to {number(compared.high, '+.3f')}"
    text = f"Over {compared.n} seeds and {found.weightings} weightings, RACO's share of the volume in the table below "
    text += f"differed from linear's by {number(compared.mean, '+.3f')} (95 % interval over seeds {interval})"
    if compared.low <= 0 <= compared.high:
        return [text + ": the interval contains 0, so no difference is shown."]
    side = "higher" if compared.mean > 0 else "lower"
    return [text + f": {side} on these prompts, with these settings. Other data may say otherwise."]


def seeds_words(seeds: Sequence[int | None]) -> str:
    """One seed is one seed."""
    if len(seeds) == 1:
        which = "" if seeds[0] is None else f" ({seeds[0]})"
        return (
            f"One seed{which}: differences between runs may be chance, and nothing here says that one method is better."
        )
    return f"{len(seeds)} seeds."


def to_try(runs: Sequence[Run], objectives: Sequence[str], *, seeds: Sequence[int | None]) -> list[str]:
    """What the figures suggest to do next."""
    lines = []
    found, raco = conflicts(runs, objectives), [run for run in runs if run.method == "raco"]
    angle, clipped, shift = (
        *(mean_of(raco, f"combine/{k}") for k in ("angle_to_linear", "clip_active")),
        weight_shift(raco),
    )
    if found and all(pair.mean > -0.05 for pair in found):
        lines.append(
            "The objectives hardly conflict, so there is little for RACO to resolve: linear weighting (combiner: "
            "linear) is simpler and will probably do as well."
        )
    elif raco and angle is not None and math.degrees(angle) < 2:
        lines.append(
            "RACO stayed close to linear weighting although the objectives conflict: a larger c, below 1, lets it turn "
            "further."
        )
    if raco and clipped == 0 and all(run.record.get("config", {}).get("clip", True) for run in raco):
        lines.append("Clipping never acted; combiner: cagrad would have given the same runs.")
    norms = norm_ratio(runs, objectives)
    if norms is not None and norms[0] > 3:
        lines.append(
            f"The gradient of {norms[1]} is {norms[0]:.1f} times as long as that of {norms[2]}: set betas or losses of "
            "one scale, or normalize_gradients: true."
        )
    if shift is not None and shift > 0.05:
        lines.append(
            "To reach one particular trade-off, move the nominal weights further apart than the effective ones should "
            "be, or choose a point of the front instead of a weight."
        )
    if raco and not any(run.method == "linear" for run in runs):
        lines.append("Train the same with combiner: linear, to see what RACO changes here.")
    if len(seeds) < 3:
        lines.append("Repeat with at least three seeds before a difference between methods is believed.")
    return lines


def _rounded_share(value: float) -> str:
    return (
        "less than 1\u00a0%"
        if value < 0.005
        else "nearly all"
        if 0.995 < value < 1
        else "all"
        if value == 1
        else share(value)
    )
