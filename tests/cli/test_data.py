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
def halves(tmp_path: Path) -> list[str]:
    """A file per objective, each with one label per row."""
    plain = [{"prompt": f"Say {i}.", "chosen": " one", "rejected": f" one, {i}"} for i in range(5)]
    sizes = {"full": 5, "short": 3}
    return [write_jsonl(tmp_path / f"{name}.jsonl", plain[:count]) for name, count in sizes.items()]


def test_a_file_per_objective_as_yaml(halves: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sources = f"[{{path: {halves[0]}, objectives: [full]}}, {{path: {halves[1]}, objectives: [short]}}]"
    assert call(sources, "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["labels"] == {"full": 5, "short": 3}
    assert call(f"{{path: {halves[0]}, objectives: full}}", "--take", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["labels"] == {"full": 2}


def test_the_data_of_a_configuration(halves: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: none\ntake: 2\nobjectives: {{short: 0.3, full: 0.7}}\ndata:\n"
        f"  - {{path: {halves[0]}, objectives: [full]}}\n  - {{path: {halves[1]}, objectives: [short]}}\n"
    )
    assert call(str(config), "--json") == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["objectives"] == ["short", "full"] and found["labels"] == {"short": 3, "full": 2}
    assert call(str(config), "--take", "4", "--objectives", "full,short", "--json") == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["objectives"] == ["full", "short"] and found["labels"] == {"full": 4, "short": 3}
    config.write_text("model: none\n")
    with pytest.raises(InputError, match="data is missing"):
        call(str(config))


def test_plain_text_may_become_messages(halves: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call(halves[0], "--conversational", "--json")
    assert json.loads(capsys.readouterr().out)["data"]["conversational"]


@pytest.mark.parametrize("pairs", ["pareto", "conflict"])
def test_no_pair_of_the_kind_asked_for(tmp_path: Path, pairs: str) -> None:
    scores = {"pareto": {"kind": [1, 0], "short": [0, 1]}, "conflict": {"kind": [1, 0], "short": [1, 0]}}[pairs]
    row = {"prompt": "Say.", "responses": [" one", " one, two"], "scores": scores}
    with pytest.raises(InputError, match=f"no pair in 1 records .pairs: {pairs}..*pairs: all takes every pair"):
        call(write_jsonl(tmp_path / "scores.jsonl", [row]), "--pairs", pairs)


def test_pairs_of_a_prompt_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "Say.", "responses": [" a", " b", " c", " d"], "scores": {"kind": [1, 2, 3, 4]}}
    data = write_jsonl(tmp_path / "scores.jsonl", [row])
    for words, kept in (([], 6), (["--max-pairs", "2"], 2)):
        call(data, *words, "--json")
        assert json.loads(capsys.readouterr().out)["data"]["kept"] == kept


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
        (["--rows", "4"], "rows: too few rows.*at least 8; found 4"),
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
