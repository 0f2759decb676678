"""`front.md`: the front's tables and what must be said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.evaluation.indicators_compare import EXPLORATORY, INDICATORS

_HEADS = {
    "hypervolume": "hypervolume",
    "reference_free": "reference-free",
    "epsilon": "epsilon",
    "igd_plus": "IGD+",
    "extent": "extent",
    "gain_hypervolume": "hypervolume over soup",
    "gain_reference_free": "reference-free over soup",
}


def markdown(front: Mapping[str, Any]) -> str:
    """The whole page, of a front.json's content."""
    keys = list(front["temperatures"])
    lines = [f"# Front: {front['measure']}", "", *_facts(front), ""]
    for notice in front["notices"]:
        lines += [f"- Note: {notice}."]
    if front["notices"]:
        lines.append("")
    for i, key in enumerate(keys):
        part = front["temperatures"][key]
        at = f", temperature {key}" if front["eval_samples"] else ""
        lines += [f"## Indicators{at}", "", *_explained(front, part), "", *indicator_table(part), ""]
        if i == 0:
            lines += _sensitivity(front, part)
            for baseline in part["differences"]:
                lines += _differences(part, baseline)
            lines += _dominated(part)
    lines += ["## Points", "", *point_table(front), ""]
    if front["failed"]:
        lines += ["## Failed cells", ""]
        lines += [f"- `{cell['name']}`: {cell['error'].splitlines()[0]}" for cell in front["failed"]]
        lines.append("")
    return "\n".join(lines)


