"""MODPO: one objective's comparisons, with margins that frozen rewards of the other objectives give.

Zhou et al., arXiv 2310.03708, equation 10: with k the objective trained on and w on the simplex,

    L = -log sigma( (1/w_k) [ beta Delta - sum_{j != k} w_j (r_j(y_w) - r_j(y_l)) ] ),  Delta of log pi/pi_ref.

That is DPO at inverse temperature beta/w_k whose margin is Delta less a constant of the pair, in nats: the row's
offset. The rewards r_j are implicit ones, beta_j log(pi_j/pi_ref) of a run on objective j alone, or any frozen source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel

from paretune.comparisons.ratings import read_rated
from paretune.comparisons.rows import text_of
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.errors import InputError
from paretune.evaluation.margins import evaluate_margins
from paretune.losses import is_length_normalized, is_reference_free
from paretune.objectives import Objective
from paretune.pipelines.methods.contract import Method, Request, changed_args, check_singles, single_run, train_one
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference, check_reference
from paretune.preferences.asking import Tally, ask
from paretune.preferences.source import Item, Source
from paretune.preferences.specs import parse_source

# (R,) r(a) - r(b) of the rows, in the units of the reward
Gaps = Callable[[Dataset], np.ndarray]


def trained_objective(request: Request) -> str:
    """k: the option `objective`, else the objective of largest weight (the first of equals).

    Raises:
        InputError: no such objective, or one of weight 0.
    """
    weights = request.weights
    name = str(request.option("objective", max(weights, key=weights.__getitem__)))
    if name not in weights:
        raise InputError(
            "no such objective", where="modpo objective", expected=f"one of {', '.join(weights)}", found=name
        )
    if weights[name] == 0.0:
        fix = "The loss divides by that weight: train on an objective that has one (objective: NAME)."
        raise InputError("the objective that MODPO trains on has weight 0", where=f"modpo objective {name}", fix=fix)
    return name


def other_objectives(request: Request) -> dict[str, float]:
    """The objectives whose rewards make the margin, with their weights; those of weight 0 are not needed."""
    k = trained_objective(request)
    return {name: weight for name, weight in request.weights.items() if name != k and weight > 0}


def check(request: Request) -> list[str]:
    """Raises InputError for what the loss cannot be, or a reward that is not there."""
    k, others = trained_objective(request), other_objectives(request)
    on = next(o for o in request.objectives if o.name == k)
    if on.loss not in ("sigmoid", "hinge") or is_reference_free(on) or is_length_normalized(on):
        expected = "sigmoid or hinge, of summed log-ratios to the reference"
        raise InputError("MODPO has no such loss", where=f"objective {k!r}", expected=expected, found=on.loss)
    sources = _given(request)
    for name in sources:
        if name not in others:
            expected = f"one of {', '.join(others)}" if others else "none: the others have no weight"
            raise InputError("a reward that is not used", where=f"modpo rewards {name}", expected=expected, found=name)
        _source(request, name)
    said = check_singles(request)
    implicit = [line for line in said if line.split(":")[0] in others.keys() - sources.keys()]
    words = [f"implicit reward of {line}" for line in implicit]
    words += [f"reward of {name}: {', '.join(map(str, sources[name]))}" for name in sources]
    return [*words, f"one training on the labels of {k}, at beta/{request.weights[k]:.4g}, with these margins"]


def _given(request: Request) -> dict[str, Mapping[str, Any]]:
    given = request.option("rewards", {})
    if not isinstance(given, Mapping) or not all(isinstance(spec, Mapping) for spec in given.values()):
        expected = '{objective: {function: "module:name"}}, or {objective: {scores: FILE}}'
        raise InputError("bad rewards", where="modpo", expected=expected, found=given)
    return dict(given)


# ---- rewards ----


def _source(request: Request, name: str) -> Gaps:
    """The frozen reward of an objective as the option `rewards` gives it: a file's scores, or what labels rows too."""
    spec = dict(_given(request)[name])
    where, scale = f"modpo rewards {name}", spec.pop("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError("bad scale", where=where, expected="a number", found=scale)
    if "scores" in spec:
        if set(spec) != {"scores"}:
            raise InputError("bad reward", where=where, expected="scores and scale", found=", ".join(spec))
        table = scores_of(str(spec["scores"]), name)
        return lambda rows: scale * _checked(_looked_up(rows, table, where), where)
    source = parse_source(name, spec).source
    if source is None or source.score is None:
        expected = "a source that scores single responses"
        raise InputError("not a reward", where=where, expected=expected, found=", ".join(map(str, spec)))
    return lambda rows: scale * _checked(_asked(rows, source), where)


def scores_of(path: str, objective: str) -> dict[tuple[str, str], float]:
    """(prompt, response) -> score, from a file of rows with `ratings` or of scored responses.

    Raises:
        InputError: no such file, or no score of the objective in it.
    """
    rated = read_rated(path, [Objective(objective)], {})
    table: dict[tuple[str, str], float] = {}
    for row, pair in zip(rated.rows, rated.ratings[:, :, 0].tolist(), strict=True):
        for side, value in zip(("response_a", "response_b"), pair, strict=True):
            if not math.isnan(value):
                table[text_of(row["prompt"]), text_of(row[side])] = value
    return table


def _looked_up(rows: Dataset, table: Mapping[tuple[str, str], float], where: str) -> np.ndarray:
    return np.array([[table.get((p, text), math.nan) for text in sides] for p, *sides in _texts(rows)])


def _asked(rows: Dataset, source: Source) -> np.ndarray:
    items = [Item(row["prompt"], (row[side],), _columns(row)) for row in rows for side in ("response_a", "response_b")]
    return np.array(ask(source, items, None, Tally())).reshape(-1, 2)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "group", "reference") if row.get(name) is not None}


