"""`paretune improve`, as a user meets it: from prompts alone, killed and begun again, stopped where it games."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.pipelines.improve.measure import score
from paretune.pipelines.improve.plan import split_prompts
from paretune.pipelines.improve.run import best_round, stop_reason
from paretune.pipelines.sampling import read_prompts
from paretune.preferences.answers import AnswerStore
from paretune.preferences.labels import LabelOptions
from paretune.preferences.source import Source
from paretune.preferences.specs import Labeller
from tests.cli.made import paretune, save_model, saved_weights, write_jsonl
from tests.pipelines.improve_made import prompts, read, words
from tests.preferences.judges.made import judge_model
from tests.servers_made import serving
from tests.tokenizers_made import chatml

ROOT = Path(__file__).resolve().parents[2]
# notes every response that it is asked about
SOURCE = """
import pathlib
LOG = pathlib.Path(__file__).with_name("calls.txt")
def score(prompts, completions, **columns):
    with LOG.open("a") as stream:
        stream.write("".join(f"{p!r} {c!r}\\n" for p, c in zip(prompts, completions)))
    return [float(c.count("e") + c.count("t")) for c in completions]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "qwen3")


def test_two_rounds_from_prompts_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(tmp_path, model, "out", sft_on_references="true", sft="{max_steps: 2, learning_rate: 1e-2}")
    assert paretune(*command) == 0
    out, told = tmp_path / "out", capsys.readouterr().out
    made = read(out / "improve.json")
    assert made["status"] == "finished" or "reward hacking" in made["reason"]
    for number in range(1, len(made["rounds"])):
        folder, one = out / f"round-{number}", made["rounds"][number]
        assert {"responses.jsonl", "train.jsonl", "monitors.json", "round.json", "run"} <= {
            p.name for p in folder.iterdir()
        }
        assert read(folder / "monitors.json") == one["signs"] == read(folder / "round.json")["signs"]
        signs = one["signs"]
        assert set(signs["sources"]) == {"short", "right", "fluent"} and set(signs["displacement"]) == {
            "short",
            "right",
        }
        assert signs["sources"]["fluent"]["role"] == "held out" and signs["sources"]["short"]["change"]["prompts"] == 3
        assert signs["sources"]["short"]["length_correlation"] < 0
    # the held-out source and the held-out prompts are in no row that was trained on
    rows = [json.loads(line) for line in (out / "round-1" / "train.jsonl").read_text().splitlines()]
    watched = {json.loads(line)["prompt"] for line in (out / "round-1" / "held_out.jsonl").read_text().splitlines()}
    assert {name for row in rows for name in row["preferences"]} == {"short", "right"}
    assert len(watched) == 3 and not watched & {row["prompt"] for row in rows}
    first, second = (read(out / f"round-{i}" / "run" / "run.json") for i in (1, 2))
    assert first["settings"]["model"] == str(out / "round-1" / "sft")
    assert second["settings"]["model"] == str(out / "round-1" / "run")
    assert made["rounds"][0]["signs"]["kl"] == 0 and made["rounds"][1]["signs"]["kl"] != 0
    assert "Round 2" in told and "held-out gain" in told and "~ length" in told and "preferred responses" in told
    # the pointer is a model, and the same command has nothing left to do
    assert (out / "best").resolve() == Path(made["best"]["model"]).resolve()
    assert paretune("sample", "--model", out / "best", "--prompts", tmp_path / "prompts.jsonl", "--max_tokens", "3",
                    "--out", tmp_path / "more.jsonl") == 0  # fmt: skip
    before = saved_weights(out / "round-2" / "run")
    assert paretune(*command) == 0
    again = read(out / "improve.json")
    assert {k: v for k, v in again.items() if k != "written"} == {k: v for k, v in made.items() if k != "written"}
    assert all(torch.equal(value, before[name]) for name, value in saved_weights(out / "round-2" / "run").items())
    assert paretune(*words(tmp_path, model, "out", temperature=0.5)) == 2
    assert "begun with another" in capsys.readouterr().err


def _run(command: list[str]) -> None:
    os._exit(paretune(*command))


