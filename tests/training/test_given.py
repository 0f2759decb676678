"""What a run was given goes into its record by name, or as what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from peft import IA3Config, LoraConfig

from paretune.cli.keys import lora_config
from paretune.comparisons.formats import read_comparisons
from paretune.training.given import full_paths, given_settings
from tests.runs_made import made_text_rows, small_model, small_trainer


def given(**changes: Any) -> Any:
    names = ("model", "ref_model", "peft_config", "train", "evaluation", "data_options", "model_options")
    return given_settings(**{**dict.fromkeys(names), "model": "some/model", "train": "some/data", **changes})


def test_local_names_become_absolute_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path)
    found, _ = given(
        model="start", ref_model="other/model", train=["a.jsonl", {"path": Path("a.jsonl"), "fraction": 0.5}]
    )
    assert (found["model"], found["ref_model"]) == (str(tmp_path / "start"), "other/model")
    assert found["data"] == [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "a.jsonl"), "fraction": 0.5}]
    sets = given(evaluation={"one": "a.jsonl", "two": [{"path": "a.jsonl"}]})[0]["eval_data"]
    assert sets == {"one": str(tmp_path / "a.jsonl"), "two": [{"path": str(tmp_path / "a.jsonl")}]}
    assert full_paths({"path": "a.jsonl", "split": "a.jsonl"})["split"] == "a.jsonl"  # a name, not a file


def test_options_are_recorded_with_the_readers_defaults() -> None:
    found, in_memory = given(data_options={"ties": "equal"}, model_options={"dtype": "bfloat16", "quantize": True})
    assert (found["ties"], found["pairs"], found["split"], found["max_pairs"]) == ("equal", "all", "train", None)
    assert (found["dtype"], found["quantization"], in_memory) == ("bfloat16", "4bit", {})
    read_comparisons(made_text_rows(2), **{k: v for k, v in found.items() if k in ("format", "ties", "pairs", "take")})


def test_what_has_no_name_is_described() -> None:
    model = small_model()
    model.config.name_or_path = "where/it/was"
    rows = made_text_rows(3)
    found, in_memory = given(
        model=model, train=rows, evaluation={"one": datasets.Dataset.from_list(rows), "two": "some/data"}
    )
    assert (found["model"], found["data"], found["eval_data"]) == ("where/it/was", None, None)
    assert in_memory == {
        "model": "Qwen3ForCausalLM",
        "data": "list of 3 rows",
        "eval_data": "one: datasets.Dataset of 3 rows, two: by name",
    }


def test_adapters_are_told_as_the_command_line_asks_for_them(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["v_proj", "q_proj"], use_rslora=True, task_type="CAUSAL_LM")
    small_trainer(tmp_path, peft_config=config, max_steps=1).train()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    lora = record["settings"]["lora"]
    assert lora == {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    again: Any = lora_config(lora)
    assert (again.r, again.lora_alpha, again.target_modules) == (2, 8, {"q_proj", "v_proj"})
    assert record["in_memory"]["data"] == "list of 40 rows"
    settings, in_memory = given(peft_config=IA3Config(target_modules=["q_proj"]))
    assert settings["lora"] is None and "IA3Config" in in_memory["lora"]
