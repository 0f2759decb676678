"""`paretune label`, as a user meets it: from prompts to an aligned model, killed and begun again, mixed with people."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from paretune.comparisons.formats import read_comparisons
from tests.cli.made import QUICK, paretune, read_run, text, write_jsonl

SOURCES = "{concise: {rule: shorter, unit: words}, right: {rule: rouge, soft: 4}}"


def responses(n: int, k: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"prompt": f"{i}?", "responses": [f"{text(rng)} {j}" for j in range(k)], "reference": text(rng), "topic": i % 2}
        for i in range(n)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".labels.json").read_text())


def test_three_commands_from_prompts_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    rows = [{"prompt": f"{i} {text(rng)}?", "reference": text(rng)} for i in range(12)]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    drawn, train, out = tmp_path / "responses.jsonl", tmp_path / "train.jsonl", tmp_path / "run"
    words = ["--model", model, "--prompts", prompts, "--n", "4", "--max_tokens", "8", "--out", drawn]
    assert paretune("sample", *words) == 0
    assert paretune("label", drawn, "--sources", SOURCES, "--out", train) == 0
    told = capsys.readouterr().out
    command = re.search(r"paretune train --model M (--data .* --objectives '.*') --output_dir", told)
    assert command is not None, "the command that goes on is shown"
    words = ["--model", model, "--data", train, "--objectives", "{concise: 0.5, right: 0.5}", "--output_dir", out]
    assert paretune("train", *words, *QUICK) == 0
    record, _ = read_run(out)
    assert record["status"] == "finished" and set(record["data"]["train"]["rows"]["labels"]) == {"concise", "right"}


def test_rows_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_jsonl(tmp_path / "r.jsonl", responses(10)), tmp_path / "train.jsonl"
    assert paretune("label", data, "--sources", SOURCES, "--out", out) == 0
    rows, report = read(out), report_of(out)
    assert len(rows) == 30 == report["counts"]["rows written"]
    for row in rows:
        a, b = (len(row[side].split()) for side in ("response_a", "response_b"))
        assert row["preferences"]["concise"] == 0.5 + 0.5 * ((a < b) - (a > b))
        assert 0 < row["preferences"]["right"] < 1 and row["reference"] and "topic" in row
    found, read_report = read_comparisons(str(out))
    assert len(found) == 30 and read_report.labels == {"concise": 30, "right": 30}
    figures = report["objectives"]["concise"]
    assert figures["labels"] == 30 and figures["length_correlation"] == pytest.approx(-1)
    assert figures["share"] == {"people": 0, "source": 1}
    assert report["agreement"]["concise~right"]["pairs"] <= 30 and report["sources"]["right"]["failed"] == 0
    assert report["settings"]["sources"]["right"] == {"rule": "rouge", "soft": 4}
    told = capsys.readouterr().out
    assert "concise ~ right" in told and "30 rows written" in told and str(out) in told


@pytest.mark.parametrize(
    ("pairs", "count"),
    [("all", 60), ("best-worst", 20), ("overall-best-worst", 10), ("conflict", None), ("pareto", None)],
)
def test_pairs(tmp_path: Path, pairs: str, count: int | None) -> None:
    data, out = write_jsonl(tmp_path / "r.jsonl", responses(10, k=4)), tmp_path / "train.jsonl"
    assert paretune("label", data, "--sources", SOURCES, "--out", out, "--pairs", pairs) == 0
    rows = read(out)
    sides = [[label > 0.5 for label in row["preferences"].values() if label != 0.5] for row in rows]
    if count is not None:
        assert count / 2 < len(rows) <= count
    elif pairs == "conflict":
        assert rows and all(len(side) == 2 and side[0] != side[1] for side in sides)
    else:
        assert rows and all(side and len(set(side)) == 1 for side in sides)


def test_labels_of_people_stay_and_are_told_apart(tmp_path: Path) -> None:
    human = {"response_a": "a long one here", "response_b": "short"}
    rows: list[dict[str, Any]] = [
        {"prompt": "p1", **human, "preferences": {"concise": "a"}, "id": "first"},
        {"prompt": "p2", **human, "preferences": {"concise": None, "helpful": 0.75}},
        {"prompt": "p3", **human},
        {"prompt": "p4", "responses": ["x x", "x", "y"]},
    ]
    data, out = write_jsonl(tmp_path / "r.jsonl", rows), tmp_path / "train.jsonl"
    words = ["--sources", "{concise: {rule: fewer_words}}", "--pairs", "best-worst", "--out", out]
    assert paretune("label", data, *words) == 0
    labels = [row["preferences"] for row in read(out)]
    assert labels == [
        {"concise": 1.0, "helpful": None}, {"concise": 0.0, "helpful": 0.75}, {"concise": 0.0, "helpful": None},
        {"concise": 0.0, "helpful": None},
    ]  # fmt: skip
    report = report_of(out)
    assert read(out)[0]["id"] == "first" and report["objectives"]["helpful"]["missing"] == 3
    assert report["objectives"]["concise"]["share"] == {"people": 0.25, "source": 0.75}
    assert report["objectives"]["helpful"]["share"] == {"people": 1.0, "source": 0.0}


FUNCTION = """
def noted(prompts, completions, **columns):
    for i, completion in enumerate(completions):
        with open({log!r}, "a") as stream:
            stream.write(f"{{prompts[i]}} {{completion}}\\n")
        yield i, None if completion.endswith(" 0") else float(len(completion))
