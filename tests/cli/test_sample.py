"""`paretune sample`, as a user meets it: a tiny model here, or a server on a socket; killed and begun again."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.pipelines.sampling import Drawn, SamplingSettings, open_responses, tidy
from paretune.pipelines.sampling_here import continuation
from paretune.sandbox import WORLDS
from paretune.sandbox.language import made_tokenizer
from tests.cli.made import paretune, save_model, text, write_jsonl
from tests.preferences.judges.made import judge_model
from tests.servers_made import ModelServer, serving
from tests.tokenizers_made import chatml


def prompts(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"prompt": f"{i} {text(rng)}?", "reference": text(rng), "topic": i % 3} for i in range(n)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_responses_of_a_model_here(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*prompts(7), prompts(7)[0]]
    data, out = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "r.jsonl"
    words = ["--model", model, "--prompts", data, "--n", "3", "--max_tokens", "6"]
    assert paretune("sample", *words, "--out", out, "--batch_size", "6") == 0
    found, told = read(out), capsys.readouterr().out
    assert [{k: v for k, v in row.items() if k != "responses"} for row in found] == rows[:7], "in order, columns kept"
    assert all(1 <= len(row["responses"]) == len(set(row["responses"])) <= 3 for row in found)
    assert "7 of 7 prompts" in told and "1 repeated rows left out" in told and "cut off" in told
    before = out.read_bytes()
    assert paretune("sample", *words, "--out", out) == 0 and out.read_bytes() == before
    assert "7 from before" in capsys.readouterr().out
    other = tmp_path / "other.jsonl"
    assert paretune("sample", *words, "--out", other, "--batch_size", "3") == 0
    assert paretune("sample", *words, "--out", tmp_path / "seed.jsonl", "--seed", "1") == 0
    same = [a["responses"] == b["responses"] for a, b in zip(read(other), found, strict=True)]
    assert all(same), "draws depend on seed and prompt, not on the batch"
    assert [row["responses"] for row in read(tmp_path / "seed.jsonl")] != [row["responses"] for row in found]


def test_a_prompt_gets_the_same_whatever_stands_around_it(model: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--n", "2", "--max_tokens", "5", "--temperature", "0.7", "--top_p", "0.9"]
    for name, rows in (("all", prompts(5)), ("one", prompts(5)[3:4])):
        data = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        assert paretune("sample", *words, "--prompts", data, "--out", tmp_path / f"{name}.r.jsonl") == 0
    assert read(tmp_path / "one.r.jsonl") == [read(tmp_path / "all.r.jsonl")[3]]


def test_chat_templates_and_their_ends(tmp_path: Path) -> None:
    """The greedy response to a conversation is that of a plain forward loop on the template's tokens."""
    path = save_model(tmp_path / "chat", tokenizer=chatml())
    data, out = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "who?"}]), tmp_path / "r.jsonl"
    words = ["--model", path, "--prompts", data, "--n", "1", "--max_tokens", "5", "--temperature", "0"]
    assert paretune("sample", *words, "--out", out, "--conversational", "true") == 0
    (row,) = read(out)
    assert row["prompt"] == [{"role": "user", "content": "who?"}]
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 5 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert row["responses"] == ([expected] if expected.strip() else [])


def test_equal_and_empty_responses_are_left_out() -> None:
    drawn = [Drawn(" a", False), Drawn("b", True), Drawn("a ", False), Drawn(" \n", True), Drawn("c", False)]
    counts: dict[str, int] = {}
    assert tidy(drawn, SamplingSettings("m"), counts) == [" a", "b", "c"]
    assert counts == {"cut": 2, "repeated": 1, "empty": 1}
    assert tidy(drawn, SamplingSettings("m", drop_cut=True), {}) == [" a", "c"]


def _run(words: list[str]) -> None:
    raise SystemExit(paretune(*words))


