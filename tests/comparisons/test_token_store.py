"""Tokens found again on disk: by the same rows, tokenizer and length only, whole or not at all, with today's labels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from paretune.comparisons import token_store, tokens
from paretune.comparisons.token_store import tokenizer_key
from paretune.comparisons.tokens import tokenize_comparisons
from tests import tokenizers_made as made

ROWS = [
    {
        "prompt": f"Question {i}:" + " The moon." * (i % 4),
        "response_a": " A dog." * (1 + i % 3 + 8 * (i == 7)),
        "response_b": " The sky is blue.",
        "preferences": {"x": i % 2 / 1, "y": None if i % 3 else 0.5},
    }
    for i in range(12)
]


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Dataset, Any, bool]]:
    """Tokenizes rows; tells the data, the report, and whether a tokenizer was asked for it."""
    made_rows: list[int] = []
    really = tokens._tokenize
    monkeypatch.setattr(tokens, "_tokenize", lambda *a: made_rows.append(a[-1] - a[-2]) or really(*a))

    def call(
        rows: list[dict[str, Any]], tokenizer: Any = None, length: int | None = 18, names: Any = ("x", "y")
    ) -> Any:
        made_rows.clear()
        data, report = tokenize_comparisons(
            Dataset.from_list(rows), tokenizer or made.byte_bpe(), list(names), max_length=length
        )
        return data, report, bool(made_rows)

    return call


def listed(data: Dataset) -> list[str]:
    """NaN equals itself in words."""
    return [str(row) for row in data]


def kept_files() -> list[Path]:
    return sorted((Path(os.environ["PARETUNE_CACHE"]) / "tokens").iterdir())


def test_the_second_time_nothing_is_tokenized(tokenized: Any) -> None:
    first, report, asked = tokenized(ROWS)
    again, second, asked_again = tokenized(ROWS)
    assert asked and not asked_again
    assert (
        listed(again) == listed(first) and again._fingerprint == first._fingerprint and again.features == first.features
    )
    assert second == report and 0 < report.rows_dropped < 12 and report.prompts_truncated
    assert [file.suffix for file in kept_files()] == [".arrow", ".json"]
    assert again.cache_files == first.cache_files != []
    assert not any((Path(os.environ["PARETUNE_CACHE"]) / "spool").iterdir())


def test_labels_are_those_of_the_rows_at_hand(tokenized: Any) -> None:
    first, *_ = tokenized(ROWS)
    turned = [{**row, "preferences": {"x": 1 - row["preferences"]["x"], "y": 0.25}} for row in ROWS]
    again, report, asked = tokenized(turned)
    assert not asked and len(again) == report.kept
    for one, other in zip(first, again, strict=True):
        assert one["prefix_ids"] == other["prefix_ids"] and one["index"] == other["index"]
        assert other["preferences"] == [1 - one["preferences"][0], 0.25]
        assert other["preferences"][0] == turned[other["index"]]["preferences"]["x"]
    assert first._fingerprint != again._fingerprint
    fewer, _, asked = tokenized(ROWS, names=("y",))
    assert not asked and np.asarray(fewer["preferences"]).shape == (len(first), 1)
    none, _, asked = tokenized(ROWS, names=())
    assert not asked and none["preferences"][:] == [[]] * len(first)


@pytest.mark.parametrize(
    "change", [{"prompt": "Question 5: The moon"}, {"response_a": " A dog. "}, {"response_b": " The sky is blue!"}]
)
def test_other_texts_are_tokenized(tokenized: Any, change: dict[str, str]) -> None:
    _, first, _ = tokenized(ROWS)
    _, second, asked = tokenized([*ROWS[:5], {**ROWS[5], **change}, *ROWS[6:]])
    assert asked and second.fingerprint != first.fingerprint
    assert tokenized(ROWS[::-1])[2] and tokenized(ROWS[1:])[2] and not tokenized(ROWS)[2]
    moved = {**ROWS[5], "prompt": ROWS[5]["prompt"] + " A", "response_a": ROWS[5]["response_a"].removeprefix(" A")}
    assert tokenized([*ROWS[:5], moved, *ROWS[6:]])[2]  # the same words, parted elsewhere


def test_another_length_or_format_is_tokenized(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized(ROWS)
    assert tokenized(ROWS, length=19)[2] and tokenized(ROWS, length=None)[2]
    monkeypatch.setattr(token_store, "FORMAT", token_store.FORMAT + 1)
    assert tokenized(ROWS)[2]


def test_a_tokenizer_is_known_by_all_it_holds(tmp_path: Path) -> None:
    tokenizer = made.chatml()
    key = tokenizer_key(tokenizer)
    tokenizer(["a", "a cat"], padding=True, truncation=True, max_length=8)  # changes its state, not its meaning
    assert tokenizer_key(tokenizer) == key == tokenizer_key(made.chatml())
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_key(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == key
    others = [made.qwen3(), made.chatml(), made.chatml(), made.byte_bpe(template=made.CHATML)]
    others[1].eos_token = "<|endoftext|>"
    others[2].add_tokens(["moon rock"])
    keys = {tokenizer_key(one) for one in others}
    assert len(keys) == 4 and key not in keys


def test_a_template_that_writes_the_date_has_a_key_per_day(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for day in ("2026-01-01", "2026-01-02"):
        monkeypatch.setattr(token_store, "_today", lambda day=day: day)
        templates = (made.CHATML, "{{ strftime_now('%d %b') }}" + made.CHATML)
        keys.append([tokenizer_key(made.chatml(template)) for template in templates])
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def counts_changed(path: Path) -> None:
    kept = json.loads(path.with_suffix(".json").read_text())
    kept["content"]["counts"]["tokens_cut"] += 1
    path.with_suffix(".json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, 0.6),
        lambda path: flip(path, 0.0),
        lambda path: path.write_bytes(path.read_bytes()[:-700]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        counts_changed,
    ],
)
def test_damaged_tokens_are_made_anew_and_that_is_said(tokenized: Any, damage: Callable[[Path], Any]) -> None:
    whole, report, _ = tokenized(ROWS)
    before = listed(whole)
    (path,) = [file for file in kept_files() if file.suffix == ".arrow"]
    damage(path)
    data, again, asked = tokenized(ROWS)
    assert asked and listed(data) == before
    (said,) = set(again.warnings) - set(report.warnings)
    assert "damaged" in said and "made anew" in said and str(path) in said
    assert tokenized(ROWS)[1] == report and not tokenized(ROWS)[2]


def test_what_stops_half_way_leaves_nothing(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    really = token_store._counted

    def stops(*parts: Any) -> Any:
        yield from really(*parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(token_store, "_counted", stops)
    with pytest.raises(KeyboardInterrupt):
        tokenized(ROWS)
    assert kept_files() == [] and not any((Path(os.environ["PARETUNE_CACHE"]) / "spool").iterdir())
    monkeypatch.setattr(token_store, "_counted", really)
    assert tokenized(ROWS)[2] and len(kept_files()) == 2


def test_a_cache_that_cannot_be_written_is_said(
    tokenized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, report, _ = tokenized(ROWS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "file"))
    data, again, asked = tokenized(ROWS)
    assert asked and listed(data) == listed(usual) and again.fingerprint == report.fingerprint
    (said,) = set(again.warnings) - set(report.warnings)
    assert "not kept for later runs" in said and str(tmp_path / "file") in said


def test_the_fingerprint_is_of_tokens_and_order_alone(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report, _ = tokenized(ROWS)
    monkeypatch.setattr(tokens.token_store, "FORMAT", -1)
    monkeypatch.setattr("paretune.comparisons.token_work.BATCH", 5)  # cut elsewhere
    _, again, asked = tokenized(ROWS)
    assert asked and again.fingerprint == report.fingerprint
    long = {**ROWS[0], "response_a": " The moon is made of rock." * 9}
    _, shifted, _ = tokenized([long, *ROWS])  # dropped: the same tokens stand one row later
    assert shifted.rows_dropped == report.rows_dropped + 1 and shifted.fingerprint == report.fingerprint
    assert tokenized(ROWS[::-1])[1].fingerprint != report.fingerprint
