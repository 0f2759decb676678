"""What a report is made of: run directories and demo folders, read into plain records.

A run directory holds `run.json` and `history.jsonl`, a demo folder `result.json` with worlds whose points name their
runs. Both may come from an interrupted or an older run, so everything but names, weights and scores may be absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paretune.errors import SHAPES, InputError


@dataclass(frozen=True)
class Run:
    """One training run: what it was asked, what it said, every line it logged."""

    name: str
    objectives: tuple[str, ...]
    weights: dict[str, float]
    method: str
    c: float | None
    seed: int | None
    record: dict[str, Any]
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Point:
    """Scores of one run. `ci` holds (low, high) per objective where known, `kl` is KL(policy || reference) in nats."""

    method: str
    weights: dict[str, float]
    seed: int | None
    scores: dict[str, float]
    ci: dict[str, tuple[float, float]]
    kl: float | None
    extras: dict[str, float]
    run_name: str
    run: Run | None


@dataclass(frozen=True)
class World:
    """A task with exact scores (or, of ordinary runs, held-out accuracies) and the points that runs reached in it."""

    name: str
    objectives: tuple[str, ...]
    units: dict[str, str]
    description: str
    points: list[Point]
    base: Point | None = None
    base_n: int | None = None
    oracle: list[Point] = field(default_factory=list)
    ceilings: dict[str, list[Point]] = field(default_factory=dict)  # trained on one objective alone, a run per seed
    hacks: dict[str, Point] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        return [point.run for point in self.points if point.run is not None]

    @property
    def every_run(self) -> list[Run]:
        """The points' runs and those of the ceilings."""
        return self.runs + [point.run for point in self.every_ceiling if point.run is not None]

    @property
    def every_ceiling(self) -> list[Point]:
        """The ceilings of all objectives and seeds."""
        return [point for points in self.ceilings.values() for point in points]

    @property
    def missing(self) -> list[str]:
        """Runs that points name and that are not there."""
        points = [*self.points, *self.every_ceiling]
        return [point.run_name for point in points if point.run is None and point.run_name]


@dataclass(frozen=True)
class Demo:
    """A demo folder: what made it, and its worlds."""

    name: str
    worlds: list[World]
    facts: dict[str, Any]


def load(path: Path) -> Run | Demo:
    """A run directory or a demo folder.

    Raises:
        InputError: neither is there, or its file is not what it should be.
    """
    where = str(path)
    if not path.is_dir():
        raise InputError("no such directory", where=where, expected="a run's directory, a demo's or a front's")
    for name in ("result.json", "front.json"):  # of `paretune demo`, of `paretune front`
        if (path / name).is_file():
            return load_demo(path, name)
    if (path / "run.json").is_file():
        return load_run(path, where)
    raise InputError("nothing to report on", where=where, expected="run.json, result.json or front.json in it")


def load_run(path: Path, name: str) -> Run:
    """A run directory; a history that is not there is empty, and a line that was cut short is left out."""
    record = _json(path / "run.json")
    try:
        objectives = tuple(str(o["name"]) for o in record["objectives"])
        weights = {str(o["name"]): float(o["weight"]) for o in record["objectives"]}
    except SHAPES as error:
        raise InputError("no objectives with names and weights", where=str(path / "run.json")) from error
    _check_shapes(record, path / "run.json")
    texts = all(isinstance(o["name"], str) for o in record["objectives"])
    if not texts or not all(map(math.isfinite, weights.values())) or len(weights) < len(objectives):
        raise InputError("objectives without weights, or twice", where=str(path / "run.json"), found=str(weights))
    config = record.get("config") or {}
    return Run(
        name=name,
        objectives=objectives,
        weights=weights,
        method=str(config.get("combiner") or "unknown"),
        c=_finite(config.get("c")),
        seed=record.get("seed"),
        record=record,
        history=_history(path / "history.jsonl"),
    )


def _check_shapes(record: Mapping[str, Any], where: Path) -> None:
    for key, kind in _SHAPES.items():
        value: Any = record
        for step in key.split("."):
            value = value.get(step)
            if value is None:
                break
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InputError(
                f"{key} of another kind", where=str(where), expected=f"a {kind.__name__}", found=str(value)[:80]
            )


_SHAPES: dict[str, type] = {
    **dict.fromkeys(("config", "settings", "data", "data.eval", "data.eval.rows", "data.eval.tokens"), dict),
    **dict.fromkeys(("final", "versions", "method", "decided", "in_memory"), dict),
    **{"notices": list, "seed": int, "status": str, "ended": str},
}


def load_demo(path: Path, name: str = "result.json") -> Demo:
    """A demo folder. Points whose run is not there stay: their scores are known.

    Raises:
        InputError: a file that lacks worlds, objectives or scores.
    """
    result, what = _json(path / name), "demo" if name == "result.json" else "front"
    again = f"Run the {what} again: paretune {what}."
    worlds = result.get("worlds")
    if not isinstance(worlds, list) or not worlds:
        raise InputError("no worlds", where=str(path / name), fix=again)
    facts = {key: value for key, value in result.items() if key != "worlds"}
    try:
        return Demo(str(path), [_world(world, path) for world in worlds], facts)
    except SHAPES as error:
        problem = f"not a result as the {what} writes it ({type(error).__name__}: {error})"
        raise InputError(problem, where=str(path / name), fix=again) from error


