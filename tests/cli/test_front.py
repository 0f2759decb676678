"""`paretune front` from the command line: real runs in real processes, killed and resumed; picks; what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from paretune.cli.main import STOPPED, main
from paretune.pipelines.front import engine
from paretune.training.rundir import run_record
from paretune.training.trainer import RACOTrainer
from tests.cli.made import write_jsonl
from tests.pipelines.front.made import Inline

QUICK = [
    *["--max_steps", "1", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"],
    *["--logging_steps", "1", "--use_cpu", "true", "--workers", "1", "--learning_rate", "1e-2", "--warmup_steps", "0"],
]


def words(model: Path, rows: str, out: Path, *more: str) -> list[str]:
    asked = ["--model", str(model), "--data", rows, "--objectives", "helpful,short", "--output_dir", str(out)]
    return ["front", *asked, *QUICK, "--methods", "linear", "--weightings", "1", "--seeds", "[0]", *more]


def finished_cells(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}


def killed_after_first_cell(command: list[str], out: Path) -> list[int]:
    """Starts a command, kills it (not its workers) once a cell is finished and the next began; its workers' ids."""
    process = multiprocessing.get_context("fork").Process(target=main, args=(command,))
    process.start()
    assert process.pid is not None
    until = time.monotonic() + 300
    while time.monotonic() < until and process.is_alive():
        begun = [path for path in out.glob("cells/*/attempts.jsonl") if path.read_text().count("start") == 1]
        if finished_cells(out) and len(begun) > len(finished_cells(out)):
            break
        time.sleep(0.05)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return workers


