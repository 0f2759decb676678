"""Methods that train one model for every weighting: the weights, or required ratings, stand before the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from paretune.comparisons.conditions import (
    Prefix,
    check_prefix,
    drawn_weights,
    make_prefix,
    prefixed,
    read_prefix,
    rounded_shares,
    write_prefix,
)
from paretune.errors import InputError
from paretune.pipelines.methods.contract import Method, Outcome, Request, load_model, train_one
from paretune.pipelines.methods.mixtures import weights_of
from paretune.policy.loading import load_tokenizer
from paretune.training.data import RowChange

# Draws of rows of one data set do not depend on another's.
_SETS = {"train": 0, "eval": 1}


class _Keep(TrainerCallback):
    """Writes how a conditioned model is asked, once nothing stands in the way of its training."""

    def __init__(self, directory: Path, prefix: Prefix, more: dict[str, Any]):
        self.directory, self.prefix, self.more = directory, prefix, more

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_prefix(self.directory, self.prefix, **self.more)


def keeping(request: Request, prefix: Prefix, **more: Any) -> Request:
    """The request, whose run will have its prefix, and more, beside it."""
    callbacks = request.callbacks
    return replace(request, callbacks=lambda: [*callbacks(), _Keep(request.directory, prefix, more)])


# ---- COS-DPO: weights in the prompt and in the loss ----


def weights_prefix(request: Request) -> tuple[Prefix, int]:
    """How weights are written, and in how many steps of 1/levels.

    Raises:
        InputError: bad options.
    """
    names, words = [o.name for o in request.objectives], request.option("words")
    levels = request.option("levels", 5 if words else 10)
    allowed = isinstance(levels, int) and not isinstance(levels, bool) and 2 <= levels <= 100
    if not allowed or (not words and levels not in (10, 100)):
        expected = "10 or 100 (one decimal or two)" if not words else "a whole number of 2 to 100"
        raise InputError("bad levels", where="levels", expected=expected, found=levels)
    decimals = 0 if words else round(math.log10(levels))
    default = "Weights: {values}.\n"
    return make_prefix(names, request.option("prefix"), words, default=default, decimals=decimals), levels


def _alpha(request: Request) -> float:
    alpha = request.option("alpha", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise InputError("bad alpha", where="alpha", expected="a number > 0", found=alpha)
    return float(alpha)


def check_cos(request: Request) -> list[str]:
    """Raises InputError for bad options, one objective, or a tokenizer that cannot read the weights."""
    names = [o.name for o in request.objectives]
    if len(names) < 2:
        raise InputError("there is nothing to weigh", expected="at least two objectives", found=", ".join(names))
    prefix, levels = weights_prefix(request)
    alpha = _alpha(request)
    texts = [prefix.text(_levels(names, w, levels)) for w in _corners(len(names))]
    check_prefix(texts, load_tokenizer(request.model))
    example = prefix.text(_levels(names, [1 / len(names)] * len(names), levels))
    return [f"one training; every row draws weights from Dirichlet({alpha:g}) and shows them as {example!r}"]


def _corners(m: int) -> list[list[float]]:
    return [[1 / m] * m, *[[float(i == j) for j in range(m)] for i in range(m)]]


def _levels(names: list[str], weights: list[float], levels: int) -> dict[str, int]:
    return dict(zip(names, rounded_shares(np.array([weights]), levels)[0].tolist(), strict=True))


def cos_rows(request: Request) -> RowChange:
    """Rows whose prompts name weights drawn for each of them, which then weigh its losses.

    With w_n the weights of row n, objectives of weight 1/m and the factor m w_nj on loss j of row n, the linear
    objective is the mean over rows of sum_j w_nj l_nj: a sample of E_w sum_j w_j L_DPO,j (arXiv 2410.08316). They are
    the rounded weights, which the model can read, and a row keeps its own from epoch to epoch.
    """
    names = [o.name for o in request.objectives]
    prefix, levels = weights_prefix(request)
    alpha, m = _alpha(request), len(names)

    def change(rows: Dataset, name: str) -> Dataset:
        seed = request.args.seed if request.args.data_seed is None else request.args.data_seed
        weights = drawn_weights(len(rows), m, alpha, levels, [seed, _SETS.get(name.split()[0], 1)])
        shares = rounded_shares(weights, levels).tolist()

        def show(prompt: Any, index: int) -> dict[str, Any]:
            return {"prompt": prefixed(prompt, prefix.text(dict(zip(names, shares[index], strict=True))))}

        shown = rows.map(show, with_indices=True, input_columns="prompt", load_from_cache_file=False)
        return shown.add_column("weights", (m * weights).tolist())

    return change


def train_cos(request: Request) -> None:
    """One run with even weights, the mean of the draws."""
    prefix, levels = weights_prefix(request)
    even = [replace(o, weight=1 / len(request.objectives)) for o in request.objectives]
    kept = keeping(request, prefix, levels=levels, objectives=[o.name for o in request.objectives])
    train_one(replace(kept, objectives=even), asked=request)


def load_cos(directory: Path, weights: Mapping[str, float] | None) -> Outcome:
    """The one model, with prompts that ask for these weights."""
    prefix, kept = read_prefix(directory)
    names = kept["objectives"]
    text = prefix.text(_levels(names, weights_of(names, weights), kept["levels"]))
    return replace(load_model(directory), prepare=lambda prompt: prefixed(prompt, text))


_COS_OPTIONS: Mapping[str, str] = {
    "prefix": "What goes before a prompt, with {values} in it; default 'Weights: {values}.' and a line break.",
    "words": "Objective -> a word that is repeated as often as its weight says, for vocabularies without numbers.",
    "levels": "Steps of the weights: 10 (one decimal, default) or 100; any number with words (default 5).",
    "alpha": "Dirichlet parameter of the drawn weights: 1 (default) is uniform, less prefers corners.",
}


def _cos(title: str, source: str, settings: Mapping[str, Any]) -> Method:
    load: Callable[[Path, Mapping[str, float] | None], Outcome] = load_cos
    return Method(
        title=title, source=source, settings=settings, train=train_cos, load=load, check=check_cos,
        change_rows=cos_rows, options=_COS_OPTIONS, steerable=True,
    )  # fmt: skip


CONDITIONED: dict[str, Method] = {
    "cos-dpo": _cos(
        "one model conditioned on weights: every row draws its own, which stand in the prompt and weigh its DPO losses",
        "arXiv 2410.08316",
        {"combiner": "linear"},
    ),
    "cos-raco": _cos(
        "the same with RACO instead of a weighted sum of the objectives' gradients; ours, not published",
        "arXiv 2410.08316 and 2602.02495",
        {"combiner": "raco"},
    ),
}
