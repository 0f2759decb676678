"""The study of new pairs: its losses and combinations against the library's, its command in small, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.combine import find_combiner
from paretune.combine.labelled import combine_labelled
from paretune.sandbox.bandit import low_rank
from paretune.sandbox.bandit_runs import losses_and_gradients, make_batch
from studies.new_pairs import figure, run, world

STUDY = Path(run.__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


@pytest.mark.parametrize("name", world.CASES)
def test_gradients_are_those_of_the_exact_world_s_training(name: str) -> None:
    case = world.CASES[name](4, "apart")
    files, start = world.files_of([case]), world.starts([case], [4])
    theta = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = world.batch(files, [4], 3, from_a=20)
    found, there = world.gradients_of(theta[:, None], rows, start[:, None])
    # the same rows as cells, found by their sides and features
    at = rows.sides[0]
    prompt = (case.world.features[:, None] == rows.phi[0]).all(-1).int().argmax(0)
    responses = at.shape[1]
    a, b = prompt * responses + (at > 0).int().argmax(1), prompt * responses + (at < 0).int().argmax(1)
    batch = make_batch(a[None], b[None], rows.labels)
    betas = torch.full((rows.labels.shape[-1],), world.BETA, dtype=torch.float64)
    _, expected = losses_and_gradients(case.world, low_rank(), theta, batch, betas)
    assert torch.allclose(found[:, 0], expected, rtol=1e-9, atol=1e-14)
    assert there.tolist() == [True] * rows.labels.shape[-1]


def test_against_itself_as_reference_margins_start_at_zero() -> None:
    case = world.prompts_case(4, "apart")
    files, start = world.files_of([case]), world.starts([case], [4])
    theta = start + 0.1
    rows = world.batch(files, [4], 0, from_a=0)
    once, _ = world.gradients_of(theta[:, None], rows, theta[:, None])
    labels = rows.labels[0]
    slope = world.BETA * (0.5 - labels) / len(labels)  # sigmoid(0) less the label
    bias = world.BIAS_SCALE * rows.sides[0].T @ slope
    assert torch.allclose(once[0, 0, :, : rows.sides.shape[2]], bias.T)


@pytest.mark.parametrize("there", [[True, True, True], [True, True, False], [False, True, True]])
@pytest.mark.parametrize("combiner", run.COMBINERS)
def test_objectives_without_labels_are_left_out_as_the_library_does(combiner: str, there: list[bool]) -> None:
    present = torch.tensor(there)
    g = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * present[:, None]
    gram, weights = g @ g.mT, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = world.coefficients(combiner, gram, weights, present)
    options = {"c": world.C} if combiner == "raco" else {}
    expected = [combine_labelled(find_combiner(combiner), h, weights, present, **options).coefficients for h in gram]
    assert torch.allclose(found, torch.stack(expected), atol=1e-7)


def test_file_b_differs_as_its_case_says() -> None:
    prompts, objectives = world.prompts_case(2, "apart"), world.objectives_case(2, "apart")
    responses = prompts.world.reference.shape[1]
    assert bool(prompts.kinds[prompts.a.a // responses].all())
    assert not bool(prompts.kinds[prompts.b.a // responses].any())
    assert objectives.a.labels.isnan().all(0).tolist() == [False, False, True]
    assert objectives.b.labels.isnan().all(0).tolist() == [True, False, False]


def test_the_command_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick"]) == 0
    assert "raco, B with replay, first model" in capsys.readouterr().out


def test_the_page_quotes_the_kept_results(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    quoted = [f"{claim['mean']:+.3f}" for claim in results["claims"].values()]
    quoted += [claim["verdict"] for claim in results["claims"].values()]
    road = json.loads((STUDY / "road.json").read_text(encoding="utf-8"))["rewards"]
    quoted += [f"{value:.3f}" for scores in road.values() for value in scores.values()]
    assert [text for text in quoted if text.replace("-", "−") not in page and text not in page] == []


def test_the_figure_is_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = figure.draw(results)
    assert len(drawn.axes) == 2
    figure.pyplot.close(drawn)
