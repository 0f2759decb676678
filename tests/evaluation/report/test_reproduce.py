"""The configuration that a page shows makes the run again: read as `paretune train` reads it, and compared whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig

from paretune.cli.keys import lora_config, objectives_of
from paretune.cli.report import config_defaults
from paretune.cli.settings import make_config, resolve
from paretune.cli.train import TrainKeys
from paretune.evaluation.report import write_report
from paretune.evaluation.report.load import Run, load_run
from paretune.evaluation.report.reproduce import configuration
from paretune.objectives import Objective, as_dicts, normalize_weights
from paretune.training.config import RACOConfig
from paretune.training.given import given_settings
from paretune.training.record import RunRecord, plain
from tests.evaluation.report.demo_made import made_run
from tests.evaluation.report.dom import read

UNUSUAL: dict[str, Any] = {
    "weight_decay": 0.5, "warmup_steps": 0, "optim": "sgd", "normalize": "dataset", "layout": "flat", "tau": 1e-4,
    "max_length": None, "max_steps": 7, "eval_strategy": "steps", "eval_steps": 3, "gradient_checkpointing": True,
    "lr_scheduler_type": "constant_with_warmup", "seed": 3, "clip": False, "max_grad_norm": 0.0, "adam_beta2": 0.95,
    "max_skipped_steps": 0, "eval_fraction": 0.25,
}  # fmt: skip
OBJECTIVES = [
    Objective("one", weight=3.0, loss="robust", epsilon=0.3, length_normalized=True, beta=0.05),
    Objective("two: odd", weight=1.0, loss="simpo", reference_free=False, gamma=0.0, sft=0.5, rule="shorter"),
]
SETTINGS: dict[str, Any] = {
    "model": "base", "data": [{"path": "a.jsonl", "format": "raco"}], "lora": {"r": 4}, "dtype": "float32",
    "objectives": {"one": 3}, "ties": "equal", "take": 50, "resume": True, "overwrite": True, "dry_run": True,
}  # fmt: skip


def recorded(path: Path, changes: dict[str, Any], objectives: list[Objective] = OBJECTIVES) -> Run:
    """A run's record as training writes it, without the training."""
    args = RACOConfig(output_dir=str(path), report_to="none", use_cpu=True, **changes)
    record = RunRecord(args, objectives, normalize_weights(objectives))
    record.content["settings"] = SETTINGS
    record.begin(args, {})
    return load_run(path, path.name)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("changes", [{}, UNUSUAL, {"bf16": True}])
def test_the_configuration_makes_the_same_run(tmp_path: Path, changes: dict[str, Any], known: bool) -> None:
    run = recorded(tmp_path / "run", changes)
    file = tmp_path / "config.yaml"
    file.write_text(configuration(run, config_defaults() if known else None), encoding="utf-8")
    again = resolve([str(file)], TrainKeys, RACOConfig, required=("model", "data", "objectives"))
    assert plain(make_config(RACOConfig, again.config).to_dict()) == {
        **run.record["config"],
        "hub_token": "<HUB_TOKEN>",
    }
    assert as_dicts(normalize_weights(objectives_of(again.own.objectives) or [])) == run.record["objectives"]
    own = dataclasses.asdict(again.own)
    expected = dataclasses.asdict(TrainKeys()) | SETTINGS | {"resume": False, "overwrite": False, "dry_run": False}
    assert {k: v for k, v in own.items() if k != "objectives"} == {
        k: v for k, v in expected.items() if k != "objectives"
    }


def test_it_is_short_where_all_is_usual(tmp_path: Path) -> None:
    shown = yaml.safe_load(configuration(recorded(tmp_path / "run", {}, [Objective("x")]), config_defaults()))
    assert shown["objectives"] == {"x": {"weight": 1.0}}
    assert shown["output_dir"] == str(tmp_path / "run") and shown["combiner"] == "raco" and shown["seed"] == 42
    assert len(shown) < 25 and "weight_decay" not in shown
    assert not {"resume", "overwrite", "dry_run"} & set(shown)


def test_the_page_shows_what_differs_and_says_what_is_missing(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", UNUSUAL)
    text = read(write_report([tmp_path / "run"], tmp_path / "a.html", config_defaults()).read_text("utf-8")).text
    for line in ("weight_decay: 0.5", "optim: sgd", "max_length: null", "epsilon: 0.3", "length_normalized: true"):
        assert line in text
    assert "does not name" not in text
    record = {**run.record, "settings": SETTINGS | {"data": None}, "in_memory": {"data": "list of 40 rows"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    text = read(write_report([tmp_path / "run"], tmp_path / "b.html", config_defaults()).read_text("utf-8")).text
    assert "does not name these, which were in memory or not recorded: data (list of 40 rows)." in text
    (tmp_path / "run" / "run.json").write_text(json.dumps({**run.record, "settings": {}}))
    text = read(write_report([tmp_path / "run"], tmp_path / "c.html", config_defaults()).read_text("utf-8")).text
    assert "not recorded: model, data." in text


def test_adapters_of_another_program_are_options_of_lora(tmp_path: Path) -> None:
    given = LoraConfig(r=4, lora_alpha=3, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], use_rslora=True)
    given.task_type = "CAUSAL_LM"
    run = recorded(tmp_path / "run", {})
    settings, _ = given_settings("base", None, given, "data", None, None, None)
    run.record["settings"] = plain(settings)
    shown = yaml.safe_load(configuration(run, config_defaults()))
    again = lora_config(shown["lora"])
    assert again is not None and again.to_dict() == given.to_dict()


def test_an_older_record_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    run = load_run(made_run(tmp_path / "run", ["x", "y"], (0.5, 0.5), "raco", 0, 3), "run")
    run.record["config"] |= {"gone_since": 3, "gone_and_empty": None}
    shown = yaml.safe_load(configuration(run, config_defaults()))
    assert shown["gone_since"] == 3 and "gone_and_empty" not in shown and shown["max_steps"] == 3