"""


def _run(words: list[str]) -> None:
    raise SystemExit(paretune(*words))


def test_killed_and_begun_again_nothing_is_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noted_rewards.py").write_text(FUNCTION.format(log=str(tmp_path / "log")))
    monkeypatch.chdir(tmp_path)
    log, out = tmp_path / "log", tmp_path / "train.jsonl"
    log.touch()
    data = write_jsonl(tmp_path / "r.jsonl", responses(100))
    sources = '{long: {function: "noted_rewards:noted"}, concise: {rule: shorter}}'
    words = ["label", data, "--sources", sources, "--out", str(out)]
    assert paretune(*words, "--dry_run", "true") == 0 and "long: 300 calls to make" in capsys.readouterr().out
    context, rng, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(10):
        seen = len(log.read_text().splitlines())
        worker = context.Process(target=_run, args=(words,))
        worker.start()
        end = time.monotonic() + 30
        goal = seen + rng.randint(20, 60)
        while worker.is_alive() and len(log.read_text().splitlines()) < goal and time.monotonic() < end:
            time.sleep(0.001)
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
        assert not out.exists() or worker.exitcode == 0
    assert paretune(*words) == 0 and kills >= 3
    calls = log.read_text().splitlines()
    # the call that a kill met may have been made and not been kept: one at most for each kill
    assert len(set(calls)) == 300 and len(calls) <= 300 + kills
    report = report_of(out)["sources"]["long"]
    assert report["failed"] == 100 and report["asked"] + report["found"] == 300
    first = out.read_bytes()
    assert paretune(*words) == 0 and out.read_bytes() == first
    assert paretune(*words[:-1], str(tmp_path / "afresh.jsonl"), "--cache", tmp_path / "other.sqlite") == 0
    assert (tmp_path / "afresh.jsonl").read_bytes() == first
    assert "100 of 300 answers failed" in capsys.readouterr().err
    assert len([row for row in read(out) if row["preferences"]["long"] is not None]) == 100
    assert paretune(*words, "--dry_run", "true", "--retry_failed", "true") == 0
    assert "long: 100 calls to make (200 of 300 were answered before)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        (responses(2), {"--sources": "{x: {rule: shortr}}"}, ["source 'x'", "Did you mean 'shorter'?"]),
        (responses(2), {"--sources": "shorter"}, ["no such configuration file"]),
        (responses(2), {"--pairs": "some"}, ["bad pairs", "conflict"]),
        (responses(2), {"--max_pairs": "0"}, ["bad max_pairs"]),
        (responses(2), {"--out": "t.txt"}, ["bad out"]),
        (responses(2), {"--on_bad_row": "stop"}, ["bad on_bad_row"]),
        (responses(2), {"--sorces": "{}"}, ["unknown key --sorces", "sources"]),
        ([{"prompt": "p", "responses": ["a", ""]}], {}, ["line 1", "empty response", "responses[1]"]),
        ([{"prompt": "p", "responses": ["a", "a"]}], {}, ["nothing to label", "repeated"]),
        ([{"prompt": "p", "responses": ["a", "b"]}], {"--sources": "{x: {rule: rouge}}"}, ["no row could be labelled"]),
        ([{"question": "p"}], {}, ["not recognised"]),
        (responses(1), {"--cache": "."}, ["cannot use the kept answers", "--cache"]),
    ],
)
def test_bad_input(
    tmp_path: Path, rows: list[Any], flags: dict[str, str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_jsonl(tmp_path / "r.jsonl", rows), tmp_path / "train.jsonl"
    given = {"--sources": "{x: {rule: shorter}}", "--out": str(out), **flags}
    assert paretune("label", data, *(word for pair in given.items() for word in pair)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words), message
    assert not out.exists()


def test_files_of_others_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_jsonl(tmp_path / "r.jsonl", responses(2)), tmp_path / "train.jsonl"
    words = ["label", data, "--sources", "{x: {rule: shorter}}"]
    out.write_text("mine\n")
    assert paretune(*words, "--out", out) == 2 and "did not write" in capsys.readouterr().err
    assert paretune(*words, "--out", data) == 2 and "is read" in capsys.readouterr().err
    assert out.read_text() == "mine\n"
    assert paretune(*words, "--out", out, "--overwrite", "true") == 0 and len(read(out)) == 6
    bad = write_jsonl(tmp_path / "b.jsonl", [*responses(2), {"prompt": "p"}])
    assert paretune("label", bad, *words[2:], "--out", tmp_path / "b.train.jsonl", "--on_bad_row", "skip") == 2


def test_sources_in_a_file(tmp_path: Path) -> None:
    data, out = write_jsonl(tmp_path / "r.jsonl", responses(2)), tmp_path / "train.jsonl"
    (tmp_path / "sources.yaml").write_text(
        "concise:\n  rule: shorter\nloop: {gate: [{rule: repetition}, {rule: longer}]}\n"
    )
    assert paretune("label", data, "--sources", tmp_path / "sources.yaml", "--out", out) == 0
    assert set(read(out)[0]["preferences"]) == {"concise", "loop"}
    config = tmp_path / "label.yaml"
    config.write_text(f"data: {data}\nsources: {{concise: {{rule: shorter}}}}\nout: {tmp_path / 'second.jsonl'}\n")
    assert paretune("label", config) == 0 and len(read(tmp_path / "second.jsonl")) == 6
