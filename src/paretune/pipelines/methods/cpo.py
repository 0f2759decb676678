"""Controllable preference optimization (its CDPO): a prefix requires ratings, and the nearer response is preferred."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.comparisons.conditions import (
    Prefix,
    as_ratings,
    check_prefix,
    conditioned_reward,
    drawn_requirements,
    make_prefix,
    prefixed,
    rating_cuts,
    read_prefix,
    required_ratings,
)
from paretune.comparisons.ratings import Rated, rated_by_preference, read_rated
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.pipelines.methods.conditioned import keeping
from paretune.pipelines.methods.contract import Method, Outcome, Request, load_model, train_one
from paretune.pipelines.methods.mixtures import weights_of
from paretune.policy.loading import load_tokenizer

CONDITIONED = "conditioned"


@dataclass(frozen=True)
class Scale:
    """Ratings of M objectives: between which scores each was cut, its least and its best, and how many there are."""

    cuts: list[tuple[float, float] | None]
    low: list[int]
    high: list[int]
    levels: int


def rated_data(request: Request, data: Any) -> Rated:
    """The pairs of one data set with their ratings, or preferences in their place where the user asks for it."""
    read = rated_by_preference if request.option("from_preferences") is True else read_rated
    return read(data, list(request.objectives), dict(request.data_options))


def scale_of(rated: Rated, levels: int) -> Scale:
    """The scale of ratings that training data give."""
    columns = [rated.ratings[..., i] for i in range(rated.ratings.shape[2])]
    cuts = [rating_cuts(column, levels) for column in columns]
    whole = [as_ratings(column, cut, levels) for column, cut in zip(columns, cuts, strict=True)]
    return Scale(cuts, [int(np.nanmin(w)) for w in whole], [int(np.nanmax(w)) for w in whole], levels)


def shown(prefix: Prefix, names: Sequence[str], ratings: Sequence[float], scale: Scale) -> str:
    """The prefix that requires these ratings; NaN leaves an objective free. Words count from the least rating."""
    least = scale.low if prefix.words else [1] * len(names)
    levels = {n: int(r) - low + 1 for n, r, low in zip(names, ratings, least, strict=True) if r == r}
    return prefix.text(levels)


def conditioned_rows(
    rated: Rated, names: Sequence[str], prefix: Prefix, scale: Scale, seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of one objective: which response is nearer to what its prompt requires (`conditioned_reward`).

    Pairs between which the requirement does not decide are left out.
    """
    columns = zip(np.moveaxis(rated.ratings, 2, 0), scale.cuts, strict=True)
    ratings = np.stack([as_ratings(column, cut, scale.levels) for column, cut in columns], 2)
    ratings[np.broadcast_to(np.isnan(ratings).any(1, keepdims=True), ratings.shape)] = np.nan  # of both sides, or none
    required = drawn_requirements(ratings, seed)
    reward_a, reward_b = (conditioned_reward(ratings[:, side], required) for side in (0, 1))
    rows = []
    for row, wanted, a, b in zip(rated.rows, required.tolist(), reward_a.tolist(), reward_b.tolist(), strict=True):
        if a == b:
            continue
        prompt = row["prompt"]
        rows.append(
            {
                **row,
                "prompt": prefixed(prompt, shown(prefix, names, wanted, scale)),
                "preferences": {CONDITIONED: float(a > b)},
                # a split must not part what only differs in its prefix
                "group": row.get("group") or (prompt if isinstance(prompt, str) else json.dumps(prompt)),
            }
        )
    return rows


def ratings_prefix(request: Request) -> Prefix:
    """How required ratings are written."""
    names = [o.name for o in request.objectives]
    default = "Required ratings: {values}.\n"
    return make_prefix(names, request.option("prefix"), request.option("words"), default=default, decimals=0)


def _levels(request: Request) -> int:
    levels = request.option("levels", 5)
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 20:
        raise InputError("bad levels", where="levels", expected="a whole number of 2 to 20", found=levels)
    return levels


