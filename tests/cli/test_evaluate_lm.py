"""`paretune evaluate --lm_text` and `--lm_eval`: what alignment cost, on a run, its base and a plain model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from paretune.evaluation.text_loss import text_loss
from paretune.policy.loading import load_scored, load_tokenizer
from tests.cli.made import OBJECTIVES, QUICK, paretune, records, write_jsonl
from tests.evaluation.test_harness import write_task
from tests.tokenizers_made import SENTENCES

TEXT = " ".join(SENTENCES[:7])


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose run held out a third of its rows."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_jsonl(folder / "rows.jsonl", records("native", 16))
    words = ["--model", model, "--data", data, "--objectives", OBJECTIVES, "--output_dir", folder / "lora"]
    assert paretune("train", *words, *QUICK, "--eval_fraction", "0.33", "--lora", "true") == 0
    return folder / "lora"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def figures(tmp_path: Path, *words: Any) -> dict[str, Any]:
    assert paretune("evaluate", *words, "--json", tmp_path / "figures.json", "--draws", "100") == 0
    return json.loads((tmp_path / "figures.json").read_text())


def test_a_text_is_asked_of_the_run_and_its_base(
    run: Path, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(tmp_path, "--model", run, "--lm_text", text)
    assert found["comparisons"] > 0 and "accuracy" in found["models"][0]["short"]  # beside the margins
    of = found["lm_text"]
    assert list(of["models"]) == [str(run), str(model)] and of["window"] == 128  # the model's context
    for name in (run, model):
        direct = text_loss(load_scored(str(name)), load_tokenizer(str(name)), TEXT, window=128)
        assert of["models"][str(name)]["loss"]["value"] == pytest.approx(float(direct.losses.mean()), rel=1e-5)
    losses = [of["models"][str(name)]["loss"]["value"] for name in (run, model)]
    change = of["differences"][str(run)]
    assert change["minus"] == str(model) and change["of"]["value"] == pytest.approx(losses[0] - losses[1], abs=1e-6)
    assert abs(change["of"]["value"]) > 1e-4  # training moved it
    said = capsys.readouterr().out
    assert "windows of 128 tokens" in said and "length-only baseline" in said and "bits per byte" in said


def test_a_task_is_asked_of_a_model_without_any_comparison(
    run: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    asked = ["--lm-eval", "made_questions", "--lm_eval_path", write_task(tmp_path / "tasks"), "--lm_eval_limit", "4"]
    found = figures(tmp_path, "--model", model, *asked)
    assert "comparisons" not in found and found["lm_eval"]["differences"] == {}
    alone = found["lm_eval"]["models"][str(model)]["made_questions"]["acc"]
    assert alone["n"] == 4 and 0 <= alone["value"] <= 1
    said = capsys.readouterr()
    assert "no comparisons are given" in said.err and "the first 4 documents" in said.out
    of = figures(tmp_path, "--model", run, *asked)["lm_eval"]
    assert of["models"][str(model)]["made_questions"]["acc"] == alone  # the base, measured again
    change = of["differences"][str(run)]["of"]["made_questions"]["acc"]
    assert change["value"] == pytest.approx(
        of["models"][str(run)]["made_questions"]["acc"]["value"] - alone["value"], abs=1e-9
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lm_eval", "mmlu"], ["pip install 'paretune[lm-eval]'"]),
        (["--lm_eval_limit", "4"], ["lm_eval_limit without tasks"]),
        (["--lm_window", "64"], ["lm_window without a text"]),
        (["--lm_text", "none.txt"], ["none.txt: cannot read the text"]),
        (["--lm_text", "TEXT", "--lm_window", "0"], ["bad lm_window", "at least 1"]),
        (["--lm_text", "TEXT", "--lm_window", "129"], ["bad window", "at most 128"]),
    ],
)
def test_bad_input(
    model: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    assert paretune("evaluate", "--model", model, *[{"TEXT": text}.get(word, word) for word in words]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in expected:
        assert word in message
