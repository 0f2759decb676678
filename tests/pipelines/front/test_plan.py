"""Grids, cells and what identifies them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.pipelines.front.plan import Entry, WorldPlan, even_weightings, finished, make_cells, superseded
from paretune.pipelines.methods import METHODS
from tests.pipelines.front.made import made_plan, write_cell


def test_grids_are_even_and_leave_the_vertices_out() -> None:
    assert np.allclose(even_weightings(2, 4), [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2)])
    assert np.allclose(even_weightings(3, 1), [(1 / 3, 1 / 3, 1 / 3)])
    for m, n, expected in [(2, 5, 5), (3, 5, 6), (3, 4, 6), (5, 2, 5)]:
        grid = np.array(even_weightings(m, n))
        assert grid.shape == (expected, m) and (grid > 0).all() and np.allclose(grid.sum(1), 1)
        assert np.allclose(grid.mean(0), 1 / m) and len(np.unique(grid.round(9), axis=0)) == expected
    with pytest.raises(InputError, match="no front"):
        even_weightings(1, 5)


def test_every_method_takes_its_own_kind_of_cell() -> None:
    plan = made_plan("linear", "mgda", seeds=(3,))
    cells = make_cells(plan)
    assert [cell.name for cell in cells] == [
        *["base-s3", "single-1.000-0.000-s3", "single-0.000-1.000-s3"],
        *["linear-0.250-0.750-s3", "linear-0.750-0.250-s3", "mgda-s3"],
    ]
    assert [cell.kind for cell in cells] == ["base", *["train"] * 5]
    assert all(cell.needs == ("base-s3",) for cell in cells[1:])


def test_steerable_methods_train_once_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "soft": replace(METHODS["linear"], steerable=True, needs_singles=True),
        "margins": replace(METHODS["linear"], needs_singles=True),
    }
    for name, method in made.items():
        monkeypatch.setitem(METHODS, name, method)
    cells = {cell.name: cell for cell in make_cells(made_plan("soft", "margins", seeds=(0,)))}
    singles = ("single-1.000-0.000-s0", "single-0.000-1.000-s0")
    assert cells["soft-s0"].kind == "trunk" and cells["soft-s0"].needs == ("base-s0", *singles)
    reading = cells["soft-0.250-0.750-s0"]
    assert reading.kind == "read" and reading.needs == ("base-s0", *singles, "soft-s0")
    assert cells["margins-0.250-0.750-s0"].needs == ("base-s0", *singles)


def digests(**changes: object) -> dict[str, str]:
    return {cell.name: cell.digest for cell in make_cells(made_plan(**changes))}  # type: ignore[arg-type]


def test_a_digest_is_of_what_decides_the_result(tmp_path: Path) -> None:
    before = digests()
    assert len(set(before.values())) == len(before)
    assert digests(keep_models=False) == before
    assert digests(config={"max_steps": 2, "eval_fraction": 0.3, "dataloader_num_workers": 3}) == before
    more = digests(seeds=(0, 1, 2))
    assert {name: more[name] for name in before} == before, "more seeds go on from what is there"
    fewer = digests(weightings=((0.25, 0.75),))
    assert set(fewer.items()) < set(before.items())
    other = digests(config={"max_steps": 3, "eval_fraction": 0.3})
    changed = {name for name in before if other[name] != before[name]}
    assert changed == {name for name in before if not name.startswith("base")}
    one = digests(entries=(Entry("linear", "linear"), Entry("raco", "raco", {"c": 0.2})))
    assert {name for name in before if one[name] != before[name]} == {n for n in before if n.startswith("raco")}
    scored = digests(scoring=replace(made_plan().scoring, eval_samples=7))
    assert not set(scored.values()) & set(before.values())
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    first = digests(data=str(data))
    data.write_text('{"a": 1}\n')
    assert digests(data=str(data)) != first, "data is known by its content"


def test_needed_cells_are_part_of_the_meaning() -> None:
    """Another base is another everything: a world's options that only its base depends on reach every cell."""
    plan = made_plan(world=WorldPlan("safety"), scoring=replace(made_plan().scoring, prompts=None))
    before = {cell.name: cell.digest for cell in make_cells(plan)}
    other = replace(plan, world=WorldPlan("safety", base_steps=7))
    assert not set(before.values()) & {cell.digest for cell in make_cells(other)}


def test_a_cell_is_finished_where_its_file_is_whole_and_its_own(tmp_path: Path) -> None:
    plan = made_plan()
    cell = make_cells(plan)[0]
    assert finished(tmp_path, cell) is None
    write_cell(tmp_path, plan, cell)
    assert finished(tmp_path, cell) is not None
    path = tmp_path / cell.folder / "cell.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert finished(tmp_path, cell) is None
    path.write_text(json.dumps({"digest": "another"}))
    assert finished(tmp_path, cell) is None


def test_what_changed_is_said(tmp_path: Path) -> None:
    plan = made_plan()
    cells = make_cells(plan)
    for cell in cells:
        write_cell(tmp_path, plan, cell)
    assert superseded(tmp_path, cells) == []
    (said,) = superseded(tmp_path, make_cells(replace(plan, config={"max_steps": 5, "eval_fraction": 0.3})))
    assert said == "12 finished cells of other settings not used: config.max_steps (2 before, 5 now)"
    assert superseded(tmp_path, make_cells(replace(plan, seeds=(8,)))) == [], "cells of other seeds are not in the way"


def test_two_weightings_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="one name"):
        make_cells(made_plan(weightings=((0.25, 0.75), (0.25001, 0.74999))))