def not_comparable(runs: Sequence[Run]) -> str | None:
    """Why several runs cannot stand beside each other as points, in a clause; None where they can.

    Runs whose record does not say which rows they held out are taken at their word: `world_of_runs` says so.
    """
    if len(runs) < 2:
        return None
    if len({frozenset(run.objectives) for run in runs}) > 1:
        return "these runs have different objectives"
    lacking = [run.name for run in runs if held_out_scores(run) is None]
    if lacking:
        names = ", ".join(lacking)
        return f"these runs logged no accuracies on one set of held-out rows (eval_fraction, eval_data): {names}"
    if len({known for run in runs if (known := held_out_rows(run)) is not None}) > 1:
        return "these runs held out different rows, so that their accuracies are of different data"
    return None


def world_of_runs(runs: Sequence[Run]) -> World | None:
    """Several runs over the same objectives as points: last accuracies on the same held-out rows; else None."""
    if len(runs) < 2 or not_comparable(runs) is not None:
        return None
    points = [
        Point(run.method, run.weights, run.seed, held_out_scores(run) or {}, {}, None, {}, run.name, run)
        for run in runs
    ]
    units = {name: "held-out accuracy, share" for name in runs[0].objectives}
    text = (
        "Each run's last accuracies on the rows it held out: how often its implicit reward is higher for the response "
        "that the objective prefers."
    )
    unknown = [run.name for run in runs if held_out_rows(run) is None]
    if unknown:
        text += " Runs that held out other rows are not comparable, and these do not say which they held out: "
        text += f"{', '.join(unknown)}."
    else:
        text += " All held out the same rows."
    return World("These runs beside each other", runs[0].objectives, units, text, points)


def held_out_scores(run: Run) -> dict[str, float] | None:
    """The last held-out accuracy of each objective; None where one was not logged."""
    scores = {name: last(run, f"eval_rewards/accuracies/{name}") for name in run.objectives}
    known = {name: value for name, value in scores.items() if value is not None}
    return known if len(known) == len(scores) else None


def held_out_rows(run: Run) -> tuple[str, int | None] | None:
    """What identifies the held-out rows, and how many of them were scored; None where run.json does not say.

    The number tells apart parts of one file that were recorded with its fingerprint, and rows that one run had to
    leave out for their length.
    """
    found = (run.record.get("data") or {}).get("eval") or {}
    fingerprint = (found.get("rows") or {}).get("fingerprint")
    kept = (found.get("tokens") or {}).get("kept")
    return (str(fingerprint), kept if isinstance(kept, int) else None) if fingerprint else None


def last(run: Run, key: str) -> float | None:
    """The last finite value that the run logged under a name."""
    return next((v for line in reversed(run.history) if (v := _finite(line.get(key))) is not None), None)


def _world(world: Mapping[str, Any], root: Path) -> World:
    objectives = tuple(str(name) for name in world["objectives"])
    loaded: dict[str, Run | None] = {}

    def run_of(name: str) -> Run | None:
        if name and name not in loaded:
            place = (root / name).resolve()
            if not place.is_relative_to(root.resolve()):
                raise InputError("a run outside of its folder", where=str(root), found=name[:80])
            loaded[name] = load_run(root / name, name) if (place / "run.json").is_file() else None
        return loaded.get(name)

    def point(entry: Mapping[str, Any], method: str) -> Point:
        name, method = str(entry.get("run") or ""), str(entry.get("method", method))
        run = run_of(name)
        return Point(
            method=method,
            weights={k: float(v) for k, v in (entry.get("weights") or {}).items()},
            seed=entry.get("seed"),
            scores={k: float(entry["scores"][k]) for k in objectives},
            ci={k: (float(v[0]), float(v[1])) for k, v in (entry.get("ci") or {}).items() if v is not None},
            kl=_finite(entry.get("kl")),
            extras={k: x for k, v in (entry.get("extras") or {}).items() if (x := _finite(v)) is not None},
            run_name=name,
            # a run knows its combiner only, and methods share one
            run=None if run is None else replace(run, method=method),
        )

    return World(
        name=str(world["name"]),
        objectives=objectives,
        units={str(k): str(v) for k, v in (world.get("units") or {}).items()},
        description=str(world.get("description") or ""),
        points=[point(entry, "unknown") for entry in world.get("points") or []],
        base=point(world["base"], "base") if world.get("base") else None,
        base_n=(world.get("base") or {}).get("n"),
        oracle=[point(entry, "oracle") for entry in world.get("oracle") or []],
        ceilings={  # of results of older versions, one run
            str(k): [point(entry, "ceiling") for entry in ([v] if isinstance(v, Mapping) else v)]
            for k, v in (world.get("ceilings") or {}).items()
        },
        hacks={str(k): point(v, "hack") for k, v in (world.get("hacks") or {}).items()},
        examples=[dict(example) for example in world.get("examples") or []],
        data=dict(world.get("data") or {}),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"unreadable: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(path))
    return content


def _history(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # the line that was being written when the run was killed
            continue
        if isinstance(entry, dict):
            lines.append({key: value for key, value in entry.items() if _drawable(value)})
    return lines


def _drawable(value: Any) -> bool:
    """Logged figures, NaN and infinity among them; numbers so large that an axis cannot hold them are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e150 or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
