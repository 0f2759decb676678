"""The demo end to end, small: real bases, real runs, one result that the report reads; a second call does nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.cli.demo import table
from paretune.evaluation.report import write_report
from paretune.pipelines.demo import Plan, make_cells, run_demo, weightings
from paretune.sandbox import WORLDS

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
    assert SMALL.digest() != replace(SMALL, steps=3).digest()


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    folder = tmp_path / "demo"
    result = run_demo(folder, SMALL, said.append)
    (world,) = result["worlds"]
    assert set(world["ceilings"]) == set(WORLDS["safety"].objectives)
    assert sorted(p["method"] for p in world["points"]) == ["linear"] * 3 + ["mgda"] + ["raco"] * 3
    assert len(world["examples"]) == 10 and {"prompt", "base", "linear", "raco", "scores"} == set(world["examples"][0])
    for point in [*world["points"], *world["ceilings"].values()]:
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
    from paretune.pipelines import demo

    cell = make_cells(SMALL, WORLDS["safety"])[0]
    kept = tmp_path / "safety" / cell.name / "cell.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"scores": {"kept": 1.0}}')
    monkeypatch.setattr(demo, "RACOTrainer", None)
    assert demo.run_cell(SMALL, cell, "no base is read", tmp_path) == {"scores": {"kept": 1.0}}
