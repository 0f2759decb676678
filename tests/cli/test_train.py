"""`paretune train` from files to a model that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, save_model, saved_weights, write_jsonl
from tests.tokenizers_made import chatml

RULE = "{helpful: {weight: 0.7, labels: chosen}, concise: {weight: 0.3, rule: shorter}}"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("layout", "objectives"),
    [("native", OBJECTIVES), ("raco", OBJECTIVES), ("scores", OBJECTIVES), ("trl", RULE)],
    ids=["native", "raco", "scores", "dpo with a rule"],
)
def test_from_a_file_to_a_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, objectives: str, lora: bool
) -> None:
    data, out = write_jsonl(tmp_path / "rows.jsonl", records(layout)), tmp_path / "run"
    words = [
        "--model",
        model,
        "--data",
        data,
        "--objectives",
        objectives,
        "--output_dir",
        out,
        "--eval_fraction",
        "0.2",
    ]
    assert paretune("train", *words, *QUICK, "--lora", str(lora).lower()) == 0

    record, history = read_run(out)
    assert record["status"] == "finished" and record["settings"]["model"] == str(model)
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3]
    names = [o["name"] for o in record["objectives"]]
    assert all(f"eval_loss/{name}" in record["final"] for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(model if lora else out)
    if lora:
        loaded = PeftModel.from_pretrained(loaded, out)
    ids = AutoTokenizer.from_pretrained(out)("the cat", return_tensors="pt")["input_ids"]
    before = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    assert (loaded(ids).logits - before).abs().max() > 1e-3  # it learnt something

    said = capsys.readouterr().out
    assert all(name in said for name in names) and "eval margin" in said and "mean cosine" in said
    assert f"paretune evaluate --model {out}" in said


def test_nested_flags_reach_objectives_and_adapters(model: Path, tmp_path: Path, rows: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {model}\ndata: {rows}\nobjectives: {OBJECTIVES}\nlora: {{r: 4}}\noutput_dir: {tmp_path}/r\n"
    )
    words = [
        "--objectives.short.loss",
        "ipo",
        "--objectives.short",
        "0.2",
        "--lora.r",
        "2",
        "--lora.use_rslora",
        "true",
    ]
    assert paretune("train", config, *words, *QUICK, "--max_steps", "1") == 2  # max_steps twice
    assert paretune("train", config, *words, *QUICK) == 0
    record, _ = read_run(tmp_path / "r")
    assert [(o["name"], o["loss"]) for o in record["objectives"]] == [("helpful", "sigmoid"), ("short", "ipo")]
    assert [o["weight"] for o in record["objectives"]] == pytest.approx([0.75, 0.25])
    assert any("normalised" in notice for notice in record["notices"])
    adapter = json.loads((tmp_path / "r" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (2, 4, True)


def test_chat_rows_and_gpt2s_transposed_layers(tmp_path: Path) -> None:
    """GPT-2 keeps its matrices the other way round (Conv1D); all-linear adapters must find them."""
    start = save_model(tmp_path / "gpt2", "gpt2", chatml(), bos_token_id=0, eos_token_id=2)
    data = write_jsonl(tmp_path / "chat.jsonl", records("chat"))
    words = ["--model", start, "--data", data, "--objectives", RULE, "--output_dir", tmp_path / "run", "--lora.r", "4"]
    assert paretune("train", *words, *QUICK) == 0
    names = saved_weights(tmp_path / "run").keys()
    assert any("c_attn" in name for name in names) and any("mlp.c_fc" in name for name in names)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), tmp_path / "run")


def test_adapters_on_a_model_that_was_an_adapter(model: Path, tmp_path: Path, rows: str) -> None:
    """The second adapter's base is the first one merged, and is written beside it: nothing of the first is lost."""
    common = ["--data", rows, "--objectives", OBJECTIVES, "--lora", "true", *QUICK]
    assert paretune("train", "--model", model, *common, "--output_dir", tmp_path / "one") == 0
    assert paretune("train", "--model", tmp_path / "one", *common, "--output_dir", tmp_path / "two") == 0
    base = json.loads((tmp_path / "two" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base) == tmp_path / "two" / "base"
    first = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "one")
    ids = torch.arange(3, 12)[None]
    expected = first.eval()(ids).logits
    second = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "two").eval()
    with second.disable_adapter():
        assert torch.allclose(second(ids).logits, expected, atol=1e-4)


