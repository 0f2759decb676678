"""The study's figures by hand, its command in small, and its page against its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.sandbox import WORLDS
from studies.world_fitness import run

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


def test_bases_apart_are_measured_by_the_least_room() -> None:
    found = {
        "0": {"base": {"x": [0.1, 0.3]}, "best": {"x": 1.2}},
        "1": {"base": {"x": [0.4, 0.4]}, "best": {"x": 0.9}},
    }
    assert run.apart(found) == {"x": pytest.approx(0.2 / 0.5)}


def test_the_command_trains_each_base_and_says_what_is_unfit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    small = ["--bases", "0", "1", "--worlds", "safety", "--prompts", "3", "--steps", "2", "--out", str(out)]
    assert run.main(small) == 1, "two steps make no base"
    said = capsys.readouterr().out
    assert "safety, base 0: the hack" in said and "safety, base 1: " in said
    bases = json.loads(out.read_text())["worlds"]["safety"]["bases"]
    assert list(bases) == ["0", "1"] and bases["0"]["base"] != bases["1"]["base"], "not one base twice"
    for one in bases.values():
        assert set(one["depth"]) == set(WORLDS["safety"].hacks)
        assert {name: len(values) for name, values in one["base"].items()} == {"helpful": 3, "harmless": 3}


def test_every_kept_base_is_fit_and_they_agree(results: dict[str, Any]) -> None:
    assert set(results["worlds"]) == set(WORLDS)
    for name, world in results["worlds"].items():
        assert len(world["bases"]) >= 2
        assert [one["problems"] for one in world["bases"].values()] == [[]] * len(world["bases"]), name
        assert all(one["ended"] > 0.9 for one in world["bases"].values())
        assert max(world["apart"].values()) < 0.2, "bases lie far nearer to one another than to their oracles"


def test_the_page_says_what_was_found(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    assert run.table(results) in page
