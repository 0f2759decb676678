"""The command line as a whole: help, version, unknown commands, how fast it answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from paretune import __version__
from paretune.cli.main import COMMANDS, main
from paretune.training.config import RACOConfig


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS) and "paretune train --model" in said
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"paretune {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"paretune {command}" in said and "  -" in said
    assert max(map(len, said.splitlines())) <= 125


def test_the_help_of_train_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    said = capsys.readouterr().out
    for name in ("objectives", "lora", "resume", *RACOConfig.__dataclass_fields__):
        assert name in said
    assert "--c  " in said and "[0.4]" in said and "Clip the dual coefficients" in said


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_data_is_one_of_the_commands(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", rows]) == 0
    assert "20 comparisons" in capsys.readouterr().out


def test_bad_arguments_of_data_are_errors_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--nothing"]) == 2
    assert capsys.readouterr().err.startswith("paretune: ")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from paretune.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_reach_the_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paretune", "label", "--soruces", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "paretune: unknown key --soruces. Did you mean 'sources'?"