def _objective(objectives: Sequence[Objective]) -> Objective:
    """The one objective that is trained: the loss that all of them have."""
    plain = [replace(o, name=CONDITIONED, weight=1.0, labels=None, rule=None) for o in objectives]
    if len(set(plain)) > 1:
        fix = "Give all of them one loss and one beta."
        raise InputError("objectives of different losses cannot be one", where="objectives", fix=fix)
    return plain[0]


def check_cpo(request: Request) -> list[str]:
    """Raises InputError for bad options, data without ratings, or a tokenizer that cannot read the prefix."""
    names, prefix, levels = [o.name for o in request.objectives], ratings_prefix(request), _levels(request)
    _objective(request.objectives)
    rated = rated_data(request, request.train_dataset)
    scale = scale_of(rated, levels)
    for name, low, high in zip(names, scale.low, scale.high, strict=True):
        if low == high:
            raise InputError(f"all ratings of {name!r} are equal", where="data", found=low)
    free = float("nan")
    ends = zip(scale.low, scale.high, strict=True)
    one = [[value if i == j else free for j in range(len(names))] for i, pair in enumerate(ends) for value in pair]
    tokenizer = load_tokenizer(request.model)
    check_prefix([shown(prefix, names, ratings, scale) for ratings in one], tokenizer)
    example = shown(prefix, names, scale.high, scale)
    return [f"one training on {len(rated.rows)} rated pairs, whose prompts require ratings, as {example!r}"]


def train_cpo(request: Request) -> None:
    """One DPO run on rows that are made from the ratings."""
    names, prefix = [o.name for o in request.objectives], ratings_prefix(request)
    seed = request.args.seed if request.args.data_seed is None else request.args.data_seed
    rated = rated_data(request, request.train_dataset)
    scale = scale_of(rated, _levels(request))
    rows = conditioned_rows(rated, names, prefix, scale, [seed, 0])
    evaluation: Any = request.eval_dataset
    if evaluation is not None:
        sets = evaluation if isinstance(evaluation, dict) and "path" not in evaluation else {"": evaluation}
        made = {
            name: conditioned_rows(rated_data(request, data), names, prefix, scale, [seed, 1])
            for name, data in sets.items()
        }
        evaluation = made[""] if set(made) == {""} else made
    kept = keeping(request, prefix, objectives=names, low=scale.low, high=scale.high)
    reading = {"conversational": request.data_options.get("conversational", False)}
    objectives = [_objective(request.objectives)]
    made_request = replace(
        kept, objectives=objectives, train_dataset=rows, eval_dataset=evaluation, data_options=reading
    )
    train_one(made_request, asked=request)


def load_cpo(directory: Path, weights: Mapping[str, float] | None) -> Outcome:
    """The one model, with prompts that require the ratings that weights come to (`required_ratings`)."""
    prefix, kept = read_prefix(directory)
    names = kept["objectives"]
    required = required_ratings(weights_of(names, weights), kept["low"], kept["high"])
    text = shown(prefix, names, required, Scale([], kept["low"], kept["high"], 0))
    return replace(load_model(directory), prepare=lambda prompt: prefixed(prompt, text))


CPO: dict[str, Method] = {
    "cpo": Method(
        title="controllable DPO: the prompt names required ratings, and the response nearer to them is preferred",
        source="arXiv 2402.19085, CDPO; weights become ratings as in arXiv 2402.10207",
        settings={"combiner": "linear"},
        train=train_cpo,
        load=load_cpo,
        check=check_cpo,
        options={
            "prefix": "What goes before a prompt, with {values} in it; default 'Required ratings: {values}.'",
            "words": "Objective -> a word that is repeated as often as its rating says.",
            "levels": "Ratings that scores are cut into (default 5); whole numbers, at most so many, stay as they are.",
            "from_preferences": "true: where there are no ratings, a preference is a rating of 1 against 0.",
        },
        steerable=True,
    ),
}
