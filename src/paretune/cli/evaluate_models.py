"""The models that `paretune evaluate` is given: which are there, what each is compared with, and their margins."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.given import full_path

if TYPE_CHECKING:
    from datasets import Dataset

    from paretune.evaluation.margins import Margins
    from paretune.pipelines.methods import Outcome

logger = logging.getLogger(__name__)


def check_there(name: str, record: dict[str, Any]) -> None:
    """Raises InputError, before anything is read, where no model is in the directory of that name."""
    from paretune.policy.loading import check_model_path

    if not _answers_by_its_method(record):
        check_model_path(name)


def _answers_by_its_method(record: dict[str, Any]) -> bool:
    """Whether the method makes the policy when it is asked (of several policies, or by a prefix to the prompt)."""
    from paretune.pipelines.methods import find_method

    return "method" in record and find_method(record["method"]["name"]).steerable


def _outcome(name: str, record: dict[str, Any], dtype: str, *, four_bits: bool) -> Outcome:
    """The model as it answers at the weights that its run was asked for."""
    from paretune.pipelines.methods import Outcome, load_outcome
    from paretune.policy.loading import load_scored, load_tokenizer, torch_dtype

    if not _answers_by_its_method(record):
        return Outcome(load_scored(name, dtype=dtype, quantize=four_bits), load_tokenizer(name))
    outcome = load_outcome(name)
    if dtype != "auto":
        outcome.model.to(torch_dtype(dtype))
    return outcome


def references_of(names: list[str], found: list[str | None], objectives: list[Objective]) -> list[str | None]:
    """The reference of each model: its own (`found`) or the first known; None where no objective needs one."""
    from paretune.losses import is_reference_free

    if all(is_reference_free(o) for o in objectives):
        return [None] * len(names)
    known = next((named(name, ref) for name, ref in zip(names, found, strict=True) if ref is not None), None)
    if known is None:
        fix = "Name the model that training started from: --ref_model MODEL."
        raise InputError("no reference is known", where=f"model {names[0]}", fix=fix)
    return [ref if ref is not None else known for ref in found]


ADAPTERS_OFF = "adapters off"


def own_reference(name: str, record: dict[str, Any], given: str | None) -> str | None:
    """A model's reference as given, else its run's, an adapter's base, or what its run started from; None: unknown."""
    settings = record.get("settings", {})
    if given is not None:
        return full_path(given)
    if record.get("objectives") and settings.get("ref_model"):
        return full_path(str(settings["ref_model"]))
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        return ADAPTERS_OFF
    start = settings.get("model") if record.get("objectives") else None
    if start is not None and "model" in record.get("in_memory", {}):
        told = "the run started from a model in memory; its reference is taken to be what that was loaded from: %s"
        logger.warning(told, start)
    return start


def named(name: str, reference: str) -> str:
    if reference != ADAPTERS_OFF:
        return reference
    from paretune.policy.loading import base_of

    return base_of(name)


@dataclass(frozen=True)
class Reading:
    """What every model is scored on, and how."""

    sets: dict[str, Dataset]
    objectives: list[Objective]
    beta: float
    max_length: int | None
    dtype: str
    batch_size: int


def score(
    read: Reading, name: str, record: dict[str, Any], reference: str | None, *, four_bits: bool
) -> dict[str, Margins]:
    """One model's margins on every set; loads it and lets it go again. An adapter of a 4-bit base gets that base.

    A run whose method makes the policy when asked (`mod`, `cos-dpo`, `cpo`, …) is scored at its own weights; prompts
    that ask for them are read by the reference too, as in training.
    """
    import torch

    from paretune.comparisons.tokens import pad_id, tokenize_comparisons
    from paretune.evaluation.margins import evaluate_margins
    from paretune.policy.loading import load_scored
    from paretune.policy.logprobs import prepare_scorer
    from paretune.policy.reference import Reference, check_reference

    outcome = _outcome(name, record, read.dtype, four_bits=four_bits)
    names = [o.name for o in read.objectives]
    tokenized = {}
    for part, rows in read.sets.items():
        if _answers_by_its_method(record):
            rows = rows.map(lambda row: {"prompt": outcome.prepare(row["prompt"])}, load_from_cache_file=False)
        tokenized[part], tokens = tokenize_comparisons(rows, outcome.tokenizer, names, max_length=read.max_length)
        for warning in tokens.warnings:
            logger.warning(f"{part}: {warning}" if part else warning)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # the quantizer has put its weights where they belong
    model = outcome.model if four_bits else outcome.model.to(device)
    scorer = prepare_scorer(model)
    other = Reference("none")
    if reference == ADAPTERS_OFF:
        other = Reference("adapter", model, scorer)
    elif reference is not None:
        loaded = load_scored(reference, dtype=read.dtype).to(device)
        check_reference(model, loaded)
        other = Reference("copy", loaded, prepare_scorer(loaded, scorer.layout))
    pad, size = pad_id(outcome.tokenizer), read.batch_size
    return {
        part: evaluate_margins(model, scorer, other, data, read.objectives, read.beta, pad_id=pad, batch_size=size)
        for part, data in tokenized.items()
    }
