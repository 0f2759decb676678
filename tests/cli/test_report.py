"""`paretune report`: where the page goes, and what is said where there is nothing to report on."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.cli.main import main
from tests.cli.made import QUICK, paretune, saved_weights
from tests.evaluation.report.demo_made import made_demo, made_run
from tests.evaluation.report.dom import read


def test_a_runs_page_goes_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "first", ["x", "y"], (0.5, 0.5), "raco", 0, 3)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert "run first" in (run / "report.html").read_text(encoding="utf-8")


def test_the_configuration_on_the_page_trains_the_same_model(model: Path, rows: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    unusual = [
        "--optim",
        "sgd",
        "--weight_decay",
        "0.5",
        "--warmup_steps",
        "0",
        "--normalize",
        "dataset",
        "--layout",
        "flat",
    ]
    objectives = "{helpful: {weight: 3, loss: robust, epsilon: 0.3, length_normalized: true}, short: 1}"
    words = ["--model", model, "--data", rows, "--objectives", objectives, "--output_dir", first, "--overwrite", *QUICK]
    assert paretune("train", *words, *unusual) == 0
    assert paretune("report", first) == 0
    (code,) = read((first / "report.html").read_text(encoding="utf-8")).all("figure", "code")
    config = tmp_path / "config.yaml"
    config.write_text(code.all("code")[0].text, encoding="utf-8")
    assert paretune("train", config) == 2, "a finished run is not written over"
    assert paretune("train", config, "--output_dir", second) == 0
    before, after = saved_weights(first), saved_weights(second)
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_of_several_it_goes_here_or_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        made_run(tmp_path / name, ["x", "y"], (0.5, 0.5), "linear", 0, 3)
    assert main(["report", "a", "b"]) == 0
    assert "2 runs" in Path("report.html").read_text(encoding="utf-8")
    assert main(["report", "a", "a", "-o", "new/folder/a.html"]) == 0
    assert "run a" in Path("new/folder/a.html").read_text(encoding="utf-8"), "the same twice is one"


def test_a_demos_page(tmp_path: Path) -> None:
    demo = made_demo(tmp_path, seeds=(0,), steps=2)
    assert main(["report", str(demo), "--output", str(tmp_path / "page.html")]) == 0
    assert "trade-offs" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_nothing_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "expected run.json, result.json or front.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "no such directory" in capsys.readouterr().err
    run = made_run(tmp_path / "first", ["x", "y"], (0.5, 0.5), "raco", 0, 3)
    assert main(["report", str(run), "-o", str(tmp_path)]) == 2
    assert "a directory, not a file" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "RUN_DIR" in capsys.readouterr().err


def test_help_says_what_the_page_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    out = capsys.readouterr().out
    assert "paretune report DEMO_DIR" in out and "needs no network" in out
