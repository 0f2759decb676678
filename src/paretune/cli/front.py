"""`paretune front`: trains over a grid of methods, weightings and seeds, and compares the fronts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli.engines import ENGINE_KEYS
from paretune.cli.front_plan import FrontKeys, make_plan, reference_points
from paretune.cli.keys import READING
from paretune.cli.rundir import no_new_folder
from paretune.cli.settings import resolve
from paretune.errors import InputError, as_written
from paretune.files import write_text

if TYPE_CHECKING:
    from paretune.pipelines.front.plan import Cell, Plan
    from paretune.pipelines.front.run import Progress, Tell

INTRO = """
paretune front CONFIG.yaml [--key value ...]
paretune front FOLDER [--pick "max helpful where harmless >= 0.95"]

Trains every method at every weighting and seed, and every objective alone, scores all of them on held-out prompts, and
compares the fronts: tables, figures, front.json. What is finished is never repeated, so the same command goes on after
it was stopped; cells that crash are started again. With a folder it shows the front that is there, and --pick chooses a
checkpoint by constraints.

  paretune front examples/front_safety.yaml
  paretune front front.yaml --methods '[linear, raco, mgda]' --weightings 5 --seeds '[0, 1, 2]' --workers 4
  paretune front front.yaml --dry_run                          # the cells, and what is there already
  paretune front runs/front --pick "max helpful where harmless >= 0.95 and kl <= 5"

