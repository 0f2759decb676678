"""The contract of methods: names, settings, parts that are never repeated, outcomes that can be sampled."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.combine import COMBINERS
from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.objectives import Objective
from paretune.pipelines.methods import METHODS, check_method, find_method, load_outcome, run_method
from paretune.pipelines.methods.contract import single_run
from tests.cli.made import save_model, saved_weights
from tests.pipelines.methods_made import asked
from tests.runs_made import small_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_every_combiner_is_a_method_that_sets_it() -> None:
    for name in [*COMBINERS, "torchjd:UPGrad"]:
        assert find_method(name).settings == {"combiner": name}
        assert find_method(name).title
    assert not METHODS["mgda"].uses_weights
    assert "replay" not in METHODS, "a control of studies"


def test_every_method_is_on_its_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"\n| `{name}` |" not in page] == []


def test_methods_without_weights_ignore_them() -> None:
    """What a front trains once for all weightings must not depend on them (but GAPO's length, a weighted mean)."""
    gram = torch.tensor([[2.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    for name in set(METHODS) & set(COMBINERS):
        parameters, found = inspect.signature(COMBINERS[name]).parameters, []
        for weights in ([0.3, 0.7], [0.6, 0.4]):
            more = {"losses": torch.tensor([0.6, 0.8], dtype=torch.float64), "seed": 1, "state": {}}
            taken = {key: value for key, value in more.items() if key in parameters}
            combined = COMBINERS[name](gram, torch.tensor(weights, dtype=torch.float64), **taken)
            found.append(combined.coefficients)
        found = [coefficients / coefficients.sum() for coefficients in found]
        assert torch.allclose(found[0], found[1]) is not METHODS[name].uses_weights, name


def test_a_method_leaves_a_run_that_names_it_and_answers(model: str, tmp_path: Path) -> None:
    run_method(asked(model, tmp_path, "linear"))
    there = record(tmp_path / "run")
    assert there["status"] == "finished"
    assert there["config"]["combiner"] == "linear"
    assert there["method"]["name"] == "linear"
    assert there["method"]["weights"] == {"helpful": 0.6, "concise": 0.4}
    outcome = load_outcome(tmp_path / "run")
    found = sample(outcome.model, outcome.tokenizer, [outcome.prepare("once a")], 2, max_new_tokens=3, seed=0)
    assert len(found.texts[0]) == 2
    with pytest.raises(InputError, match="its own weights only"):
        load_outcome(tmp_path / "run", {"helpful": 1.0, "concise": 0.0})


def test_single_is_linear_with_all_weight_on_one(model: str, tmp_path: Path) -> None:
    run_method(asked(model, tmp_path / "a", "single", method_options={"objective": "concise"}))
    alone = [Objective("helpful", weight=0.0), Objective("concise", weight=1.0)]
    run_method(asked(model, tmp_path / "b", "linear", objectives=alone))
    first, second = saved_weights(tmp_path / "a" / "run"), saved_weights(tmp_path / "b" / "run")
    assert all(bool((first[key] == second[key]).all()) for key in second)
    assert record(tmp_path / "a" / "run")["method"]["weights"] == {"helpful": 0.6, "concise": 0.4}


def test_what_cannot_be_right_is_said_before_anything_is_read(tmp_path: Path) -> None:
    request = asked("no/such/model", tmp_path, "linear")
    with pytest.raises(InputError, match="unknown method"):
        check_method(replace(request, method="rac0"))
    with pytest.raises(InputError, match="unknown option 'on'"):
        check_method(replace(request, method_options={"on": "helpful"}))
    with pytest.raises(InputError, match="combiner contradicts the method"):
        check_method(asked("no/such/model", tmp_path, "linear", config={"combiner": "mgda"}))
    with pytest.raises(InputError, match="no such objective"):
        check_method(replace(request, method="single", method_options={"objective": "kind"}))


def test_finished_parts_are_not_trained_again(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "single")
    where = Path(single_run(request, "concise"))
    assert where == tmp_path / "run" / "parts" / "single-concise"
    before = record(where)
    assert single_run(request, "concise") == str(where)
    assert record(where) == before, "trained again"
    other = replace(request, args=small_config(tmp_path, max_steps=3))
    with pytest.raises(InputError, match="a part trained with other settings is there"):
        single_run(other, "concise")
    with pytest.raises(InputError, match="unfinished run"):
        run_method(request)  # neither resume nor overwrite
