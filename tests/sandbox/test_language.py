"""The base and its rows: cached under what decides it, its text and ours one language, rows as a run reads them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from paretune.comparisons.formats import load_comparisons
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.policy.loading import load_policy, load_tokenizer
from paretune.sandbox import WORLDS
from paretune.sandbox.labels import PRESETS, Labelling, conflicting
from paretune.sandbox.language import base_settings, made_tokenizer, make_items, sample_rows, train_base
from paretune.sandbox.world import Item
from tests.sandbox.bases_made import STEPS, base_of

SURE = Labelling(kappa=float("inf"))


def _rewards(world: str, row: dict, side: str) -> list[float]:
    """Exact rewards of a row's response; the item is made again from the row's prompt."""
    items = {item.prompt: item for item in make_items(WORLDS[world], 40, seed=3, held_out=False)}
    scores = WORLDS[world].score(items[row["prompt"]], row[side])
    return [scores[name] for name in WORLDS[world].objectives]


@pytest.mark.parametrize("world", WORLDS)
def test_the_tokenizer_knows_every_word_and_gives_texts_back(world: str, tmp_path: Path) -> None:
    made_tokenizer(WORLDS[world]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    for item in make_items(WORLDS[world], 50, seed=0, held_out=False):
        for text in (item.prompt, WORLDS[world].demonstrate(item, rng)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text
    assert tokenizer("zyzzyva")["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("world", WORLDS)
def test_no_group_is_on_both_sides(world: str) -> None:
    trained = {item.group for item in make_items(WORLDS[world], 800, seed=0, held_out=False)}
    held_out = {item.group for item in make_items(WORLDS[world], 300, seed=1, held_out=True)}
    assert trained and held_out and not trained & held_out


def test_too_few_groups_to_divide_are_said() -> None:
    one = dataclasses.replace(WORLDS["summaries"], make_item=lambda rng: Item("notes : summary :", (), "same"))
    with pytest.raises(InputError, match="too few groups"):
        for held_out in (True, False):
            make_items(one, 1, seed=0, held_out=held_out)


@pytest.mark.parametrize("world", WORLDS)
def test_the_base_is_small_and_found_again(world: str) -> None:
    path = base_of(world)
    config = AutoConfig.from_pretrained(path)
    assert config.model_type in ("llama", "qwen3")
    assert 300_000 <= load_policy(str(path), full=True).num_parameters() <= 1_000_000
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert train_base(WORLDS[world], steps=STEPS, cache_dir=path.parent) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_what_decides_a_base_decides_its_folder(tmp_path: Path) -> None:
    world = WORLDS["summaries"]
    settings = base_settings(world, 0, 2)
    others = [
        base_settings(world, 1, 2),
        base_settings(world, 0, 3),
        base_settings(dataclasses.replace(world, vocabulary=world.vocabulary[::-1]), 0, 2),
        base_settings(dataclasses.replace(world, demonstrate=WORLDS["safety"].demonstrate), 0, 2),
    ]
    assert all(other != settings for other in others)
    first, second = (train_base(world, seed=0, steps=2, cache_dir=tmp_path / name) for name in ("a", "b"))
    assert first.name == second.name
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert train_base(world, seed=1, steps=2, cache_dir=tmp_path / "a") != first
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name.count("-") == 1) != [first.name]


@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_what_a_run_reads(world: str) -> None:
    path = str(base_of(world))
    rows = sample_rows(WORLDS[world], path, 40, 2, SURE, seed=3)
    assert 40 <= len(rows) <= 80
    assert rows == sample_rows(WORLDS[world], path, 40, 2, SURE, seed=3)
    for row in rows:
        assert row["response_a"] != row["response_b"]
        pairs = zip(*(_rewards(world, row, side) for side in ("response_a", "response_b")), strict=True)
        expected = [0.5 if a == b else float(a > b) for a, b in pairs]
        assert list(row["preferences"].values()) == expected
    loaded = load_comparisons(rows)
    assert isinstance(loaded, Dataset) and len(loaded) == len(rows)
    tokenizer = load_tokenizer(path)
    tokens, report = tokenize_comparisons(loaded, tokenizer, WORLDS[world].objectives, max_length=None)
    assert report.rows_dropped == 0
    for row, ids in zip(rows, tokens, strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in "ab":
            whole = ids["prefix_ids"] + ids[f"{side}_ids"]
            assert whole[: len(prompt)] == prompt
            assert ids[f"{side}_start"] == len(prompt)
            assert whole.count(tokenizer.eos_token_id) == 1 and whole[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(whole[len(prompt) : -1]) == row[f"response_{side}"].strip()


def test_training_reads_the_tokens_that_the_policy_draws() -> None:
    """A drawn response, as a row's text, is tokenized to the very ids that were drawn. A base on some processors draws
    <unk> now and then, which no text has."""
    path = str(base_of("summaries"))
    model, tokenizer = load_policy(path, full=True), load_tokenizer(path)
    prompts = [item.prompt for item in make_items(WORLDS["summaries"], 20, seed=0, held_out=True)]
    drawn = sample(model, tokenizer, prompts, 2, max_new_tokens=25, seed=0)
    read = 0
    for prompt, tokens, texts, cut in zip(prompts, drawn.tokens, drawn.texts, drawn.cut.tolist(), strict=True):
        for ids, text, unended in zip(tokens, texts, cut, strict=True):
            if unended or tokenizer.unk_token_id in ids:
                continue
            assert tokenizer(f"{prompt} {text}")["input_ids"] + [1] == tokenizer(prompt)["input_ids"] + ids
            read += 1
    assert read > 30, "of 40"


def test_a_share_of_conflicts_is_met() -> None:
    path = str(base_of("summaries"))
    rows = sample_rows(WORLDS["summaries"], path, 40, 3, PRESETS["conflict-60"], seed=3)
    rewards = [np.array([_rewards("summaries", row, side) for row in rows]) for side in ("response_a", "response_b")]
    assert conflicting(*rewards).mean() == pytest.approx(0.6, abs=1.5 / len(rows))
