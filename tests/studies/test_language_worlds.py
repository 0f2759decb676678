"""The language tier of "does RACO win": how runs become verdicts, by hand, and the kept data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STUDY = Path(__file__).resolve().parents[2] / "studies" / "language_worlds"
sys.path.insert(0, str(STUDY))

import analysis  # type: ignore[import-not-found]  # noqa: E402


def made(key: list[Any], ends: tuple[float, float], kl: float = 2.0) -> dict[str, Any]:
    """A run that goes straight from the base (0, 0) to its end."""
    points = [{"step": s, "scores": [s / 2 * x for x in ends], "kl": s / 2 * kl} for s in (1, 2)]
    arm = None if key[2] == "base" else {"weights": key[3:]}
    if arm is None:
        points = [{"step": 0, "scores": [0.0, 0.0], "kl": 0.0}]
    return {"key": key, "world": key[0], "seed": key[1], "arm": arm, "points": points}


def one_seed(seed: int, gain: float) -> list[dict[str, Any]]:
    """Singles end in (1, -1) and (-1, 1); every arm in (w, 1 - w), RACO by `gain` better in both."""
    runs = [made(["safety", seed, "base"], (0, 0)), made(["safety", seed, "single", 1.0, 0.0], (1, -1))]
    runs.append(made(["safety", seed, "single", 0.0, 1.0], (-1, 1)))
    for arm in analysis.ARMS:
        more = gain if arm == "raco" else 0.0
        runs += [made(["safety", seed, arm, w, 1 - w], (w + more, 1 - w + more)) for w in (0.2, 0.5, 0.8)]
    for run in runs:
        run.update(means={}, effective=[0.5, 0.5], total=1.0)
    return runs


def test_a_trajectory_is_read_between_its_checkpoints_and_not_beyond() -> None:
    points = [{"kl": 0.0, "scores": [0.0, 1.0]}, {"kl": 2.0, "scores": [1.0, 0.0]}, {"kl": 1.5, "scores": [9.0, 9.0]}]
    assert analysis.at_kl(points, 0.5) == pytest.approx([0.25, 0.75])
    assert analysis.at_kl(points, 5.0) == pytest.approx([1.0, 0.0])  # the fall back is left out


def test_volumes_by_hand() -> None:
    found = analysis.seed_results(one_seed(0, 0.0))
    assert found["kl"] == pytest.approx(2.0)
    assert found["ideal"] == pytest.approx([1, 1]) and found["nadir"] == pytest.approx([-1, -1])
    # boxes from (-1, -1) to (0.2, 0.8), (0.5, 0.5), (0.8, 0.2), in units of the box to (1, 1), whose area is 4
    area = 1.2 * 1.8 + 0.3 * 1.5 + 0.3 * 1.2
    assert found["linear"]["nadir"] == pytest.approx(area / 4)
    assert found["raco"] == found["linear"]


def test_a_better_arm_is_found_and_an_equal_one_is_equivalent() -> None:
    runs = [run for seed in range(10) for run in one_seed(seed, 0.1 + 0.001 * seed)]
    found = analysis.results(runs)["worlds"]["safety"]["differences"]
    assert found["raco - linear-matched"]["nadir"]["low"] > 0.02
    assert found["raco - linear-matched"]["nadir"]["p"] == pytest.approx(2 / 2**10)
    assert found["linear-matched - linear"]["nadir"]["equivalent"] == 0.0
    assert analysis.results(runs[:-1])["worlds"]["safety"]["differences"]["raco - linear"]["nadir"]["n"] == 9


def test_the_rate_is_the_one_whose_loss_falls_lowest() -> None:
    runs = [
        {"key": ["safety", seed, name, rate], "seed": seed, "losses": {"10": 0.7 + rate, "20": abs(rate - 2e-4)}}
        for seed in analysis.DEVELOPMENT_SEEDS
        for name in ("linear", "raco")
        for rate in analysis.RATES
    ]
    found = analysis.chosen(runs, "safety")["linear"]
    assert found["rate"] == 2e-4 and found["step"] == 20 and not found["edge"]
    with pytest.raises(SystemExit, match="lacks development runs"):
        analysis.chosen(runs[1:], "safety")


def test_the_kept_results_and_the_page_are_those_of_the_runs() -> None:
    lines = (STUDY / "runs-confirm.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    again = json.loads(json.dumps(analysis.results([json.loads(line) for line in lines])))
    page = (STUDY / "README.md").read_text(encoding="utf-8").replace("−", "-")
    for world, found in kept["worlds"].items():
        for pair, row in found["differences"].items():
            for measure, one in row.items():
                assert again["worlds"][world]["differences"][pair][measure] == pytest.approx(one, rel=1e-9)
                shown = "{mean:.3f} ({low:.3f}, {high:.3f})".format(**{k: np.round(v, 3) + 0.0 for k, v in one.items()})
                assert shown in page, (pair, measure)
