"""A prompt and a response as what a reward model reads: one of three forms, tokenized whole, padded on the right.

chat    messages through the chat template, to the last character that it writes: where models of others were
        trained to read their reward
joined  prompt + response, ended by EOS where the tokenizer has one
pair    as two segments, [CLS] prompt [SEP] response [SEP], as encoders take them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from paretune.comparisons.control import chat_ids
from paretune.comparisons.rows import Message, Text
from paretune.comparisons.tokens import common_prefix
from paretune.errors import InputError

FORMS = ("chat", "joined", "pair")


class Encoded(NamedTuple):
    """One sequence: token ids, the response's first and the one after its last, segment numbers (empty: none)."""

    ids: list[int]
    start: int
    end: int
    segments: list[int]


def form_for(tokenizer: PreTrainedTokenizerBase, conversational: bool | None) -> str:
    """The form in which a tokenizer's model is to read rows.

    Args:
        conversational: whether the rows are messages; None where that is not to decide (a model of others): then a chat
            template does.

    Raises:
        InputError: messages, and a tokenizer without a chat template.
    """
    template = bool(tokenizer.chat_template)
    if conversational and not template:
        raise InputError(
            "conversational rows need a chat template and this tokenizer has none",
            where=f"tokenizer {tokenizer.name_or_path}",
            fix="Use the instruct model's tokenizer, set tokenizer.chat_template, or give plain strings.",
        )
    if template and conversational is not False:
        return "chat"
    return "pair" if tokenizer.sep_token_id is not None and tokenizer.is_fast and _two_segments(tokenizer) else "joined"


def _two_segments(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts a separator between two texts, as BERT's does and GPT's does not."""
    ids = tokenizer("a", "a")["input_ids"]
    return tokenizer.sep_token_id in ids[:-1]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    form: str,
    prompts: Sequence[Text],
    responses: Sequence[Text],
    max_length: int | None,
) -> list[Encoded | None]:
    """One sequence per response; None for a response that does not fit whole, or has no token.

    Prompts that are too long lose tokens on their left, after a special token that begins the sequence.

    Raises:
        InputError: messages in a form of plain text, a template that refuses a conversation, a bad form.
    """
    if form not in FORMS:
        raise InputError("bad form", expected=f"one of {', '.join(FORMS)}", found=form)
    if not prompts:
        return []
    if form == "chat":
        found = _chats(tokenizer, prompts, responses)
    else:
        texts = [_plain(text, form) for text in prompts], [_plain(text, form) for text in responses]
        found = _pairs(tokenizer, *texts) if form == "pair" else _joined(tokenizer, *texts)
    special = set(tokenizer.all_special_ids)
    return [_cut(one, max_length, special) if one.start < one.end else None for one in found]


def _plain(text: Text, form: str) -> str:
    if isinstance(text, str):
        return text
    raise InputError(
        "a conversation, for a reward model of plain text",
        where=f"form {form}",
        found=f"{len(text)} messages",
        fix="Give plain prompts, or a reward model with a chat template.",
    )


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _chats(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Encoded]:
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        asked = _messages(prompt, "user")
        whole = _rendered(tokenizer, [*asked, *_messages(response, "assistant")], generation=False)
        alone = _rendered(tokenizer, asked, generation=True) if asked else []
        found.append(Encoded(whole, common_prefix(alone, whole), len(whole), []))
    return found


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: list[Message], *, generation: bool) -> list[int]:
    try:
        return chat_ids(tokenizer, chat, generation=generation)  # the template writes its own special tokens
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(message["role"] for message in chat)
        raise InputError(f"the chat template refuses this conversation: {error}", found=f"roles {roles}") from error


def _joined(tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str]) -> list[Encoded]:
    wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    ids, alone = (
        tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"] for texts in (wholes, prompts)
    )
    eos = tokenizer.eos_token_id
    found = []
    for whole, prompt, response in zip(ids, alone, responses, strict=True):
        start = common_prefix(prompt, whole)
        ended = eos is None or whole[-1:] == [eos] or whole[-1:] == [tokenizer.sep_token_id]
        whole = whole if ended else [*whole, eos]
        found.append(Encoded(whole, start, len(whole) if response else start, []))
    return found


def _pairs(tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str]) -> list[Encoded]:
    encoded = tokenizer(prompts, responses, split_special_tokens=True, verbose=False)
    segments = encoded.get("token_type_ids")
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        second = [place for place, number in enumerate(encoded.sequence_ids(i)) if number == 1]
        start, end = (second[0], second[-1] + 1) if second else (0, 0)
        found.append(Encoded(ids, start, end, segments[i] if segments is not None else []))
    return found


def _cut(one: Encoded, max_length: int | None, special: set[int]) -> Encoded | None:
    excess = 0 if max_length is None else len(one.ids) - max_length
    if excess <= 0:
        return one
    head = 1 if one.ids[0] in special else 0
    if one.start - head - excess < 1:  # one token of the prompt stays
        return None
    keep = slice(head + excess, None)
    segments = one.segments[:head] + one.segments[keep]
    return Encoded(one.ids[:head] + one.ids[keep], one.start - excess, one.end - excess, segments)


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """R sequences padded on their right: input_ids, attention_mask, token_type_ids where there are some, (R, T) int64;
    response, (R, T) bool: which tokens are the response's."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    response = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask[i, :length] = 1
        response[i, row.start : row.end] = True
        if row.segments:
            segments[i, :length] = torch.tensor(row.segments)
    batch = {"input_ids": ids, "attention_mask": mask, "response": response}
    return batch | ({"token_type_ids": segments} if any(row.segments for row in rows) else {})


def longest(config: Any, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int | None:
    """Most tokens of a sequence: what model, tokenizer and user allow; None for no limit."""
    limits = [wanted, getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1 << 30]
    return min(known, default=None)
