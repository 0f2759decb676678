"""`paretune evaluate` on runs and models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, save_model, write_jsonl
from tests.tokenizers_made import byte_bpe


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full run and an adapter that held out a third of their rows."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_jsonl(folder / "rows.jsonl", records("native", 30))
    for name, lora in (("full", "false"), ("lora", "true")):
        words = ["--model", model, "--data", data, "--objectives", OBJECTIVES, "--output_dir", folder / name]
        assert paretune("train", *words, *QUICK, "--eval_fraction", "0.33", "--lora", lora, "--beta", "0.3") == 0
    return folder


def figures(tmp_path: Path, *words: Any) -> dict[str, Any]:
    assert paretune("evaluate", *words, "--json", tmp_path / "figures.json", "--draws", "200") == 0
    return json.loads((tmp_path / "figures.json").read_text())


@pytest.mark.parametrize("name", ["full", "lora"])
def test_it_finds_what_the_run_measured(
    runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own held-out rows, reference and beta: the figures of the trainer's last evaluation."""
    found = figures(tmp_path, "--model", runs / name)
    final = read_run(runs / name)[0]["final"]
    for objective in ("helpful", "short"):
        of = found["models"][0][objective]
        assert of["loss"]["value"] == pytest.approx(final[f"eval_loss/{objective}"], rel=1e-4)
        for ours, theirs in (("margin", "margins"), ("chosen", "chosen"), ("rejected", "rejected")):
            assert of[ours]["value"] == pytest.approx(final[f"eval_rewards/{theirs}/{objective}"], rel=1e-3, abs=1e-5)
        assert of["accuracy"]["value"] == pytest.approx(final[f"eval_rewards/accuracies/{objective}"])
        assert all(of[k]["low"] <= of[k]["value"] <= of[k]["high"] for k in of)
    assert found["baseline"]["short"]["shorter"]["value"] > 0.7  # what the labels of "short" were made of
    said = capsys.readouterr().out
    assert "length-only baseline" in said and "helpful" in said and "reference of" in said


def test_models_are_compared_in_pairs(runs: Path, model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "test.jsonl", records("native", 12, seed=5))
    words = [word for name in (runs / "full", runs / "lora", model) for word in ("--model", name)]
    found = figures(tmp_path, *words, "--data", data)
    assert found["comparisons"] == 12 and len(found["models"]) == 3
    assert found["references"] == [str(model), "adapters off", str(model)]
    start = found["models"][2]["helpful"]  # compared with itself
    assert (start["margin"]["value"], start["accuracy"]["value"]) == (
        pytest.approx(0, abs=1e-6),
        pytest.approx(0.5, abs=0.5),
    )
    for i, difference in enumerate(found["differences"], 1):
        for figure in ("loss", "margin", "accuracy"):
            change = found["models"][i]["short"][figure]["value"] - found["models"][0]["short"][figure]["value"]
            assert difference["short"][figure]["value"] == pytest.approx(change)


def test_a_checkpoint_belongs_to_its_run(model: Path, tmp_path: Path, rows: str) -> None:
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run"]
    kept = [*QUICK, "--eval_fraction", "0.3", "--save_steps", "1"]
    kept[kept.index("--save_strategy") : kept.index("--save_strategy") + 2] = []
    assert paretune("train", *words, *kept) == 0
    last = figures(tmp_path, "--model", tmp_path / "run" / "checkpoint-3", "--model", tmp_path / "run")
    assert last["models"][0] == last["models"][1]


def test_settings_may_be_given(runs: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "test.jsonl", records("native", 8, seed=6))
    ours = figures(tmp_path, "--model", runs / "full", "--data", data, "--objectives", "short", "--beta", "0.6")
    theirs = figures(tmp_path, "--model", runs / "full", "--data", data)
    assert list(ours["models"][0]) == ["short"]
    twice = 2 * theirs["models"][0]["short"]["margin"]["value"]  # margins are in units of beta
    assert ours["models"][0]["short"]["margin"]["value"] == pytest.approx(twice, rel=1e-4)
    own = figures(tmp_path, "--model", runs / "full", "--data", data, "--ref_model", runs / "full")
    assert own["models"][0]["short"]["margin"]["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "MODEL", "--data", "DATA"], ["no objectives are given"]),
        (["--model", "MODEL", "--data", "DATA", "--objectives", "short"], ["no reference is known", "--ref_model"]),
        (["--model", "MODEL", "--objectives", "short"], ["no data is given"]),
        (["--data", "DATA"], ["model is missing"]),
        (["--model", "RUN", "--data", "DATA", "--objectives", "shrot"], ["'shrot'", "Did you mean 'short'?"]),
        (["--model", "RUN", "--model", "./none"], ["no such model directory"]),
        (["--model", "RUN", "--ref_model", "OTHER"], ["reference model does not match"]),
        (["--model", "RUN", "--draws", "0"], ["bad draws", "at least 1"]),
        (["--model", "RUN", "--draw", "5"], ["--draw", "Did you mean 'draws'?"]),
    ],
)
def test_bad_input(
    runs: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: list[str]
) -> None:
    names = {"MODEL": model, "DATA": tmp_path / "test.jsonl", "RUN": runs / "full", "OTHER": tmp_path / "other"}
    write_jsonl(tmp_path / "test.jsonl", records("native", 4))
    save_model(tmp_path / "other", tokenizer=byte_bpe(size=380))
    capsys.readouterr()
    assert paretune("evaluate", *[names.get(word, word) for word in words]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("paretune: ")
    for word in expected:
        assert word in message


def test_an_adapter_without_its_base_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "lora"
    shutil.copytree(runs / "lora", moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/base"}))
    assert paretune("evaluate", "--model", moved) == 2
    assert "/no/such/base" in capsys.readouterr().err
