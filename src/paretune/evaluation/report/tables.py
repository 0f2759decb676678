"""Tables of a page: points, gains within one KL, volumes, examples, a run's objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretune.evaluation.report.blocks import Examples, Table, method_name, number, share, weights_text
from paretune.evaluation.report.facts import Group, Volumes, effective_weights, equal_kl, groups, seeds_of, volumes
from paretune.evaluation.report.figures import axis_name
from paretune.evaluation.report.load import Point, Run, World, held_out_rows, last


def points(world: World) -> Table:
    """Everything the front shows, and the scripted hacks that it leaves out."""
    several = len(seeds_of(world.points)) > 1
    rows = [_mark_row(world, "base", world.base)] if world.base else []
    for name, own in world.ceilings.items():
        rows.append(_group_row(world, f"{name} alone", Group("ceiling", own[0].weights, own)))
    rows += [_mark_row(world, "oracle", point) for point in world.oracle]
    rows += [_mark_row(world, f"hack: {name}", point) for name, point in world.hacks.items()]
    rows += [_group_row(world, method_name(group.method), group) for group in groups(world)]
    caption = "Mean scores"
    caption += ", with the range over runs in round brackets" if several else ""
    caption += ", with 95 % intervals over prompts in square ones" if any(p.ci for p in world.points) else ""
    caption += f". Weights in the order {' / '.join(world.objectives)}."
    caption += " MGDA takes no weights." if any(p.method == "mgda" for p in world.points) else ""
    caption += " Hacks are scripted answers that no model gave; they are not drawn." if world.hacks else ""
    head = ["method", "weights", *(axis_name(world, name) for name in world.objectives), "KL, nats", "runs"]
    return Table(head, rows, caption, words=2)


def _group_row(world: World, what: str, group: Group) -> list[str]:
    cells = [what, weights_text(group.weights, world.objectives)]
    for name in world.objectives:
        values = [point.scores[name] for point in group.points]
        text = number(group.mean(name))
        if len(values) > 1:
            text += f" ({number(min(values))} to {number(max(values))})"
        elif name in group.points[0].ci:
            text += f" [{number(group.points[0].ci[name][0])}, {number(group.points[0].ci[name][1])}]"
        cells.append(text)
    return [*cells, number(group.kl, ".2f"), str(len(group.points))]


def _mark_row(world: World, what: str, point: Point) -> list[str]:
    scores = []
    for name in world.objectives:
        interval = f" [{number(point.ci[name][0])}, {number(point.ci[name][1])}]" if name in point.ci else ""
        scores.append(number(point.scores[name]) + interval)
    return [what, weights_text(point.weights, world.objectives), *scores, number(point.kl, ".2f"), "–"]


def gains(world: World) -> Table | None:
    """The best gain of each method on each objective within one KL."""
    found = equal_kl(world)
    if found is None:
        return None
    budget, by_method, counts = found
    rows = []
    for method, gained in by_method.items():
        cells = [
            f"{number(gain, '+.3f')} (at {weights_text(group.weights, world.objectives)})"
            for gain, group in (gained[name] for name in world.objectives)
        ]
        rows.append([method_name(method), *cells, str(counts[method])])
    caption = (
        "At equal KL: the most that any point of a method gained over the base on each objective within "
        f"{number(budget, '.2f')} nats of the reference (the median of all points, or the least at which every method "
        "has one), and the weights it had. Nothing is interpolated: fewer points within are a disadvantage."
    )
    return Table(["method", *(axis_name(world, n) for n in world.objectives), "points within"], rows, caption)


def volume(world: World) -> Table | None:
    """Hypervolume shares per method and seed."""
    found: Volumes | None = volumes(world)
    if found is None or not any(found.shares.values()):
        return None
    seeds = list(dict.fromkeys(seed for own in found.shares.values() for seed in own))
    rows = []
    for method, own in found.shares.items():
        mean = [number(sum(own.values()) / len(own) if own else None)] if len(seeds) > 1 else []
        rows.append([method_name(method), *(number(own.get(seed)) for seed in seeds), *mean])
    reference = ", ".join(f"{name} {number(value)}" for name, value in found.reference.items())
    best = ", ".join(f"{name} {number(value)}" for name, value in found.best.items())
    caption = (
        f"Hypervolume of each method's points at the {found.weightings} weightings that all methods share, as a share "
        f"of the box from the reference point ({reference}) to the best score shown ({best}). The reference lies a "
        "tenth of the range below the worst score of the base and the runs; another reference gives other figures."
    )
    if found.left_out:
        caption += f" Left out, with one weighting only: {', '.join(map(method_name, found.left_out))}."
    head = ["method", *("seed not recorded" if seed is None else f"seed {seed}" for seed in seeds)]
    head += ["mean"] if len(seeds) > 1 else []
    return Table(head, rows, caption)


def runs(world: World) -> Table:
    """Every run behind the points."""
    extras = list(dict.fromkeys(key for point in world.points for key in point.extras))
    head = ["method", "weights", "seed", *world.objectives, "KL, nats", *extras, "directory"]
    rows = []
    for p in world.points:
        row = [method_name(p.method), weights_text(p.weights, world.objectives), "–" if p.seed is None else str(p.seed)]
        row += [number(p.scores[name]) for name in world.objectives] + [number(p.kl, ".2f")]
        rows.append([*row, *(number(p.extras.get(key)) for key in extras), p.run_name or "–"])
    return Table(head, rows, "Every run behind the points of the front.", words=2, folded=True)


def unit_words(world: World) -> list[str]:
    """What each objective's score is, in full."""
    return [f"{name}: {world.units[name]}." for name in world.objectives if world.units.get(name)]