def test_killed_and_begun_again_it_ends_as_if_nothing_had_happened(model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", prompts(60))
    words = ["sample", "--model", str(model), "--prompts", data, "--n", "2", "--max_tokens", "8", "--batch_size", "4"]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    assert paretune(*words, "--out", whole) == 0
    context, rng, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(4):
        worker = context.Process(target=_run, args=([*words, "--out", str(out)],))
        worker.start()
        size = out.stat().st_size if out.exists() else 0
        end = time.monotonic() + 60
        while worker.is_alive() and time.monotonic() < end and (not out.exists() or out.stat().st_size == size):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
    with out.open("ab") as stream:
        stream.write(b'{"prompt": "half a li')  # as a kill within a write leaves it
    lines = set(out.read_text().splitlines()[:-1])
    assert paretune(*words, "--out", out) == 0 and kills >= 2
    assert out.read_bytes() == whole.read_bytes()
    assert lines <= set(out.read_text().splitlines())


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        ([{"question": "x"}], [], ["line 1", "missing field", "prompt"]),
        ([{"prompt": "x", "responses": ["y"]}], [], ["line 1", "has responses already"]),
        ([{"prompt": [{"role": "assistant", "content": "x"}]}], [], ["ends with the assistant"]),
        ([{"prompt": "x"}], ["--n", "0"], ["bad n"]),
        ([{"prompt": "x"}], ["--temperature", "0"], ["temperature 0", "n: 1"]),
        ([{"prompt": "x"}], ["--top_p", "0"], ["bad top_p"]),
        ([{"prompt": "x"}], ["--max_tokens", "1000"], ["context is too short", "Set max_tokens to at most"]),
        ([{"prompt": "x"}], ["--conversational", "true"], ["chat template does not apply"]),
        ([{"prompt": "x"}], ["--server", "localhost"], ["bad server"]),
        ([{"prompt": "x"}], ["--api_key_env", "X"], ["without a server"]),
        ([{"prompt": "x"}], ["--out", "r.txt"], ["bad out"]),
        ([{"prompt": "x"}], ["--out", "nowhere/r.jsonl"], ["no such folder"]),
        ([{"prompt": "x"}], ["--model", "./nowhere"], ["no such model directory"]),
    ],
)
def test_bad_input(
    model: Path, tmp_path: Path, rows: list[Any], flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": str(model), "--prompts": write_jsonl(tmp_path / "p.jsonl", rows)}
    given |= {"--out": str(tmp_path / "r.jsonl")} | dict(zip(flags[::2], flags[1::2], strict=True))
    assert paretune("sample", *(word for pair in given.items() for word in pair)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words), message
    assert not (tmp_path / "r.jsonl").exists()


def test_files_are_not_mixed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_jsonl(tmp_path / "p.jsonl", prompts(2)), tmp_path / "r.jsonl"
    words = ["--model", model, "--prompts", data, "--n", "2", "--max_tokens", "3"]
    out.write_text("something of mine\n")
    assert paretune("sample", *words, "--out", out) == 2 and "did not begin" in capsys.readouterr().err
    assert paretune("sample", *words, "--out", out, "--overwrite", "true") == 0
    assert paretune("sample", *words, "--out", out, "--temperature", "0.5") == 2
    assert "begun with another temperature" in capsys.readouterr().err
    assert paretune("sample", *words, "--out", data) == 2 and "is read" in capsys.readouterr().err
    more = write_jsonl(tmp_path / "more.jsonl", [*prompts(2), {"prompt": "one more"}])
    before = read(out)
    assert paretune("sample", *words, "--prompts", more, "--out", out) == 0, "two files"
    assert read(out)[:2] == before and len(read(out)) == 3
    with open_responses(out, SamplingSettings("m"), overwrite=True):
        assert paretune("sample", *words, "--out", out) == 2
    assert "another process writes" in capsys.readouterr().err


# ---- a server ----


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return judge_model(tmp_path_factory.mktemp("served"))


def seeds_of(server: ModelServer) -> list[int]:
    """One for each prompt: a seed is a function of the prompt."""
    return [request["seed"] for request in server.requests]


def test_responses_of_a_server(served: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = prompts(6)
    rows[0]["prompt"] = [{"role": "user", "content": "hello"}]
    data = write_jsonl(tmp_path / "p.jsonl", rows)
    with serving(*served) as server:
        words = ["--model", "tiny", "--server", server.url, "--prompts", data, "--n", "3", "--max_tokens", "4"]
        words += ["--template_options.x", "1"]
        server.faults = ["429", "500", "503"]
        assert paretune("sample", *words, "--out", tmp_path / "r.jsonl") == 0
        assert len(server.requests) == 6 + 3 and "3 requests repeated" in capsys.readouterr().out
        assert paretune("sample", *words, "--out", tmp_path / "r.jsonl") == 0
        assert len(server.requests) == 9, "nothing is asked twice"
        assert len(set(seeds_of(server))) == 6, "each prompt has a seed of its own"
        server.faults = itertools.repeat("one")
        assert paretune("sample", *words, "--out", tmp_path / "s.jsonl") == 0
        assert len(server.requests) == 9 + 18 and len(set(seeds_of(server))) == 18
    found = read(tmp_path / "r.jsonl")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert all(2 <= len(row["responses"]) <= 3 for row in [*found, *read(tmp_path / "s.jsonl")])
    chats = [request for request in server.requests if request["path"] == "/v1/chat/completions"]
    assert {request["messages"][0]["content"] for request in chats} == {"hello"}
    assert all(request["chat_template_kwargs"] == {"x": 1} for request in chats)


def test_a_server_that_fails_loses_no_finished_work(
    served: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_jsonl(tmp_path / "p.jsonl", prompts(12)), tmp_path / "r.jsonl"
    words = ["--prompts", data, "--n", "2", "--max_tokens", "3", "--concurrency", "1", "--retries", "0", "--out", out]
    with serving(*served) as server:
        words += ["--model", "tiny", "--server", server.url]
        server.faults = ["ok", "ok", "500", "400"]
        assert paretune("sample", *words) == 2
        told = capsys.readouterr()
        assert "10 of 12 prompts" in told.out and "1 prompts failed" in told.out and len(read(out)) == 10
        assert "a prompt failed: InternalServerError" in told.err
        server.faults = ["500"] * 2
        assert paretune("sample", *words) == 2
        assert len(read(out)) == 10
        assert paretune("sample", *words) == 0
        assert len(read(out)) == 12
    assert [row["prompt"] for row in read(out)] == [row["prompt"] for row in prompts(12)]
    assert len(server.requests) == 12 + 2 + 2
    assert paretune("sample", *words) == 0, "finished: a server that is gone does not matter"
    words[words.index("--out") + 1] = tmp_path / "new.jsonl"
    assert paretune("sample", *words, "--take", "2") == 2, "fewer than would count as gone"
    assert "does not answer" in capsys.readouterr().err


def test_prompts_that_the_server_refuses_block_no_other(
    served: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_jsonl(tmp_path / "p.jsonl", prompts(14)), tmp_path / "r.jsonl"
    words = ["--prompts", data, "--n", "1", "--max_tokens", "3", "--concurrency", "1", "--retries", "0", "--out", out]
    with serving(*served) as server:
        words += ["--model", "tiny", "--server", server.url]
        server.faults = ["400"] * 12
        assert paretune("sample", *words) == 2
        told = capsys.readouterr()
        assert "2 of 14 prompts" in told.out and "12 prompts refused by the server" in told.out and len(read(out)) == 2
        assert told.err.count("a prompt was refused: BadRequestError") == 1
        server.faults = ["500"] * 7 + ["400"] + ["500"] * 4
        assert paretune("sample", *words) == 2 and "does not answer" in capsys.readouterr().err
        assert len(server.requests) == 14 + 9, "a refusal says nothing about what fails"


def test_killed_under_every_fault_it_ends_as_if_nothing_had_happened(served: tuple[Any, Any], tmp_path: Path) -> None:
    """Two real processes are killed in the middle; of what was answered, only what was in the air is asked again."""
    data, kills = write_jsonl(tmp_path / "p.jsonl", prompts(24)), 0
    faults = ["ok", "ok", "429", "ok", "500", "truncated", "ok", "cut", "ok", "empty", "503", "slow", "null"]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    with serving(*served) as server:
        words = ["sample", "--model", "tiny", "--server", server.url, "--prompts", data, "--n", "2"]
        words += ["--max_tokens", "5", "--concurrency", "4"]
        assert paretune(*words, "--out", whole) == 0
        server.answered, server.faults, server.stall = 0, itertools.cycle(faults), 0.2
        for goal in (6, 15):
            command = [sys.executable, "-m", "paretune", *words, "--out", str(out)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            end = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < end and server.answered < goal:
                time.sleep(0.002)
            kills += process.poll() is None
            process.kill()
            process.wait()
        kept = set(out.read_text().splitlines())
        assert kills == 2 and 1 <= len(kept) < 24
        # no answer at all, and one that would drip in for longer than a whole request may take
        server.faults, server.stall = ["timeout", "slow"], 6.0
        assert paretune(*words, "--out", out, "--timeout", "2", "--retries", "30") == 0
    assert out.read_bytes() == whole.read_bytes() and kept <= set(whole.read_text().splitlines())
    assert server.answered <= 24 + 2 * 4 + 1, "and the slow answer, which nobody waited for"


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    served: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-verysecretkey-1234567890"
    data, out = write_jsonl(tmp_path / "p.jsonl", prompts(1)), tmp_path / "r.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    with serving(*served) as server:
        words = ["--model", "tiny", "--server", server.url, "--prompts", data, "--n", "1", "--out", out]
        words[2:2] = ["--max_tokens", "3"]
        assert paretune("sample", *words, "--api_key_env", "MY_KEY") == 2
        assert "MY_KEY" in capsys.readouterr().err and not server.requests
        for given in (key, "gsk_verysecret123"):
            assert paretune("sample", *words, "--api_key_env", given) == 2
            message = capsys.readouterr().err
            assert "api_key_env" in message and "secret" not in message
        monkeypatch.setenv("MY_KEY", key)
        server.faults = ["401"]
        assert paretune("sample", *words, "--api_key_env", "MY_KEY") == 2
        message = capsys.readouterr().err
        assert "the server refuses" in message and "401" in message and "secret" not in message
        assert paretune("sample", *words, "--api_key_env", "MY_KEY") == 0
        assert server.headers[-1]["authorization"] == f"Bearer {key}"
        words[-1] = tmp_path / "other.jsonl"
        assert paretune("sample", *words) == 0
        assert "another" not in server.headers[-1]["authorization"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_what_was_drawn_after_a_plain_prompt_is_the_same_tokens_when_it_is_read_again() -> None:
    words = made_tokenizer(WORLDS["safety"])  # its decoder knows no space before the first word
    prompt, drawn = "clean pipe . steps :", "grab spoon . no ."
    before, ids = (words(text)["input_ids"] for text in (prompt, drawn))
    said = continuation(words, before, ids)
    assert words(prompt + said)["input_ids"] == [*before, *ids] and said.strip() == drawn
    assert continuation(words, [], ids) == drawn, "messages have a template between them"
