"""What finished cells come to: scale, indicators, seeds left out, notices, tables, pictures, the report's world."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.evaluation import hypervolume
from paretune.evaluation.report import write_report
from paretune.evaluation.report.front_figures import write_figures
from paretune.pipelines.front.plan import Plan, make_cells
from paretune.pipelines.front.result import collect
from paretune.pipelines.front.table import markdown
from paretune.training.record import write_json
from tests.pipelines.front.made import made_plan, write_cell, write_front

REFERENCES = [[-0.5, -0.5], [0.0, 0.0]]


def collected(folder: Path, plan: Plan, without: tuple[str, ...] = (), **changes: object) -> dict:
    cells = make_cells(plan)
    found = {cell.name: write_cell(folder, plan, cell, **changes) for cell in cells if cell.name not in without}
    return collect(plan, cells, found, dict.fromkeys(without, "ValueError: no"), folder, REFERENCES, [])


def test_indicators_are_of_scaled_points_and_shared_ends(tmp_path: Path) -> None:
    plan = made_plan("linear", seeds=(0,))
    front = collected(tmp_path, plan)
    part = front["temperatures"]["1"]
    raw = {cell["name"]: list(cell["scores"]["1"]["scores"].values()) for cell in front["cells"]}
    low = np.array(raw["base-s0"])
    ends = np.array([raw["single-1.000-0.000-s0"], raw["single-0.000-1.000-s0"]])
    high = ends.max(0)
    assert part["scale"]["helpful"] == pytest.approx([low[0], high[0]]) and part["scale_from"] == "single"
    own = np.array([raw["linear-0.250-0.750-s0"], raw["linear-0.750-0.250-s0"]])
    points = (np.concatenate([own, ends]) - low) / (high - low)
    assert part["indicators"]["linear"]["hypervolume"]["mean"] == pytest.approx(hypervolume(points, [-0.5, -0.5]))
    assert part["indicators"]["linear"]["hypervolume@1"]["mean"] == pytest.approx(hypervolume(points, [0, 0]))
    assert part["unit"] == "prompts" and part["differences"] == {}
    text = markdown(front)
    assert "**not a comparison of methods**" in text and "the run on that objective alone (1)" in text


def test_several_seeds_are_paired(tmp_path: Path) -> None:
    front = collected(tmp_path, made_plan("linear", "raco", "mgda"))
    part = front["temperatures"]["1"]
    assert part["unit"] == "seeds" and part["exploratory"] and set(part["differences"]) == {"linear", "raco"}
    by_seed = part["by_seed"]
    expected = np.mean(np.array(by_seed["raco"]["hypervolume"]) - np.array(by_seed["linear"]["hypervolume"]))
    assert part["differences"]["linear"]["raco"]["hypervolume"]["mean"] == pytest.approx(expected)
    text = markdown(front)
    assert "bootstrap intervals over 2 seeds" in text and "exploratory" in text
    assert "### Paired differences to raco" in text and "## Indicators, temperature 0.6" in text
    assert len({len(line) for line in text.splitlines() if line.startswith(("| raco ", "| linear "))}) > 0


def test_the_oracle_is_the_scale_where_there_is_one(tmp_path: Path) -> None:
    oracle = [{"scores": {"helpful": 2.0, "short": 0.5}}, {"scores": {"helpful": 1.0, "short": 3.0}}]
    front = collected(tmp_path, made_plan("linear"), oracle=oracle)
    part = front["temperatures"]["1"]
    assert part["scale_from"] == "oracle" and [part["scale"][n][1] for n in ("helpful", "short")] == [2.0, 3.0]
    low = collected(tmp_path, made_plan("linear"), oracle=[{"scores": {"helpful": -9.0, "short": 3.0}}])
    assert any(notice.startswith("helpful: no oracle is above the base") for notice in low["notices"])
    high = low["temperatures"]["1"]["scale"]["helpful"]
    assert high[1] > high[0]


def test_a_seed_counts_for_all_methods_or_for_none(tmp_path: Path) -> None:
    front = collected(tmp_path, made_plan("linear", "raco"), without=("raco-0.250-0.750-s1",))
    part = front["temperatures"]["1"]
    assert part["seeds"] == [0] and part["unit"] == "prompts"
    assert any("seed 1 left out of all comparisons" in notice for notice in front["notices"])
    assert "## Failed cells" in markdown(front) and "ValueError: no" in markdown(front)
    lost = tuple(f"raco-{w}-s{s}" for w in ("0.250-0.750", "0.750-0.250") for s in (0, 1))
    front = collected(tmp_path / "b", made_plan("linear", "raco"), without=lost)
    assert list(front["temperatures"]["1"]["indicators"]) == ["linear"] and front["temperatures"]["1"]["seeds"] == [
        0,
        1,
    ]
    assert any(notice.startswith("raco has no seed") for notice in front["notices"])
    front = collected(tmp_path / "c", made_plan("linear"), without=("base-s0", "base-s1"))
    assert front["temperatures"] == {} and "## Points" in markdown(front)


def test_cells_of_several_versions_of_the_code_are_said(tmp_path: Path) -> None:
    plan = made_plan("linear")
    cells, found = write_front(tmp_path, plan)
    found[cells[0].name]["code"] = "older"
    front = collect(plan, cells, found, {}, tmp_path, REFERENCES, ["before"])
    assert front["notices"][0] == "before" and "2 versions of the code (11" not in front["notices"][1]
    assert "made by 2 versions of the code (9, 1 cells each)" in front["notices"][1]


def test_gains_are_over_the_soup(tmp_path: Path) -> None:
    from paretune.pipelines.front.plan import Entry

    entries = (Entry("linear", "linear"), Entry("linear", "soup"))
    plan = replace(made_plan("linear"), entries=entries)
    assert collected(tmp_path, plan)["temperatures"]["1"]["soup"] is None, "known by its method, not its label"


def test_pictures_and_the_report(tmp_path: Path) -> None:
    plan = made_plan("linear", "raco", "mgda")
    front = collected(tmp_path, plan)
    write_json(tmp_path / "front.json", front)
    files = write_figures(front, tmp_path)
    assert [path.name for path in files] == ["front.png", "front.svg", "indicators.png", "indicators.svg"]
    for path in files:
        if path.suffix == ".svg":
            text = path.read_text()
            ET.fromstring(text)
            assert all(label in text for label in ("linear", "raco", "mgda"))
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    again = {path.name: path.read_bytes() for path in files}
    write_figures(front, tmp_path)
    assert {path.name: path.read_bytes() for path in files} == again, "the same bytes from the same figures"
    page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mgda" in page.lower() and "<svg" in page
