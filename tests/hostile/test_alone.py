"""Nothing leaves: no command connects to anywhere, keys are in no record, and names lead out of no folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.evaluation.report.load import load
from paretune.objectives import Objective
from paretune.training.config import RACOConfig
from tests.cli.made import OBJECTIVES, QUICK, paretune, records, save_model, write_jsonl
from tests.evaluation.report.demo_made import made_demo

WATCHED = """
import json, sys
tried = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        tried.append([event, repr(arguments[1:] if event == "socket.connect" else arguments)])
        raise OSError("no network in this test")
sys.addaudithook(watch)
from paretune.cli.main import main
for words in json.loads(sys.argv[1]):
    status = main(words)
    assert status == 0, (words, status)
print(json.dumps(tried))
"""


def test_no_command_connects_to_anywhere(tmp_path: Path) -> None:
    model, run = str(save_model(tmp_path / "model")), str(tmp_path / "run")
    data = write_jsonl(tmp_path / "rows.jsonl", records("native"))
    quick = [*QUICK, "--output_dir", run, "--lora", "{r: 2}"]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}])
    drawn, labelled = str(tmp_path / "drawn.jsonl"), str(tmp_path / "labelled.jsonl")
    commands = [
        ["data", data, "--tokenizer", model],
        ["train", "--model", model, "--data", data, "--objectives", OBJECTIVES, "--eval_fraction", "0.3", *quick],
        ["evaluate", "--model", run],
        ["sample", "--model", run, "--prompts", prompts, "--out", drawn, "--n", "2", "--max_tokens", "4"],
        ["label", data, "--sources", "{brief: {rule: shorter}}", "--out", labelled],
        ["report", run],
    ]
    # as a user's shell: nothing says "offline", and there is a token to send
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k and "TELEMETRY" not in k}
    secret = "hf_" + "secretsecretsecret" * 2
    environment |= {
        "HF_TOKEN": secret,
        "OPENAI_API_KEY": secret,
        "HOME": str(tmp_path),
        "PARETUNE_CACHE": str(tmp_path),
    }
    call = [sys.executable, "-c", WATCHED, json.dumps(commands)]
    done = subprocess.run(
        call, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and not [path for path in written if secret.encode() in path.read_bytes()]


def test_nothing_is_reported_unless_asked(tmp_path: Path) -> None:
    assert not RACOConfig(output_dir=str(tmp_path)).report_to
    told = "import paretune, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k}
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "True"


def test_a_key_in_the_settings_is_refused_unseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("hub_token: hf_secretsecret\n")
    for command in ("train", "sft", "reward", "front"):
        assert paretune(command, tmp_path / "c.yaml") == 2
    assert paretune("train", "--push_to_hub_token", "hf_secretsecret") == 2
    said = capsys.readouterr().err
    assert said.count("a secret key in the settings") == 5 and "hf_secret" not in said


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "~x", "x\0", "x\n", "", "a" * 300, "\ud800", 7])
def test_objectives_have_names_that_files_can_have(name: object) -> None:
    with pytest.raises(InputError, match="bad objective name"):
        Objective(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ["../../x", "/x", "a/b", "a\0", "..", "a" * 200, "single-x", "base"])
def test_labels_of_a_front_lead_nowhere(label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", records("native"))
    content = {
        "model": "m",
        "data": data,
        "objectives": {"helpful": 1, "short": 1},
        "output_dir": str(tmp_path / "f"),
        "eval_fraction": 0.3,
    }
    content["methods"] = [{"name": "raco", "label": label}]
    (tmp_path / "front.yaml").write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    assert paretune("front", tmp_path / "front.yaml") == 2
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert "bad label" in said or "half a character" in said, said


def test_a_result_names_runs_of_its_own_folder_only(tmp_path: Path) -> None:
    demo = made_demo(tmp_path / "demo", seeds=(0,), steps=2)
    content = json.loads((demo / "result.json").read_text())
    (demo / "runs").rename(tmp_path / "runs")
    name = content["worlds"][0]["points"][0]["run"]
    for outside in (f"../{name}", str(tmp_path / name), "runs/../../runs"):
        content["worlds"][0]["points"][0]["run"] = outside
        (demo / "result.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="a run outside of its folder"):
            load(demo)
