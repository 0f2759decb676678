"""The demo end to end, small: real bases, real runs, one result that the report reads; a second call does nothing."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.cli.demo import table
from paretune.evaluation.report import write_report
from paretune.pipelines import demo
from paretune.pipelines.demo import Plan, make_cells, run_demo, weightings
from paretune.sandbox import WORLDS
from paretune.sandbox.labels import PRESETS

SMALL = Plan(
    worlds=("safety",),
    methods=("linear", "raco", "mgda"),
    prompts=12,
    pairs_per_prompt=2,
    steps=2,
    batch=4,
    eval_prompts=10,
    eval_samples=2,
    oracle_of=4,
    base_steps=4,
    workers=1,
)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_weightings_are_on_the_simplex_and_favour_each_objective_once(m: int) -> None:
    grid = weightings(m)
    assert len(grid) == m + 1 and grid[0] == tuple([1 / m] * m)
    assert all(sum(w) == pytest.approx(1.0) for w in grid)
    assert [max(range(m), key=w.__getitem__) for w in grid[1:]] == list(range(m))


def test_cells_hold_every_method_at_every_weighting() -> None:
    world = WORLDS["summaries"]
    cells = make_cells(replace(SMALL, seeds=(0, 1)), world)
    found = {
        (cell.method, cell.seed): len([c for c in cells if (c.method, c.seed) == (cell.method, cell.seed)])
        for cell in cells
    }
    assert found == {(m, s): n for m, n in (("single", 3), ("linear", 4), ("raco", 4), ("mgda", 1)) for s in (0, 1)}
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_plan_is_known_by_what_it_computes() -> None:
    assert SMALL.digest() == replace(SMALL, workers=7).digest()
    assert SMALL.digest() == replace(SMALL, seeds=(0, 1, 2)).digest(), "cells are named by their seeds"
    assert SMALL.digest() != replace(SMALL, steps=3).digest()


def test_a_plan_is_known_by_the_code_that_computes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "paretune"
    for name in ("pipelines/demo.py", "losses.py", "cli/train.py", "evaluation/report/page.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(demo, "__file__", str(package / "pipelines" / "demo.py"))

    def known() -> str:
        demo.code_digest.cache_clear()
        return SMALL.digest()

    before = known()
    for name in ("cli/train.py", "evaluation/report/page.py"):
        (package / name).write_text("x = 2\n")
    assert known() == before, "what only shows results"
    (package / "losses.py").write_text("x = 2\n")
    assert known() != before
    demo.code_digest.cache_clear()


def test_presets_are_labelled_as_they_say() -> None:
    for name, preset in PRESETS.items():
        labels = replace(SMALL, labelling=name, kappa=3.0).labels()
        assert labels.kappa == (math.inf if name.startswith("conflict") else 3.0)
        assert replace(labels, kappa=preset.kappa) == preset


@pytest.mark.parametrize(("labelling", "betas"), [("clean", [0.1, 0.1]), ("scaled", [0.5, 0.1])])
def test_an_objectives_scale_is_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelling: str, betas: list[float]
) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    plan, world = replace(SMALL, labelling=labelling), WORLDS["safety"]
    cell = next(cell for cell in make_cells(plan, world) if cell.method == "linear")
    base = demo.prepare_world(plan, "safety", tmp_path)["base"]
    demo.run_cell(plan, cell, base, tmp_path)
    record = json.loads((tmp_path / "safety" / cell.name / "run.json").read_text())
    assert [objective["beta"] for objective in record["objectives"]] == pytest.approx(betas)


def test_more_seeds_go_on_from_what_is_there_and_older_code_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    # one thread instead of processes, each of which would import everything anew
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(1))
    plan, folder = replace(SMALL, methods=("mgda",)), tmp_path / "demo"
    first = run_demo(folder, plan, lambda line: None)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs-*/**/*.json")}
    second = run_demo(folder, replace(plan, seeds=(0, 1)), lambda line: None)
    assert second["runs"] == first["runs"] and second["seeds"] == [0, 1]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is repeated"
    for name, points in second["worlds"][0]["ceilings"].items():
        assert [point["seed"] for point in points] == [0, 1], name
        assert points[0] == first["worlds"][0]["ceilings"][name][0]
    assert table(second["worlds"][0]).count("single") == 4
    page = write_report([folder], folder / "report.html").read_text(encoding="utf-8")
    assert "trained on helpful alone, mean of 2 runs (seed 0, 1)" in page
    assert run_demo(folder, plan, lambda line: None)["worlds"] == first["worlds"], "fewer seeds are fewer"

    asked: list[str] = []
    monkeypatch.setattr(demo, "code_digest", lambda: "other code")
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda *args, **kwargs: asked.append("anew") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_demo(folder, plan, lambda line: None)
    assert asked == ["anew"]


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    folder = tmp_path / "demo"
    result = run_demo(folder, SMALL, said.append)
    (world,) = result["worlds"]
    assert set(world["ceilings"]) == set(WORLDS["safety"].objectives)
    assert sorted(p["method"] for p in world["points"]) == ["linear"] * 3 + ["mgda"] + ["raco"] * 3
    assert len(world["examples"]) == 10 and {"prompt", "base", "linear", "raco", "scores"} == set(world["examples"][0])
    for point in [*world["points"], *(p for own in world["ceilings"].values() for p in own)]:
        run = folder / point["run"]
        assert json.loads((run / "run.json").read_text())["status"] == "finished" and (run / "history.jsonl").exists()
        for name in world["objectives"]:
            low, high = point["ci"][name]
            assert low <= point["scores"][name] <= high
    # an oracle that may choose does not do worse than the base on what it chooses by
    for name in world["objectives"]:
        best = max(o["scores"][name] for o in world["oracle"])
        assert best >= world["base"]["scores"][name]
    text = table(world)
    assert text.count("raco") == 3 and "base" in text and "nats" in text
    page = write_report([folder], folder / "report.html").read_text(encoding="utf-8")
    assert "safety" in page and "<svg" in page

    said.clear()
    assert run_demo(folder, SMALL, said.append) == result
    assert said == [], "what is there is not done again"


def test_a_finished_cell_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cells(SMALL, WORLDS["safety"])[0]
    kept = tmp_path / "safety" / cell.name / "cell.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"scores": {"kept": 1.0}}')
    monkeypatch.setattr(demo, "RACOTrainer", None)
    assert demo.run_cell(SMALL, cell, "no base is read", tmp_path) == {"scores": {"kept": 1.0}}
