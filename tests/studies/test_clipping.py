"""The study of clipping: its road in small, what it counts, and its page against its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from paretune.combine import raco
from studies import exact
from studies.clipping import run

STUDY = Path(run.__file__).parent


def test_weightings_lie_on_the_simplex_with_its_ends() -> None:
    for m, count in ((2, 13), (3, 21), (5, 15)):
        w = run.weightings(m)
        assert w.shape == (count, m)
        torch.testing.assert_close(w.sum(-1), torch.ones(count, dtype=torch.float64))
        assert sum(row.max().item() == 1.0 for row in w) == m


def test_what_clipping_did_is_counted_step_by_step() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(1, 40, 3, 6, generator=generator, dtype=torch.float64)
    g[:, :, 1] -= 1.2 * g[:, :, 0]
    gram = g @ g.mT
    weights = torch.rand(1, 40, 3, generator=generator, dtype=torch.float64) + 0.05
    weights /= weights.sum(-1, keepdim=True)
    watched = run.Watched()
    for step in range(2):
        watched.rule(step, None, g, gram, weights)  # type: ignore[arg-type]
    single = [raco(h, w, c=0.4) for h, w in zip(gram[0], weights[0], strict=True)]
    assert torch.as_tensor(watched.acts)[0].tolist() == [2.0 * one.clip_active for one in single]
    turned = torch.tensor([2 * one.info["angle_to_unclipped"] for one in single], dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(watched.turned)[0], turned, atol=1e-6, rtol=1e-5)
    further = []
    for h, w, one in zip(gram[0], weights[0], single, strict=True):
        plain = raco(h, w, c=0.4, clip=False)
        further.append(2.0 * (one.clip_active and one.info["angle_to_linear"] > plain.info["angle_to_linear"] + 1e-6))
    assert torch.as_tensor(watched.lowers)[0].tolist() == further
    assert 0 < sum(further) < 2 * sum(one.clip_active for one in single)  # for three objectives it does both


def test_the_road_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick"]) == 0
    assert "3/untuned" in capsys.readouterr().out


def test_the_page_quotes_the_kept_results() -> None:
    results = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    page = (STUDY / "README.md").read_text(encoding="utf-8").replace("−", "-")
    quoted = [results["commit"][:7]]
    for row in results["verdicts"]["primary: raco - cagrad, late"].values():
        assert row["n"] == 30
        quoted.append(f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]")
    quoted += [f"{100 * what['share of steps']:.0f} %" for what in results["clipping"].values()]
    assert [text for text in quoted if text not in page] == []
    cells = exact.finished(STUDY / "cells.jsonl")
    assert len(cells) == 36
    again = run.conclude(cells)["verdicts"]["primary: raco - cagrad, late"]
    for name, row in results["verdicts"]["primary: raco - cagrad, late"].items():
        assert again[name]["mean"] == pytest.approx(row["mean"]) and again[name]["verdict"] == row["verdict"]