def _facts(front: Mapping[str, Any]) -> list[str]:
    n, failed = len(front["cells"]), len(front["failed"])
    sampled = f" with {front['eval_samples']} samples each" if front["eval_samples"] else ""
    what = "prompts" if front["eval_samples"] else "groups of comparisons"
    hours = sum(cell["seconds"] for cell in front["cells"]) / 3600
    made = f"{n} cells{f', {failed} failed' if failed else ''}, {hours:.2f} hours of work"
    seeds = ", ".join(map(str, front["seeds"]))
    what_of = f"{_count(front['methods'], 'method')}, {_count(front['weightings'], 'weighting')}, seeds {seeds}"
    return [
        f"{what_of}; {made}. Scores: {front['measure']}, {front['prompts']} held-out {what}{sampled}. Commit "
        f"{(front['commit'] or 'unknown')[:12]}, `{front['command']}`.",
    ]


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _explained(front: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    top = "the oracle" if part["scale_from"] == "oracle" else "the run on that objective alone"
    reference = ", ".join(f"{name} {value:g}" for name, value in front["references"][0].items())
    text = [
        f"Scores are scaled per objective from the base (0) to {top} (1). A front is a method's own points and the "
        f"single-objective runs, which all methods share. Reference point: {reference} (scaled).",
    ]
    seeds = part["seeds"]
    if part["unit"] == "seeds":
        text.append(f"Brackets: 95 % bootstrap intervals over {len(seeds)} seeds, the same resamples for all methods.")
        if part["exploratory"]:
            text.append(f"Fewer than {EXPLORATORY} seeds: exploratory; intervals of so few are too narrow.")
    else:
        text.append(
            "Brackets: 95 % bootstrap intervals over prompts, the same resamples for all methods. They are of one "
            "seed: they tell how exactly these trained models were measured, and are **not a comparison of methods**, "
            "whose results move with the seed."
        )
    if part["volume"]["error"]:
        error = f"standard error {part['volume']['error']:.4f} for {part['volume']['method']}"
        text.append(f"Volumes: {part['volume']['how']}, {error}.")
    elif part["volume"]["how"] != "exact":
        text.append(f"Volumes: {part['volume']['how']}.")
    return [" ".join(text)]


def _order(part: Mapping[str, Any]) -> list[str]:
    """Methods by hypervolume, the largest first."""
    found = part["indicators"]
    return sorted(found, key=lambda method: -found[method]["hypervolume"]["mean"])


def indicator_table(part: Mapping[str, Any]) -> list[str]:
    """Methods by indicators, each with its interval."""
    shown = [*INDICATORS, *(["gain_hypervolume", "gain_reference_free"] if part["soup"] else [])]
    head = ["method", *(f"{_HEADS[name]} {'↑' if INDICATORS.get(name, True) else '↓'}" for name in shown)]
    rows = [[m, *(_interval(part["indicators"][m][name]) for name in shown)] for m in _order(part)]
    return table(head, rows)


def _sensitivity(front: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    others = front["references"][1:]
    if not others:
        return []
    head = ["method", "declared", *(" ".join(f"{v:g}" for v in point.values()) for point in others)]
    rows = []
    for method in _order(part):
        names = ["hypervolume", *(f"hypervolume@{i}" for i in range(1, len(others) + 1))]
        rows.append([method, *(_ranked(part, method, name) for name in names)])
    title = "### Hypervolume from other reference points (rank)"
    return [title, "", *table(head, rows), ""]


def _ranked(part: Mapping[str, Any], method: str, name: str) -> str:
    mine = part["indicators"][method][name]["mean"]
    rank = 1 + sum(of[name]["mean"] > mine for of in part["indicators"].values())
    return f"{mine:.3f} ({rank})"


def _differences(part: Mapping[str, Any], baseline: str) -> list[str]:
    found = part["differences"][baseline]
    shown = [name for name in INDICATORS if name != "extent"]
    several = part["unit"] == "seeds"
    head = ["method", *(f"{_HEADS[name]} {'↑' if INDICATORS[name] else '↓'}" for name in shown)]
    head += ["p (hypervolume)"] if several else []
    rows = []
    for method in [m for m in _order(part) if m in found]:
        cells = [_interval(found[method][name], signed=True) for name in shown]
        rows.append([method, *cells, *([f"{found[method]['hypervolume']['p']:.3f}"] if several else [])])
    text = [f"### Paired differences to {baseline}", ""]
    if several:
        text += [
            f"Seed by seed, method minus {baseline}. p: sign-flip test, not corrected for the number of methods; with "
            f"{len(part['seeds'])} seeds it cannot be below {2 ** (1 - len(part['seeds'])):.3g}.",
            "",
        ]
    return [*text, *table(head, rows), ""]


def _dominated(part: Mapping[str, Any]) -> list[str]:
    shares = part["dominated"]
    if len(shares) < 2:
        return []
    names = _order(part)
    rows = [[m, *("" if m == r else f"{shares[m][r]:.2f}" for r in names)] for m in names]
    title = "### Share of a row's own points that a column's front dominates"
    return [title, "", *table(["", *names], rows), ""]


def point_table(front: Mapping[str, Any]) -> list[str]:
    """Every method and weighting: scores as means over seeds (with their range), or with intervals over prompts."""
    names, keys = front["objectives"], list(front["temperatures"]) or ["1"]
    groups: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for cell in front["cells"]:
        if cell["kind"] != "trunk":
            weights = None if cell["weights"] is None else tuple(cell["weights"].values())
            groups.setdefault((cell["label"], weights), []).append(cell)
    many = len(front["seeds"]) > 1
    at = {key: f" at {key}" if len(keys) > 1 else "" for key in keys}
    head = ["method", f"weights ({' '.join(names)})", *(f"{name}{at[key]}" for key in keys for name in names)]
    with_kl = any(cell["kl"] is not None for cell in front["cells"])
    rows = []
    for (label, weights), cells in groups.items():
        shown = "" if weights is None else " ".join(f"{w:.2f}" for w in weights)
        figures = [_scores(cells, key, name) for key in keys for name in names]
        kls = [cell["kl"] for cell in cells if cell["kl"] is not None]
        rows.append(
            [
                label,
                shown,
                *figures,
                *([f"{sum(kls) / len(kls) + 0.0:.2f}".replace("-0.00", "0.00") if kls else ""] if with_kl else []),
            ]
        )
    brackets = "the range over seeds" if many else "95 % intervals over prompts"
    return [f"Raw scores; brackets: {brackets}.", "", *table([*head, *(["KL, nats"] if with_kl else [])], rows)]


def _scores(cells: Sequence[Mapping[str, Any]], key: str, name: str) -> str:
    parts = [cell["scores"][key] for cell in cells if key in cell["scores"]]
    if not parts:
        return ""
    values = [part["scores"][name] for part in parts]
    ends = (min(values), max(values)) if len(values) > 1 else parts[0]["ci"][name]
    return f"{sum(values) / len(values):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def _interval(estimate: Mapping[str, float], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{estimate['mean']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up in plain text too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line(head), rule, *map(line, rows)]
