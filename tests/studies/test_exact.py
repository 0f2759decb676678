"""What the exact-world studies share: cells that are kept, volumes, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies import exact


def test_finished_cells_are_not_computed_again(tmp_path: Path) -> None:
    path, asked = tmp_path / "cells.jsonl", []

    def compute(key: str) -> dict[str, Any]:
        asked.append(key)
        return {"value": len(asked)}

    exact.fill(path, ["a", "b"], compute)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "c", "val')  # killed while writing
    found = exact.fill(path, ["a", "b", "c"], compute)
    assert asked == ["a", "b", "c"]
    assert found == {"a": {"value": 1}, "b": {"value": 2}, "c": {"value": 3}}
    assert exact.finished(path) == found


def test_volumes_are_shares_of_the_ceilings() -> None:
    best = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    corner = np.zeros(2)
    points = torch.tensor([[1.0, 1.0], [torch.nan, torch.nan]], dtype=torch.float64)
    assert exact.volume(points, best, corner) == pytest.approx(1 / 3)
    assert exact.volume(best, best, corner) == 1.0
    assert exact.volume(points[1:], best, corner) == 0.0


def test_sampled_volumes_agree_with_exact_ones() -> None:
    rng = np.random.default_rng(0)
    best = np.abs(rng.normal(size=(30, 3)))
    best /= np.linalg.norm(best, axis=1, keepdims=True)
    points = 0.8 * best[:10]
    wanted = exact.volume(torch.from_numpy(points), torch.from_numpy(best), np.zeros(3))
    assert exact._covered(points, best, np.zeros(3)) == pytest.approx(wanted, abs=0.015)


def test_verdicts_are_the_protocols() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=30) - rng.normal(size=30).mean()
    noise -= noise.mean()
    found = exact.verdicts(
        {
            "better": 0.1 + 0.02 * noise,
            "worse": -0.1 + 0.02 * noise,
            "equivalent": 0.005 * noise,
            "better, equivalent": 0.004 + 0.002 * noise,
            "undecided": 0.05 * noise,
        }
    )
    assert {name: row["verdict"] for name, row in found.items()} == {name: name for name in found}
    assert all(row["p Holm"] >= row["p"] for row in found.values())


def test_numbers_for_a_file() -> None:
    made = exact.rounded([1.234567, float("nan"), torch.tensor([0.5, torch.nan])])
    assert made == [1.23457, None, [0.5, None]]
    assert json.dumps(made)


def test_an_untuned_world_is_another_for_each_seed() -> None:
    one, two = exact.world_of("untuned", 1), exact.world_of("untuned", 2)
    assert not torch.equal(one.rewards, two.rewards)
    assert torch.equal(exact.world_of("default", 1).rewards, exact.world_of("knob 1", 2).rewards)
    strong, weak = (exact.world_of(f"knob {k}", 0).rewards for k in (2, 0.5))
    assert (strong[0] - strong[1]).std() > 3 * (weak[0] - weak[1]).std()