def test_a_finished_run_is_not_overwritten_unasked(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    common = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", out, *QUICK]
    assert paretune("train", *common, "--lora", "true") == 0
    (out / "mine.txt").write_text("kept")
    assert paretune("train", *common) == 2
    assert "a finished run is there" in capsys.readouterr().err
    assert paretune("train", *common, "--overwrite") == 0
    assert not (out / "adapter_config.json").exists()  # or the full model would be taken for an adapter
    assert (out / "model.safetensors").exists() and (out / "mine.txt").exists()


def test_reading_options_are_keys(model: Path, tmp_path: Path) -> None:
    """Texts become messages: without it they would be refused beside rows that are."""
    start = save_model(tmp_path / "chat", tokenizer=chatml())
    data = [write_jsonl(tmp_path / f"{layout}.json", records(layout, 8, len(layout))) for layout in ("trl", "chat")]
    words = ["--model", start, "--data", data[0], "--data", data[1], "--objectives", RULE]
    words += ["--output_dir", tmp_path / "r"]
    assert paretune("train", *words, *QUICK) == 2
    assert paretune("train", *words, *QUICK, "--conversational", "--max_pairs", "3", "--split", "train") == 0
    record, _ = read_run(tmp_path / "r")
    assert record["data"]["train"]["rows"]["conversational"] and record["data"]["train"]["rows"]["kept"] == 16
    assert record["settings"]["max_pairs"] == 3


def test_early_stopping(model: Path, tmp_path: Path, rows: str) -> None:
    """A rate of zero never improves: the second evaluation after the first is the last."""
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {model}\ndata: {rows}\nobjectives: {OBJECTIVES}\noutput_dir: {tmp_path}/r\nscheme: null\n"
        "learning_rate: 0\nmax_steps: 9\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 1\n"
        "use_cpu: true\n"
        "eval_fraction: 0.3\neval_strategy: steps\neval_steps: 1\nsave_strategy: steps\nsave_steps: 1\n"
        "load_best_model_at_end: true\nearly_stopping_patience: 2\n"
    )
    assert paretune("train", config) == 0
    steps = [line["step"] for line in read_run(tmp_path / "r")[1] if "eval_loss" in line]
    assert max(steps) == 3


def test_dry_run_checks_and_leaves_nothing(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "a" / "run"]
    assert paretune("train", *words, *QUICK, "--eval_fraction", "0.2", "--dry-run") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert f"{parameters:,} parameters, {parameters:,} of them trained" in said
    assert "labels in train" in said and "gradients of 2 objectives" in said and "reference copy" in said
    assert "steps: 3 of 8 comparisons each (2 per epoch)" in said

    assert paretune("train", *words, *QUICK, "--lora.r", "2", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "frozen weights" in said and "reference copy" not in said
    assert paretune("train", *words, *QUICK, "--lora.r", "2", "--objectives.helpful.labels", "nobody", "--dry-run") == 2
    assert "helpful" in capsys.readouterr().err


def test_a_dry_run_reads_no_weights(model: Path, tmp_path: Path, rows: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    words = ["--model", bare, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run"]
    assert paretune("train", *words, "--dry_run") == 0
    assert paretune("train", *words) == 2


def test_the_module_runs_as_a_program(model: Path, tmp_path: Path, rows: str) -> None:
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "paretune", "train", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "helpful" in done.stdout and "step 3/3: loss" in done.stderr and "Traceback" not in done.stderr