def data_words(world: World) -> list[str]:
    """What the training data of a world was."""
    data, parts = world.data, []
    if data.get("rows") is not None:
        parts.append(f"{data['rows']} comparisons")
    if isinstance(data.get("conflicting_share"), int | float):
        parts.append(f"in {share(data['conflicting_share'])} of them two objectives prefer different responses")
    agreement = data.get("agreement")
    if isinstance(agreement, int | float):
        parts.append(f"labels agree in {share(agreement)}")
    elif isinstance(agreement, dict):
        parts += [
            f"{' and '.join(k.split('~'))} agree in {share(v)}"
            for k, v in agreement.items()
            if isinstance(v, int | float)
        ]
    scored = f" The base's scores are means over {world.base_n} answers to held-out prompts." if world.base_n else ""
    return [f"Trained on {', '.join(parts)}.{scored}"] if parts else [scored.strip()] if scored else []


def examples(world: World) -> Examples | None:
    """Prompts with what the base, linear weighting and RACO wrote."""
    items: list[dict[str, Any]] = []
    for example in world.examples:
        scores = example.get("scores") or {}
        known = ("prompt", "scores")
        who: list[str] = [key for key in ("base", "linear", "raco") if key in example]
        who += [key for key in example if key not in (*known, *who) and isinstance(example[key], str)]
        answers = [
            (method_name(key), str(example[key]), [(n, number(_score(scores, key, n))) for n in world.objectives])
            for key in who
        ]
        items.append({"prompt": str(example.get("prompt", "")), "answers": answers})
    if not items:
        return None
    caption = (
        "Held-out prompts with one sampled answer of each model and its scores. One sample says little about a model."
    )
    return Examples(items, caption)


def _score(scores: dict[str, Any], who: str, name: str) -> float | None:
    value = (scores.get(who) or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def objectives(run: Run) -> Table:
    """Weights, effective weights and last figures of a run's objectives."""
    head = ["objective", "weight", "effective", "loss", "margin", "accuracy"]
    held_out = any(last(run, f"eval_loss/{name}") is not None for name in run.objectives)
    head += ["held-out loss", "held-out margin", "held-out accuracy"] if held_out else []
    weights = effective_weights(run) or {}
    rows = []
    for name in run.objectives:
        row = [name, number(run.weights[name]), number(weights.get(name))]
        for prefix in ("", "eval_")[: 1 + held_out]:
            row.append(number(last(run, f"{prefix}loss/{name}")))
            row.append(number(last(run, f"{prefix}rewards/margins/{name}"), "+.3f"))
            accuracy = last(run, f"{prefix}rewards/accuracies/{name}")
            row.append("–" if accuracy is None else f"{100 * accuracy:.1f}\u00a0%")
        rows.append(row)
    caption = "Each objective's last logged figures (losses in nats) and its effective weight, the mean of the run."
    return Table(head, rows, caption)


def run_list(found: Sequence[Run], why: str) -> Table:
    """Runs that cannot be compared as points, and the reason, a clause: what they are."""
    rows = []
    for run in found:
        weights = ", ".join(f"{name} {run.weights[name]:.3g}" for name in run.objectives)
        seed, held_out = "–" if run.seed is None else str(run.seed), held_out_rows(run)
        rows.append([run.name, method_name(run.method), weights, _held_out(held_out), seed])
    caption = f"No front is drawn: {why}. Equal fingerprints of held-out rows are equal rows."
    return Table(["run", "method", "weights", "held-out rows", "seed"], rows, caption, words=4)


def _held_out(known: tuple[str, int | None] | None) -> str:
    if known is None:
        return "not recorded"
    fingerprint, kept = known
    return f"{fingerprint[:8]}" if kept is None else f"{kept} ({fingerprint[:8]})"
