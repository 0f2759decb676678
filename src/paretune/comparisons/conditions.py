"""Prompts that say what is wanted: weights or required ratings in a prefix, so that one model answers for all of them.

    Prefix("Weights: {values}.\\n", decimals=1)     Weights: helpful 0.7, harmless 0.3.
    Prefix("{values} ", words={"helpful": "lift", "harmless": "wipe"})       lift lift lift wipe wipe …

The second form is for vocabularies that have no numbers: an objective's word as often as its level says.

Suffixes: R rows, M objectives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.comparisons.rows import Text
from paretune.errors import InputError, as_written
from paretune.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "{values}"


@dataclass(frozen=True)
class Prefix:
    """How levels, whole numbers per objective, are written before a prompt.

    Args:
        template: text with `{values}` in it, that goes before the prompt as it is.
        words: objective -> the word that is repeated; without them levels are written as numbers behind names.
        decimals: digits behind the point: a level of 7 is 0.7 with one, 7 with none.
    """

    template: str
    words: Mapping[str, str] = field(default_factory=dict)
    decimals: int = 0

    def text(self, levels: Mapping[str, int]) -> str:
        """The prefix that asks for these levels and leaves other objectives free; of no levels, none."""
        if not levels:
            return ""
        if self.words:
            values = " ".join(self.words[name] for name, level in levels.items() for _ in range(level))
        else:
            values = ", ".join(
                f"{name} {level / 10**self.decimals:.{self.decimals}f}" for name, level in levels.items()
            )
        return self.template.replace(PLACE, values)


def prefixed(prompt: Text, prefix: str) -> Text:
    """The prompt behind a prefix; of messages, the first line of the first user message, which every template takes."""
    if isinstance(prompt, str):
        return prefix + prompt
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), 0)
    changed = {**prompt[first], "content": prefix + prompt[first]["content"]}
    return [*prompt[:first], changed, *prompt[first + 1 :]]


def make_prefix(names: Sequence[str], template: Any, words: Any, *, default: str, decimals: int) -> Prefix:
    """The prefix that a person asks for.

    Args:
        template: text with `{values}`, or None for the default: `default`, or the bare words where words are given.
        words: mapping of every objective to a word, or None.

    Raises:
        InputError: no place for the values, an objective without a word or a word for none, two with one word.
    """
    if words is not None and (not isinstance(words, Mapping) or set(words) != set(names)):
        raise InputError("bad words", expected=f"a word for each of {', '.join(names)}", found=words)
    given = {str(name): str(words[name]) for name in names} if words else {}
    if len(set(given.values())) < len(given) or any(not word.strip() for word in given.values()):
        raise InputError("bad words", expected="a word of its own for each objective", found=words)
    template = (f"{PLACE} " if given else default) if template is None else str(template)
    if template.count(PLACE) != 1:
        raise InputError("bad prefix", expected=f"text with {PLACE} in it once", found=template)
    return Prefix(template, given, decimals)


def check_prefix(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError where a tokenizer cannot tell conditions apart, or does not know a word of them.

    Args:
        texts: prefixes that ask for different things.
    """
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    unknown = tokenizer.unk_token_id
    fix = "Give words: {objective: a word of its vocabulary}, and a prefix of such words."
    for text, tokens in zip(texts, ids, strict=True):
        if unknown is not None and unknown in tokens:
            raise InputError("the tokenizer does not know all words of the prefix", where="prefix", found=text, fix=fix)
    if len(set(ids)) < len(set(texts)) or len(set(texts)) < len(texts):
        raise InputError("the tokenizer writes different conditions alike", where="prefix", found=texts[:2], fix=fix)


# ---- weights ----


