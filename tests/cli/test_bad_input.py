"""Bad input, each kind once: one clear message on stderr, status 2, no traceback, nothing trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.made import QUICK, paretune, records, save_model, write_jsonl
from tests.tokenizers_made import byte_bpe

OBJECTIVES = "{helpful: 0.6, short: 0.4}"


class Case:
    """A command line that would train, to be spoilt in one place."""

    def __init__(self, model: Path, folder: Path):
        self.folder, self.rows = folder, records("native", 6)
        self.data = folder / "rows.jsonl"
        self.raw: bytes | None = None
        self.settings: dict[str, Any] = {
            "model": model,
            "data": self.data,
            "objectives": OBJECTIVES,
            "output_dir": folder / "run",
        }
        self.more: list[str] = []

    def run(self) -> int:
        write_jsonl(self.data, self.rows)
        if self.raw is not None:
            self.data.write_bytes(self.data.read_bytes() + self.raw)
        flags = [word for key, value in self.settings.items() for word in (f"--{key}", value)]
        return paretune("train", *flags, *QUICK, *self.more)


def row(**changes: Any) -> Callable[[Case], None]:
    """Changes row 2 (line 3); a value of None takes the field out."""

    def spoil(case: Case) -> None:
        for key, value in changes.items():
            case.rows[2][key] = value
            if value is None:
                del case.rows[2][key]

    return spoil


def setting(**changes: Any) -> Callable[[Case], None]:
    return lambda case: case.settings.update(changes)


def flags(*words: str) -> Callable[[Case], None]:
    return lambda case: case.more.extend(words)


def text(raw: bytes) -> Callable[[Case], None]:
    return lambda case: setattr(case, "raw", raw)


def empty_file(case: Case) -> None:
    case.rows = []


def duplicated(case: Case) -> None:
    case.rows.append(dict(case.rows[0]))


def without_labels(case: Case) -> None:
    for each in case.rows:
        each["preferences"]["short"] = None


def model_of(**options: Any) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        case.settings["model"] = save_model(case.folder / "model", **options)

    return spoil


def no_pad_no_eos(case: Case) -> None:
    model_of(tokenizer=byte_bpe(pad=False, eos=False))(case)


def chat(case: Case) -> None:
    case.rows = [
        {**each, **{k: [{"role": r, "content": each[k]}] for k, r in (("prompt", "user"), ("response_a", "assistant"))}}
        | {"response_b": [{"role": "assistant", "content": each["response_b"]}]}
        for each in case.rows
    ]


def nan_in_the_model(case: Case) -> None:
    model_of()(case)
    file = case.settings["model"] / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def other_reference(case: Case) -> None:
    case.settings["ref_model"] = save_model(case.folder / "ref", vocab_size=999)


def output_in_a_file(case: Case) -> None:
    (case.folder / "file").write_text("")
    case.settings["output_dir"] = case.folder / "file" / "run"


def not_a_model(case: Case) -> None:
    (case.folder / "nothing").mkdir()
    case.settings["model"] = case.folder / "nothing"


def broken_weights(case: Case) -> None:
    model_of()(case)
    (case.settings["model"] / "model.safetensors").write_bytes(b"not safetensors")


def lacking_weights(case: Case) -> None:
    model_of()(case)
    file = case.settings["model"] / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def small_vocabulary(case: Case) -> None:
    model_of(vocab_size=100)(case)


def yaml_key(case: Case) -> None:
    (case.folder / "c.yaml").write_text("objectivs: {helpful: 1}\n")
    case.more.append(str(case.folder / "c.yaml"))


CASES: dict[str, tuple[Callable[[Case], None], list[str]]] = {
    # the data
    "missing field": (row(response_b=None), ["line 3", "missing field", "response_b"]),
    "wrong type": (row(prompt=7), ["line 3", "wrong type", "prompt", "found 7"]),
    "label out of range": (row(preferences={"helpful": 1.5}), ["line 3", "label out of range", "helpful", "1.5"]),
    "minus one": (row(preferences={"helpful": -1}), ["label out of range", "Write 0 for b", "raco"]),
    "label of words": (row(preferences={"helpful": "good"}), ["line 3", "bad label", "'good'"]),
    "empty response": (row(response_a="  "), ["line 3", "empty response", "response_a"]),
    "invalid UTF-8": (text(b'{"prompt": "caf\xe9"}\n'), ["line 7", "UTF-8"]),
    "truncated line": (text(b'{"prompt": "a", "respo'), ["line 7", "JSON", "Unterminated string starting at column"]),
    "not an object": (text(b"[1, 2]\n"), ["line 7"]),
    "duplicated row": (duplicated, ["line 7", "duplicated row"]),
    "empty file": (empty_file, ["rows.jsonl", "the file is empty"]),
    "no such file": (setting(data="absent.jsonl"), ["absent.jsonl", "no such file"]),
    "wrong format name": (setting(format="sores"), ["sores", "Did you mean 'scores'?"]),
    "another layout": (setting(format="raco"), ["line 1", "missing field"]),
    "too long": (setting(max_length=8), ["none of 6 rows can be used", "longer than max_length", "Raise max_length"]),
    # the objectives
    "unknown objective": (setting(objectives="{helpfull: 1}"), ["helpfull", "Did you mean 'helpful'?"]),
    "without labels": (without_labels, ["'short'", "no label"]),
    "negative weight": (setting(objectives="{helpful: -1, short: 1}"), ["'helpful'", "bad weight", ">= 0", "-1"]),
    "weight is no number": (setting(objectives="{helpful: much}"), ["bad weight", "much"]),
    "all weights zero": (setting(objectives="{helpful: 0, short: 0}"), ["all weights are zero"]),
    "no objectives": (setting(objectives="{}"), ["objectives"]),
    "unknown option": (flags("--objectives.short.wieght", "1"), ["'wieght'", "Did you mean 'weight'?"]),
    "unknown loss": (flags("--objectives.short.loss", "sigmod"), ["unknown loss", "sigmod", "sigmoid"]),
    "unknown rule": (flags("--objectives.short", "{rule: shortest}"), ["shortest", "Did you mean 'shorter'?"]),
    # the model
    "no such model": (setting(model="./absent"), ["no such model directory", "./absent"]),
    "not a model": (not_a_model, ["not a model directory", "config.json"]),
    "broken weights": (broken_weights, ["cannot load the model"]),
    "a checkpoint with holes": (lacking_weights, ["lacks 1 weights", "layers.0.self_attn.q_proj"]),
    "NaN in the model": (nan_in_the_model, ["not finite", "layers.1.mlp.up_proj"]),
    "mismatched reference": (other_reference, ["reference model does not match", "ref_model", "999"]),
    "tokenizer of another model": (small_vocabulary, ["tokenizer does not belong to the model", "at most 100"]),
    "no pad token": (no_pad_no_eos, ["neither a pad token nor an EOS token"]),
    "no chat template": (chat, ["chat template", "this tokenizer has none"]),
    "4 bits without adapters": (setting(quantization="4bit"), ["4-bit weights cannot train", "lora"]),
    "full training in half precision": (setting(dtype="bfloat16"), ["dtype bfloat16", "float32", "bf16: true"]),
    "unknown dtype": (setting(dtype="fp8"), ["bad dtype", "fp8"]),
    "unknown option of lora": (flags("--lora.rnak", "4"), ["lora", "'rnak'"]),
    "targets that are not there": (flags("--lora.target_modules", "[qq_proj]"), ["lora", "qq_proj"]),
    # the settings
    "unknown flag": (flags("--learning_rat", "1e-5"), ["--learning_rat", "Did you mean 'learning_rate'?"]),
    "unknown key": (yaml_key, ["'objectivs'", "Did you mean 'objectives'?", "c.yaml"]),
    "wrong type of a setting": (flags("--weight_decay", "abc"), ["--weight_decay", "a number", "abc"]),
    "c out of range": (setting(c=1.2), ["bad c", "< 1", "1.2"]),
    "unknown combiner": (setting(combiner="rako"), ["unknown combiner", "raco"]),
    "unknown schedule": (setting(lr_scheduler_type="cosin"), ["cosin"]),
    "fp16": (setting(fp16="true"), ["fp16", "bf16"]),
    "two kinds of held-out data": (setting(eval_fraction=0.1, eval_data="x.jsonl"), ["eval_data", "eval_fraction"]),
    "nothing to evaluate on": (setting(eval_strategy="steps"), ["eval_strategy steps:", "eval_fraction"]),
    "a tracker that is not there": (setting(report_to="wandbb"), ["report_to", "wandbb"]),
    "a negative number": (flags("--adam_epsilon", "-1"), ["bad adam_epsilon", ">= 0", "-1"]),
    "an optimizer that is not there": (setting(optim="schedule_free_adamw"), ["optim schedule_free_adamw", "install"]),
    "a best model of unlike strategies": (
        setting(load_best_model_at_end="true", eval_strategy="steps", eval_fraction=0.3),
        ["save and eval strategy", "found Evaluation strategy: steps, Save strategy: no"],
    ),
    "an unknown method": (setting(method="mopdo"), ["unknown method", "mopdo", "modpo"]),
    "an unknown scheme": (setting(scheme="mopdo"), ["unknown method", "mopdo", "modpo"]),
    "method and scheme": (setting(scheme="modpo", method="linear"), ["scheme contradicts method", "modpo", "linear"]),
    "method and combiner": (setting(method="linear", combiner="raco"), ["combiner contradicts method linear"]),
    "an option of no method": (setting(method="linear", method_options={"on": "x"}), ["unknown option 'on'"]),
    "early stopping of nothing": (setting(early_stopping_patience=2), ["eval_strategy", "load_best_model_at_end"]),
    "no patience at all": (setting(early_stopping_patience=0), ["bad early_stopping_patience", "at least 1"]),
    "objectives twice": (flags("--objectives", "{short: 1}"), ["--objectives is given 2 times"]),
    "batches split by another loader": (flags("--accelerator_config.split_batches", "true"), ["split_batches"]),
    "unwritable output": (output_in_a_file, ["output_dir", "cannot write"]),
    "nothing to resume": (flags("--resume"), ["no checkpoint to go on from"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = CASES[name]
    case = Case(model, tmp_path)
    spoil(case)
    capsys.readouterr()
    assert case.run() == 2
    err = capsys.readouterr().err
    message = err.splitlines()[-1]
    assert message.startswith("paretune: "), err
    for word in words:
        assert word in message
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()  # nothing was trained, and no empty folder stays


def test_the_unspoilt_case_trains(model: Path, tmp_path: Path) -> None:
    """Otherwise every case above could fail for a reason of its own."""
    assert Case(model, tmp_path).run() == 0


@pytest.mark.parametrize("missing", ["model", "data", "objectives"])
def test_what_must_be_given(missing: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(model, tmp_path)
    del case.settings[missing]
    assert case.run() == 2
    assert f"{missing} is missing" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "file"))
    case = Case(model, tmp_path)
    case.settings["precompute_ref_log_probs"] = "true"
    assert case.run() == 2
    assert "cannot be used" in capsys.readouterr().err.splitlines()[-1]


def test_bad_rows_can_be_skipped_and_are_counted(model: Path, tmp_path: Path) -> None:
    case = Case(model, tmp_path)
    row(response_a=" ")(case)
    case.settings["on_bad_row"] = "skip"
    assert case.run() == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["train"]["rows"]["skipped"] == 1
    assert any("empty response" in notice for notice in record["notices"])


def test_a_bug_keeps_its_traceback(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("paretune.training.trainer.prepare_scorer", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        Case(model, tmp_path).run()


def test_weights_are_not_read_before_the_data_is_right(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("paretune.training.trainer.load_policy", loaded)
    case = Case(model, tmp_path)
    row(response_a=" ")(case)
    assert case.run() == 2
    assert torch.is_grad_enabled()
