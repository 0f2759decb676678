"""`paretune data` on files."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest

from paretune.cli.data import add_arguments, run
from paretune.errors import InputError
from tests.tokenizers_made import metaspace

ROWS = [
    {"prompt": "Say one.", "response_a": "one", "response_b": "one, two", "preferences": {"short": 1, "full": 0}},
    {"prompt": "Say two.", "response_a": "two, three", "response_b": "two", "preferences": {"short": "b"}},
]


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_it_draws(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(file) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 comparisons (plain text)") and "conflicting rows: 1 of 1" in out
    assert "100.0%  shorter 100.0%" in out and "tokens" not in out


def test_json_with_tokens(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metaspace().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    assert call(file, "--tokenizer", str(tmp_path / "tokenizer"), "--max-length", "40", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["summary"]["labels"]] == ["short", "full"]
    assert found["summary"]["conflicting"] == 1 and found["data"]["kept"] == 2
    assert found["tokens"]["kept"] == 2 and found["tokens"]["max_length"] == 40
    assert [one["name"] for one in found["summary"]["lengths"]][-1].endswith("tokens")


@pytest.mark.parametrize("text", ["full,short", "[full, short]", "{full: {}, short: {weight: 2}}"])
def test_objectives_are_chosen_and_ordered(file: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(file, "--objectives", text, "--json")
    assert json.loads(capsys.readouterr().out)["data"]["objectives"] == ["full", "short"]


def test_inline_rules_on_an_ordinary_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dpo.jsonl"
    path.write_text(json.dumps({"prompt": "Hi.", "chosen": "A long answer.", "rejected": "No."}) + "\n")
    call(str(path), "--objectives", "{helpful: {labels: chosen}, concise: {rule: shorter}}", "--json")
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["conflicting"] == 1 and [one["shorter"] for one in summary["labels"]] == [0.0, 1.0]


def test_what_is_wrong_is_said(file: str) -> None:
    with pytest.raises(InputError, match="--tokenizer PATH"):
        call(file, "--max-length", "10")
    with pytest.raises(InputError, match="unreadable YAML"):
        call(file, "--objectives", "{full: [")
    with pytest.raises(InputError, match="gone"):
        call(file + ".gone")
    with pytest.raises(InputError, match="unknown"):
        call(file, "--objectives", "{full: {wieght: 1}}")


def test_an_old_terminal_gets_question_marks(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert call(file) == 0
    sys.stdout.flush()
    assert b"?" in written.getvalue() and b"2 comparisons" in written.getvalue()
