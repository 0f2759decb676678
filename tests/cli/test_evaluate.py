"""`paretune evaluate` on runs and models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from paretune import Objective, RACOConfig, RACOTrainer
from paretune.pipelines.methods import load_outcome
from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, save_model, write_jsonl
from tests.runs_made import made_text_rows, small_trainer
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


def test_a_run_is_scored_as_its_method_answers(model: Path, tmp_path: Path, rows: str) -> None:
    """MOD by the mixture of its parts, COS-DPO by the prompts that ask for the run's weights."""
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, *QUICK]
    for name in ("mod", "cos-dpo"):
        assert paretune("train", "--method", name, "--output_dir", tmp_path / name, *words) == 0
    parts = [f"--model={tmp_path / 'mod' / 'parts' / f'single-{name}'}" for name in ("helpful", "short")]
    whole = ["--model", tmp_path / "mod", "--model", tmp_path / "cos-dpo", "--data", rows]
    found = figures(tmp_path, *whole)["models"] + figures(tmp_path, *parts, "--data", rows)["models"]
    mixed, conditioned, *singles = (of["helpful"]["margin"]["value"] for of in found)
    assert min(singles) < mixed < max(singles)
    data = [json.loads(line) for line in Path(rows).read_text().splitlines()]
    outcome = load_outcome(tmp_path / "cos-dpo", {"helpful": 0.6, "short": 0.4})
    asked = write_jsonl(tmp_path / "asked.jsonl", [{**row, "prompt": outcome.prepare(row["prompt"])} for row in data])
    shutil.copytree(tmp_path / "cos-dpo", tmp_path / "plain", ignore=shutil.ignore_patterns("run.json"))
    by_hand = ["--model", tmp_path / "plain", "--ref_model", model, "--objectives", OBJECTIVES, "--beta", "0.2"]
    unprefixed = figures(tmp_path, *by_hand, "--data", rows)["models"][0]["helpful"]["margin"]["value"]
    assert conditioned == figures(tmp_path, *by_hand, "--data", asked)["models"][0]["helpful"]["margin"]["value"]
    assert conditioned != unprefixed


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_of_the_library_is_a_run(
    model: Path, tmp_path: Path, rows: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run.json names model, data and objectives, from whatever folder it is read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").symlink_to(model)
    numbers = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    trainer = RACOTrainer(
        model="start",
        args=RACOConfig(
            **{"output_dir": "run", "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"},
            **{"eval_fraction": 0.3, "beta": 0.3, "learning_rate": 1e-2, **numbers},
        ),
        objectives=[Objective("helpful", weight=0.6), Objective("short", weight=0.4)],
        train_dataset="rows.jsonl",
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        data_options={"take": 16},
    )
    trainer.train()
    trainer.save_model()
    measured = trainer.evaluate()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = figures(tmp_path, "--model", tmp_path / "run")
    of = found["models"][0]["short"]
    assert of["loss"]["value"] == pytest.approx(measured["eval_loss/short"], rel=1e-4)
    assert of["margin"]["value"] == pytest.approx(measured["eval_rewards/margins/short"], rel=1e-3, abs=1e-5)
    assert found["references"] == ["adapters off" if lora else str(tmp_path / "start")]
    assert figures(tmp_path, "--model", tmp_path / "run", "--data", rows)["comparisons"] == 16  # `take` is the run's


def test_rows_in_memory_cannot_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_trainer(tmp_path, max_steps=1, eval_dataset=made_text_rows(6)).train()
    fingerprint = read_run(tmp_path / "run")[0]["data"]["eval"]["rows"]["fingerprint"]
    byte_bpe().save_pretrained(tmp_path / "run")
    assert paretune("evaluate", "--model", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "in memory" in said and "list of 6 rows" in said and fingerprint in said and "--data FILE" in said


def test_every_held_out_set_gets_its_figures(
    model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", records("native", 9, seed=8))
    two = write_jsonl(tmp_path / "two.jsonl", records("native", 7, seed=9))
    sets = json.dumps({"one": one, "two": two})
    words = ["--model", model, "--data", rows, "--objectives", OBJECTIVES, "--output_dir", tmp_path / "run"]
    assert paretune("train", *words, *QUICK, "--eval_data", sets) == 0
    said = capsys.readouterr().out
    final = read_run(tmp_path / "run")[0]["final"]
    assert "held-out one" in said and "held-out two" in said
    assert f"{final['eval_two_loss/short']:.3f}" in said
    found = figures(tmp_path, "--model", tmp_path / "run")
    assert {name: of["comparisons"] for name, of in found["sets"].items()} == {"one": 9, "two": 7}
    for name, of in found["sets"].items():
        loss = of["models"][0]["short"]["loss"]["value"]
        assert loss == pytest.approx(final[f"eval_{name}_loss/short"], rel=1e-4)
    assert "== one ==" in capsys.readouterr().out
    alone = figures(tmp_path, "--model", tmp_path / "run", "--data", two)
    assert alone["models"] == found["sets"]["two"]["models"]


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
