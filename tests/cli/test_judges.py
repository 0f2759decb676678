"""Judges as a user meets them: labels here and from a server alike, killed and begun again; `paretune judge-bench`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.made import QUICK, paretune, write_jsonl
from tests.preferences.judges.made import judge_model, responses
from tests.servers_made import serving
from tests.shared_data import shared_data


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    path = tmp_path_factory.mktemp("judge") / "chat"
    return path, *judge_model(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_of_a_judge_here_and_on_a_server(
    saved: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", responses(4, k=3))
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    rubric = {"rubric": "The answer with fewer words."}
    spec = {"good": {"judge": str(saved[0]), "protocol": "guided"}, "brief": {"judge": str(saved[0]), **rubric}}
    assert paretune("label", data, "--sources", json.dumps(spec), "--out", here) == 0
    assert "24 calls to make" in capsys.readouterr().err
    with serving(*saved[1:]) as server:
        online = {
            "judge": "tiny",
            "server": server.url,
            "prefill": True,
            "request": {"top_logprobs": 500, "max_tokens": 1},
        }
        spec = {"good": {**online, "protocol": "guided"}, "brief": {**online, **rubric}}
        assert paretune("label", data, "--sources", json.dumps(spec), "--out", there) == 0
        assert len(server.requests) == 48
        assert paretune("label", data, "--sources", json.dumps(spec), "--out", there) == 0
        assert len(server.requests) == 48
    one, other = read(here), read(there)
    assert [row["response_a"] for row in one] == [row["response_a"] for row in other] and len(one) == 12
    for a, b in zip(one, other, strict=True):
        assert a["preferences"] == pytest.approx(b["preferences"], rel=1e-4)
    report = json.loads((tmp_path / "there.labels.json").read_text())["sources"]["good"]
    assert report["pairs_in_both_orders"] == 12 and -1 <= report["first_slot_excess"] <= 1


def test_from_prompts_to_an_aligned_model_through_one_socket(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    data = write_jsonl(
        tmp_path / "p.jsonl",
        [{"prompt": [{"role": "user", "content": row["prompt"]}], "reference": "a cat"} for row in responses(4)],
    )
    drawn, labelled, run = tmp_path / "r.jsonl", tmp_path / "train.jsonl", tmp_path / "run"
    with serving(*saved[1:]) as server:
        words = ["--model", "tiny", "--server", server.url, "--n", "2", "--max_tokens", "5"]
        assert paretune("sample", *words, "--prompts", data, "--out", drawn) == 0
        judge: dict[str, Any] = {"judge": "tiny", "server": server.url, "prefill": True, "protocol": "guided"}
        judge["request"] = {"top_logprobs": 500, "max_tokens": 1}  # a random model's labels are among its last words
        sources = json.dumps({"good": judge, "short": {"rule": "shorter"}})
        assert paretune("label", drawn, "--sources", sources, "--out", labelled) == 0
        assert len(server.requests) == 4 + 2 * len(read(labelled))
    assert all(set(row["preferences"]) == {"good", "short"} for row in read(labelled)) and read(labelled)
    words = ["--model", saved[0], "--data", labelled, "--objectives", "{good: 0.5, short: 0.5}", "--output_dir", run]
    assert paretune("train", *words, *QUICK) == 0
    assert (run / "model.safetensors").is_file()


def _run(words: list[str]) -> None:
    raise SystemExit(paretune(*words))


def test_killed_and_begun_again_no_call_is_repeated(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", responses(12, k=2))
    with serving(*saved[1:]) as server:
        spec = {"x": {"judge": "tiny", "server": server.url, "prefill": True, "concurrency": 2, "retries": 0}}
        words = ["label", data, "--sources", json.dumps(spec), "--out", str(tmp_path / "out.jsonl")]
        worker = multiprocessing.get_context("fork").Process(target=_run, args=(words,))
        worker.start()
        end = time.monotonic() + 120
        while len(server.requests) < 8 and worker.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        assert worker.is_alive() and worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        time.sleep(0.2)
        before = len(server.requests)
        assert paretune(*words) == 0
        asked = [json.dumps(request["messages"]) for request in server.requests]
    assert 8 <= before < 24 and len(set(asked)) == 24
    assert len(asked) <= 24 + 2 + 2, "only what was under way, or just answered, is asked again"


ROWS = [
    {"input": f"{row['prompt']}", "output_1": row["responses"][0], "output_2": row["responses"][1], "label": 1 + i % 2}
    for i, row in enumerate(responses(6))
]


def test_judge_bench(saved: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "reference": "a cat"} for row in ROWS])
    out = tmp_path / "bench.json"
    words = ["judge-bench", data, "--judge", saved[0], "--injections", "1", "--out", out]
    assert paretune(*words, "--dry_run", "true") == 0
    assert "matching: 12 calls to make" in capsys.readouterr().out and not out.exists()
    assert paretune(*words) == 0
    told = capsys.readouterr()
    assert all(word in told.out for word in ("free", "guided", "matching", "the longer one", "chance", "all attacks"))
    assert "plumbing" in told.err and "free ~ guided" in told.out
    report = json.loads(out.read_text())
    assert report["items"] == {"pairs": 6} and set(report["judges"]) == {"free", "guided", "matching", "the longer one"}
    assert report["judges"]["free"]["asking"]["asked"] == 12 and report["settings"]["sources"]["guided"]
    assert paretune(*words) == 0
    again = json.loads(out.read_text())["judges"]["free"]
    assert again["asking"]["asked"] == 0 and again["figures"] == report["judges"]["free"]["figures"]
    plain = write_jsonl(tmp_path / "plain.jsonl", ROWS)
    capsys.readouterr()
    assert paretune("judge-bench", plain, "--judge", json.dumps({"judge": str(saved[0]), "protocol": "free"})) == 0
    assert "guided" not in capsys.readouterr().out


def test_judge_bench_says_on_how_many_items(
    saved: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [ROWS[0], *({**row, "reference": "a cat"} for row in ROWS[1:])])
    sources = {name: {"judge": str(saved[0]), "protocol": name} for name in ("free", "guided")}
    assert paretune("judge-bench", data, "--sources", json.dumps({**sources, "overlap": {"rule": "rouge"}})) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["free"] and line[1] != "~"] == ["6", "5"], (
        "its own items, then those of all"
    )
    (_, own), *_ = [(line[1], line[-5:]) for line in lines if line[:2] == ["overlap", "5"]]
    assert own == ["-", "-", "-", "16.7", "%"], "no orders, and no probabilities"
    assert ["free", "~", "guided", "5"] in [line[:4] for line in lines]


def test_references_are_drawn_for_data_in_llmbars_layout(
    saved: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "LLMBar_Natural.json", tmp_path / "references.jsonl"
    data.write_text(json.dumps(ROWS))
    words = ["sample", "--model", saved[0], "--prompts", data, "--n", "1", "--max_tokens", "6", "--out", out]
    assert paretune(*words, "--conversational", "true") == 0
    assert [row["prompt"][0]["content"] for row in read(out)] == [row["input"] for row in ROWS]
    assert paretune(*words, "--conversational", "true") == 0 and "6 from before" in capsys.readouterr().out
    assert paretune("judge-bench", data, "--judge", saved[0], "--references", out, "--dry_run", "true") == 0
    assert "guided: 12 calls to make" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "who judges?"), (["--judge", "m", "--sources", "{x: {rule: longer}}"], "who judges?"),
        (["--judge", "m", "--injections", "-1"], "bad injections"), (["--judge", "m", "--out", "x.txt"], "bad out"),
        (["--judge", "m", "--take", "0"], "bad take"), (["--jugde", "m"], "Did you mean 'judge'"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert paretune("judge-bench", write_jsonl(tmp_path / "p.jsonl", ROWS), *words) == 2
    assert said in capsys.readouterr().err


def test_llmbar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real pairs and a real model that is far too small: the table stands, and says so."""
    data, model = shared_data("llmbar") / "LLMBar_Natural.json", shared_data("stories260K")
    judge = json.dumps({"judge": str(model), "context": 8192, "max_words": 40})
    assert paretune("judge-bench", data, "--judge", judge, "--take", "3") == 0
    told = capsys.readouterr()
    assert "chance" in told.out and "plumbing" in told.err and "3 items" in told.out