def test_killed_and_begun_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noting.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    changes: dict[str, Any] = {
        "sources": "{short: {rule: shorter}, right: {function: 'noting:score'}}",
        "max_steps": 4,
        "patience": 5,
    }
    whole = words(tmp_path, model, "whole", **changes, cache=tmp_path / "whole.sqlite")
    assert paretune(*whole) == 0
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert len(calls) == len(set(calls)) > 0
    (tmp_path / "calls.txt").unlink()
    command = words(tmp_path, model, "out", **changes, cache=tmp_path / "out.sqlite")
    out, kills = tmp_path / "out", 0
    context = multiprocessing.get_context("fork")
    for sign in ("round-1/responses.jsonl", "round-1/run/checkpoint-2", "round-2/train.jsonl"):
        worker = context.Process(target=_run, args=(command,))
        worker.start()
        end = time.monotonic() + 120
        while worker.is_alive() and time.monotonic() < end and not (out / sign).exists():
            time.sleep(0.001)
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
    assert kills == 3 and paretune(*command) == 0
    again = (tmp_path / "calls.txt").read_text().splitlines()
    assert sorted(again) == sorted(calls), "each call once, and the same ones"
    for number in (1, 2):
        expected = saved_weights(tmp_path / "whole" / f"round-{number}" / "run")
        found = saved_weights(out / f"round-{number}" / "run")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        mine, other = (read(folder / f"round-{number}" / "monitors.json") for folder in (out, tmp_path / "whole"))
        assert mine == other
    assert read(out / "improve.json")["best"]["round"] == read(tmp_path / "whole" / "improve.json")["best"]["round"]


def test_a_policy_that_games_its_source_is_stopped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {
        "sources": "{long: {rule: longer}}",
        "objectives": "{long: 1}",
        "held_out": "{prompts: 0.5, sources: {brief: {rule: shorter}}}",
        **{"rounds": 4, "max_steps": 12, "learning_rate": 1e-2, "n": 4, "max_tokens": 8},
    }
    command = words(tmp_path, model, "out", 24, **changes)
    assert paretune(*command) == 0
    made, told = read(tmp_path / "out" / "improve.json"), capsys.readouterr().out
    assert made["status"] == "stopped" and "reward hacking" in made["reason"] and made["reason"] in told
    last = made["rounds"][-1]["signs"]
    assert last["hacked"] and last["gain_with_kl"]["gap"] > 0 and last["kl"] > 0
    assert len(made["rounds"]) < 5 and made["best"]["round"] == len(made["rounds"]) - 2
    if made["best"]["round"] == 0:
        assert made["best"]["model"] == str(model) and (tmp_path / "out" / "best").resolve() == model.resolve()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": "{short: {rule: shortr}, right: {rule: rouge}}"}, ["unknown rule", "shorter"]),
        ({"held_out": "{sources: {other: {rule: shorter}}}"}, ["trained on", "'short'"]),
        ({"held_out": "{sources: {short: {rule: longer}}}"}, ["of that name is trained on"]),
        ({"held_out": "{sources: {o: {sum: [{rule: longer}, {rule: rouge}]}}}"}, ["trained on", "'right'"]),
        ({"held_out": "{prompts: 0.2}"}, ["no held-out source"]),
        ({"held_out": "{prompts: 1.5, sources: {o: {rule: longer}}}"}, ["bad prompts", "held_out"]),
        ({"held_out": "{prompt: 0.2, sources: {o: {rule: longer}}}"}, ["unknown key 'prompt'", "prompts"]),
        ({"held_out": "{prompts: 0.3, sources: {o: {rule: json, keys: [a]}, p: {rule: keywords, column: facts}}}"},
         ["no score for any watched prompt", "'p'"]),
        ({"objectives": "{short: 0.5, polite: 0.5}"}, ["objective without a source", "polite"]),
        ({"objectives": "{short: 1}"}, ["source that no objective uses", "right"]),
        ({"objectives": "{short: {weight: 1, rule: shorter}, right: 1}"}, ["come from its source"]),
        ({"reference": "first"}, ["bad reference", "previous or start"]),
        ({"n": 1}, ["bad n"]),
        ({"rounds": 0}, ["bad rounds"]),
        ({"patience": 0}, ["bad patience"]),
        ({"sft": "{learning_rate: 1e-3}"}, ["not asked for", "sft_on_references"]),
        ({"sft_on_references": "true", "sft": "{learning_rte: 1e-3}"}, ["unknown key", "learning_rate"]),
        ({"method": "soup"}, ["no plain model"]),
        ({"model": "./nowhere"}, ["no such model directory"]),
        ({"pairs": "some"}, ["bad pairs"]),
        ({"max_pairs": 0}, ["bad max_pairs"]),
    ],
)  # fmt: skip
def test_bad_input(
    model: Path, tmp_path: Path, changes: dict[str, Any], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert paretune(*words(tmp_path, model, "out", **changes)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in said), message
    assert not (tmp_path / "out" / "round-1").exists(), "nothing was trained"


def test_references_are_needed_where_they_are_imitated(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tmp_path, model, "out", sft_on_references="true")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in prompts(6)])
    assert paretune(*command) == 2 and "no prompt has a reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_are_held_out_by_group() -> None:
    rows, _ = read_prompts([{"prompt": f"p{i}", "group": f"g{i // 2}"} for i in range(20)])
    trained, watched = split_prompts(rows, 0.3)
    groups = [{row.columns["group"] for row in part} for part in (trained, watched)]
    assert len(watched) == 6 and not groups[0] & groups[1]
    more, _ = read_prompts([{"prompt": "q", "group": "new"}, *({"prompt": r.prompt, **r.columns} for r in rows)])
    _, other = split_prompts(more, 0.3)
    assert len({row.prompt for row in other} & {row.prompt for row in watched}) >= 4


