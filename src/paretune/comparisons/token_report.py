"""What tokenization did to the rows: the facts of each row, summed up and put in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError

NAMED_ROWS = 10  # how many dropped rows a report names
KEPT, TOO_LONG, NOTHING_TO_SCORE = 0, 1, 2
REASONS = {TOO_LONG: "longer than max_length", NOTHING_TO_SCORE: "no response token to score"}
TOKENS = ["prefix_ids", "a_ids", "b_ids", "a_start", "b_start", "preferences", "index"]
FEATURES = Features(
    {name: List(Value("int32")) for name in ("prefix_ids", "a_ids", "b_ids")}
    | {name: Value("int64") for name in ("a_start", "b_start", "index")}
    | {"preferences": List(Value("float64"))}
    # Facts of each row for the report, gone from the result; columns rather than counters, so that worker processes
    # and datasets' cache report the same as one process does.
    | {name: Value("int32") for name in ("status", "length", "cut", "unstable", "context", "appended")}
    | {name: Value("int32") for name in ("stripped", "turns", "end_a", "end_b")}
)


@dataclass(frozen=True)
class TokenReport:
    """What tokenization did to the rows; all lengths in tokens.

    Args:
        rows, kept, rows_dropped: numbers of rows; `dropped` holds number per reason, `dropped_rows` the first indexes.
        max_length, longest: the limit, and the longest kept side (prompt and response).
        longest_given: the longest side before any truncation.
        prompts_truncated, tokens_cut: rows whose prompt lost tokens on its left, and how many tokens in all.
        non_prefix_prompts: rows where the prompt's own tokens are not how prompt+response begins; one example in words.
        context_added: rows without any token before the response, given `context_token` to be scored from.
        eos_appended: sides whose EOS was appended; `ends` counts sides by the token that ends them ("" is none).
        trailing_stripped: sides whose whitespace after the end of the turn was taken off.
        extra_turns: rows with a response of several messages, all of whose tokens are scored.
        prefix: length of the shared prefix as {min, mean, median, max}; `response` the same over sides' scored tokens.
        tokens_shared, tokens_flat: tokens of one epoch with the prefix computed once, and with it computed twice.
        warnings: what a person should know, in sentences.
    """

    rows: int
    kept: int
    max_length: int | None
    longest: int
    longest_given: int
    rows_dropped: int
    dropped: dict[str, int]
    dropped_rows: list[int]
    prompts_truncated: int
    tokens_cut: int
    non_prefix_prompts: int
    non_prefix_example: str | None
    context_added: int
    context_token: str | None
    eos_appended: int
    ends: dict[str, int]
    trailing_stripped: int
    extra_turns: int
    prefix: dict[str, float]
    response: dict[str, float]
    tokens_shared: int
    tokens_flat: int
    warnings: list[str] = field(default_factory=list)


def sum_up(
    mapped: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    context: int | None,
    parting: Callable[[int], str],
) -> TokenReport:
    """The report of all rows.

    Args:
        mapped: every row with the columns of `FEATURES`, those dropped included.
        tokenizer: names the tokens.
        max_length: the limit it was tokenized with.
        context: token put before responses that have nothing before them.
        parting: says of a row, by its index, where prompt and prompt+response part.

    Raises:
        InputError: no row was kept.
    """
    table = mapped.with_format("arrow")[:]
    facts = {name: np.asarray(table[name]) for name in FEATURES if name not in TOKENS}
    kept = facts["status"] == KEPT
    lost = np.flatnonzero(~kept)
    reasons = {word: int((facts["status"] == code).sum()) for code, word in REASONS.items()}
    reasons = {word: count for word, count in reasons.items() if count}
    longest_given = int(facts["length"].max())
    if not kept.any():
        raise InputError(
            f"none of {len(mapped)} rows can be used: " + ", ".join(f"{n} {word}" for word, n in reasons.items()),
            where="max_length",
            found=f"{max_length}; the longest side has {longest_given} tokens",
            fix="Raise max_length, or shorten the responses." if "longer than max_length" in reasons else "",
        )
    prefix, a, b = (list_lengths(table[k])[kept] for k in ("prefix_ids", "a_ids", "b_ids"))
    starts_a, starts_b = (np.asarray(table[k])[kept] for k in ("a_start", "b_start"))
    unstable = np.flatnonzero(kept & (facts["unstable"] > 0))
    ends, counts = np.unique(np.concatenate([facts[k][kept] for k in ("end_a", "end_b")]), return_counts=True)
    words = [_word(tokenizer, int(end)) if end >= 0 else "" for end in ends]
    given = int((facts["context"][kept] > 0).sum())
    report = TokenReport(
        rows=len(mapped),
        kept=int(kept.sum()),
        max_length=max_length,
        longest=int((prefix + np.maximum(a, b)).max()),
        longest_given=longest_given,
        rows_dropped=len(lost),
        dropped=reasons,
        dropped_rows=[int(i) for i in lost[:NAMED_ROWS]],
        prompts_truncated=int((facts["cut"] > 0).sum()),
        tokens_cut=int(facts["cut"].sum()),
        non_prefix_prompts=len(unstable),
        non_prefix_example=parting(int(unstable[0])) if len(unstable) else None,
        context_added=given,
        context_token=_word(tokenizer, context) if given and context is not None else None,
        eos_appended=int(facts["appended"][kept].sum()),
        ends=dict(zip(words, counts.tolist(), strict=True)),
        trailing_stripped=int(facts["stripped"][kept].sum()),
        extra_turns=int(facts["turns"][kept].sum()),
        prefix=_spread(prefix),
        response=_spread(np.concatenate([prefix + a - starts_a, prefix + b - starts_b])),
        tokens_shared=int((prefix + a + b).sum()),
        tokens_flat=int((2 * prefix + a + b).sum()),
    )
    report.warnings.extend(_warnings(report, tokenizer))
    return report


def list_lengths(column: Any) -> np.ndarray:
    """Lengths of the lists of an Arrow column."""
    return np.concatenate([np.asarray(chunk.value_lengths()) for chunk in column.chunks])


def _spread(lengths: np.ndarray) -> dict[str, float]:
    low, median, high = (float(q) for q in np.quantile(lengths, (0.0, 0.5, 1.0)))
    return {"min": low, "mean": float(lengths.mean()), "median": median, "max": high}


def _word(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token_id))


def _warnings(report: TokenReport, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    found = []
    if tokenizer.pad_token_id is None:
        found.append(f"the tokenizer has no pad token; padding is filled with its EOS {tokenizer.eos_token!r}")
    if tokenizer.eos_token_id is None:
        found.append("the tokenizer has no EOS token, so none is appended: the model cannot learn where to stop")
    if report.rows_dropped:
        why = ", ".join(f"{count} {word}" for word, count in report.dropped.items())
        more = ", ..." if report.rows_dropped > NAMED_ROWS else ""
        named = ", ".join(map(str, report.dropped_rows)) + more
        found.append(f"{report.rows_dropped} of {report.rows} rows are dropped ({why}): rows {named}")
    if report.prompts_truncated:
        found.append(
            f"{report.prompts_truncated} of {report.rows} prompts lose tokens on their left to fit max_length "
            f"{report.max_length} ({report.tokens_cut / report.prompts_truncated:.0f} each on average)"
        )
    if report.non_prefix_prompts:
        found.append(
            f"{report.non_prefix_prompts} of {report.rows} prompts change their tokens when the response follows; "
            f"the response is scored from where the tokens part ({report.non_prefix_example})"
        )
    if report.context_added:
        found.append(
            f"{report.context_added} of {report.rows} rows have no token before the response; "
            f"{report.context_token!r} is put there"
        )
    if report.extra_turns:
        found.append(f"{report.extra_turns} of {report.rows} rows have responses of several messages, all scored")
    return found
