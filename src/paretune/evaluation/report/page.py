"""The page: sections of words, drawings and tables, put into one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paretune.errors import InputError
from paretune.evaluation.report import curves, draw, dynamics, figures, tables, words
from paretune.evaluation.report.blocks import Block, Section, Table, Words, method_name, weights_text
from paretune.evaluation.report.facts import seeds_of
from paretune.evaluation.report.load import Demo, Run, World, load, not_comparable, world_of_runs
from paretune.evaluation.report.reproduce import how_to_reproduce
from paretune.files import write_text

HERE = Path(__file__).parent
MOST_RUNS = 8  # drawn one by one; more would make a page that nobody reads to its end


def write_report(paths: Sequence[Path], out: Path, defaults: Mapping[str, Any] | None = None) -> Path:
    """Writes one page about run directories and demo folders.

    Args:
        paths: at least one of them.
        out: the file; an existing one is replaced once the new one is whole.
        defaults: of a run's configuration by field, in the plain values of run.json. The page's configurations leave
            fields at their defaults out; None shows every field.

    Returns:
        `out`.

    Raises:
        InputError: nothing to report on, or a file that cannot be read or written.
    """
    page = render([load(path) for path in paths], defaults)
    try:
        write_text(out, page)
    except OSError as error:
        raise InputError(f"the report cannot be written: {error}", where=str(out)) from error
    return out


def render(found: Sequence[Run | Demo], defaults: Mapping[str, Any] | None = None) -> str:
    """The page's HTML.

    Everything that comes from data or models goes through the template's escaping or, inside drawings, an XML writer's.
    """
    if not found:
        raise InputError("nothing to report on", fix="Name a run's directory or a demo's.")
    demos, runs = [x for x in found if isinstance(x, Demo)], [x for x in found if isinstance(x, Run)]
    sections: list[Section] = []
    with draw.drawing():
        for d, demo in enumerate(demos):
            sections += [_world_section(world, f"d{d}w{w}") for w, world in enumerate(demo.worlds)]
        together = world_of_runs(runs)
        if together is not None:
            sections.append(_world_section(together, "runs"))
        elif (why := not_comparable(runs)) is not None:
            sections.append(Section("These runs beside each other", [tables.run_list(runs, why)]))
        for i, run in enumerate(runs[:MOST_RUNS]):
            sections.append(_run_section(run, f"r{i}"))
    if len(runs) > MOST_RUNS:
        text = (
            f"Only the first {MOST_RUNS} of {len(runs)} runs are drawn one by one: paretune report RUN draws any other."
        )
        sections.append(Section("More runs", [Words([text])]))
    sections.append(_notices(demos, runs))
    sections.append(how_to_reproduce(demos, runs, defaults, most=MOST_RUNS))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["legal"] = lambda value: draw.legal(str(value))
    return environment.get_template("page.html.j2").render(
        title="paretune: " + _title(demos, runs),
        facts=_facts(demos, runs),
        sections=sections,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        script=(HERE / "script.js").read_text(encoding="utf-8"),
    )


def _title(demos: Sequence[Demo], runs: Sequence[Run]) -> str:
    if demos:
        kind = "front" if "cells" in demos[0].facts else "demo"
        return f"the {kind}'s trade-offs" if not runs else "trade-offs of several runs"
    return f"run {Path(runs[0].name).name}" if len(runs) == 1 else f"{len(runs)} runs"


def _facts(demos: Sequence[Demo], runs: Sequence[Run]) -> list[str]:
    """The line under the title."""
    seeds = list(
        dict.fromkeys([*(s for demo in demos for w in demo.worlds for s in seeds_of(w.points)), *seeds_of(runs)])
    )
    facts = ["one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"]
    facts += [f"{len(world.points)} runs in {world.name}" for demo in demos for world in demo.worlds]
    facts += [f"made {demo.facts['created']}" for demo in demos if demo.facts.get("created")]
    if len(runs) == 1:
        run = runs[0]
        facts.insert(0, f"{method_name(run.method)} at {weights_text(run.weights, run.objectives)}")
        facts += [f"status: {run.record['status']}"] if run.record.get("status") else []
        facts += [f"ended {run.record['ended']}"] if run.record.get("ended") else []
    return facts


def _world_section(world: World, key: str) -> Section:
    short: list[Block] = [Words([world.description])] if world.description else []
    short += [Words(tables.unit_words(world), listed=True)] if tables.unit_words(world) else []
    short += [Words(tables.data_words(world))] if tables.data_words(world) else []
    short.append(Words(words.in_short(world), listed=True))
    several = len(world.objectives) > 1
    inner = [
        Section("The front", [x for x in (figures.front(world, key) if several else None, tables.points(world)) if x]),
        Section("Gain and distance", [x for x in (figures.gains_by_kl(world, key), tables.gains(world)) if x]),
        Section("Volume under the front", [x for x in (tables.volume(world),) if x]),
        Section(
            "Conflict and combination",
            [
                x
                for x in (
                    dynamics.conflict(world, key),
                    figures.effective(world, key),
                    dynamics.coefficients(world, key),
                    dynamics.angles(world, key),
                )
                if x
            ],
        ),
        Section("Side by side", [x for x in (tables.examples(world),) if x]),
        _to_try(world.runs, world.objectives, seeds_of(world.points)),
        Section("Single runs", [tables.runs(world)]),
    ]
    return Section(world.name, short, [section for section in inner if section.blocks])


def _run_section(run: Run, key: str) -> Section:
    blocks: list[Block] = [Words(words.run_in_short(run), listed=True), tables.objectives(run)]
    blocks += [x for x in (f(run, key) for f in (curves.learning, curves.clashes, curves.combination)) if x is not None]
    if len(blocks) == 2:
        blocks.append(Words(["Nothing was logged in history.jsonl, so there is nothing to draw."]))
    advice = _to_try([run], run.objectives, [run.seed])
    return Section(f"Run {run.name}", blocks, [advice] if advice.blocks else [])


def _to_try(runs: Sequence[Run], objectives: Sequence[str], seeds: Sequence[int | None]) -> Section:
    lines = words.to_try(runs, objectives, seeds=seeds)
    return Section("What to try", [Words(lines, listed=True)] if lines else [])


def _notices(demos: Sequence[Demo], runs: Sequence[Run]) -> Section:
    """What the runs said about themselves, each notice once with the runs that said it."""
    every = [*runs, *(run for demo in demos for world in demo.worlds for run in world.every_run)]
    said: dict[str, list[str]] = {}
    for run in every:
        notices = [str(notice) for notice in run.record.get("notices") or []]
        status = run.record.get("status")
        if status != "finished":
            error = (run.record.get("final") or {}).get("error")
            notices.append(f"the run did not finish (status: {status}{f'; {error}' if error else ''})")
        if not run.history:
            notices.append("no history.jsonl: its curves are not in the drawings")
        for notice in notices:
            said.setdefault(notice, []).append(run.name)
    gone = [f"{world.name}: {name}" for demo in demos for world in demo.worlds for name in world.missing]
    if gone:
        said["a run that a point names is not there, so only its scores are shown"] = gone
    if not said:
        return Section("Warnings and fallbacks", [Words([f"None in {len(every)} run{'s'[: len(every) != 1]}."])])
    rows = [[notice, _listed(names, len(every))] for notice, names in said.items()]
    return Section("Warnings and fallbacks", [Table(["what was said", "by"], rows, "As the runs said it.", words=2)])


def _listed(names: Sequence[str], total: int) -> str:
    names = list(dict.fromkeys(names))
    if len(names) == total > 1:
        return f"all {total} runs"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
