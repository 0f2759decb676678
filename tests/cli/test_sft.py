"""`paretune sft` from files to a model that loads and can be aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.training.sft import collate_responses, read_responses, tokenize_responses
from tests.cli.made import OBJECTIVES, QUICK, paretune, read_run, records, write_jsonl
from tests.tokenizers_made import byte_bpe, chatml

PLAIN = [{"prompt": f"{i} who?", "response": " the happy cat"} for i in range(16)]
LONGER = [{"3": "40", "1e-2": "3e-2"}.get(word, word) for word in QUICK]


@pytest.mark.parametrize("field", ["response", "completion", "reference"])
def test_it_learns_the_response(model: Path, tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", [{"prompt": r["prompt"], field: r["response"]} for r in PLAIN])
    out = tmp_path / "run"
    assert (
        paretune("sft", "--model", model, "--data", data, "--output_dir", out, *LONGER, "--eval_fraction", "0.2") == 0
    )
    record, history = read_run(out)
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]
    parts = [record["data"][name]["rows"] for name in ("train", "eval")]
    assert [part["kept"] for part in parts] == [13, 3] and len({part["fingerprint"] for part in parts}) == 2
    assert record["status"] == "finished" and record["final"]["eval_loss"] < losses[0]
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("20 who?", return_tensors="pt")["input_ids"]
    answer = AutoModelForCausalLM.from_pretrained(out).generate(ids, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(answer[0, ids.shape[1] :]).startswith(" the happy cat</s>")
    assert f"paretune train --model {out}" in capsys.readouterr().out


def test_adapters_then_alignment(model: Path, tmp_path: Path, rows: str) -> None:
    start, out = tmp_path / "start", tmp_path / "run"
    words = ["--model", model, "--data", rows, "--target", "preferred", "--lora.r", "4", "--output_dir", start]
    assert paretune("sft", *words, *QUICK) == 0
    words = ["--model", start, "--data", rows, "--objectives", OBJECTIVES, "--lora.r", "4", "--output_dir", out]
    assert paretune("train", *words, *QUICK) == 0
    assert paretune("evaluate", "--model", out, "--data", rows) == 0


def test_the_loss_is_on_the_response_only() -> None:
    tokenizer = byte_bpe()
    rows, _ = read_responses([PLAIN[0], {"prompt": "a longer question, is it?", "response": " yes"}])
    tokenized, report = tokenize_responses(rows, tokenizer, max_length=None)
    batch = collate_responses([tokenized[i] for i in range(2)], pad=tokenizer.pad_token_id)
    assert report["kept"] == 2
    for ids, mask, labels, row in zip(*batch.values(), rows, strict=True):
        scored = labels != -100
        assert torch.equal(labels[scored], ids[scored]) and bool((mask[scored] == 1).all())
        assert tokenizer.decode(ids[scored]) == row["response"] + "</s>"
        assert tokenizer.decode(ids[(mask == 1) & ~scored]) == row["prompt"]


def test_chat_templates_apply() -> None:
    tokenizer = chatml()
    chats = [{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}]
    tokenized, _ = tokenize_responses(read_responses(chats)[0], tokenizer, max_length=None)
    row = tokenized[0]
    assert tokenizer.decode(row["input_ids"][row["start"] :]) == "me<|im_end|>"


def compared(**labels: Any) -> dict[str, Any]:
    return {"prompt": "p", "response_a": "A", "response_b": "B", "preferences": labels, "reference": "R"}


@pytest.mark.parametrize(
    ("target", "expected"), [("a", ["A", "A", "A"]), ("b", ["B", "B", "B"]), ("reference", ["R", "R", "R"]),
                             ("preferred", ["A", "B"])],
)  # fmt: skip
def test_targets_of_comparisons(target: str, expected: list[str]) -> None:
    data = [compared(x=1, y=0.2), compared(x=0.4, y=0.5) | {"prompt": "q"}, compared(x=1, y=0) | {"prompt": "r"}]
    rows, report = read_responses(data, target=target)
    assert rows["response"][:] == expected
    assert report["without_target"] == 3 - len(expected)


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        (records("native", 3), [], ["line 1", "missing field", "target: preferred"]),
        (PLAIN[:1], ["--target", "best"], ["bad target", "preferred"]),
        ([{"prompt": "x", "response": " "}], [], ["line 1", "empty response"]),
        ([], [], ["empty"]),
        (PLAIN[:2], ["--lr", "1"], ["unknown key --lr"]),
        (PLAIN[:2], ["--max_length", "2"], ["none of 2 rows can be used"]),
    ],
)
def test_bad_input(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], flags: list[str], words: list[str]
) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", rows)
    assert paretune("sft", "--model", model, "--data", data, "--output_dir", tmp_path / "run", *flags) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()
