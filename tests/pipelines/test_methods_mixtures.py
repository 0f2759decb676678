"""Soup and MOD as methods: trainings per objective that are done once, then any weights without training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.pipelines.methods import METHODS, Request, check_method, load_outcome, run_method
from tests.cli.made import save_model, saved_weights
from tests.pipelines.methods_made import OBJECTIVES
from tests.pipelines.methods_made import asked as any_request

IDS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def asked(model: str, folder: Path, method: str, **changes: Any) -> Request:
    return any_request(
        model, folder, method, **{**changes, "config": {"learning_rate": 0.03, **changes.get("config", {})}}
    )


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def souped(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soup")
    request = asked(model, folder, "soup")
    assert check_method(request) == ["helpful: a training on it alone", "concise: a training on it alone"]
    run_method(request)
    return folder / "run"


def _singles(run: Path) -> dict[str, str]:
    return {o.name: str(run / "parts" / f"single-{o.name}") for o in OBJECTIVES}


def test_a_soup_is_the_mean_of_its_parts_at_any_weights(souped: Path) -> None:
    parts = [saved_weights(Path(part)) for part in _singles(souped).values()]
    assert any(bool((parts[0][k] - parts[1][k]).abs().max() > 0.01) for k in parts[0])
    for name, tensor in saved_weights(souped).items():
        torch.testing.assert_close(tensor, 0.6 * parts[0][name] + 0.4 * parts[1][name])
    there = record(souped)
    assert (there["status"], there["method"]["name"]) == ("finished", "soup")
    own, other = load_outcome(souped), load_outcome(souped, {"concise": 0.9, "helpful": 0.1})
    state = dict(own.model.state_dict())
    torch.testing.assert_close(state["lm_head.weight"], saved_weights(souped)["model.embed_tokens.weight"])
    for name, tensor in other.model.state_dict().items():
        if name in parts[0]:
            torch.testing.assert_close(tensor, 0.1 * parts[0][name] + 0.9 * parts[1][name])
    with pytest.raises(InputError, match="bad weights"):
        load_outcome(souped, {"helpful": 1.0})
    found = sample(other.model, other.tokenizer, [other.prepare("once a")], 2, max_new_tokens=3, seed=0)
    assert len(found.texts[0]) == 2


def test_a_run_can_be_moved_with_its_parts(souped: Path, tmp_path: Path) -> None:
    shutil.copytree(souped, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "parts" / "single-concise")
    with pytest.raises(InputError, match="not there any more"):
        load_outcome(tmp_path / "moved")
    shutil.copytree(souped / "parts" / "single-concise", tmp_path / "moved" / "parts" / "single-concise")
    load_outcome(tmp_path / "moved")


def test_mod_decodes_from_given_singles_and_trains_nothing(souped: Path, model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "mod", singles=_singles(souped))
    assert all("the run in" in line for line in check_method(request))
    run_method(request)
    assert not (tmp_path / "run" / "parts").exists() and record(tmp_path / "run")["status"] == "finished"
    outcome = load_outcome(tmp_path / "run", {"helpful": 0.25, "concise": 0.75})
    parts = [load_outcome(part).model for part in _singles(souped).values()]
    with torch.no_grad():
        found = outcome.model(input_ids=IDS).logits.log_softmax(-1)
        logps = [part(input_ids=IDS).logits.log_softmax(-1) for part in parts]
    torch.testing.assert_close(found, (0.25 * logps[0] + 0.75 * logps[1]).log_softmax(-1), rtol=1e-4, atol=1e-5)
    drawn = sample(outcome.model, outcome.tokenizer, ["once a", "the"], 2, max_new_tokens=4, seed=0)
    assert len(drawn.texts) == 2


def test_parts_are_gone_on_with_and_never_trained_twice(souped: Path, model: str, tmp_path: Path) -> None:
    """A soup killed after its first part: that part stays as it is, the other is trained, the result is the same."""
    shutil.copytree(souped / "parts" / "single-helpful", tmp_path / "run" / "parts" / "single-helpful")
    before = record(tmp_path / "run" / "parts" / "single-helpful")
    request = asked(model, tmp_path, "soup")
    with pytest.raises(InputError, match="unfinished run"):
        run_method(request)
    run_method(replace(request, resume=True))
    assert record(tmp_path / "run" / "parts" / "single-helpful") == before
    one, other = saved_weights(souped), saved_weights(tmp_path / "run")
    assert all(bool((one[key] == other[key]).all()) for key in one)


def test_adapters_are_souped_by_what_they_add(souped: Path, model: str, tmp_path: Path) -> None:
    """In the folder of a soup of whole models, of which nothing may stay."""
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    shutil.copytree(souped, tmp_path / "exact" / "run")
    run_method(asked(model, tmp_path / "exact", "soup", peft_config=lora, overwrite=True))
    assert not (tmp_path / "exact" / "run" / "model.safetensors").exists()
    singles = _singles(tmp_path / "exact" / "run")
    linear = asked(model, tmp_path / "linear", "soup", peft_config=lora, singles=singles)
    run_method(replace(linear, method_options={"lora": "linear"}))
    ranks = [
        json.loads((tmp_path / kind / "run" / "adapter_config.json").read_text())["r"] for kind in ("exact", "linear")
    ]
    assert ranks == [4, 2]
    exact = load_outcome(tmp_path / "exact" / "run", {"helpful": 0.0, "concise": 1.0})
    with torch.no_grad():
        one, other = exact.model(input_ids=IDS).logits, load_outcome(singles["concise"]).model(input_ids=IDS).logits
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    run_method(asked(model, tmp_path / "mod", "mod", singles=singles))
    assert len(load_outcome(tmp_path / "mod" / "run").model.policies) == 1, "the base is loaded once per adapter"


def test_singles_that_do_not_fit_are_refused_before_training(souped: Path, model: str, tmp_path: Path) -> None:
    singles = _singles(souped)
    request = asked(model, tmp_path, "mod", singles=singles)
    other = str(save_model(tmp_path / "other"))
    with pytest.raises(InputError, match="not trained from this model"):
        check_method(replace(request, model=other))
    with pytest.raises(InputError, match="not trained on that objective alone"):
        check_method(replace(request, singles={"helpful": singles["concise"]}))
    with pytest.raises(InputError, match="no such objective"):
        check_method(replace(request, singles={"kind": singles["concise"]}))
    with pytest.raises(InputError, match="not a finished run"):
        check_method(replace(request, singles={"helpful": str(tmp_path / "nothing")}))
    with pytest.raises(InputError, match="bad interpolation"):
        check_method(replace(request, method="soup", method_options={"lora": "slerp"}))
    assert METHODS["soup"].steerable and METHODS["mod"].needs_singles