def test_sigterm_is_handed_on_to_the_workers(model: Path, rows: str, tmp_path: Path) -> None:
    out = tmp_path / "front"
    command = words(model, rows, out, "--eval_fraction", "0.4")
    command[command.index("--max_steps") + 1] = "2000"
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(main(command)))
    process.start()
    assert process.pid is not None
    until, trained = time.monotonic() + 300, []
    while not trained and process.is_alive() and time.monotonic() < until:
        trained = [path.parent for path in out.glob("cells/*/history.jsonl") if path.stat().st_size]
        time.sleep(0.05)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.terminate()
    process.join(120)
    assert process.exitcode == STOPPED and workers
    all_gone(workers)
    (cell,) = trained
    assert run_record(cell)["status"] == "interrupted"
    (checkpoint,) = cell.glob("checkpoint-*")
    assert 0 < int(checkpoint.name.partition("-")[2]) < 2000
    assert not (cell / "cell.json").exists() and len(finished_cells(out)) == 1, "the base was scored before"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def all_gone(workers: list[int]) -> None:
    until = time.monotonic() + 60
    while not all(map(gone, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(map(gone, workers)), "workers end with their command"


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in this process: another one would import everything anew."""
    monkeypatch.setattr(engine, "Processes", lambda workers: Inline())


def test_a_killed_front_goes_on(
    model: Path, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "front"
    command = words(model, rows, out, "--eval_fraction", "0.4")
    workers = killed_after_first_cell(command, out)
    before = finished_cells(out)
    assert 1 <= len(before) < 4 and workers
    all_gone(workers)
    run_here(monkeypatch)

    with monkeypatch.context() as patch:  # and once stopped in good order, while a cell trains
        train = RACOTrainer.training_step
        stop = lambda *given: (os.kill(os.getpid(), signal.SIGTERM), train(*given))[1]  # noqa: E731
        patch.setattr(RACOTrainer, "training_step", stop)
        assert main(command) == 75 and "The same command goes on" in capsys.readouterr().err
    (checkpoint,) = out.glob("cells/*/checkpoint-1")
    assert main(command) == 0
    assert "goes on from checkpoint-1" in json.loads((checkpoint.parent / "run.json").read_text())["notices"]
    state = json.loads((checkpoint.parent / "trainer_state.json").read_text())
    assert state["global_step"] == 1 == state["max_steps"], "the step that was made is the last one"
    after = finished_cells(out)
    assert len(after) == 4 and {name: after[name] for name in before} == before, "nothing is repeated"
    said = capsys.readouterr()
    assert "front: 4/4 " in said.err and "| linear " in said.out and "not a comparison of methods" in said.out
    front = json.loads((out / "front.json").read_text())
    crashes = [crash for cell in front["cells"] for crash in cell["crashes"]]
    assert crashes and set(crashes) == {"the command ended while the cell ran"}
    assert {cell["name"] for cell in front["cells"] if cell["starts"] > 1}
    linear = next(cell for cell in front["cells"] if cell["label"] == "linear")
    assert json.loads((out / linear["run"] / "run.json").read_text())["status"] == "finished"
    scores = {cell["label"]: list(cell["scores"]["0"]["scores"].values()) for cell in front["cells"]}
    assert scores["base"] == [0.5, 0.5], "compared with itself"
    assert scores["linear"] != [0.5, 0.5] and all(0 <= score <= 1 for score in scores["linear"])
    for name in ("front.md", "front.png", "front.svg", "indicators.png", "indicators.svg"):
        assert (out / name).stat().st_size > 0

    assert main(["front", str(out)]) == 0
    assert "| linear " in capsys.readouterr().out
    assert main(["front", str(out), "--pick", "max helpful where short >= -1"]) == 0
    assert f"directory  {out}/cells/" in capsys.readouterr().out
    assert main(["front", str(out), "--pick", "max helpful where short > 1"]) == 2
    assert "no finished cell satisfies" in capsys.readouterr().err
    assert main(["front", str(out), "--pick", "max helpfull"]) == 2
    assert "Did you mean 'helpful'" in capsys.readouterr().err
    assert main(["report", str(out)]) == 0

    assert main([*command, "--max_steps", "2", "--dry_run"]) == 2, "a flag given twice"
    assert main([*command, "--beta", "0.3", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "4 cells, 1 of them finished" in shown and "3 finished cells of other settings not used: config.beta" in shown
    )


def text_length(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """A reward with TRL's signature."""
    return [len(completion) / 10 for completion in completions]


def test_samples_are_scored_by_functions_and_rules(
    model: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{i} the cat?"} for i in range(6)])
    scores = f"{{helpful: '{__name__}:text_length', short: shorter}}"
    asked = ["--prompts", prompts, "--scores", scores, "--eval_samples", "2", "--max_new_tokens", "4"]
    out = tmp_path / "front"
    assert main(words(model, rows, out, *asked, "--keep_models", "false")) == 0
    front = json.loads((out / "front.json").read_text())
    for cell in front["cells"]:
        for key in ("1", "0.6"):
            found = cell["scores"][key]["scores"]
            assert found["helpful"] == pytest.approx(-found["short"] / 10), "one length, told twice"
    assert front["prompts"] == 6 and front["cells"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(cell["kl"] is not None for cell in front["cells"])
    assert not list(out.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "linaer", "--eval_fraction", "0.3"], "unknown method 'linaer'.*Did you mean 'linear'"),
        (["--methods", "[{name: raco, lable: x}]", "--eval_fraction", "0.3"], "Did you mean 'label'"),
        (["--methods", "[{name: raco, settings: {cc: 1}}]", "--eval_fraction", "0.3"], "unknown setting 'cc'"),
        (["--methods", "[{name: raco, settings: {c: 7}}]", "--eval_fraction", "0.3"], "bad c"),
        (["--methods", "[{name: raco, options: {d: 7}}]", "--eval_fraction", "0.3"], "unknown option 'd'"),
        (["--methods", "raco,raco", "--eval_fraction", "0.3"], "two methods are called 'raco'"),
        (["--methods", "[{name: raco, label: single-x}]", "--eval_fraction", "0.3"], "bad label"),
        (["--combiner", "raco"], "combiner is not a front's to set"),
        (["--seeds", "[0, 0]", "--eval_fraction", "0.3"], "bad seeds"),
        (["--weightings", "[[1, 0]]", "--eval_fraction", "0.3"], "two weights above 0"),
        (["--weightings", "[{helpful: 1}]", "--eval_fraction", "0.3"], "a weight for each of helpful, short"),
        (["--weightings", "0", "--eval_fraction", "0.3"], "no front"),
        ([], "nothing to score the methods on"),
        (["--scores", "{helpful: shorter, short: shorter}"], "prompts and scores go together"),
        (["--prompts", "PROMPTS", "--scores", "{helpful: shorter}"], "one source for each of helpful, short"),
        (["--prompts", "PROMPTS", "--scores", "{helpful: shorter, short: shortr}"], "Did you mean 'shorter'"),
        (["--prompts", "PROMPTS", "--scores", "{helpful: shorter, short: 'nowhere:f'}"], "no such module"),
        (["--prompts", "nowhere.jsonl", "--scores", "{helpful: shorter, short: shorter}"], "no such file"),
        (["--eval_fraction", "0.3", "--measure", "loss"], "bad measure"),
        (["--eval_fraction", "0.3", "--reference_point", "[0, 1, 2]"], "bad reference point"),
        (["--eval_fraction", "0.3", "--temperatures", "[-1]"], "bad temperatures"),
        (["--eval_fraction", "0.3", "--workers", "0"], "bad workers"),
        (["--eval_fraction", "0.3", "--pick", "max helpfull"], "Did you mean 'helpful'"),
        (["--world", "safety"], "a world brings its own model"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    more: list[str], said: str, model: Path, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    command, given = words(model, rows, tmp_path / "out"), {more[i] for i in range(0, len(more), 2)}
    for flag in given & set(command):
        place = command.index(flag)
        del command[place : place + 2]
    assert main([*command, *(prompts if word == "PROMPTS" else word for word in more)]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--world", "safty"], "unknown name"),
        (["--world", "{name: safety, promts: 3}"], "Did you mean 'prompts'"),
        (["--world", "{name: safety, labelling: odd}"], "unknown labelling"),
        (["--world", "{name: safety, prompts: 0}"], "bad world prompts"),
        (["--world", "safety", "--objectives", "helpful,short"], "not the world's"),
        (["--data", "x.jsonl"], "objectives is missing"),
        (["--objectives", "helpful"], "one objective has no front"),
        (["--objectives", "helpful,short"], "model is missing"),
    ],
)
def test_what_is_missing_is_said(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", "--output_dir", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(tmp_path)]) == 2
    assert "no finished front is there" in capsys.readouterr().err
    assert main(["front", str(tmp_path), "--seeds", "3"]) == 2
    assert "give its configuration file" in capsys.readouterr().err


def test_a_world_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--world", "summaries", "--methods", "linear,mgda", "--weightings", "5", "--seeds", "2"]
    assert main(["front", *asked, "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    # per seed: a base, three objectives alone, six weightings of linear, one of mgda
    assert "22 cells, 0 of them finished" in shown and "linear: 12 cells" in shown and "mgda: 2 cells" in shown
