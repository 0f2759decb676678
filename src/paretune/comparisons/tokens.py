"""Text to tokens: chat templates, one EOS, no double BOS, the prefix both sides share, truncation of prompts only.

Each side is tokenized as a whole, prompt and response together, because that is what the model reads when it answers: a
merge across the boundary or a template that writes its generation prompt differently must not put tokens into training
that never occur in use. Where the response starts is then read off as the end of the longest common token prefix of the
prompt alone and the whole side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Value
from datasets.fingerprint import Hasher
from datasets.table import ConcatenationTable, InMemoryTable
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from paretune.comparisons import token_store
from paretune.comparisons.columns import labels, stretches
from paretune.comparisons.control import Control, Written, leading_ids
from paretune.comparisons.rows import Text, clean_row
from paretune.comparisons.token_report import KEPT, NOTHING_TO_SCORE, TOKENS, TOO_LONG, Counts, TokenReport, sum_up
from paretune.comparisons.token_work import processes, work_through
from paretune.errors import InputError

__all__ = ["TokenReport", "common_prefix", "pad_id", "tokenize_comparisons", "tokenize_singles"]


class Scheme(NamedTuple):
    """How this tokenizer and these rows are to be tokenized: found once, used for every row."""

    tokenizer: PreTrainedTokenizerBase
    conversational: bool
    leading: list[int]  # what the tokenizer itself puts before plain text, usually [BOS] or nothing
    context: int | None  # stands before a response that has nothing before it
    eos: int | None
    control: Control
    ends: frozenset[int]  # EOS and special tokens: one of them as last token of a rendered turn ends it
    max_length: int | None


class Side(NamedTuple):
    """One whole sequence, its first response token, and what was done to its end."""

    ids: list[int]
    start: int
    appended: bool
    stripped: bool


def tokenize_comparisons(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    objective_names: Sequence[str],
    *,
    max_length: int | None,
    num_proc: int | None = None,
) -> tuple[Dataset, TokenReport]:
    """Tokenizes rows of `read_comparisons`, in their order; rows that cannot be kept whole are dropped and reported.

    What was tokenized once is found again on disk (`token_store`), whatever its labels are now.

    Args:
        rows: columns prompt, response_a, response_b (all strings or all message lists) and preferences.
        tokenizer: of the model to train; conversational rows need its chat template.
        objective_names: order of the `preferences` column of the result.
        max_length: most tokens of prompt and response together; prompts are cut on their left until the longer response
            fits whole. None: no limit.
        num_proc: processes that tokenize; None chooses by rows and cores. The result does not depend on it.

    Returns:
        Per kept row prefix_ids, a_ids, b_ids, a_start, b_start, preferences (NaN = no opinion) and index. prefix_ids is
        the longest common token prefix of both sides that leaves each a token; starts count from the beginning of the
        whole sequence and are at least 1. And the report.

    Raises:
        InputError: no rows or none left, an unknown objective, no chat template or one that refuses a row, plain text
            that was written through a template (most rows name control tokens), a tokenizer without pad and EOS token,
            or one without BOS and EOS where a response has nothing before it.
    """
    names = list(objective_names)
    _check(rows, tokenizer, names, max_length)
    scheme = _scheme(rows, tokenizer, max_length)
    key = token_store.tokens_key(rows, tokenizer, max_length)
    tokens, damage = token_store.find(key)
    if tokens is None:
        texts = rows.select_columns(list(token_store.TEXTS)).with_format(None)
        work = partial(_tokenize, texts, scheme)
        tokens = token_store.keep(key, work_through(len(rows), work, processes(num_proc, len(rows))))
    _check_plain(tokens.counts, scheme)
    report = sum_up(
        tokens.table,
        tokens.counts,
        tokens.fingerprint,
        tokenizer,
        max_length,
        scheme.context,
        lambda index: _parting(rows, index, scheme),
    )
    report.warnings.extend([*damage, *tokens.notices])
    return _with_preferences(tokens, key, rows, names), report


def _check_plain(counts: Counts, scheme: Scheme) -> None:
    if not scheme.conversational and 2 * counts.control > counts.rows:
        raise InputError(
            "these texts were written through a chat template",
            where=f"row {counts.first_control}",
            expected="plain text, in which the names of control tokens are text too",
            found=f"such names in {counts.control} of {counts.rows} rows",
            fix="Give messages, {role, content}: the tokenizer's chat template writes the control tokens.",
        )


def _with_preferences(tokens: token_store.Tokens, key: str, rows: Dataset, names: list[str]) -> Dataset:
    """The tokens with the labels that the rows have now."""
    label_RM = np.concatenate([labels(part["preferences"], names) for part in stretches(rows, ["preferences"])])
    label_RM = label_RM[np.asarray(tokens.table["index"])]
    offsets = np.arange(len(label_RM) + 1, dtype=np.int32) * len(names)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(label_RM.reshape(-1)))  # NaN stays NaN: no opinion
    table = ConcatenationTable.from_tables([tokens.table, InMemoryTable(pa.table({"preferences": lists}))], axis=1)
    fingerprint = Hasher.hash([key, names, label_RM.tobytes()])
    return Dataset(table, fingerprint=fingerprint).select_columns(TOKENS)


def tokenize_singles(
    prompts: Sequence[Text], responses: Sequence[Text], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
) -> list[tuple[list[int], int] | None]:
    """Single responses by the rules of comparisons: per response the whole sequence and its first response token.

    None for a response that cannot be kept whole, or has nothing to score. Nothing is kept on disk.

    Raises:
        InputError: as `tokenize_comparisons`.
    """
    found: list[tuple[list[int], int] | None] = [None] * len(prompts)
    chats = [isinstance(p, list) or isinstance(r, list) for p, r in zip(prompts, responses, strict=True)]
    for conversational in {*chats}:
        places = [i for i, chat in enumerate(chats) if chat is conversational]
        rows = [
            clean_row(
                {"prompt": prompts[i], "response_a": responses[i], "response_b": responses[i], "preferences": {}},
                conversational=conversational,
            )
            for i in places
        ]
        texts = Dataset.from_list([{name: row[name] for name in token_store.TEXTS} for row in rows])
        batch, _ = _tokenize(texts, _scheme(texts, tokenizer, max_length), 0, len(texts))
        for row in batch.to_pylist():
            found[places[row["index"]]] = (row["prefix_ids"] + row["a_ids"], row["a_start"])
    return found


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills padding: the pad token, else EOS. Padding is masked and not scored: both are exact.

    Raises:
        InputError: neither exists.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise InputError(
        "the tokenizer has neither a pad token nor an EOS token",
        where=_name(tokenizer),
        fix="Set tokenizer.pad_token to a token of its vocabulary and save the tokenizer beside the model.",
    )


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"


def _check(rows: Dataset, tokenizer: PreTrainedTokenizerBase, names: list[str], max_length: int | None) -> None:
    if len(rows) == 0:
        raise InputError("no rows to tokenize", expected="at least one comparison")
    if max_length is not None and max_length < 2:
        raise InputError("bad max_length", expected="at least 2 tokens, or none for no limit", found=max_length)
    known = list(rows.features["preferences"])
    for name in names:
        if name not in known:
            raise InputError(f"unknown objective {name!r}", where="preferences", expected=f"one of {', '.join(known)}")
    pad_id(tokenizer)


def _scheme(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Scheme:
    conversational = not isinstance(rows.features["prompt"], Value)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    leading: list[int] = []
    if conversational:
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            raise InputError(
                "conversational rows need a chat template and this tokenizer has none",
                where=_name(tokenizer),
                fix="Use the instruct model's tokenizer, set tokenizer.chat_template, or give plain strings.",
            ) from error
    else:
        leading = leading_ids(tokenizer, rows[0]["prompt"] + rows[0]["response_a"])
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    ends = frozenset(special if eos is None else special | {eos})
    context = eos if bos is None else bos
    return Scheme(tokenizer, conversational, leading, context, eos, Control(tokenizer), ends, max_length)


def _tokenize(texts: Dataset, scheme: Scheme, start: int, end: int) -> tuple[Any, Counts]:
    """Rows start .. end: a record batch of those kept, and the counts of all."""
    batch, indexes, counts = texts[start:end], list(range(start, end)), Counts()
    written = list(_texts(batch, indexes, scheme))
    ids = [scheme.control.encode(some, ends=ends) for some, ends in zip(written, (False, True, True), strict=True)]
    kept = []
    for i, index in enumerate(indexes):
        row = _row(ids[0][i], ids[1][i], ids[2][i], scheme) | {"index": index}
        row["control"] = int(any(some[i].special for some in written))
        sides = (batch["response_a"][i], batch["response_b"][i])
        row["turns"] = int(scheme.conversational and any(len(side) > 1 for side in sides))
        counts.row(index, row)
        if row["status"] == KEPT:
            kept.append(row)
    schema = token_store.SCHEMA
    columns = [pa.array([row[name] for row in kept], type=schema.field(name).type) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema), counts


def _texts(batch: dict[str, list[Any]], indexes: list[int], scheme: Scheme) -> Iterator[list[Written]]:
    """Three lists of texts: prompts, prompts with response a, prompts with response b."""
    prompts = batch["prompt"]
    if not scheme.conversational:
        yield [scheme.control.plain(prompt, ends=False) for prompt in prompts]
        for side in ("response_a", "response_b"):
            yield [
                scheme.control.plain(p + response, ends=True) for p, response in zip(prompts, batch[side], strict=True)
            ]
        return
    # A template cannot be asked for the generation prompt of no messages at all: nothing is known to be prompt then.
    yield [
        _render(prompt, index, scheme, generation=True) if prompt else Written("", "", False)
        for prompt, index in zip(prompts, indexes, strict=True)
    ]
    for side in ("response_a", "response_b"):
        yield [
            _render(prompt + response, index, scheme, generation=False)
            for prompt, response, index in zip(prompts, batch[side], indexes, strict=True)
        ]


def _render(chat: list[Any], index: int, scheme: Scheme, *, generation: bool) -> Written:
    guarded, mark = scheme.control.guarded(chat)
    try:
        text = scheme.tokenizer.apply_chat_template(guarded, tokenize=False, add_generation_prompt=generation)
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(str(message.get("role")) for message in chat)
        raise InputError(
            f"the chat template refuses this conversation: {error}",
            where=f"row {index}",
            found=f"roles {roles}" if roles else "no messages",
            fix="Change its messages, or use a tokenizer whose template accepts them.",
        ) from error
    return Written(str(text), mark, bool(mark))


def _row(prompt: list[int], full_a: list[int], full_b: list[int], scheme: Scheme) -> dict[str, Any]:
    """One output row without index and preferences; token lists are empty unless its status is KEPT."""
    prompt, full_a, full_b = (_with_leading(ids, scheme.leading) for ids in (prompt, full_a, full_b))
    a, b = _side(prompt, full_a, scheme), _side(prompt, full_b, scheme)
    unstable = min(a.start, b.start) < len(prompt)
    context = min(a.start, b.start) == 0
    if context:
        a, b = _with_context(a, scheme), _with_context(b, scheme)
    length = max(len(a.ids), len(b.ids))
    first = min(a.start, b.start)
    head = 1 if context or a.ids[0] == scheme.tokenizer.bos_token_id else 0
    head = max(head, len(scheme.leading))
    cut = 0 if scheme.max_length is None else max(0, length - scheme.max_length)
    status = KEPT
    if a.start >= len(a.ids) or b.start >= len(b.ids):
        status = NOTHING_TO_SCORE
    elif cut and cut > first - head - 1:  # one token of the prompt stays, besides BOS
        status = TOO_LONG
    facts = {
        "status": status,
        "length": length,
        "cut": cut if status == KEPT else 0,
        "unstable": int(unstable),
        "context": int(context),
        "appended": a.appended + b.appended,
        "stripped": a.stripped + b.stripped,
        "end_a": a.ids[-1] if a.ids[-1] in scheme.ends else -1,
        "end_b": b.ids[-1] if b.ids[-1] in scheme.ends else -1,
    }
    if status != KEPT:
        return facts | {"prefix_ids": [], "a_ids": [], "b_ids": [], "a_start": 0, "b_start": 0}
    # Everything up to `first` is the prompt's own tokens and so the same on both sides: cutting there keeps it shared.
    ids_a, ids_b = (ids[:head] + ids[head + cut :] for ids in (a.ids, b.ids))
    shared = min(common_prefix(ids_a, ids_b), len(ids_a) - 1, len(ids_b) - 1)
    return facts | {
        "prefix_ids": ids_a[:shared],
        "a_ids": ids_a[shared:],
        "b_ids": ids_b[shared:],
        "a_start": a.start - cut,
        "b_start": b.start - cut,
    }


def _with_leading(ids: list[int], leading: list[int]) -> list[int]:
    return ids if ids[: len(leading)] == leading else leading + ids


def _side(prompt: list[int], full: list[int], scheme: Scheme) -> Side:
    """Response start, and exactly one end: EOS appended, or the template's own end of turn as the last token.

    What a template writes after the end of a turn (a newline in ChatML) is never generated, so it is not scored either.
    """
    start = common_prefix(prompt, full)
    end = len(full)
    if scheme.conversational:
        while end > start and full[end - 1] != scheme.eos and _is_space(full[end - 1], scheme):
            end -= 1
        if end > start and full[end - 1] in scheme.ends:
            return Side(full[:end], start, appended=False, stripped=end < len(full))
    elif len(full) > start and full[-1] == scheme.eos:
        return Side(full, start, appended=False, stripped=False)
    if scheme.eos is None:
        return Side(full, start, appended=False, stripped=False)
    return Side([*full, scheme.eos], start, appended=True, stripped=False)


def _is_space(token_id: int, scheme: Scheme) -> bool:
    return not str(scheme.tokenizer.decode([token_id])).strip()


def _with_context(side: Side, scheme: Scheme) -> Side:
    if scheme.context is None:
        raise InputError(
            "a response has no token before it, and the tokenizer has neither BOS nor EOS to stand there",
            where=_name(scheme.tokenizer),
            fix="Give every row a prompt, or set tokenizer.bos_token.",
        )
    return side._replace(ids=[scheme.context, *side.ids], start=side.start + 1)


def common_prefix(a: list[int], b: list[int]) -> int:
    """Number of tokens with which both lists begin. Bisection, so that slices do the comparing."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low] and a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _parting(rows: Dataset, index: int, scheme: Scheme) -> str:
    """Where the first unstable row's prompt and prompt+response part, in tokens."""
    batch = rows[index : index + 1]
    prompt, *sides = (
        _with_leading(scheme.control.encode(texts, ends=ends)[0], scheme.leading)
        for texts, ends in zip(_texts(batch, [index], scheme), (False, True, True), strict=True)
    )
    side = min(sides, key=lambda ids: common_prefix(prompt, ids))
    start = common_prefix(prompt, side)
    alone, joint = (scheme.tokenizer.convert_ids_to_tokens(ids[start : start + 4]) for ids in (prompt, side))
    return f"row {index}: the prompt goes on with {alone}, prompt and response with {joint}"
