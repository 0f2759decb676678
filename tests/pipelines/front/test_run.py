"""Running what is not there: order, retries, failures, resuming a thousand cells, the lock, models that are removed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.pipelines.front import run
from paretune.pipelines.front.engine import Ended
from paretune.pipelines.front.plan import Cell, Plan, make_cells
from paretune.pipelines.front.run import Progress, attempts, locked, run_front
from paretune.pipelines.methods import METHODS
from tests.pipelines.front.made import Inline, made_plan, write_cell, write_front


def pretend(plan: Plan, cell: Cell, needs: dict[str, str], folder: Path) -> str:
    """In place of `run_cell`: leaves the files of a run, and checks that what it needs is finished."""
    assert all((Path(where) / "cell.json").is_file() for where in needs.values())
    place = folder / cell.folder
    place.mkdir(parents=True, exist_ok=True)
    if cell.kind in ("train", "trunk"):
        (place / "model.safetensors").write_text("weights")
        (place / "run.json").write_text(json.dumps({"status": "finished", "method": {"name": "linear"}}))
    write_cell(folder, plan, cell)
    return cell.name


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_cell", pretend)


def go(
    folder: Path, plan: Plan, engine: Any, retries: int = 1
) -> tuple[dict[str, Any], dict[str, str], list[Progress]]:
    told: list[Progress] = []
    found, failed = run_front(folder, plan, make_cells(plan), engine, retries=retries, tell=told.append)
    return found, failed, told


def test_cells_run_behind_what_they_need_and_once(tmp_path: Path) -> None:
    plan = made_plan()
    engine = Inline()
    found, failed, told = go(tmp_path, plan, engine)
    assert not failed and sorted(engine.ran) == sorted(found) == sorted(cell.name for cell in make_cells(plan))
    assert told[-1].done == told[-1].total == 14 and told[-1].left == 0
    assert any(progress.news and progress.news.startswith("raco-0.250-0.750-s1: helpful 0.") for progress in told)
    again = Inline()
    assert go(tmp_path, plan, again)[0] == found and again.ran == []
    more = Inline()
    go(tmp_path, replace(plan, seeds=(0, 1, 2)), more)
    assert len(more.ran) == 7 and all(name.endswith("-s2") for name in more.ran)


def test_a_thousand_finished_cells_are_only_read(tmp_path: Path) -> None:
    plan = made_plan(seeds=tuple(range(12)), weightings=tuple((i / 42, 1 - i / 42) for i in range(1, 42)))
    cells, _ = write_front(tmp_path, plan)
    assert len(cells) > 1000
    engine = Inline()
    found, failed, _ = go(tmp_path, plan, engine)
    assert len(found) == len(cells) and not failed and not engine.ran
    (tmp_path / cells[500].folder / "cell.json").unlink()
    engine = Inline()
    go(tmp_path, plan, engine)
    assert engine.ran == [cells[500].name]


def test_a_crash_is_tried_again_and_recorded(tmp_path: Path) -> None:
    plan = made_plan("linear", seeds=(0,))
    killed = Ended("linear-0.250-0.750-s0", error="its process was ended by signal 9", again=True)
    engine = Inline(**{"linear_0.250_0.750_s0": [killed]})
    found, failed, told = go(tmp_path, plan, engine)
    assert not failed and engine.ran.count("linear-0.250-0.750-s0") == 2
    assert any(
        "crashed and is started again (1 of 1): its process was ended by signal 9" in (p.news or "") for p in told
    )
    cell = next(cell for cell in make_cells(plan) if cell.name == "linear-0.250-0.750-s0")
    log = attempts(tmp_path / cell.folder)
    assert [entry["event"] for entry in log] == ["start", "error", "start", "end"] and "signal 9" in log[1]["error"]


@pytest.mark.parametrize(("again", "starts"), [(True, 3), (False, 1)])
def test_what_goes_on_crashing_fails_and_takes_what_needs_it(tmp_path: Path, again: bool, starts: int) -> None:
    plan = made_plan("linear", seeds=(0, 1))
    crash = Ended("base-s1", error="ValueError: no\n  line 3", again=again)
    engine = Inline(**{"base_s1": [crash] * 9})
    found, failed, _ = go(tmp_path, plan, engine, retries=2)
    assert engine.ran.count("base-s1") == starts
    assert set(failed) == {cell.name for cell in make_cells(plan) if cell.seed == 1}
    assert failed["linear-0.250-0.750-s1"] == "it needs base-s1, which failed"
    assert set(found) == {cell.name for cell in make_cells(plan) if cell.seed == 0}
    assert not go(tmp_path, plan, Inline())[1], "the next command tries again"


def test_a_cell_that_the_command_died_with_is_recorded(tmp_path: Path) -> None:
    plan = made_plan("linear", seeds=(0,))
    base = make_cells(plan)[0]
    (tmp_path / base.folder).mkdir(parents=True)
    (tmp_path / base.folder / "attempts.jsonl").write_text('{"time": "x", "event": "start"}\n')
    go(tmp_path, plan, Inline())
    log = attempts(tmp_path / base.folder)
    assert [entry["event"] for entry in log] == ["start", "error", "start", "end"]
    assert log[1]["error"] == "the command ended while the cell ran"


def test_an_end_without_a_cell_is_a_failure(tmp_path: Path) -> None:
    engine = Inline(base_s0=[Ended("base-s0", value="base-s0")])
    assert go(tmp_path, made_plan("linear", seeds=(0,)), engine)[1]["base-s0"] == "it ended without a cell.json"


def test_models_are_removed_where_nobody_keeps_them_and_made_anew_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "soft", replace(METHODS["linear"], steerable=True, needs_singles=True))
    plan = made_plan("linear", "soft", seeds=(0,), keep_models=False)
    found, _, _ = go(tmp_path, plan, Inline())
    assert not list(tmp_path.rglob("*.safetensors")) and len(list(tmp_path.rglob("run.json"))) == 5
    again = Inline()
    go(tmp_path, plan, again)
    assert again.ran == [], "finished cells need no models"
    more = Inline()
    go(tmp_path, replace(plan, weightings=(*plan.weightings, (0.5, 0.5))), more)
    singles = ["single-1.000-0.000-s0", "single-0.000-1.000-s0"]
    assert more.ran[:2] == [*singles] or set(singles) < set(more.ran)
    assert set(more.ran) == {*singles, "linear-0.500-0.500-s0", "soft-s0", "soft-0.500-0.500-s0"}


def test_one_front_per_folder(tmp_path: Path) -> None:
    said = "another front runs in this folder.*process [0-9]+"
    with locked(tmp_path), pytest.raises(InputError, match=said), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
