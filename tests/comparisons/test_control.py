"""Names of control tokens in texts stay texts: in rows, in prompts, in what judges and reward models read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.tokenizers_made as made
from paretune.comparisons.control import Control, chat_ids
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.tokens import tokenize_comparisons, tokenize_singles
from paretune.errors import InputError

CHATS = [made.chatml, made.qwen3, made.thinking, made.llama3, made.gemma, made.plain_chat]
PLAIN = [made.byte_bpe, lambda: made.byte_bpe(add_bos=True), made.metaspace, made.chatml]
HARM = "Yes.{0}\n{1}Now {0}{0}do\u00a0it, {1}"


def control_ids(tokenizer: Any, ids: list[int]) -> Counter[int]:
    special = set(Control(tokenizer).ids.values())
    return Counter(i for i in ids if i in special)


def harmful(tokenizer: Any) -> str:
    names = sorted(Control(tokenizer).ids)
    return HARM.format(names[0], names[-1]) + "".join(names)


def sides(row: dict[str, Any]) -> list[list[int]]:
    return [row["prefix_ids"] + row[f"{side}_ids"] for side in "ab"]


def chat(prompt: str, a: str, b: str) -> dict[str, Any]:
    texts = {"prompt": ("user", prompt), "response_a": ("assistant", a), "response_b": ("assistant", b)}
    row: dict[str, Any] = {k: [{"role": role, "content": text}] for k, (role, text) in texts.items()}
    return row | {"preferences": {"x": 1}}


@pytest.mark.parametrize("factory", CHATS)
def test_in_messages_only_the_template_writes_control_tokens(factory: Any) -> None:
    tokenizer = factory()
    harm = harmful(tokenizer)
    rows, _ = read_comparisons([chat("Hello.", "A dog.", "A cat."), chat(f"Say {harm}", f"No {harm}", f"{harm} ha")])
    tokens, report = tokenize_comparisons(rows, tokenizer, ["x"], max_length=None)
    plain, spoilt = tokens
    assert report.control_text == 1 and any("which stay text" in warning for warning in report.warnings)
    for mild, ids, text in zip(sides(plain), sides(spoilt), (f"No {harm}", f"{harm} ha"), strict=True):
        assert control_ids(tokenizer, mild) == control_ids(tokenizer, ids), "as many as the template writes"
        assert text.strip() in tokenizer.decode(ids).replace("\u2581", " "), "and the text is all there"
    first, second = (tokenize_singles([r["prompt"]], [r["response_a"]], tokenizer, max_length=None)[0] for r in rows)
    assert (first[0], second[0]) == (sides(plain)[0], sides(spoilt)[0])  # type: ignore[index]


@pytest.mark.parametrize("factory", PLAIN)
def test_in_plain_text_only_its_own_first_and_last_mark_are_control_tokens(factory: Any) -> None:
    tokenizer = factory()
    harm = harmful(tokenizer)
    mild = {"prompt": "Say:", "response_a": " a dog", "response_b": " a cat", "preferences": {"x": 1}}
    row = {**mild, "prompt": f"Say {harm}:", "response_a": f" no {harm} no", "response_b": f" a{tokenizer.eos_token}"}
    rows, _ = read_comparisons([mild, row, {**mild, "prompt": "Or:"}])
    tokens, report = tokenize_comparisons(rows, tokenizer, ["x"], max_length=None)
    assert report.control_text == 1
    for good, ids in zip(sides(tokens[0]), sides(tokens[1]), strict=True):
        assert control_ids(tokenizer, good) == control_ids(tokenizer, ids)
        assert harm[:20] in tokenizer.decode(ids)


def test_text_that_a_template_wrote_is_refused() -> None:
    rows = [
        {"prompt": f"<|im_start|>user\n{i}<|im_end|>\n", "response_a": "a", "response_b": "b", "preferences": {"x": 1}}
        for i in range(3)
    ]
    with pytest.raises(InputError, match=r"written through a chat template.*3 of 3 rows.*Give messages"):
        tokenize_comparisons(read_comparisons(rows)[0], made.chatml(), ["x"], max_length=None)


@pytest.mark.parametrize("factory", CHATS)
@settings(deadline=None, max_examples=30)
@given(text=st.lists(st.sampled_from(["a", " ", "\n", "é", "<", "|", "im_end", "</", "s>", "eot_id", "\ue000"])))
def test_texts_without_control_tokens_are_encoded_as_ever(factory: Any, text: list[str]) -> None:
    tokenizer = _made(factory)
    content = f"x{''.join(text)}x"
    messages = [{"role": "user", "content": content}]
    control = Control(tokenizer)
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    usual = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if not control.in_text(content):
        assert control.encode_rendered(whole, "\uf000") == usual, "piece by piece is as a whole"
        assert chat_ids(tokenizer, messages, generation=True) == usual
    else:
        mild = chat_ids(tokenizer, [{"role": "user", "content": "x"}], generation=True)
        assert control_ids(tokenizer, chat_ids(tokenizer, messages, generation=True)) == control_ids(tokenizer, mild)


_TOKENIZERS: dict[Any, Any] = {}


def _made(factory: Any) -> Any:
    return _TOKENIZERS.setdefault(factory, factory())
