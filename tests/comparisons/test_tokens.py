"""Tokenization against the tokenizers' own output, over the traits of real templates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from paretune.comparisons.batches import collate
from paretune.comparisons.tokens import common_prefix, pad_id, tokenize_comparisons
from paretune.errors import InputError
from tests import tokenizers_made as made
from tests.shared_data import shared_data

TEXT = ("Question: What is the moon? Answer:", " The moon is made of rock.", " The sky is blue and the cat sat.")
CHATS = [made.chatml, made.qwen3, made.thinking, made.llama3, made.gemma, made.plain_chat]
TEXTS = [made.byte_bpe, lambda: made.byte_bpe(add_bos=True), made.metaspace, made.word_level, *CHATS]


def row(prompt: Any, a: Any, b: Any, **preferences: float | None) -> dict[str, Any]:
    return {"prompt": prompt, "response_a": a, "response_b": b, "preferences": preferences or {"x": 1.0}}


def chat_row(prompt: str, a: str, b: str, system: str = "", **preferences: float | None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return row(messages, *([{"role": "assistant", "content": text}] for text in (a, b)), **preferences)


def tokenize(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None, **options: Any) -> Any:
    names = list(rows[0]["preferences"])
    data, report = tokenize_comparisons(Dataset.from_list(rows), tokenizer, names, max_length=max_length, **options)
    return list(data), report


def sides(out: dict[str, Any]) -> list[tuple[list[int], int]]:
    return [(out["prefix_ids"] + out[f"{side}_ids"], out[f"{side}_start"]) for side in "ab"]


def check_contract(out: dict[str, Any]) -> None:
    (a, a_start), (b, b_start) = sides(out)
    assert out["a_ids"] and out["b_ids"] and out["prefix_ids"]
    assert 1 <= a_start < len(a) and 1 <= b_start < len(b)
    longest = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert len(out["prefix_ids"]) == min(longest, len(a) - 1, len(b) - 1)


@pytest.mark.parametrize("factory", TEXTS)
def test_plain_text_is_tokenized_as_one_text_with_one_end(factory: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = factory()
    (out,), report = tokenize([row(*TEXT)], tokenizer)
    check_contract(out)
    for (ids, start), response in zip(sides(out), TEXT[1:], strict=True):
        assert ids == [*tokenizer(TEXT[0] + response)["input_ids"], tokenizer.eos_token_id]
        assert ids[:start] == tokenizer(TEXT[0])["input_ids"]
        assert ids.count(tokenizer.eos_token_id) == 1
    assert report.eos_appended == 2 and report.ends == {tokenizer.eos_token: 2} and report.non_prefix_prompts == 0


@pytest.mark.parametrize("factory", CHATS)
@pytest.mark.parametrize("system", ["", "You answer in one short sentence."])
def test_chats_are_what_the_template_gives_up_to_the_end_of_turn(factory: Any, system: str) -> None:
    tokenizer = factory()
    source = chat_row("Tell me a story.", "A dog found a ball.", "A dog was happy!", system)
    (out,), report = tokenize([source], tokenizer)
    check_contract(out)
    end = {made.gemma: "<end_of_turn>", made.llama3: "<|eot_id|>", made.plain_chat: "</s>"}.get(factory, "<|im_end|>")
    assert report.ends == {end: 2}
    for (ids, start), response in zip(sides(out), (source["response_a"], source["response_b"]), strict=True):
        whole = tokenizer.apply_chat_template(source["prompt"] + response)["input_ids"]
        if factory is made.plain_chat:
            assert ids == [*whole, tokenizer.eos_token_id] and report.eos_appended == 2
        else:
            assert ids == whole[: len(ids)] and report.eos_appended == 0
            assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
            assert not tokenizer.decode(whole[len(ids) :]).strip()  # only the newline after the turn is gone
        scored = tokenizer.decode(ids[start:]).replace("<think>\n\n</think>\n\n", "")
        assert scored.strip() == response[0]["content"] + ("\n" if factory is made.plain_chat else "") + end
    stripped = factory not in (made.llama3, made.plain_chat)
    assert report.trailing_stripped == 2 * stripped


@pytest.mark.parametrize("factory", [made.llama3, made.gemma])
def test_bos_stands_once_in_chats(factory: Any) -> None:
    tokenizer = factory()
    (out,), _ = tokenize([chat_row("Tell me a story.", "A dog.", "A cat.")], tokenizer)
    for ids, _start in sides(out):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("factory", [made.metaspace, lambda: made.byte_bpe(add_bos=True)])
def test_bos_and_eos_already_in_the_text_are_not_doubled(factory: Any) -> None:
    tokenizer = factory()
    source = row("<s>" + TEXT[0], TEXT[1] + "</s>", TEXT[2])
    (out,), report = tokenize([source], tokenizer)
    check_contract(out)
    for ids, _start in sides(out):
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert report.eos_appended == 1 and report.ends == {"</s>": 2}


def test_what_a_tokenizer_puts_behind_a_text_does_not_stand_behind_the_prompt() -> None:
    tokenizer = made.word_level(add_eos=True)
    (out,), report = tokenize([row(*TEXT)], tokenizer)
    (ids, start), _ = sides(out)
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[start:])[:2] == ["The", "moon"]
    assert report.non_prefix_prompts == 0


def test_merges_across_the_boundary_are_scored_from_where_the_tokens_part() -> None:
    tokenizer = made.byte_bpe()
    # "moon" is one token: a prompt that ends in "mo" is no prefix of the tokens of "... moon ...".
    rows = [row(*TEXT), row("The cat looked at the mo", "on and the sky.", " and a dog.")]
    (_, out), report = tokenize(rows, tokenizer)
    check_contract(out)
    prompt = tokenizer("The cat looked at the mo")["input_ids"]
    (a, a_start), (b, b_start) = sides(out)
    assert a_start < len(prompt) and a[:a_start] == prompt[:a_start] and a[a_start] != prompt[a_start]
    assert b_start == len(prompt) and b[:b_start] == prompt
    assert tokenizer.decode(a) == "The cat looked at the moon and the sky.</s>"
    assert report.non_prefix_prompts == 1
    assert report.non_prefix_example is not None and "row 1" in report.non_prefix_example
    assert any("1 of 2 prompts" in warning for warning in report.warnings)


def test_a_generation_prompt_that_finished_chats_lack_is_left_out_and_reported() -> None:
    tokenizer = made.thinking()
    (out,), report = tokenize([chat_row("Tell me a story.", "A dog.", "The cat.")], tokenizer)
    for ids, start in sides(out):
        assert tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")
        assert "<think>" not in tokenizer.decode(ids)
    assert report.non_prefix_prompts == 1 and "<think>" in str(report.non_prefix_example)


def test_an_empty_thought_before_both_answers_is_shared_and_scored() -> None:
    tokenizer = made.qwen3()
    (out,), report = tokenize([chat_row("Tell me a story.", "A dog.", "The cat.")], tokenizer)
    assert out["a_start"] == out["b_start"] < len(out["prefix_ids"])
    scored = tokenizer.decode(out["prefix_ids"][out["a_start"] :])
    assert scored == "<think>\n\n</think>\n\n" and report.non_prefix_prompts == 0


@pytest.mark.parametrize(
    ("a", "b"), [(" A dog.", " A dog."), (" A dog", " A dog and a cat."), (" A dog and a cat.", " A dog")]
)
def test_each_side_keeps_a_token_of_its_own(a: str, b: str) -> None:
    tokenizer = made.byte_bpe()
    (out,), _ = tokenize([row(TEXT[0], a, b)], tokenizer)
    check_contract(out)
    assert [tokenizer.decode(ids) for ids, _ in sides(out)] == [TEXT[0] + text + "</s>" for text in (a, b)]


def test_no_prompt_is_scored_from_bos_or_else_from_eos() -> None:
    with_bos = made.metaspace()
    (out,), report = tokenize([row("", "The moon is rock.", "The cat sat.")], with_bos)
    check_contract(out)
    assert out["a_start"] == 1 and out["prefix_ids"][0] == with_bos.bos_token_id and report.context_added == 0
    without = made.byte_bpe()
    (out, usual), report = tokenize([row("", "The moon is rock.", "A cat sat."), row(*TEXT)], without)
    check_contract(out)
    assert out["a_start"] == out["b_start"] == 1 and out["prefix_ids"] == [without.eos_token_id]
    assert without.decode(out["a_ids"]) == "The moon is rock.</s>"
    assert usual["prefix_ids"][0] != without.eos_token_id
    assert report.context_added == 1 and report.context_token == "</s>"
    assert any("'</s>' is put there" in warning for warning in report.warnings)
    with pytest.raises(InputError, match=r"no token before it.*bos_token"):
        tokenize([row("", "The moon.", "A cat.")], made.byte_bpe(eos=False))


def test_a_prompt_that_dissolves_into_the_response_gets_a_context() -> None:
    tokenizer = made.byte_bpe()
    (out,), report = tokenize([row("Th", "e moon is rock.", "e cat sat.")], tokenizer)
    check_contract(out)
    assert out["a_start"] == 1 and tokenizer.decode(sides(out)[0][0]) == "</s>The moon is rock.</s>"
    assert report.context_added == 1 and report.non_prefix_prompts == 1


@pytest.mark.parametrize("factory", [made.metaspace, made.byte_bpe])
def test_truncation_cuts_the_prompt_behind_bos_and_keeps_responses_whole(factory: Any) -> None:
    tokenizer = factory()
    long = "Once upon a time there was a little girl. " * 5 + TEXT[0]
    rows = [row(long, *TEXT[1:], x=1.0), row(*TEXT, x=0.0)]
    whole, _ = tokenize(rows, tokenizer)
    limit = max(len(ids) for ids, _ in sides(whole[1])) + 3
    (cut, same), report = tokenize(rows, tokenizer, limit)
    check_contract(cut)
    assert same == whole[1]
    head = int(factory is made.metaspace)
    assert max(len(ids) for ids, _ in sides(cut)) == limit == report.longest
    lost = report.tokens_cut
    assert lost == report.longest_given - limit and report.prompts_truncated == 1 and report.rows_dropped == 0
    for (short, start), (full, full_start) in zip(sides(cut), sides(whole[0]), strict=True):
        assert short == full[:head] + full[head + lost :]
        assert short[start:] == full[full_start:] and start == full_start - lost
    assert any("1 of 2 prompts lose tokens" in warning for warning in report.warnings)


def test_the_last_row_that_fits_keeps_one_prompt_token_and_the_next_is_dropped() -> None:
    tokenizer = made.metaspace()
    rows = [row(*TEXT), row("The cat sat.", " A dog.", " A cat.")]
    whole, _ = tokenize(rows, tokenizer)
    responses = [len(ids) - start for ids, start in sides(whole[0])]
    tight = max(responses) + 2  # BOS and one token of the prompt
    (first, _), report = tokenize(rows, tokenizer, tight)
    assert report.kept == 2 and min(first["a_start"], first["b_start"]) == 2
    assert first["prefix_ids"][0] == tokenizer.bos_token_id
    (only,), report = tokenize(rows, tokenizer, tight - 1)
    assert only["index"] == 1 and report.rows_dropped == 1 and report.dropped_rows == [0]
    assert report.dropped == {"longer than max_length": 1}
    assert any("1 of 2 rows are dropped" in warning and "rows 0" in warning for warning in report.warnings)


def test_nothing_left_is_an_error_that_says_how_long_rows_are() -> None:
    tokenizer = made.byte_bpe()
    longest = max(len(tokenizer(TEXT[0] + text)["input_ids"]) for text in TEXT[1:]) + 1
    with pytest.raises(InputError, match=rf"none of 1 rows.*found 4; the longest side has {longest} tokens.*Raise max"):
        tokenize([row(*TEXT)], tokenizer, 4)
    with pytest.raises(InputError, match="bad max_length"):
        tokenize([row(*TEXT)], tokenizer, 1)
    with pytest.raises(InputError, match="no rows"):
        tokenize_comparisons(Dataset.from_list([row(*TEXT)]).select([]), tokenizer, ["x"], max_length=None)


def test_preferences_follow_the_names_and_missing_ones_are_nan() -> None:
    rows = [row(*TEXT, x=0.25, y=None), row(*TEXT, x=None, y=1.0)]
    data, _ = tokenize_comparisons(Dataset.from_list(rows), made.byte_bpe(), ["y", "x"], max_length=None)
    (y0, x0), (y1, x1) = data["preferences"]
    assert math.isnan(y0) and x0 == 0.25 and y1 == 1.0 and math.isnan(x1)
    with pytest.raises(InputError, match="unknown objective 'z'"):
        tokenize_comparisons(Dataset.from_list(rows), made.byte_bpe(), ["z"], max_length=None)


def test_report_counts_tokens() -> None:
    rows = [row(*TEXT), row("The cat sat.", " A dog.", " A cat was happy.")]
    out, report = tokenize(rows, made.byte_bpe())
    lengths = [[len(one[name]) for name in ("prefix_ids", "a_ids", "b_ids")] for one in out]
    assert report.tokens_shared == sum(map(sum, lengths))
    assert report.tokens_flat == sum(2 * p + a + b for p, a, b in lengths)
    assert report.prefix["max"] == max(p for p, _, _ in lengths)
    scored = sorted(len(ids) - start for one in out for ids, start in sides(one))
    assert (report.response["min"], report.response["max"]) == (scored[0], scored[-1])
    assert report.response["mean"] == pytest.approx(sum(scored) / 4) and report.rows == report.kept == 2


def test_pad_token_is_its_own_then_eos_then_an_error() -> None:
    assert pad_id(made.byte_bpe()) == made.byte_bpe().pad_token_id
    no_pad = made.byte_bpe(pad=False)
    assert pad_id(no_pad) == no_pad.eos_token_id
    _, report = tokenize([row(*TEXT)], no_pad)
    assert any("no pad token" in warning and "'</s>'" in warning for warning in report.warnings)
    with pytest.raises(InputError, match=r"neither a pad token nor an EOS token.*Set tokenizer.pad_token"):
        tokenize([row(*TEXT)], made.byte_bpe(pad=False, eos=False))


def test_without_eos_nothing_is_appended_and_said() -> None:
    tokenizer = made.byte_bpe(eos=False)
    (out,), report = tokenize([row(*TEXT)], tokenizer)
    assert sides(out)[0][0] == tokenizer(TEXT[0] + TEXT[1])["input_ids"]
    assert report.ends == {"": 2} and any("no EOS token" in warning for warning in report.warnings)


def test_chats_need_a_template_and_one_that_takes_them() -> None:
    with pytest.raises(InputError, match=r"need a chat template.*tokenizer.chat_template"):
        tokenize([chat_row("Hi.", "A dog.", "A cat.")], made.byte_bpe())
    bad = chat_row("Hi.", "A dog.", "A cat.")
    bad["prompt"] = bad["prompt"] + [{"role": "user", "content": "And?"}]
    rows = [chat_row("Hi.", "A dog.", "A cat."), bad]
    with pytest.raises(InputError, match=r"row 1: the chat template refuses.*must alternate.*roles user, user"):
        tokenize(rows, made.gemma())


def test_responses_of_several_messages_are_scored_whole_and_counted() -> None:
    source = chat_row("Hi.", "A dog.", "A cat.")
    source["response_a"] += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "A ball."}]
    tokenizer = made.chatml()
    (out,), report = tokenize([source, chat_row("Hi.", "One.", "Two.")][:1], tokenizer)
    ids, start = sides(out)[0]
    assert tokenizer.decode(ids[start:]).startswith("A dog.<|im_end|>\n<|im_start|>user\nAnd?")
    assert report.extra_turns == 1 and any("several messages" in warning for warning in report.warnings)


@pytest.mark.parametrize("factory", [*CHATS, made.metaspace, made.word_level])
def test_made_tokenizers_survive_saving(factory: Any, tmp_path: Any) -> None:
    tokenizer = factory()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT[0])["input_ids"] == tokenizer(TEXT[0])["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.special_tokens_map == tokenizer.special_tokens_map


def test_outputs_collate() -> None:
    tokenizer = made.thinking()
    rows = [chat_row("Tell me a story.", "A dog found a ball.", "A dog was happy!"), chat_row("Hi.", "One.", "Two.")]
    out, _ = tokenize(rows, tokenizer)
    batch = collate(out, layout="shared", pad_id=pad_id(tokenizer))
    assert batch["a_tokens"].tolist() == [len(ids) - start for ids, start in (sides(one)[0] for one in out)]


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_common_prefix_is_the_plain_count(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    plain = 0
    while plain < min(len(a), len(b)) and a[plain] == b[plain]:
        plain += 1
    assert common_prefix(a, b) == plain


def test_real_story_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data("stories260K"))
    stories = row("Once upon a time, there was a little", " girl named Lily.", " dog. He was happy.\n")
    (out, implicit), report = tokenize([stories, row("", "Lily ran.", "Tom sat.")], tokenizer)
    for one in (out, implicit):
        check_contract(one)
    for (ids, start), text in zip(sides(out), (stories["response_a"], stories["response_b"]), strict=True):
        assert ids == [*tokenizer(stories["prompt"] + text)["input_ids"], tokenizer.eos_token_id]
        assert ids[:start] == tokenizer(stories["prompt"])["input_ids"]
    assert implicit["prefix_ids"][0] == tokenizer.bos_token_id and implicit["a_start"] == 1
    assert report.context_added == 0 and report.ends == {"</s>": 4}
    assert any("no pad token" in warning for warning in report.warnings)
