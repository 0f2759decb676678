"""`paretune data` on files."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest

from paretune.cli.data import add_arguments, run
from paretune.cli.main import main
from paretune.comparisons import progress
from paretune.errors import InputError
from tests.cli.made import records, save_model, write_jsonl
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


def test_a_long_reading_and_tokens_found_again_are_told(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENT", 0.0)
    words = ["data", file, "--tokenizer", str(save_model(tmp_path / "model"))]
    assert main(words) == 0
    first = capsys.readouterr()
    assert (
        f"paretune: {file}: rows read and checked: 2 in 0 s, " in first.err and "rows tokenized: 2 in 0 s" in first.err
    )
    assert main(words) == 0
    again = capsys.readouterr()
    assert "tokens of 2 rows were made before" in again.err and "rows tokenized" not in again.err
    assert again.out == first.out


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
    with pytest.raises(InputError, match="--model PATH"):
        call(file, "--weights", "1,2")
    with pytest.raises(InputError, match="unreadable YAML"):
        call(file, "--objectives", "{full: [")
    with pytest.raises(InputError, match="gone"):
        call(file + ".gone")
    with pytest.raises(InputError, match="unknown"):
        call(file, "--objectives", "{full: {wieght: 1}}")


@pytest.fixture
def measured(tmp_path: Path) -> list[str]:
    """A file and a model for it."""
    data = write_jsonl(tmp_path / "rows.jsonl", records("native", n=24))
    return [data, "--model", str(save_model(tmp_path / "model"))]


def test_conflict_at_a_model(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*measured, "--weights", "3,1", "--rows", "16") == 0
    out = capsys.readouterr().out
    assert out.startswith("24 comparisons") and "response, tokens" in out  # its own tokenizer counts lengths
    figures = out[out.index("Gradients before training, of 16 comparisons (LoRA, ") :]
    assert "helpful     0.750" in figures and "helpful ~ short" in figures and "A step of 16: " in figures
    assert figures.splitlines()[-1].endswith(".") and "RACO will" in figures
    assert max(map(len, figures.splitlines())) <= 100


def test_conflict_as_json(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    objectives = "{short: {weight: 0.4}, helpful: {weight: 0.6}}"
    assert call(*measured, "--full", "--json", "--objectives", objectives, "--c", "0.2") == 0
    found = json.loads(capsys.readouterr().out)["conflict"]
    assert found["trained"] == "all weights" and found["conflict"]["objectives"] == ["short", "helpful"]
    assert found["conflict"]["weights"] == [0.4, 0.6] and found["conflict"]["c"] == 0.2
    assert 0 <= found["conflict"]["angle"]["value"] <= 11.6  # degrees: asin(0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "1"], "one each for helpful, short"),
        (["--weights", "a,b"], "unreadable weights"),
        (["--weights", "0,0"], "all weights are zero"),
        (["--c", "1"], "bad c"),
        (["--beta", "0"], "bad beta"),
        (["--rows", "4"], "too few rows"),
    ],
)
def test_what_is_wrong_with_conflict_is_said(measured: list[str], options: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call(*measured, *options)


def test_an_old_terminal_gets_question_marks(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert call(file) == 0
    sys.stdout.flush()
    assert b"?" in written.getvalue() and b"2 comparisons" in written.getvalue()
