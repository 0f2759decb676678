"""`paretune train` from files to a model that loads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, save_model, saved_weights, write_jsonl
from tests.tokenizers_made import byte_bpe, chatml

RULE = "{helpful: {weight: 0.7, labels: chosen}, concise: {weight: 0.3, rule: shorter}}"
SINGLE = ["--gradient_accumulation_steps", "1"]


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


@pytest.mark.parametrize("several", [False, True], ids=["one set", "two sets"])
def test_early_stopping(
    model: Path, tmp_path: Path, rows: str, several: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate of zero never improves: the second evaluation after the first is the last."""
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {model}\ndata: {rows}\nobjectives: {OBJECTIVES}\noutput_dir: {tmp_path}/r\nscheme: null\n"
        "learning_rate: 0\nmax_steps: 9\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 1\n"
        "use_cpu: true\n"
        "eval_strategy: steps\neval_steps: 1\nsave_strategy: steps\nsave_steps: 1\n"
        "load_best_model_at_end: true\nearly_stopping_patience: 2\n"
    )
    sets = ["--eval_data", f"{{one: {rows}, two: {rows}}}", "--metric_for_best_model", "eval_two_loss"]
    assert paretune("train", config, *(sets if several else ["--eval_fraction", "0.3"])) == 0
    metric = "eval_two_loss" if several else "eval_loss"
    steps = [line["step"] for line in read_run(tmp_path / "r")[1] if metric in line]
    assert max(steps) == 3
    assert "early stopping is disabled" not in capsys.readouterr().err


def test_dry_run_checks_and_leaves_nothing(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "a" / "run"]
    assert paretune("train", *words, *QUICK, "--eval_fraction", "0.2", "--dry-run") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert f"{parameters:,} parameters, {parameters:,} of them trained" in said
    assert "labels in train" in said and "to keep 2 gradients" in said and "reference" in said
    assert "steps: 3 of 8 comparisons each (2 per epoch)" in said

    assert paretune("train", *words, *QUICK, "--lora.r", "2", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "frozen weights" in said and "reference" not in said
    assert paretune("train", *words, *QUICK, "--lora.r", "2", "--objectives.helpful.labels", "nobody", "--dry-run") == 2
    assert "helpful" in capsys.readouterr().err


def test_a_dry_run_reads_no_weights_but_looks_whether_they_are_there(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "model.safetensors").write_bytes(b"no weights")
    words = ["--model", bare, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run"]
    assert paretune("train", *words, "--dry_run") == 0
    assert paretune("train", *words) == 2
    (bare / "model.safetensors").unlink()
    assert paretune("train", *words, "--dry_run") == 2
    assert "no weights are there" in capsys.readouterr().err
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (bare / "model.safetensors.index.json").write_text(json.dumps(index))
    (bare / "model-1-of-2.safetensors").touch()
    assert paretune("train", *words, "--dry_run") == 2
    assert "expected model-2-of-2.safetensors" in capsys.readouterr().err
    (bare / "model-2-of-2.safetensors").touch()
    assert paretune("train", *words, "--dry_run") == 0
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    LoraConfig(base_model_name_or_path=str(bare)).save_pretrained(adapter)
    words[1] = adapter
    assert paretune("train", *words, "--dry_run") == 2
    assert "adapter_model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ref_model", "./absent"], ["ref_model: no such model directory", "./absent"]),
        (["--ref_model", "OTHER"], ["ref_model: the reference model does not match", "one of 380"]),
        (["--learning_rate", "-1"], ["bad learning_rate"]),
        (["--output_dir", "DONE"], ["a finished run is there"]),
        (["--gradient_storage", "two_pass", *SINGLE, "--gradient_mode", "per_objective"], ["two_pass cannot make"]),
    ],
    ids=["no reference", "a reference of another vocabulary", "negative rate", "a finished run", "two passes"],
)
def test_a_dry_run_refuses_what_the_run_would(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    names = {"OTHER": tmp_path / "other", "DONE": tmp_path / "done"}
    save_model(tmp_path / "other", tokenizer=byte_bpe(size=380))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "run.json").write_text('{"status": "finished"}')
    given = {"--model": model, "--data": rows, "--objectives": OBJECTIVES, "--output_dir": tmp_path / "run"}
    given |= {key: names.get(value, value) for key, value in zip(words[::2], words[1::2], strict=True)}
    assert paretune("train", *[word for pair in given.items() for word in pair], "--dry_run") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert all(word in err for word in said), err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_how_gradients_would_be_kept(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--model",
        model,
        "--data",
        rows,
        "--objectives",
        OBJECTIVES,
        "--output_dir",
        tmp_path / "run",
        "--dry_run",
    ]

    def told(*more: str, free: float = 1e9) -> tuple[dict[str, list[str]], str]:
        monkeypatch.setattr("paretune.training.storage.free_bytes", lambda device: int(free))
        assert paretune("train", *words, "--use_cpu", "true", *more) == 0
        said = capsys.readouterr().out
        lines = [re.split(r"  +", line) for line in said.splitlines()]
        return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}, said

    one = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    sizes = {factor: f"{factor * one / 1000:.3g} kB" for factor in (0.5, 1, 1.5, 2, 3)}
    cells, said = told(*SINGLE)
    assert cells["stack"] == [sizes[2], "0 B"] and cells["stack, bfloat16"] == [sizes[2], "0 B"]
    assert cells["stack on the host"] == [sizes[1], sizes[2]] and cells["two_pass"] == [sizes[1], "0 B"]
    assert cells["gradients (stack)"] == [sizes[2]] and "combined gradient" not in said
    assert "auto takes stack: it fits: 1.0 GB are free on cpu now" in said and "not possible" not in said
    # weights and a reference of one each; the optimizer's two; of what is left, two gradients may take half
    assert "auto takes stack:" in told(*SINGLE, free=8.1 * one)[1]
    cells, said = told(*SINGLE, free=7.9 * one)
    assert "auto takes two_pass: two backward passes per step, because 2 gradients take" in said
    assert cells["gradients (two_pass)"] == [sizes[1]]
    said = told("--gradient_accumulation_steps", "2", free=7.9 * one)[1]
    assert "two_pass is not possible: a step must be one micro-batch" in said and "auto takes stack: 2 grad" in said
    assert "auto takes stack, bfloat16: it" in told("--stack_dtype", "bfloat16")[1]
    # one comparison has one margin, and so has the step
    cells, said = told(*SINGLE, "--per_device_train_batch_size", "1")
    assert "to keep 1 gradient, for 2 objectives" in said and cells["stack"] == [sizes[1], "0 B"]


def test_the_module_runs_as_a_program(model: Path, tmp_path: Path, rows: str) -> None:
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "paretune", "train", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "helpful" in done.stdout and "step 3/3: loss" in done.stderr and "Traceback" not in done.stderr
