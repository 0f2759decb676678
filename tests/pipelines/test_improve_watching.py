"""What `paretune improve` sees and says: sources that fail, judges that watch, rounds without labels, settings."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.pipelines.improve import guard, rounds
from paretune.pipelines.improve.measure import Scored, score
from paretune.pipelines.improve.plan import begin
from paretune.pipelines.improve.signs import _check_different
from paretune.preferences.answers import AnswerStore
from paretune.preferences.judges.schedules import SCHEDULES, make_schedule
from paretune.preferences.labels import LabelOptions
from paretune.preferences.source import Source
from paretune.preferences.specs import Labeller
from tests.cli.made import paretune, save_model, write_jsonl
from tests.pipelines.improve_made import prompts, read, words
from tests.preferences.judges.made import judge_model
from tests.servers_made import serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "qwen3")


# ---- sources that fail ----


def test_a_round_in_which_the_held_out_source_knows_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def failing(*args: Any, **options: Any) -> dict[str, Scored]:
        found = score(*args, **options)
        calls.append(len(calls))
        if len(calls) == 2:  # round 1
            found["fluent"].values[:] = math.nan
        return found

    monkeypatch.setattr(rounds, "score", failing)
    changes: dict[str, Any] = {"sources": "{short: {rule: shorter}, valid: {rule: json, keys: [a]}}", "patience": 5}
    changes["objectives"] = "{short: 0.5, valid: 0.5}"
    assert paretune(*words(tmp_path, model, "out", **changes)) == 0
    told = capsys.readouterr()
    signs = [one["signs"] for one in read(tmp_path / "out" / "improve.json")["rounds"]]
    assert signs[1]["sources"]["fluent"]["failed"] == 9 and signs[1]["held_out"]["gain"] is None
    assert signs[1]["gain_with_kl"]["gap"] is None and signs[2]["gain_with_kl"]["gap"] is not None
    for number, blind in enumerate((False, True, True)):
        shown = told.out.split("\nRound ")[number + 1]
        assert ("failed" in shown) is (number == 1) and ("stop rule is blind" in shown) is blind, shown
        assert ("held-out sources have scores" in shown) is blind and "trained sources have scores" not in shown
    assert "round-1: All labels of objective 'valid' are ties." in told.err
    # what changes nothing that is computed may change, and the finished rounds say the same again
    assert paretune(*words(tmp_path, model, "out", **changes, max_hours=9, logging_steps=2, save_steps=1)) == 0
    assert "stop rule is blind" in capsys.readouterr().out
    assert paretune(*words(tmp_path, model, "out", **changes, learning_rate=0.25)) == 2
    assert "another learning_rate; expected learning_rate 0.005; found learning_rate 0.25" in capsys.readouterr().err


def test_a_judge_that_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has answered before anything is trained, about draws of the start in both orders; no call is made again."""
    path = tmp_path / "chat"
    judge, tokenizer = judge_model(path)
    changes: dict[str, Any] = {"sources": "{short: {rule: shorter}}", "objectives": "{short: 1}", "rounds": 1}
    with serving(judge, tokenizer) as judges:
        asked = {"server": judges.url, "prefill": True, "concurrency": 1, "retries": 0}
        asked["request"] = {"max_tokens": 1, "top_logprobs": 500}

        def command(out: str, judge: Any = None, **more: Any) -> list[str]:
            held_out = {"prompts": 0.4, "sources": {"liked": {"judge": "tiny", **asked, **(judge or {})}}}
            given = {**changes, "held_out": json.dumps(held_out), "cache": tmp_path / f"{out}.sqlite", **more}
            return words(tmp_path, path, out, **given)

        judges.faults = ["empty"]
        assert paretune(*command("out")) == 0
        told, sources = capsys.readouterr(), []
        for number in (0, 1):
            sources.append(read(tmp_path / "out" / f"round-{number}" / "round.json")["signs"]["sources"]["liked"])
        assert "watched prompts, liked: 8 calls to make" in told.err
        before, after = sources
        assert before["mean"] == 0.5 and before["failed"] == 1 and before["orders"]["pairs"] == 3
        assert before["orders"]["first_slot_excess"] is not None and before["length_correlation"] is not None
        assert after["failed"] == 0 and after["change"]["prompts"] == 4
        calls = [json.dumps(request["messages"]) for request in judges.requests]
        assert len(calls) == len(set(calls)) == 16
        (tmp_path / "out" / "round-0" / "round.json").unlink()
        assert paretune(*command("out")) == 0 and len(judges.requests) == 16

        rows = write_jsonl(tmp_path / "bare.jsonl", [{"prompt": row["prompt"]} for row in prompts(10)])
        assert paretune(*command("bare", {"protocol": "guided"}, prompts=rows)) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "held_out 'liked': no score for any watched prompt; found 4 failures" in message
        anchored = json.dumps({"short": {"judge": "tiny", **asked, "schedule": "anchor", "version": "2"}})
        assert paretune(*command("anchor", prompts=rows, sources=anchored)) == 2
        assert "source 'short': no prompt has the reference" in capsys.readouterr().err.splitlines()[-1]
    assert paretune(*command("dead")) == 2, "the server is gone"
    assert not any((tmp_path / out / "round-1").exists() for out in ("bare", "anchor", "dead"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_favour_for_the_first_slot_is_seen_whatever_the_schedule(schedule: str, tmp_path: Path) -> None:
    def first_wins(prompts: Any, pairs: Any, references: Any = None) -> list[float]:
        return [0.7 for _ in pairs]

    source = Source("x", "x", compare=first_wins, schedule=make_schedule(schedule, None, "x"))
    draws, start = (
        [{"prompt": f"p{i}", "responses": [text, f"{text} b"], "columns": {}} for i in range(3)] for text in "ac"
    )
    for opponent in (None, start):
        one = score(
            [Labeller("x", LabelOptions(), source=source)], draws, opponent, AnswerStore(tmp_path / "a"), seed=0,
            retry_failed=False,
        )["x"]  # fmt: skip
        assert one.asked == 3 and one.said == pytest.approx(0.5) and one.values[:, 0] == pytest.approx(0.5)
        assert np.subtract(one.first, one.second) == pytest.approx([0.4] * 3)
        assert one.longer == ([-1] * 3 if opponent is None else [0] * 3)


def test_another_spelling_of_a_trained_source_is_refused() -> None:
    values = np.arange(24.0).reshape(6, 4) // 4
    trained = {"a"}
    with pytest.raises(InputError, match="held_out 'b'.*as one that is trained on; found the scores of 'a'"):
        _check_different({"a": Scored(values, False), "b": Scored(values.copy(), False)}, trained)
    few, constant, other = values[:4], np.zeros((6, 4)), values + np.eye(6, 4)
    for mine, theirs in ((few, few), (constant, constant), (values > 3, values > 3), (values, other)):
        _check_different({"a": Scored(mine, False), "b": Scored(theirs, False)}, trained)


# ---- rounds without labels ----


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pairs": "pareto", "sources": "{short: {rule: shorter}, right: {rule: longer}}"}, "(pairs: pareto) has a"),
        ({"max_words": 1, "max_tokens": 24}, "of at most 1 words (max_words)"),
        ({"top_p": 1e-9}, "no prompt two different responses: nothing to compare"),
    ],
)  # fmt: skip
def test_a_round_without_labels_ends_in_good_order(
    model: Path, tmp_path: Path, changes: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tmp_path, model, "out", **changes)
    for _ in range(2):
        assert paretune(*command) == 0
        made, told = read(tmp_path / "out" / "improve.json"), capsys.readouterr().out
        assert made["status"] == "stopped" and why in made["reason"] and why in told
        assert made["best"]["round"] == 0 and (tmp_path / "out" / "best").resolve() == model.resolve()


