"""Shards of questions: the answers of a local run, a lost shard asked again, what stays with the command."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.pipelines.front.engine import Ended, Job
from paretune.pipelines.labelling import label_candidates
from paretune.pipelines.labelling_shards import answer_shard, goes_elsewhere, spread
from paretune.preferences.answers import AnswerStore
from paretune.preferences.candidates import read_candidates
from paretune.preferences.specs import parse_sources
from tests.cli.made import save_model
from tests.pipelines.front.made import Inline

MODULE = """
def length(prompts, completions, reference=None, **columns):
    return [None if c.endswith("2") else len(p + c) / (1 + len(columns["topic"])) for p, c in zip(prompts, completions)]


def failing(prompts, completions, **columns):
    raise KeyError("no")
"""
LENGTH = {"function": "shard_rewards:length", "batch_size": 3}


class Lossy(Inline):
    """Loses the first jobs that it is given, so many times."""

    def __init__(self, losses: int):
        super().__init__()
        self.losses, self.jobs_seen = losses, []  # type: ignore[var-annotated]

    def submit(self, job: Job) -> None:
        self.jobs_seen.append(job)
        super().submit(job)

    def wait(self, seconds: float) -> list[Ended]:
        if self.losses:
            self.losses -= 1
            return [Ended(self.jobs.popleft().name, error="its machine was lost: power", again=True)]
        return super().wait(seconds)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shard_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def labelled(spec: dict[str, Any], engine: Any, store: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    columns = {"source": "web", "usage": 1}  # as the arguments of what asks are called
    rows = [
        {"prompt": f"{i % 5}?", "responses": [f"{'x' * (i % 4)}{j}" for j in range(3)], "topic": i % 2, **columns}
        for i in range(10)
    ]
    candidates, _ = read_candidates(rows)
    labellers = parse_sources(spec)
    if engine is not None:
        labellers = [spread(labeller, engine, 2) for labeller in labellers]
    made, report = label_candidates(candidates, labellers, AnswerStore(store))
    timeless = {
        name: {key: value for key, value in figures.items() if key not in ("seconds", "per_second")}
        for name, figures in report.sources.items()
    }
    return made, timeless


def test_shards_give_the_rows_and_counts_of_a_local_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = {"judge": str(save_model(tmp_path / "judge", max_position_embeddings=2048)), "rubric": "It is short."}
    spec = {"long": {"sum": [LENGTH, {"rule": "shorter"}]}, "good": {**judge, "batch_size": 1}}
    near = labelled(spec, None, "near.sqlite")
    engine = Lossy(2)
    caplog.set_level(logging.INFO, "paretune")
    assert labelled(spec, engine, "far.sqlite") == near
    shards = [job for job in engine.jobs_seen if job.name.startswith("long.1")]
    # 30 questions in batches of 3, four shards for each of two jobs at once; two of them lost and asked again
    assert [len(job.arguments[3]) for job in shards] == [6, 6, 6, 6, 6, 6, 6]
    assert caplog.text.count("a shard is asked again") == 2 and "long.1: 5 of 5 shards" in caplog.text
    assert any(job.name.startswith("good") for job in engine.jobs_seen)
    asked = len(engine.jobs_seen)
    again, figures = labelled(spec, engine, "far.sqlite")
    assert again == near[0] and len(engine.jobs_seen) == asked, "what was answered is kept"
    assert figures["long.1"]["asked"] == 0 and figures["long.1"]["failed"] == near[1]["long.1"]["failed"] > 0


def test_what_is_lost_too_often_or_fails_is_an_error() -> None:
    with pytest.raises(InputError, match="source 'long': its machine was lost: power"):
        labelled({"long": {**LENGTH, "batch_size": 100}}, Lossy(3), "a.sqlite")
    with pytest.raises(InputError, match="source 'bad': KeyError: 'no'"):
        labelled({"bad": {"function": "shard_rewards:failing"}}, Inline(), "b.sqlite")


def test_ctrl_c_keeps_what_was_answered() -> None:
    class Interrupted(Lossy):
        def wait(self, seconds: float) -> list[Ended]:
            if len(self.jobs) == 3:  # of five
                os.kill(os.getpid(), signal.SIGINT)  # in the midst of the engine's work, which is not cut short
            return super().wait(seconds)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        labelled({"long": LENGTH}, Interrupted(0), "far.sqlite")
    assert signal.getsignal(signal.SIGINT) is before
    engine = Lossy(0)
    again, _ = labelled({"long": LENGTH}, engine, "far.sqlite")
    assert sum(len(job.arguments[3]) for job in engine.jobs_seen) == 12, "three shards of six were answered before"
    assert again == labelled({"long": LENGTH}, None, "near.sqlite")[0]


def test_another_source_of_the_same_name_is_refused() -> None:
    with pytest.raises(InputError, match="another source than the command's; expected a model"):
        answer_shard("long", '{"function": "shard_rewards:length"}', "a model", ["p"], ["a"], None, {})


def test_servers_and_rules_stay_with_the_command() -> None:
    served = {
        "judge": "m",
        "server": "http://127.0.0.1:9/v1",
        "limits": {"usd": 1},
        "prices": {"input": 1, "output": 1},
    }
    kept, gate = parse_sources({"a": {"rule": "shorter"}, "b": {"gate": [{**served, "rubric": "x"}, LENGTH]}})
    assert not goes_elsewhere(kept) and goes_elsewhere(gate)
    asked = spread(gate, Inline(), 1)
    assert asked.parts[0] is gate.parts[0] and asked.parts[1] is not gate.parts[1]
    (mine,) = parse_sources({"c": {"function": lambda prompts, completions: [0.0] * len(prompts), "version": "1"}})
    assert not goes_elsewhere(mine), "another process could not make it"
