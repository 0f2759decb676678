"""Control tokens are the template's to write: their names in a text are text.

A tokenizer finds `<|im_end|>` or `</s>` wherever it is written and makes the one token of it that ends a turn; so a row
of somebody else's data could end a turn, open another role, or teach a model to stop in mid-sentence. Here such text is
encoded as the letters that it is. Of messages, only what the chat template writes around them becomes control tokens.
Plain text has no template; a BOS at its very beginning and an EOS at the end of a response are taken as the marks that
people write there by hand, anything else as text.

Special tokens only: `<think>`, which models write themselves, stays the token that it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from paretune.comparisons.rows import Text

Messages = Sequence[dict[str, str]]


class Written(NamedTuple):
    """A text to encode; `special` where it names control tokens, and then `mark` tells these from a template's."""

    text: str
    mark: str
    special: bool


class Control:
    """A tokenizer's control tokens, and text encoded without making any.

    Attributes:
        pattern: finds the name of one; None for a tokenizer without any.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.ids = {
            str(token.content): int(number)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and str(token.content).strip()
        }
        names = sorted(self.ids, key=len, reverse=True)  # of two that begin alike the longer one is meant
        self.pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def in_text(self, text: str) -> bool:
        """Whether a text names one."""
        return self.pattern is not None and self.pattern.search(text) is not None

    def plain(self, text: str, *, ends: bool) -> Written:
        """A plain text; special where it names a control token that is no mark of its own (see above).

        Args:
            ends: it ends with a response.
        """
        return Written(text, "", self.in_text(self._unmarked(text, ends)[1]))

    def encode(self, texts: Sequence[Written], *, ends: bool) -> list[list[int]]:
        """The tokens of texts of one kind; those that name control tokens go one by one."""
        ids = list(self.tokenizer([text.text for text in texts], **PLAINLY)["input_ids"])
        for i, (text, mark, special) in enumerate(texts):
            if special:
                ids[i] = self.encode_rendered(text, mark) if mark else self.encode_plain(text, ends=ends)
        return ids

    def encode_plain(self, text: str, *, ends: bool) -> list[int]:
        """A plain text's tokens; its own marks are the only control tokens among them."""
        head, middle, tail = self._unmarked(text, ends)
        return [*head, *self._as_text(middle), *tail]

    def guarded(self, chat: Messages) -> tuple[list[dict[str, str]], str]:
        """The messages with a mark inside each name in them, and the mark; the same messages and "" without any."""
        contents = [part for message in chat for part in (message["role"], message["content"])]
        if not any(map(self.in_text, contents)):
            return list(chat), ""
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if not any(chr(code) in part for part in contents))
        return [{key: self._marked(value, mark) for key, value in message.items()} for message in chat], mark

    def encode_rendered(self, text: str, mark: str) -> list[int]:
        """The tokens of what a template wrote of guarded messages: names with the mark in them are text."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += [self.ids[piece]] if piece in self.ids else self._as_text(piece.replace(mark, ""))
        return ids

    def _marked(self, text: str, mark: str) -> str:
        if self.pattern is None:
            return text
        return self.pattern.sub(lambda found: f"{found[0][:1]}{mark}{found[0][1:]}", text)

    def _pieces(self, text: str) -> Iterator[str]:
        place = 0
        for found in self.pattern.finditer(text) if self.pattern is not None else ():
            yield text[place : found.start()]
            yield found[0]
            place = found.end()
        yield text[place:]

    def _as_text(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, split_special_tokens=True, **PLAINLY)["input_ids"])

    def _unmarked(self, text: str, ends: bool) -> tuple[list[int], str, list[int]]:
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        head, tail = [], []
        if bos and bos in self.ids and text.startswith(bos):
            head, text = [self.ids[bos]], text.removeprefix(bos)
        if ends and eos and eos in self.ids and text.endswith(eos):
            tail, text = [self.ids[eos]], text.removesuffix(eos)
        return head, text, tail


PLAINLY: dict[str, Any] = {
    "add_special_tokens": False,
    "padding": False,
    "truncation": False,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}


def chat_ids(tokenizer: PreTrainedTokenizerBase, chat: Messages, *, generation: bool, **options: Any) -> list[int]:
    """One conversation's tokens as the template gives them, with control tokens of the template alone.

    Args:
        generation: with the beginning of the answer.
        options: of the template.

    Raises:
        whatever the template raises.
    """
    control = Control(tokenizer)
    messages, mark = control.guarded(chat)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, **options))
    return control.encode_rendered(text, mark) if mark else list(tokenizer(text, **PLAINLY)["input_ids"])


def leading_ids(tokenizer: PreTrainedTokenizerBase, probe: str) -> list[int]:
    """What the tokenizer itself puts before a text; what it may put behind (EOS, [SEP]) is no part of a prompt."""
    bare = tokenizer(probe, **PLAINLY)["input_ids"]
    dressed = tokenizer(probe, truncation=False, verbose=False)["input_ids"]
    for k in range(len(dressed) - len(bare) + 1):
        if dressed[k : k + len(bare)] == bare:
            return list(dressed[:k])
    return []


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Text, **options: Any) -> list[int]:
    """The tokens that a response to a prompt follows: plain text as it begins a row, messages through the template.

    Raises:
        whatever the template raises.
    """
    if not isinstance(prompt, str):
        return chat_ids(tokenizer, prompt, generation=True, **options)
    control = Control(tokenizer)
    if not control.plain(prompt, ends=False).special:
        return list(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
    ids, leading = control.encode_plain(prompt, ends=False), leading_ids(tokenizer, "a")
    return ids if ids[: len(leading)] == leading else [*leading, *ids]
