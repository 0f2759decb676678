"""The study's measures on cases known by hand, its command in small, and its page against its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.exact_world import figure, run

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


def test_distance_to_a_path_is_the_nearest_points() -> None:
    path = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    points = torch.tensor([[1.0, 0.5], [3.0, 1.0], [-3.0, -4.0], [2.0, 1.5]], dtype=torch.float64)
    assert run.distance_to_path(points, path).tolist() == pytest.approx([0.5, 1.0, 5.0, 0.0])


def test_a_thinned_path_keeps_its_ends_and_its_bends() -> None:
    pace = torch.cat((torch.linspace(0, 0.1, 500), torch.linspace(0.1, 1, 20))).double()  # most points at the start
    path = torch.stack((pace, (pace - 0.5).abs()), -1)
    kept = run.thin(path, most=15)
    assert kept[0] == [0.0, 0.5] and kept[-1] == [1.0, 0.5]
    assert len(kept) <= 17
    assert min(abs(x - 0.5) for x, _ in kept) < 0.1


@pytest.mark.parametrize(
    ("end", "apart", "holds"), [(1e-8, 0.2, True), (1e-3, 0.2, False), (1e-8, 1e-4, False), (0.0, 0.0, False)]
)
def test_ends_are_judged_by_the_stated_tolerances(end: float, apart: float, holds: bool) -> None:
    rows = [
        {"weights": (0.3, 0.7), "rewards apart at the end": end, "paths apart, largest": apart},
        {"weights": (0.5, 0.5), "rewards apart at the end": 0.0, "paths apart, largest": 0.0},
    ]
    assert run.ends_hold("tabular", rows)["holds"] is holds


def test_the_command_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.json"
    assert run.main(["--quick", "--only", "radius", "knob", "fronts", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert all(case["numbers that differ"] == 0 for case in found["radius"]["cases"])
    assert found["fronts"]["runs"] == len(found["fronts"]["rows"]) * 3 * 2
    assert "radius   holds" in capsys.readouterr().out


def test_a_claim_that_fails_is_an_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(run.TOLERANCE, "knob line", -1.0)
    assert run.main(["--quick", "--only", "knob", "--out", str(tmp_path / "out.json")]) == 1


def test_every_claim_holds_in_the_kept_results(results: dict[str, Any]) -> None:
    assert results["tolerance"] == run.TOLERANCE
    assert not results["commit"].endswith("+")
    assert set(run.PARTS) <= set(results)
    for name in ("radius", "ends", "ceiling", "knob"):
        assert results[name]["holds"] is True
    for name in ("tabular", "low-rank"):
        assert run.ends_hold(name, results["ends"][name]["rows"])["holds"]


def test_the_page_quotes_the_kept_results(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    ends, ceiling, fronts = results["ends"], results["ceiling"], results["fronts"]
    quoted = [
        results["commit"][:7],
        f"{sum(case['numbers compared'] for case in results['radius']['cases']):,}",
        f"{ends['tabular']['worst end']:.0e}",
        f"{ends['low-rank']['worst end']:.0e}",
        f"{max(ceiling['tabular']['gap, training prompts']):.0e}",
        f"{ceiling['tabular']['largest difference of a probability']:.0e}",
        f"{fronts['runs']} runs",
        f"{fronts['seconds']:.0f} s",
    ]
    for steps in (50, 400):
        for name in run.COMBINERS:
            row = figure.best_row(fronts["rows"], steps, name)
            quoted.append(f"{row['gap at its own weights']['mean']:.3f}")
    assert [text for text in quoted if text not in page] == []


def test_the_figure_is_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = figure.draw(results)
    titles = [axes.get_title() for axes in drawn.axes]
    assert len(titles) == len(set(titles)) == 4
    for axes in drawn.axes:
        assert "reward" in axes.get_xlabel() and "reward" in axes.get_ylabel()
    figure.pyplot.close(drawn)