def rounded_shares(weights_RM: np.ndarray, levels: int) -> np.ndarray:
    """(R, M) whole numbers of sum `levels` nearest to weights of sum 1: the largest remainders are rounded up."""
    exact = np.asarray(weights_RM, dtype=np.float64) * levels
    down = np.floor(exact + 1e-9).astype(np.int64)
    lacking = levels - down.sum(1)
    order = np.argsort(-(exact - down).round(9), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return down + (rank < lacking[:, None])


def drawn_weights(rows: int, objectives: int, alpha: float, levels: int, seed: Sequence[int]) -> np.ndarray:
    """(R, M) float64 weights, one draw per row from the symmetric Dirichlet(alpha), rounded to 1/levels."""
    draws = np.random.default_rng(list(seed)).dirichlet([alpha] * objectives, size=rows)
    return rounded_shares(draws, levels) / levels


# ---- ratings ----


def rating_cuts(values: np.ndarray, levels: int) -> tuple[float, float] | None:
    """Between which scores the ratings 1 to `levels` are cut; None where whole numbers, at most so many, are ratings.

    The cuts are the 5 % and 95 % quantiles, so that a few outliers do not use up the scale.
    """
    known = values[~np.isnan(values)]
    if np.equal(known, np.round(known)).all() and len(np.unique(known)) <= levels:
        return None
    low, high = np.quantile(known, [0.05, 0.95]).tolist()
    return (low, high) if high > low else (float(known.min()), float(known.max()))


def as_ratings(values: np.ndarray, cuts: tuple[float, float] | None, levels: int) -> np.ndarray:
    """Scores as whole numbers; NaN stays NaN."""
    if cuts is None:
        return values
    low, high = cuts
    return 1 + np.round((levels - 1) * np.clip((values - low) / (high - low), 0, 1))


def drawn_requirements(ratings_R2M: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """(R, M) what each pair is asked for, NaN where an objective is left free.

    Each objective with probability 1/2 and one at least: the rating of one of the pair's sides, drawn evenly, so that
    what is asked for can be had.
    """
    rng = np.random.default_rng(list(seed))
    rows, _, m = ratings_R2M.shape
    controlled = rng.random((rows, m)) < 0.5
    controlled[np.arange(rows), rng.integers(m, size=rows)] |= ~controlled.any(1)
    side = rng.integers(2, size=rows)
    return np.where(controlled, ratings_R2M[np.arange(rows), side], np.nan)


def required_ratings(weights_M: Sequence[float], low_M: Sequence[int], high_M: Sequence[int]) -> list[int]:
    """(M,) the ratings to ask for at given weights: the best for the largest weight, for others
    low + min(M w, 1) (high - low), rounded. RiC's "linf" map, arXiv 2402.10207, in the form of its code."""
    top = int(np.argmax(weights_M))
    part = [1.0 if i == top else min(len(weights_M) * w, 1.0) for i, w in enumerate(weights_M)]
    return [round(low + p * (high - low)) for p, low, high in zip(part, low_M, high_M, strict=True)]


def conditioned_reward(ratings_RM: np.ndarray, required_RM: np.ndarray) -> np.ndarray:
    """(R,) R = sum over objectives of -|rating - required| where a rating is required, else of the rating.

    Guo et al., arXiv 2402.19085 (CDPO), with all their factors 1. `required_RM` is NaN where an objective is left free;
    an unrated objective counts for nothing.
    """
    controlled = ~np.isnan(required_RM)
    return np.nansum(np.where(controlled, -np.abs(ratings_RM - required_RM), ratings_RM), axis=1)


# ---- what a run keeps ----


def write_prefix(directory: Path, prefix: Prefix, **more: Any) -> None:
    """Keeps, beside a conditioned model, how it is asked."""
    text = json.dumps({**asdict(prefix), **more}, indent=2)
    write_text(directory / "conditions.json", text + "\n")


def read_prefix(directory: Path) -> tuple[Prefix, dict[str, Any]]:
    """The prefix that `write_prefix` kept, and what else it kept.

    Raises:
        InputError: the file is not there.
    """
    path = directory / "conditions.json"
    if not path.exists():
        raise InputError("not a conditioned model", where=str(directory), expected="conditions.json beside it")
    with as_written(path, "a conditioned model's prefix"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: content.pop(name) for name in ("template", "words", "decimals")}
        return Prefix(**kept), content
