"""`paretune reward`, as a user meets it: every kind trains, is an ordinary model of transformers, and labels rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from tests.cli.made import paretune, records, saved_weights, text, write_jsonl

QUICK = [
    *["--num_train_epochs", "2", "--learning_rate", "5e-3", "--per_device_train_batch_size", "8"],
    *["--logging_steps", "5", "--save_strategy", "no", "--use_cpu", "true", "--eval_fraction", "0.25"],
]


def scored(n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Three responses each; `moon` is how often the word is there, `short` minus the length; some are missing."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        responses = list(dict.fromkeys(" " + text(rng, 3, 10) for _ in range(3)))
        moon = [float(r.split().count("moon") + r.split().count("cat")) for r in responses]
        short: list[float | None] = [-len(r.split()) / 5 for r in responses]
        short[i % len(short)] = None
        rows.append({"prompt": f"{i}?", "responses": responses, "scores": {"moon": moon, "short": short}})
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain_rewards(path: Path, texts: list[str], level: str | None = None) -> list[list[float]]:
    """What a user of transformers alone computes: one text at a time, nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    auto = AutoModelForTokenClassification if level else AutoModelForSequenceClassification
    model = auto.from_pretrained(path).eval()
    found = []
    for one in texts:
        prompt, response = one.split("?")
        ids = torch.tensor([[*tokenizer(one)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        if level:
            start = len(tokenizer(prompt + "?")["input_ids"])
            logits = logits[start:].sum(0) if level == "sum" else logits[start:].mean(0)
        found.append(logits.tolist())
    return found


@pytest.mark.parametrize(
    ("kind", "level", "more"),
    [
        ("pairwise", None, ["--centring", "0.01"]),
        ("pairwise", "sum", []),
        ("pairwise", "mean", ["--margin_scale", "0.5"]),
        ("pairwise", "sum", ["--all_pairs", "true", "--margin_scale", "0.5", "--centring", "0.01"]),
        ("pointwise", None, []),
        ("listwise", None, ["--lora", "{r: 4}"]),
        ("ridge", None, []),
    ],
)
def test_each_kind_is_a_model_of_transformers_that_labels(
    kind: str, level: str | None, more: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_jsonl(tmp_path / "scored.jsonl", scored()), tmp_path / "rm"
    words = ["--data", data, "--model", model, "--kind", kind, "--output_dir", out, *more, *QUICK]
    assert paretune("reward", *words, *(["--token_level", level] if level else [])) == 0
    told = capsys.readouterr().out
    assert "ranked right" in told and "moon" in told and f"{{reward_model: {out}}}" in told
    record = json.loads((out / "run.json").read_text())
    heads = record["final"]["heads"]
    assert record["status"] == "finished" and list(heads) == ["moon", "short"] and heads["moon"]["pairs"] > 5
    assert 0 <= heads["moon"]["accuracy"]["low"] <= heads["moon"]["accuracy"]["high"] <= 1
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "moon", "1": "short"} and not (out / "adapter_config.json").exists()

    fresh = [{"prompt": row["prompt"], "responses": row["responses"]} for row in scored(6, seed=9)]
    drawn, labelled = write_jsonl(tmp_path / "fresh.jsonl", fresh), tmp_path / "train.jsonl"
    sources = f"{{moon: {{reward_model: {out}, soft: true}}, short: {{reward_model: {out}}}}}"
    assert paretune("label", drawn, "--sources", sources, "--out", labelled) == 0
    texts = [row["prompt"] + response for row in fresh for response in row["responses"]]
    rewards = dict(zip(texts, plain_rewards(out, texts, level), strict=True))
    scale = config["paretune_reward"].get("scale", [1.0, 1.0])
    for row in read(labelled):
        a, b = (rewards[row["prompt"] + row[f"response_{side}"]] for side in "ab")
        p = torch.tensor(scale[0] * (a[0] - b[0])).sigmoid().item()
        assert row["preferences"]["moon"] == pytest.approx(p, abs=1e-4)
        assert row["preferences"]["short"] == (a[1] > b[1])
    report = json.loads(labelled.with_suffix(".labels.json").read_text())
    assert report["sources"]["moon"]["asked"] == len(texts) and report["sources"]["short"]["failed"] == 0


def test_one_head_per_objective_of_comparisons(model: Path, rows: str, tmp_path: Path) -> None:
    out = tmp_path / "rm"
    assert paretune("reward", "--data", rows, "--model", model, "--output_dir", out, "--calibrate", *QUICK) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "short"}
    out2 = tmp_path / "rm2"
    words = ["--data", rows, "--model", model, "--output_dir", out2, "--objectives", "short", *QUICK[:-2]]
    assert paretune("reward", *words) == 0
    assert json.loads((out2 / "config.json").read_text())["id2label"] == {"0": "short"}
    assert "heads" not in json.loads((out2 / "run.json").read_text())["final"]
    again = tmp_path / "rm3"  # a reward model as the base of another: its trunk stays, its heads are new
    words = ["--data", rows, "--model", out2, "--output_dir", again, *QUICK[:-2], "--max_steps", "1"]
    assert paretune("reward", *words) == 0


def test_a_stopped_run_goes_on_to_the_same_model(model: Path, rows: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quick = [word if word != "no" else "steps" for word in QUICK[:-2]]
    words = ["--data", rows, "--model", model, *quick, "--save_steps", "2"]
    assert paretune("reward", *words, "--output_dir", whole) == 0
    assert paretune("reward", *words, "--output_dir", parts) == 0
    (parts / "model.safetensors").unlink()
    record = json.loads((parts / "run.json").read_text())
    (parts / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert (parts / "checkpoint-2").is_dir()
    assert paretune("reward", *words, "--output_dir", parts, "--resume", parts / "checkpoint-2") == 0
    first, second = (saved_weights(path) for path in (whole, parts))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "pairwse"], "one of pairwise, pointwise, listwise, ridge"),
        (["--kind", "ridge", "--token_level", "sum"], "whole sequences"),
        (["--kind", "ridge", "--lora", "true"], "frozen model"),
        (["--kind", "listwise", "--centring", "0.1"], "centring means nothing"),
        (["--kind", "listwise", "--all_pairs", "true"], "all_pairs means nothing"),
        (["--all_pairs", "true"], "without ratings"),
        (["--kind", "pointwise"], "without ratings"),
        (["--margin_scale", "1"], "without ratings"),
        (["--calibrate"], "nothing to calibrate on"),
        (["--objectives", "helpfull"], "helpfull"),
        (["--max_length", "3"], "no example is left"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", records("raco", 6))
    assert paretune("reward", "--data", data, "--model", model, "--output_dir", tmp_path / "rm", *words) == 2
    error = capsys.readouterr().err
    assert said in error and not (tmp_path / "rm" / "model.safetensors").exists()


def test_sources_that_cannot_be(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", scored(3))
    for source, said in [
        (f"{{reward_model: {model}}}", "not a reward model"),
        ("{reward_model: ./nowhere}", "no such model directory"),
        (f"{{reward_model: {model}, haed: x}}", "Did you mean 'head'"),
        (f"{{implicit: {model}}}", "needs a reference"),
        (f"{{implicit: {model}, reference: {model}, beta: 0}}", "bad beta"),
    ]:
        assert paretune("label", data, "--sources", f"{{x: {source}}}", "--out", tmp_path / "o.jsonl") == 2
        assert said in capsys.readouterr().err