def _texts(rows: Dataset) -> list[list[str]]:
    fields = ("prompt", "response_a", "response_b")
    return [[text_of(row[field]) for field in fields] for row in rows.select_columns(list(fields))]


def _checked(reward_R2: np.ndarray, where: str) -> np.ndarray:
    """The differences; a row without a reward is an error, since its margin would be of another loss."""
    missing = np.flatnonzero(~np.isfinite(reward_R2).all(1))
    if len(missing):
        found = f"none for a response of row {missing[0]}, and of {len(missing) - 1} more rows"
        raise InputError("rewards are missing", where=where, expected="a number for every response", found=found)
    return reward_R2[:, 0] - reward_R2[:, 1]


def implicit_gaps(request: Request, objective: Objective, directory: str) -> Gaps:
    """beta_j times the margin of the run in `directory` over its reference: what DPO makes a model's reward
    (arXiv 2305.18290, section 5)."""

    def gaps(rows: Dataset) -> np.ndarray:
        args, options = request.args, request.model_options
        reading = {key: options[key] for key in ("dtype", "quantize") if key in options}
        tokenizer = load_tokenizer(request.model)
        tokens, _ = tokenize_comparisons(rows, tokenizer, [objective.name], max_length=args.max_length)
        model = load_scored(directory, **reading)
        if not reading.get("quantize"):
            model.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            scorer = prepare_scorer(model, args.layout)
            reference = Reference("adapter", model, scorer)
            if request.ref_model is not None or not isinstance(model, PeftModel):
                start = load_scored(request.ref_model or request.model, **reading).to(args.device)
                check_reference(model, start)
                reference = Reference("copy", start, prepare_scorer(start, scorer.layout))
            margins = evaluate_margins(
                model, scorer, reference, tokens, [objective], args.beta,
                pad_id=pad_id(tokenizer), batch_size=args.eval_batch_size,
            )  # fmt: skip
        found = np.zeros(len(rows))  # rows that are too long to train on stay at 0: they do not come back
        found[margins.index] = margins.reward_a[0] - margins.reward_b[0]
        return found

    return gaps


# ---- the training ----


def with_offsets(
    rows: Dataset, names: list[str], k: str, beta: float, weights: Mapping[str, float], gaps: Mapping[str, Gaps]
) -> Dataset:
    """The rows with the column `offsets`: sum_j w_j (r_j(a) - r_j(b)) / beta for objective k, 0 for the others."""
    offset_RM = np.zeros((len(rows), len(names)))
    for name, gap in gaps.items():
        offset_RM[:, names.index(k)] += weights[name] * gap(rows) / beta
    return rows.add_column("offsets", offset_RM.tolist())


def train(request: Request) -> None:
    """Trains the runs whose implicit rewards are needed, then on objective k with their margins."""
    k, others = trained_objective(request), other_objectives(request)
    by_name = {o.name: o for o in request.objectives}
    given = _given(request)
    gaps = {
        name: _source(request, name) if name in given
        else implicit_gaps(request, by_name[name], single_run(request, name))
        for name in others
    }  # fmt: skip
    beta = by_name[k].beta or request.args.beta
    names = list(by_name)

    def change(rows: Dataset, name: str) -> Dataset:
        return with_offsets(rows, names, k, beta, others, gaps)

    objectives = [
        replace(o, weight=float(o.name == k), beta=beta / request.weights[k] if o.name == k else o.beta)
        for o in request.objectives
    ]
    changed = replace(
        request,
        objectives=objectives,
        args=changed_args(request.args, combiner="linear"),
        data_options={**request.data_options, "change_rows": change},
    )
    train_one(changed, asked=request)


MODPO: dict[str, Method] = {
    "modpo": Method(
        title="DPO on one objective, with margins from frozen rewards of the others",
        source="MODPO, arXiv 2310.03708, equation 10",
        settings={"combiner": "linear"},
        train=train,
        check=check,
        options={
            "objective": "The objective trained on; without it, the one of largest weight.",
            "rewards": "Objective -> its frozen reward: {function: 'module:name'} or {scores: FILE}, and scale; "
            "the others' are implicit, of runs on them alone.",
        },
        needs_singles=True,
    ),
}
