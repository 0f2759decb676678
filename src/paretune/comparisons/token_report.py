"""What tokenization did to the rows: counted as they come, summed up and put in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError

NAMED_ROWS = 10  # how many dropped rows a report names
KEPT, TOO_LONG, NOTHING_TO_SCORE = 0, 1, 2
REASONS = {TOO_LONG: "longer than max_length", NOTHING_TO_SCORE: "no response token to score"}
TOKENS = ["prefix_ids", "a_ids", "b_ids", "a_start", "b_start", "preferences", "index"]


@dataclass
class Counts:
    """What is counted over rows while they are tokenized; counts of parts add up to those of the whole.

    Numbers of rows, and as in `TokenReport`; `unstable` is of kept rows whose prompt is not how the side begins, the
    first of them `first_unstable` (-1: none); so `control`, of rows whose text names control tokens; `ends` counts
    sides by the id of the token that ends them ("-1": none).
    """

    rows: int = 0
    kept: int = 0
    longest_given: int = 0
    too_long: int = 0
    nothing_to_score: int = 0
    dropped_rows: list[int] = field(default_factory=list)
    prompts_truncated: int = 0
    tokens_cut: int = 0
    unstable: int = 0
    first_unstable: int = -1
    context: int = 0
    appended: int = 0
    stripped: int = 0
    turns: int = 0
    control: int = 0
    first_control: int = -1
    ends: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Counts:
        """From the plain values of `asdict`; raises TypeError where they are not those of this class."""
        if plain.keys() != {one.name for one in fields(cls)}:
            raise TypeError("other counts")
        found, ends = cls(**plain), plain["ends"]
        whole = [v for name, v in plain.items() if name not in ("dropped_rows", "ends")]
        if not all(type(v) is int for v in [*whole, *plain["dropped_rows"], *ends.values(), *map(int, ends)]):
            raise TypeError("counts that are no numbers")
        return found

    def row(self, index: int, facts: dict[str, Any]) -> None:
        """Counts one row."""
        self.rows += 1
        if facts["control"]:
            self.control += 1
            self.first_control = index if self.first_control < 0 else self.first_control
        self.longest_given = max(self.longest_given, facts["length"])
        if facts["status"] != KEPT:
            self.too_long += facts["status"] == TOO_LONG
            self.nothing_to_score += facts["status"] == NOTHING_TO_SCORE
            if len(self.dropped_rows) < NAMED_ROWS:
                self.dropped_rows.append(index)
            return
        self.kept += 1
        self.prompts_truncated += facts["cut"] > 0
        self.tokens_cut += facts["cut"]
        self.context += facts["context"]
        self.appended += facts["appended"]
        self.stripped += facts["stripped"]
        self.turns += facts["turns"]
        if facts["unstable"]:
            self.unstable += 1
            self.first_unstable = index if self.first_unstable < 0 else self.first_unstable
        for end in (facts["end_a"], facts["end_b"]):
            self.ends[str(end)] = self.ends.get(str(end), 0) + 1

    def add(self, later: Counts) -> None:
        """Adds the counts of the rows that follow."""
        for name in (one.name for one in fields(Counts)):
            mine, theirs = getattr(self, name), getattr(later, name)
            if name == "longest_given":
                self.longest_given = max(mine, theirs)
            elif name in ("first_unstable", "first_control"):
                setattr(self, name, mine if mine >= 0 else theirs)
            elif name == "dropped_rows":
                self.dropped_rows = (mine + theirs)[:NAMED_ROWS]
            elif name == "ends":
                self.ends = {end: mine.get(end, 0) + theirs.get(end, 0) for end in [*mine, *theirs]}
            else:
                setattr(self, name, mine + theirs)


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
        control_text: rows whose text names control tokens of the tokenizer (`control`): it is encoded as text.
        extra_turns: rows with a response of several messages, all of whose tokens are scored.
        prefix: length of the shared prefix as {min, mean, median, max}; `response` the same over sides' scored tokens.
        tokens_shared, tokens_flat: tokens of one epoch with the prefix computed once, and with it computed twice.
        fingerprint: identifies the kept rows' tokens and their order, not their labels.
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
    control_text: int
    extra_turns: int
    prefix: dict[str, float]
    response: dict[str, float]
    tokens_shared: int
    tokens_flat: int
    fingerprint: str
    warnings: list[str] = field(default_factory=list)


def sum_up(
    table: Any,
    counts: Counts,
    fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    context: int | None,
    parting: Callable[[int], str],
) -> TokenReport:
    """The report of all rows.

    Args:
        table: the kept rows' tokens, with Arrow columns prefix_ids, a_ids, b_ids, a_start, b_start.
        counts: of all rows.
        fingerprint: of the table.
        tokenizer: names the tokens.
        max_length: the limit it was tokenized with.
        context: token put before responses that have nothing before them.
        parting: says of a row, by its index, where prompt and prompt+response part.

    Raises:
        InputError: no row was kept.
    """
    reasons = {REASONS[TOO_LONG]: counts.too_long, REASONS[NOTHING_TO_SCORE]: counts.nothing_to_score}
    reasons = {word: count for word, count in reasons.items() if count}
    if not counts.kept:
        raise InputError(
            f"none of {counts.rows} rows can be used: " + ", ".join(f"{n} {word}" for word, n in reasons.items()),
            where="max_length",
            found=f"{max_length}; the longest side has {counts.longest_given} tokens",
            fix="Raise max_length, or shorten the responses." if counts.too_long else "",
        )
    prefix, a, b = (list_lengths(table[k]) for k in ("prefix_ids", "a_ids", "b_ids"))
    starts_a, starts_b = (np.asarray(table[k]) for k in ("a_start", "b_start"))
    ends = sorted((int(end), count) for end, count in counts.ends.items())
    report = TokenReport(
        rows=counts.rows,
        kept=counts.kept,
        max_length=max_length,
        longest=int((prefix + np.maximum(a, b)).max()),
        longest_given=counts.longest_given,
        rows_dropped=counts.rows - counts.kept,
        dropped=reasons,
        dropped_rows=counts.dropped_rows,
        prompts_truncated=counts.prompts_truncated,
        tokens_cut=counts.tokens_cut,
        non_prefix_prompts=counts.unstable,
        non_prefix_example=parting(counts.first_unstable) if counts.unstable else None,
        context_added=counts.context,
        context_token=_word(tokenizer, context) if counts.context and context is not None else None,
        eos_appended=counts.appended,
        ends={_word(tokenizer, end) if end >= 0 else "": count for end, count in ends},
        trailing_stripped=counts.stripped,
        control_text=counts.control,
        extra_turns=counts.turns,
        prefix=_spread(prefix),
        response=_spread(np.concatenate([prefix + a - starts_a, prefix + b - starts_b])),
        tokens_shared=int((prefix + a + b).sum()),
        tokens_flat=int((2 * prefix + a + b).sum()),
        fingerprint=fingerprint,
    )
    if counts.control:
        report.warnings.append(
            f"{counts.control} of {counts.rows} rows name control tokens in their text, which stay text "
            f"(the first: row {counts.first_control})"
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
