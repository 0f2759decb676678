"""`reward_model: NAME` as a source: one head of a model that scores prompt and response.

    helpful:  {reward_model: rm, head: helpful}
    harmless: {reward_model: rm}                  # a head of the objective's own name, or the only one

A model's heads are computed together, and a second objective that another head labels costs no second pass.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.reward_models.models import (
    TOKEN_LEVELS,
    RewardModel,
    heads_of,
    load_reward_model,
    read_config,
    resident,
    score_encoded,
    weights_fingerprint,
)
from paretune.preferences.reward_models.texts import encode
from paretune.preferences.source import Source

_OPTIONS: dict[str, tuple[type, ...]] = {
    "head": (str, int),
    "batch_size": (int,),
    "max_length": (int,),
    "token_level": (str,),
    "dtype": (str,),
    "device": (str,),
    "trust_remote_code": (bool,),
}
_CALL = 32  # forward passes that one call takes: sorted by length, they are padded little


def check_options(where: str, options: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    """Raises InputError for an option that is not known (the nearest is named) or of another type."""
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
            raise InputError(f"unknown option {key!r}", where=where, fix=fix)
        boolean = isinstance(value, bool) and bool not in known[key]
        if boolean or not isinstance(value, known[key]):
            expected = " or ".join(kind.__name__ for kind in known[key])
            raise InputError(f"bad {key}", where=where, expected=expected, found=value)
    for key in ("batch_size", "max_length"):
        if key in options and options[key] < 1:
            raise InputError(f"bad {key}", where=where, expected="a positive whole number", found=options[key])
    if options.get("dtype", "auto") not in ("auto", "float32", "bfloat16", "float16"):
        expected = "auto, float32, bfloat16 or float16"
        raise InputError("bad dtype", where=where, expected=expected, found=options["dtype"])


def reward_model_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """One head of a reward model as a source of scores. Its configuration is read now, its weights when it is asked.

    Options: `head` (name or number; else the objective's name, or the only one), `batch_size` (responses per forward
    pass), `max_length`, `token_level` (sum or mean, of a model of others that scores tokens), `dtype`, `device`,
    `trust_remote_code`.

    Raises:
        InputError: no such model or head, an unknown option.
    """
    where = f"source {name!r}"
    if not isinstance(value, str) or not value:
        raise InputError("bad reward_model", where=where, expected="a directory or hub id", found=value)
    check_options(where, options, _OPTIONS)
    if options.get("token_level") not in (None, *TOKEN_LEVELS):
        expected = " or ".join(TOKEN_LEVELS)
        raise InputError("bad token_level", where=where, expected=expected, found=options["token_level"])
    load: dict[str, Any] = {
        key: options[key] for key in ("token_level", "dtype", "device", "trust_remote_code") if key in options
    }
    reading = {key: load[key] for key in ("token_level", "trust_remote_code") if key in load}
    config, _ = read_config(value, **reading)
    head = _head(where, name, options.get("head"), heads_of(config))
    on = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        "weights": weights_fingerprint(value, config),
        "max_length": options.get("max_length"),
        "token_level": options.get("token_level"),
        "dtype": options.get("dtype", "auto" if on.startswith("cuda") else "float32"),
    }
    key = json.dumps(settings, sort_keys=True)
    batch = int(options.get("batch_size", 16))
    score = functools.partial(
        _scores, value, load, key=(key, on), head=head, batch=batch, max_length=options.get("max_length")
    )
    return Source(name, f"reward_model 1 {key} head {head}", score=score, batch_size=_CALL * batch)


def _head(where: str, name: str, wanted: str | int | None, heads: list[str]) -> int:
    if isinstance(wanted, int):
        if 0 <= wanted < len(heads):
            return wanted
    elif wanted is None and len(heads) == 1:
        return 0
    else:
        words = name.split(".")  # a part of a combination is named after the objective and its place in it
        own = [".".join(words[:k]) for k in range(len(words), 0, -1)]
        for candidate in [wanted] if wanted is not None else own:
            if candidate in heads:
                return heads.index(candidate)
    shown = ", ".join(heads[:20]) + (", …" if len(heads) > 20 else "")
    found = name if wanted is None else wanted
    fix = "" if wanted is not None else "Choose one with head: NAME, or its number."
    raise InputError("no such head", where=where, expected=f"one of {shown}", found=found, fix=fix)


class _Loaded:
    """A model in memory, and what all of its heads said."""

    def __init__(self, reward: RewardModel):
        self.reward = reward
        self.answers: dict[str, list[float]] = {}


def _scores(
    name: str,
    load: Mapping[str, Any],
    prompts: Sequence[Text],
    responses: Sequence[Text],
    references: Any = None,
    *,
    key: tuple[str, str],
    head: int,
    batch: int,
    max_length: int | None,
) -> Iterator[tuple[int, float]]:
    loaded: _Loaded = resident(key, lambda: _Loaded(load_reward_model(name, **load)))
    reward, known = loaded.reward, loaded.answers
    texts = [json.dumps([p, r], ensure_ascii=False) for p, r in zip(prompts, responses, strict=True)]
    todo = [i for i, text in enumerate(texts) if text not in known]
    yield from ((i, known[text][head]) for i, text in enumerate(texts) if text in known)
    limits = [limit for limit in (reward.limit, max_length) if limit is not None]
    rows = encode(
        reward.tokenizer,
        reward.reading.form,
        [prompts[i] for i in todo],
        [responses[i] for i in todo],
        min(limits, default=None),
    )
    for i, row in zip(todo, rows, strict=True):
        if row is None:  # too long to be read whole
            yield i, math.nan
    ready = [(i, row) for i, row in zip(todo, rows, strict=True) if row is not None]
    ready.sort(key=lambda one: -len(one[1].ids))
    for start in range(0, len(ready), batch):
        part = ready[start : start + batch]
        scores = score_encoded(reward, [row for _, row in part]).tolist()
        for (i, _), row_scores in zip(part, scores, strict=True):
            known[texts[i]] = row_scores
            yield i, row_scores[head]
