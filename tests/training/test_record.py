"""What a run says: the commit of its code, and the figures on its bar and to its trackers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paretune.objectives import Objective
from paretune.training import record
from paretune.training.record import ConflictBar
from tests.runs_made import made_text_rows, small_trainer


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and in it a package that is not of it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "theirs"
    package = folder / "venv" / "paretune" / "training"
    package.mkdir(parents=True)
    (package / "record.py").write_text("x = 1\n")
    (folder / "notes.txt").write_text("theirs\n")
    (folder / ".gitignore").write_text("venv/\n")
    git(folder, "init", "-q")
    git(folder, "add", "notes.txt", ".gitignore")
    git(folder, "commit", "-q", "-m", "one")
    monkeypatch.setattr(record, "__file__", str(package / "record.py"))
    return folder


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("ignored", [True, False])
def test_a_repository_around_an_installed_package_is_not_its_own(repository: Path, ignored: bool) -> None:
    if not ignored:
        (repository / ".gitignore").unlink()
    assert record.commit() is None


def test_the_commit_is_that_of_the_repository_that_holds_the_code(repository: Path) -> None:
    git(repository, "add", "-f", "venv")
    git(repository, "commit", "-q", "-m", "two")
    assert record.commit() == git(repository, "rev-parse", "HEAD")
    (repository / "notes.txt").write_text("changed\n")
    assert record.commit() == git(repository, "rev-parse", "HEAD") + "+"


def test_without_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.commit() is None


class Tracker(TrainerCallback):
    """Keeps what it is told, as the integrations of trackers do."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        self.lines.append(dict(logs))


def test_a_tracker_receives_every_figure_by_its_name(tmp_path: Path) -> None:
    tracker = Tracker()
    evaluation = {"eval_dataset": made_text_rows(8, seed=3), "eval_strategy": "steps", "eval_steps": 2}
    small_trainer(tmp_path, max_steps=2, callbacks=[tracker], **evaluation).train()
    steps = [line for line in tracker.lines if "loss" in line]
    assert len(steps) == 2
    for line in steps:
        assert -1 <= line["grad/cosine/helpful~concise"] <= 1
        for name in ("helpful", "concise"):
            figures = ("loss", "grad/norm", "combine/p", "rewards/margins", "rewards/accuracies")
            assert all(isinstance(line[f"{figure}/{name}"], float) for figure in figures)
    (held_out,) = [line for line in tracker.lines if "eval_loss" in line]
    assert {f"eval_rewards/accuracies/{name}" for name in ("helpful", "concise")} < set(held_out)


def test_the_bar_shows_the_loss_and_the_strongest_conflict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker, names = Tracker(), ("helpful", "concise", "feline")
    trainer = small_trainer(
        tmp_path, rows=made_text_rows(40, names), objectives=[Objective(name) for name in names],
        max_steps=2, disable_tqdm=False, callbacks=[tracker],
    )  # fmt: skip
    kinds = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert kinds.count("ConflictBar") == 1 and "ProgressCallback" not in kinds, "one bar, and no lines of its own"
    trainer.train()
    shown = capsys.readouterr()
    for line in [line for line in tracker.lines if "loss" in line]:
        cosines = [value for key, value in line.items() if key.startswith("grad/cosine/")]
        assert len(cosines) == 3
        assert f"loss={float(line['loss']):.4g}, conflict=cos {min(cosines):+.2f}" in shown.err
    assert "grad/" not in shown.out, "figures go to the bar and the history, not to the screen one by one"


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"loss": 0.51234, "grad/cosine/a~b": 0.2, "grad/cosine/a~c": -0.456}, "loss=0.5123, conflict=cos -0.46"),
        ({"loss": 0.5}, "loss=0.5"),  # one objective
        ({"eval_loss": 0.25, "eval_rewards/margins/a": 1.0}, "eval=0.25"),
        ({"train_runtime": 3.0}, ""),
    ],
)
def test_what_the_bar_says_of_a_line(logs: dict[str, float], words: str) -> None:
    bar, state = ConflictBar(), TrainerState(is_world_process_zero=True)
    bar.training_bar = tqdm(total=1, disable=False)
    bar.on_log(None, state, None, logs)  # type: ignore[arg-type]
    assert (bar.training_bar.postfix or "") == words
    bar.training_bar.close()


def test_only_the_first_process_has_a_bar() -> None:
    bar, state = ConflictBar(), TrainerState(is_world_process_zero=False)
    bar.on_log(None, state, None, {"loss": 0.5})  # type: ignore[arg-type]
    assert bar.training_bar is None
