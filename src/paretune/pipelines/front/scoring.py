"""Scores of a policy on held-out prompts: means per objective with intervals over prompts, the KL, each prompt's own.

Suffixes: P prompts, n samples of each, m objectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from paretune.comparisons.control import prompt_ids
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.rows import BadRow, group_of, split_groups
from paretune.comparisons.sources import list_sources, open_source
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.errors import InputError
from paretune.evaluation.margins import evaluate_margins, figures
from paretune.evaluation.sample import Samples, sample
from paretune.objectives import Objective
from paretune.pipelines.front.plan import Plan
from paretune.pipelines.methods import Outcome
from paretune.policy.loading import load_scored
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference
from paretune.preferences.asking import Tally, ask
from paretune.preferences.source import Item as Question
from paretune.preferences.source import Source
from paretune.preferences.specs import parse_source
from paretune.sandbox import WORLDS
from paretune.sandbox.language import make_items
from paretune.sandbox.world import Item, World


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts: as a tokenizer reads them, as they were given, and what else their rows hold."""

    texts: list[str]
    given: list[Any]
    columns: dict[str, list[Any]]


def score_policy(plan: Plan, outcome: Outcome, base: str, seed: int) -> dict[str, Any]:
    """What a policy is worth.

    Args:
        base: directory or hub id of what training started from.
        seed: of the samples: cells of one seed meet common random numbers.

    Returns:
        temperatures: {temperature: {scores, ci, prompts (P, m), extras, texts, cut}}, and `kl`, `kl_ci` in nats where
        samples at temperature 1 of unchanged prompts tell.
    """
    outcome.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if not plan.samples:
        return {"temperatures": {temperature_key(0.0): held_out_scores(plan, outcome, base)}, "kl": None}
    found: dict[str, Any] = {"temperatures": {}, "kl": None}
    for temperature in plan.temperatures:
        asked = held_out_prompts(plan, outcome.tokenizer)
        given = [outcome.prepare(prompt) for prompt in asked.given]
        prepared = [prompt_ids(outcome.tokenizer, prompt) for prompt in given]
        refers = temperature == 1.0 and given == asked.given  # the base knows nothing of words put before a prompt
        reference = reference_of(plan, outcome.model, base) if refers else None
        samples = sample(
            outcome.model, outcome.tokenizer, prepared, plan.scoring.eval_samples,
            temperature=temperature, max_new_tokens=response_length(plan), seed=seed, reference=reference,
        )  # fmt: skip
        key = temperature_key(temperature)
        found["temperatures"][key] = _scores_of_samples(plan, asked, samples)
        if refers:
            kl = samples.kl().numpy()
            half = 1.96 * kl.std(ddof=1) / math.sqrt(len(kl)) if len(kl) > 1 else math.nan
            found |= {"kl": float(kl.mean()), "kl_ci": [float(kl.mean() - half), float(kl.mean() + half)]}
    return found


def temperature_key(temperature: float) -> str:
    return f"{temperature:g}"


def response_length(plan: Plan) -> int:
    return WORLDS[plan.world.name].max_response + 1 if plan.world else plan.scoring.max_new_tokens


def reference_of(plan: Plan, model: nn.Module, base: str) -> nn.Module | str:
    """What the KL is measured from: the base, which an adapter's model is without its adapters."""
    if plan.ref_model is None and isinstance(model, PeftModel):
        return "adapters off"
    return _loaded(plan.ref_model or base)


@cache
def _loaded(name: str) -> nn.Module:
    """Kept between the cells of one worker, which all have it."""
    model = load_scored(name)
    return model.to("cuda") if torch.cuda.is_available() else model


# ---- prompts ----


def held_out_items(plan: Plan) -> list[Item]:
    """A world's held-out prompts: the same for all seeds, so that seeds and methods are compared on them."""
    assert plan.world is not None
    return make_items(WORLDS[plan.world.name], plan.scoring.eval_prompts, seed=0, held_out=True)