def _signs(held_out: float, hacked: bool = False) -> dict[str, Any]:
    change = {"mean": 1.0, "standard_error": 0.1, "prompts": 4}
    return {
        "hacked": hacked,
        "held_out": {"gain": held_out, "change": change},
        "trained": {"gain": 0, "change": change},
    }


def test_patience_and_the_best_round() -> None:
    start, good, bad = _signs(0.0), _signs(1.0), _signs(0.5, hacked=True)
    assert stop_reason([start], 1) is None and stop_reason([start, good], 1) is None
    assert "reward hacking" in str(stop_reason([start, good, bad], 1))
    assert stop_reason([start, good, bad], 2) is None and stop_reason([start, bad, good], 1) is None
    assert "last 2 rounds" in str(stop_reason([start, bad, bad], 2))
    assert best_round([{"signs": one} for one in (start, good, bad)]) == 1
    assert best_round([{"signs": one} for one in (start, _signs(0.0))]) == 0, "the earliest of equals"


def test_a_conversation_with_adapters_and_a_judge_that_compares(tmp_path: Path) -> None:
    """Messages, LoRA on LoRA, the first round's start as reference, a gate of two sources, an ensemble."""
    path = save_model(tmp_path / "chat", tokenizer=chatml())
    ensemble = "{ensemble: [{rule: shorter, unit: words}, {rule: fewer_words}], way: worst}"
    changes = {
        **{"conversational": "true", "lora": "{r: 2}", "reference": "start", "patience": 3},
        "sources": f"{{both: {{gate: [{{rule: rouge, tie: 0.5}}, {{rule: longer}}]}}, few: {ensemble}}}",
        "objectives": "{both: 1, few: 1}",
        "held_out": "{prompts: 0.3, sources: {fluent: {rule: repetition, n: 1}}}",
    }
    assert paretune(*words(tmp_path, path, "out", **changes)) == 0
    rounds = read(tmp_path / "out" / "improve.json")["rounds"]
    assert rounds[0]["signs"]["sources"]["both"]["mean"] == 0.5, "the start against itself"
    last = rounds[2]["signs"]["sources"]
    assert last["both"]["is"] == "P(beats the start)" and 0 <= last["both"]["mean"] <= 1
    assert last["few"]["disagreement"]["few"]["variance"] == 0, "two spellings of one rule agree"
    record = read(tmp_path / "out" / "round-2" / "run" / "run.json")
    assert record["settings"]["ref_model"] == str(path)


def test_sources_that_compare_are_watched_too(tmp_path: Path) -> None:
    """Against the start's draws: who wins, by how many words it is longer, and where an ensemble's members differ."""

    def longer_wins(prompts: Any, pairs: Any, references: Any = None) -> list[float]:
        return [0.9 if len(a.split()) > len(b.split()) else 0.2 for a, b in pairs]

    def first_wins(prompts: Any, pairs: Any, references: Any = None) -> list[float]:
        return [0.7 for _ in pairs]

    def plain(name: str, compare: Any) -> Labeller:
        return Labeller(name, LabelOptions(), source=Source(name, name, compare=compare))

    members = (plain("e.1", longer_wins), plain("e.2", first_wins))
    ensemble = Labeller("e", LabelOptions(), combination="ensemble", parts=members, way="mean")
    draws, start = (
        [{"prompt": f"p{i}", "responses": [text], "columns": {}} for i, text in enumerate(texts)]
        for texts in (["a b c", "a", "a"], ["a", "a b", "a"])
    )
    asked = [plain("x", longer_wins), ensemble]
    found = score(asked, draws, start, AnswerStore(tmp_path / "a"), seed=0, retry_failed=False)
    assert found["x"].values[:, 0] == pytest.approx([0.85, 0.15, 0.5]) and found["x"].longer == [2, -1, 0]
    assert found["e"].members["e"] == pytest.approx(np.array([[0.85, 0.15], [0.5, 0.5]]))
    assert found["x"].first == [0.9, 0.2] and found["x"].second == pytest.approx([0.8, 0.1])


# ---- servers ----

TELL = """
import json, sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/load", json.dumps({"model": sys.argv[2]}).encode())
"""