# answers about what is watched, then fails once
FAILING = """
import pathlib
COUNT = pathlib.Path(__file__).with_name("count.txt")
def score(prompts, completions, **columns):
    with COUNT.open("a") as stream:
        stream.write(".")
    return [None if COUNT.stat().st_size == 2 else float(len(c)) for c in completions]
"""


def test_a_round_whose_sources_failed_can_be_tried_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing_once.py").write_text(FAILING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = words(
        tmp_path, model, "out", rounds=1, objectives="{a: 1}", cache=tmp_path / "a.sqlite",
        sources="{a: {function: 'failing_once:score', batch_size: 1000}}",
    )  # fmt: skip
    assert paretune(*command) == 2 and "no row could be labelled" in capsys.readouterr().err
    assert paretune(*command, "--retry_failed", "true") == 0
    assert len(read(tmp_path / "out" / "improve.json")["rounds"]) == 2


# ---- settings, keys ----


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    def told(**train: Any) -> dict[str, Any]:
        rows = [f"row {i}" for i in range(99)]
        settings = {"rounds": 1, "sources": {"a": {"rule": "shorter", "unit": "words"}}, "rows": rows, "n": 4}
        return {**settings, "train": {"beta": 0.1, "max_steps": 3, **train}}

    def begun(settings: dict[str, Any]) -> None:
        begin(SimpleNamespace(folder=tmp_path, settings=settings))  # type: ignore[arg-type]

    begun(told(logging_steps=1, output_dir="a"))
    begun({**told(max_hours=2, logging_steps=5, save_steps=7, disable_tqdm=True), "rounds": 3})
    other = {**told(max_steps=4, use_cpu=True), "sources": {"a": {"rule": "shorter", "unit": "characters"}}}
    with pytest.raises(InputError) as caught:
        begun(other)
    assert "another sources.a.unit, max_steps, use_cpu;" in str(caught.value)
    assert 'expected sources.a.unit "words"; max_steps 3; use_cpu null' in str(caught.value)
    with pytest.raises(InputError, match=r"rows ….*row 97\", \"row 98\"\]; found rows ….*another"):
        begun({**told(), "rows": [*told()["rows"][:-1], "another"]})


def test_what_a_serve_command_says_is_kept_without_keys(tmp_path: Path) -> None:
    """Also what a server that it has left behind says later."""
    log = tmp_path / "serve.log"
    talk = "printf 'one sk-very'; sleep 0.1; echo secret-999; (sleep 4; echo late $MY_KEY) & exit 3"
    with log.open("ab") as said:
        command = [sys.executable, "-I", guard.__file__, "OTHER,MY_KEY", "bash", "-c", talk]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=said, stderr=said, env={**os.environ, "MY_KEY": "sk-verysecret-999"}
        )
    status = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert status == 3 and log.read_text() == "one ***\n", "the one that is left behind is not waited for"
    end = time.monotonic() + 60
    while "late" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    assert log.read_text() == "one ***\nlate ***\n"


def test_a_prompt_that_the_server_refuses_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chat"
    policy, tokenizer = judge_model(path)
    changes = {"rounds": 1, "conversational": "true", "concurrency": 1, "max_steps": 2}
    with serving(policy, tokenizer, name=str(path), faults=["400"] + ["ok"] * 5) as server:
        assert paretune(*words(tmp_path, path, "out", 8, server=server.url, **changes)) == 0
    assert "the server refused 1 of 6 prompts" in capsys.readouterr().err
    drawn = read(tmp_path / "out" / "round-1" / "parts.json")["sample"]
    assert (drawn["prompts"], drawn["refused"]) == (5, 1)
    assert len((tmp_path / "out" / "round-1" / "responses.jsonl").read_text().splitlines()) == 5