Scores come from a world of the sandbox (--world safety), from fresh samples (--prompts FILE, --scores '{helpful:
module:function, concise: shorter}'), or, where neither is given, from held-out comparisons. Every key of `paretune
train` is one here too, for all cells.
"""

GROUPS = {
    "What is compared": ["methods", "weightings", "seeds", "objectives"],
    "On what": ["world", "model", "ref_model", "lora", "dtype", "quantization", "data", "eval_data", *READING],
    "How it is scored": [
        *["prompts", "scores", "eval_prompts", "eval_samples", "temperatures", "max_new_tokens", "measure"],
        *["reference_point", "other_references"],
    ],
    "The work": ["output_dir", "workers", "retries", "keep_models", "dry_run", "pick"],
    "Where it is done": ENGINE_KEYS,
}


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help
        from paretune.training.config import RACOConfig

        print(command_help(INTRO, GROUPS, (RACOConfig, FrontKeys), inherited=TrainingArguments))
        return 0
    if argv and not argv[0].startswith("-") and Path(argv[0]).expanduser().is_dir():
        return show_front(Path(argv[0]).expanduser(), argv[1:])
    from paretune.pipelines.front.plan import make_cells
    from paretune.training.config import RACOConfig

    settings = resolve(argv, FrontKeys, RACOConfig, required=())
    keys: FrontKeys = settings.own
    plan = make_plan(settings)
    references = reference_points(keys, plan.names)
    if keys.pick is not None:
        from paretune.pipelines.front.pick import parse

        parse(keys.pick, plan.names)  # before hours of work
    return _run(keys, plan, make_cells(plan), references)


def _run(keys: FrontKeys, plan: Plan, cells: list[Cell], references: list[list[float]]) -> int:
    from paretune.evaluation.report.front_figures import write_figures
    from paretune.pipelines.front.cells import check_cells
    from paretune.pipelines.front.engine import Engine, Processes
    from paretune.pipelines.front.plan import superseded
    from paretune.pipelines.front.result import collect
    from paretune.pipelines.front.run import locked, run_front
    from paretune.pipelines.front.table import markdown
    from paretune.training.checks import check_output
    from paretune.training.record import write_json

    folder, workers = Path(keys.output_dir).expanduser(), _workers(keys.workers)
    with no_new_folder(keys.output_dir):
        check_output(keys.output_dir)
        said = check_cells(plan, cells, folder)
    if keys.dry_run:
        print(listing(plan, cells, folder, said))
        return 0
    notices = superseded(folder, cells)
    for notice in notices:
        print(f"front: {notice}", file=sys.stderr)
    with locked(folder):
        engine: Engine = Processes(workers) if keys.engine == "local" else keys.ray_tasks(folder, keys.workers)
        try:
            with display() as tell:
                found, failed = run_front(folder, plan, cells, engine, retries=keys.retries, tell=tell)
        finally:
            engine.close()
        front = collect(plan, cells, found, failed, folder, references, notices)
        write_json(folder / "front.json", front)
        text = markdown(front)
        write_text(folder / "front.md", text)
        figures = write_figures(front, folder) if front["temperatures"] else []
    print(text)
    print(f"front: {folder / 'front.json'}, front.md, {', '.join(path.name for path in figures)}")
    if keys.pick is not None:
        _pick(front, keys.pick, folder)
    return 3 if failed else 0


def show_front(folder: Path, rest: list[str]) -> int:
    """A front that is there: its tables, or a pick."""
    if rest[:1] == ["--pick"] and len(rest) == 2:
        query = rest[1]
    elif len(rest) == 1 and rest[0].startswith("--pick="):
        query = rest[0].partition("=")[2]
    elif rest:
        fix = "To run it, give its configuration file."
        raise InputError(f"unexpected argument {rest[0]!r}", where=str(folder), expected='--pick "…"', fix=fix)
    else:
        from paretune.pipelines.front.table import markdown

        with as_written(folder / "front.json", "a front's result"):
            print(markdown(_read(folder)))
        return 0
    with as_written(folder / "front.json", "a front's result"):
        _pick(_read(folder), query, folder)
    return 0


def _read(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "front.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "Give the configuration that it was begun with: paretune front CONFIG.yaml."
        raise InputError("no finished front is there", where=str(folder), expected="front.json", fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"unreadable: {error}", where=str(folder / "front.json")) from error
    return dict(content)


def _pick(front: dict[str, Any], query: str, folder: Path) -> None:
    from paretune.pipelines.front.pick import choose, told

    print(told(front, choose(front, query), str(folder)))


def _workers(given: int | None) -> int:
    import torch

    if given is not None and given < 1:
        raise InputError("bad workers", expected="a whole number of at least 1", found=given)
    return given or torch.cuda.device_count() or min(8, os.cpu_count() or 1)


# ---- what is shown ----


def listing(plan: Plan, cells: list[Cell], folder: Path, said: Mapping[str, list[str]]) -> str:
    """What a front would do."""
    from paretune.pipelines.front.plan import finished, superseded

    there = sum(finished(folder, cell) is not None for cell in cells)
    lines = [f"{len(cells)} cells, {there} of them finished, in {folder}"]
    for label, words in said.items():
        own = [cell for cell in cells if cell.label == label]
        lines.append(f"  {label}: {len(own)} {'cell' if len(own) == 1 else 'cells'}; {'; '.join(words)}")
    shown = ["/".join(f"{w:.3g}" for w in one) for one in plan.weightings]
    lines.append(f"weightings ({', '.join(plan.names)}): {', '.join(shown)}")
    return "\n".join([*lines, *superseded(folder, cells)])


@contextmanager
def display() -> Iterator[Tell]:
    """One progress display on stderr: a bar with what runs on a terminal, a line per news elsewhere."""
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn()]
    with Bar(*columns, TextColumn("{task.fields[running]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("front", total=None, left="", running="")

        def tell(progress: Progress) -> None:
            if progress.news:
                bar.console.print(progress.news, markup=False, highlight=False)
            running = ", ".join(progress.running)
            done = progress.done + progress.failed
            bar.update(task, total=progress.total, completed=done, left=_left(progress), running=running)

        yield tell


def _lines(progress: Progress) -> None:
    if progress.news:
        place = f"{progress.done + progress.failed}/{progress.total}"
        print(f"front: {place} {progress.news}; {_left(progress) or 'last'}", file=sys.stderr, flush=True)


def _left(progress: Progress) -> str:
    if progress.left is None or not progress.left:
        return ""
    minutes = progress.left / 60
    return f"about {minutes / 60:.1f} h left" if minutes > 90 else f"about {max(1, round(minutes))} min left"