def _killed(command: list[str], when: Callable[[], bool]) -> None:
    """Runs a command in a process of its own, and kills it at a certain moment."""
    worker = multiprocessing.get_context("fork").Process(target=_run, args=(command,))
    worker.start()
    end = time.monotonic() + 240
    while worker.is_alive() and time.monotonic() < end and not when():
        time.sleep(0.001)
    assert worker.is_alive() and worker.pid is not None, "it was to be killed in the middle"
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_draws_and_judgements_of_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy on a server that is told each round's model, then on one that is started for it, fails now and then,
    and whose command is killed while it draws and while it labels: the same weights, no answered call made again."""
    path = tmp_path / "chat"
    judge, tokenizer = judge_model(path)
    with serving(judge, tokenizer) as judges, serving(judge, tokenizer, name="none yet") as policy:
        asked = {"prefill": True, "concurrency": 2, "request": {"max_tokens": 1, "top_logprobs": 500}}
        liked = {"judge": "tiny", "server": judges.url, **asked}
        changes: dict[str, Any] = {
            "sources": json.dumps({"short": {"rule": "shorter"}, "liked": liked}),
            "objectives": "{short: 0.5, liked: 0.5}",
            **{"patience": 5, "concurrency": 2, "retries": 9, "max_steps": 2, "conversational": "true"},
        }
        tell = shlex.join([sys.executable, "-c", TELL, policy.url, "{model}"])
        told = {**changes, "server": policy.url, "serve": tell, "cache": tmp_path / "a.sqlite"}
        assert paretune(*words(tmp_path, path, "a", 8, **told, rounds=1)) == 0
        draws, calls = [r["seed"] for r in policy.requests], [json.dumps(r["messages"]) for r in judges.requests]
        assert len(draws) == len(set(draws)) == 6 and len(calls) == len(set(calls)) > 0
        assert paretune(*words(tmp_path, path, "a", 8, **told)) == 0 and len(policy.requests) == 12
        assert {r["model"] for r in policy.requests} == {str(path), str(tmp_path / "a" / "round-1" / "run")}
        assert paretune(*words(tmp_path, path, "b", 8, **changes, server=policy.url)) == 2
        assert "round 1's model, which this server does not serve" in capsys.readouterr().err

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log, judges.answered, before = tmp_path / "log.jsonl", 0, len(judges.requests)
        serve = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.servers_made"]
        serve += ["--model", "{model}", "--port", str(port), "--name", "policy"]
        serve += ["--faults", "ok,429,ok,slow,500,truncated", "--stall", "0.3", "--log", str(log)]
        at = {"server": f"http://127.0.0.1:{port}/v1", "server_model": "policy", "serve": shlex.join(serve)}
        command = words(tmp_path, path, "b", 8, **changes, **at, rounds=1, cache=tmp_path / "b.sqlite")
        _killed(command, lambda: len(_lines(log)) >= 2)
        _killed(command, lambda: judges.answered >= 8)
        assert paretune(*command) == 0
    assert {line["seed"] for line in _lines(log)} == set(draws) and len(_lines(log)) <= 6 + 2
    again = [json.dumps(r["messages"]) for r in judges.requests[before:]]
    assert set(again) == set(calls) and len(again) <= len(calls) + 2 + 2, "what was in the air, or just answered"
    mine, other = (tmp_path / out / "round-1" for out in "ab")
    assert read(mine / "monitors.json") == read(other / "monitors.json")
    expected, found = saved_weights(mine / "run"), saved_weights(other / "run")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass  # nothing that was started is left


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        ("false {model}", ["the command failed", "serve.log"]),
        ("true {model}", ["the model is not served", "no answer"]),
        (None, ["the model is not served", "no answer"]),
        ("nowhere-such {model}", ["no such program"]),
        ("true", ["bad serve", "{model}"]),
        ("true {model} --key sk-verysecret", ["a key in serve", "$MY_KEY"]),
        ("bash -c 'echo key $MY_KEY; exit {model}1'", ["the command failed", "key ***"]),
    ],
)
def test_a_model_that_is_not_served(
    model: Path,
    tmp_path: Path,
    serve: str | None,
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = 0.5 if "not served" in said[0] else 60  # the others fail by themselves
    at = {"server": "http://127.0.0.1:9/v1", "serve": serve, "serve_seconds": seconds, "rounds": 1}
    monkeypatch.setenv("MY_KEY", "sk-verysecret")
    assert paretune(*words(tmp_path, model, "out", 6, **at, max_tokens=2, api_key_env="MY_KEY")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in said) and "verysecret" not in message, message
    kept = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"verysecret" in path.read_bytes()]