def held_out_prompts(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts that policies are asked.

    Raises:
        InputError: no prompt among the rows, or messages for a tokenizer without a chat template.
    """
    if plan.world is not None:
        texts: list[str] = [item.prompt for item in held_out_items(plan)]
        return Prompts(texts, list(texts), {})
    rows = read_prompts(plan.scoring.prompts, plan.scoring.eval_prompts)
    names = {key for row in rows for key in row} - {"prompt"}
    columns = {key: [row.get(key) for row in rows] for key in sorted(names)}
    given = [row["prompt"] for row in rows]
    return Prompts([_as_text(prompt, tokenizer) for prompt in given], given, columns)


def read_prompts(data: Any, most: int) -> list[dict[str, Any]]:
    """The first rows with different prompts, at most so many.

    Raises:
        InputError: a row without a prompt, or no row.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    given = [{"prompt": entry} for entry in data] if _texts(data) else data
    for source in list_sources(given, "auto"):
        for where, record in open_source(source, split="train", streaming=False):
            if isinstance(record, BadRow) or not record.get("prompt"):
                raise InputError("a row without a prompt", where=f"prompts, {where}")
            if str(record["prompt"]) not in seen:
                seen.add(str(record["prompt"]))
                rows.append(dict(record))
            if len(rows) == most:
                return rows
    if not rows:
        raise InputError("no prompts", where="prompts", expected="rows with a prompt")
    return rows


def _texts(data: Any) -> bool:
    """Whether a list holds prompts themselves, and not names of files."""
    return isinstance(data, list) and all(isinstance(x, str) and not Path(x).expanduser().exists() for x in data)


def _as_text(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        fix = "Give prompts as text, or a model with a chat template."
        raise InputError("prompts are messages, and the tokenizer has no chat template", where="prompts", fix=fix)
    text = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    leading = tokenizer.bos_token  # the tokenizer puts it before any text itself
    return text.removeprefix(leading) if leading and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else text


# ---- scores of samples ----


def score_source(name: str, entry: Any) -> Source:
    """What scores an objective's responses: "module:function" with the signature of TRL's reward functions, a rule's
    name, or a mapping as `paretune label` takes it.

    Raises:
        InputError: there is none such, or it compares responses and does not score them.
    """
    if isinstance(entry, str):
        entry = {"function" if ":" in entry else "rule": entry}
    source = parse_source(name, entry).source
    if source is None or source.score is None:
        raise InputError("a source that does not score single responses", where=f"scores {name}", found=str(entry))
    return source


def _scores_of_samples(plan: Plan, asked: Prompts, samples: Samples) -> dict[str, Any]:
    extras: dict[str, float] = {}
    if plan.world is not None:
        world, items = WORLDS[plan.world.name], held_out_items(plan)
        rewards = world_rewards(world, items, samples)
        extras = _extras(world, items, samples)
    else:
        rewards = np.stack([_column(plan, name, asked, samples.texts) for name in plan.names], axis=2)
    known = ~np.isnan(rewards)
    sums = np.where(known, rewards, 0.0).sum(1)
    means = np.divide(sums, known.sum(1), out=np.full_like(sums, np.nan), where=known.any(1))
    texts, cut = [some[0] for some in samples.texts[:10]], float(samples.cut.float().mean())
    return {**summary(plan.names, means), "extras": extras, "texts": texts, "cut": cut}


def world_rewards(world: World, items: Sequence[Item], samples: Samples) -> np.ndarray:
    """(P, n, m) exact rewards."""
    pairs = zip(items, samples.texts, strict=True)
    return np.array(
        [[[world.score(item, text)[o] for o in world.objectives] for text in texts] for item, texts in pairs]
    )


def _extras(world: World, items: Sequence[Item], samples: Samples) -> dict[str, float]:
    """Means of the world's further figures, where they apply."""
    found: dict[str, list[float]] = {}
    for item, texts in zip(items, samples.texts, strict=True):
        for text in texts:
            for name, value in world.extras(item, text).items():
                found.setdefault(name, []).append(value)
    return {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}


def _column(plan: Plan, name: str, asked: Prompts, texts: list[list[str]]) -> np.ndarray:
    """(P, n) scores of one objective; NaN where its source says nothing."""
    source = score_source(name, plan.scoring.sources[name])
    items = [
        Question(prompt, (text,), {key: values[i] for key, values in asked.columns.items()})
        for i, (prompt, some) in enumerate(zip(asked.given, texts, strict=True))
        for text in some
    ]
    return np.array(ask(source, items, None, Tally()), dtype=np.float64).reshape(len(texts), -1)


def summary(names: Sequence[str], prompts_Pm: np.ndarray) -> dict[str, Any]:
    """Means over prompts, which are the independent units (not samples), with 95 % intervals, and each prompt's own.

    A prompt without a value for an objective (NaN) does not count for it.
    """
    count = (~np.isnan(prompts_Pm)).sum(0)
    for name, n in zip(names, count.tolist(), strict=True):
        if n < 1:
            raise InputError("no held-out row has a label", where=f"objective {name}", fix="Hold out more rows.")
    mean = np.nanmean(prompts_Pm, axis=0)
    deviation = np.sqrt(np.nansum((prompts_Pm - mean) ** 2, axis=0) / np.maximum(count - 1, 1))
    half = 1.96 * deviation / np.sqrt(count)
    ends = np.stack([mean - half, mean + half], 1).tolist()
    return {
        "scores": dict(zip(names, mean.tolist(), strict=True)),
        "ci": dict(zip(names, ends, strict=True)),
        "prompts": np.round(prompts_Pm, 6).tolist(),
    }


# ---- scores without samples ----


def held_out_scores(plan: Plan, outcome: Outcome, base: str) -> dict[str, Any]:
    """Accuracies or margins on held-out comparisons, a mean per group (or prompt) being the unit.

    Raises:
        InputError: a policy that is told its weights in the prompt, which comparisons do not hold.
    """
    if outcome.prepare("a") != "a":
        fix = "Give prompts and scores, so that it is asked."
        raise InputError("a method that reads its weights from the prompt has no held-out margins", fix=fix)
    rows = held_out_rows(plan)
    data, _ = tokenize_comparisons(rows, outcome.tokenizer, plan.names, max_length=plan.config.get("max_length", 2048))
    scorer = prepare_scorer(outcome.model)
    reference = reference_of(plan, outcome.model, base)
    if isinstance(reference, str):
        other = Reference("adapter", outcome.model, scorer)
    else:
        other = Reference("copy", reference, prepare_scorer(reference, scorer.layout))
    beta = float(plan.config.get("beta", 0.2))
    objectives: list[Objective] = list(plan.objectives)
    margins = evaluate_margins(
        outcome.model, scorer, other, data, objectives, beta, pad_id=pad_id(outcome.tokenizer), batch_size=16
    )
    values, counts = figures(margins)[plan.scoring.measure]
    groups = [group_of(rows[int(i)]) for i in margins.index]
    order = list(dict.fromkeys(groups))
    place = np.array([order.index(group) for group in groups])
    sums, sizes = np.zeros((len(order), len(objectives))), np.zeros((len(order), len(objectives)))
    np.add.at(sums, place, np.where(counts, values, 0.0).T)
    np.add.at(sizes, place, counts.T.astype(float))
    means = np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)
    return {**summary(plan.names, means), "extras": {}}


def held_out_rows(plan: Plan) -> Any:
    """The comparisons that training does not see."""
    data = plan.eval_data if plan.eval_data is not None else plan.data
    rows, _ = read_comparisons(data, objectives=list(plan.objectives), **plan.reading)
    return rows if plan.eval_data is not None else split_groups(rows, float(plan.config["eval_fraction"]))[1]
