"""AMoPO: reference-free preference losses per dimension, weighed by the policy's own confidence; and its static form.

Liu et al., arXiv 2506.07165. Every pair comes D + 1 times: once behind an instruction to serve all dimensions, and once
per dimension behind one that names it (and, where scores are given, that of the preferred response). Each copy has
SimPO's loss; the weight of a copy is softmax, over all copies of the micro-batch, of x_a + x_b, with x drawn from a
normal distribution that has mean and deviation of the response's token probabilities. It is a constant of the step.

Suffixes: N copies of a micro-batch, M objectives, K scored entries of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from paretune.comparisons.columns import labels, stretches
from paretune.comparisons.conditions import check_prefix, prefixed
from paretune.comparisons.rows import text_of
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.errors import InputError
from paretune.gradients import GradientStack
from paretune.losses import BatchLosses, LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.pipelines.methods.contract import Method, Outcome, Request, changed_args, load_model, train_one
from paretune.pipelines.methods.modpo import scores_of
from paretune.policy.loading import load_tokenizer
from paretune.policy.logprobs import summed, token_logprobs
from paretune.training.diagnostics import sum_over_ranks
from paretune.training.rundir import run_record
from paretune.training.step import differentiate, differentiate_each
from paretune.training.trainer import RACOTrainer

GENERAL = "Answer well in every one of these respects: {dimensions}.\n"
DIMENSION = "Answer with regard to {dimension}.\n"
SCORED = "Answer with regard to {dimension}, at {score} on the scale of its scores.\n"

# ---- the weights and the loss ----


def confidence(logprobs_NK: Tensor, scored_NK: Tensor, noise_N: Tensor) -> Tensor:
    """(N,) mean + noise * deviation of the probabilities of each response's tokens; a single token has deviation 0.

    Args:
        logprobs_NK: of the tokens, in nats.
        scored_NK: which entries are the response's, at least one per row.
        noise_N: standard normal.
    """
    p = logprobs_NK.detach().double().exp().masked_fill(~scored_NK, 0.0)
    count = scored_NK.sum(1)
    mean = p.sum(1) / count
    squares = (p - mean[:, None]).square().masked_fill(~scored_NK, 0.0).sum(1)
    return mean + noise_N * (squares / (count - 1).clamp_min(1)).sqrt()


def adaptive_weights(logprobs: Tensor, batch: Mapping[str, Tensor], noise_N2: Tensor) -> Tensor:
    """(N,) float64 weights of the copies, of sum 1: softmax of the two sides' confidence together.

    Args:
        logprobs: (R, K) of `token_logprobs`.
        batch: in either layout.
        noise_N2: standard normal, for a and b.
    """
    a, b = (logprobs, logprobs) if "block_widths" in batch else logprobs.chunk(2)
    in_a, in_b = (
        (batch["score_a"], batch["score_b"])
        if "block_widths" in batch
        else (batch["score_a"].chunk(2)[0], batch["score_b"].chunk(2)[1])
    )
    return (confidence(a, in_a, noise_N2[:, 0]) + confidence(b, in_b, noise_N2[:, 1])).softmax(0)


def copy_losses(
    objectives: Sequence[Objective], beta: float, logps: LogProbs, preferences: Tensor, weights_N: Tensor, sft: float
) -> BatchLosses:
    """Losses and slopes of AMoPO's mean over N copies: (w_n SimPO_n + sft (-log pi(preferred_n)/tokens)) / N.

    Args:
        objectives: M of them, without an anchor of their own.
        beta: of those without one.
        logps: of the copies.
        preferences: (N, M), one label per copy.
        weights_N: of the copies.
        sft: weight of the anchor, which the copies' weights leave alone.
    """
    plain = batch_losses(objectives, beta, logps, preferences)
    if not sft:
        return plain.times(weights_N / len(weights_N))
    anchored = batch_losses([replace(o, sft=sft) for o in objectives], beta, logps, preferences)
    changed = {
        name: (getattr(anchored, name) + (weights_N - 1) * getattr(plain, name)) / len(weights_N)
        for name in ("values", "slopes_a", "slopes_b")
    }
    return replace(anchored, **changed)


# ---- the copies ----


def general_labels(label_RM: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(R,) label of the copy that serves all dimensions, the weighted mean of those there are (NaN of none), and the
    objective, the one of most weight with an opinion, that it is counted with."""
    known, w = ~np.isnan(label_RM), np.asarray(weights)
    share = (known * w).sum(1)
    with np.errstate(invalid="ignore"):
        mean = np.where(share > 0, (np.nan_to_num(label_RM) * w).sum(1) / np.where(share > 0, share, 1.0), np.nan)
    return mean, np.where(known, w, -1.0).argmax(1)


def copied(row: Mapping[str, Any], others: Sequence[Mapping[str, Any] | None], general: tuple[float, int]) -> list[Any]:
    """The copies of one row, each with its one label: the general one, then those of the dimensions with a label."""
    m = len(row["preferences"])

    def labelled(base: Mapping[str, Any], j: int, label: float) -> dict[str, Any]:
        return {**base, "preferences": [label if i == j else math.nan for i in range(m)]}

    label, place = general
    found = [labelled(row, place, label)]
    for j, other in enumerate(others):
        if other is not None and not math.isnan(row["preferences"][j]):
            found.append(labelled(other, j, row["preferences"][j]))
    return found


class Copies:
    """What the rows become: prompts behind the general instruction, and tokenized copies behind the dimensions'."""

    def __init__(self, request: Request):
        self.request, self.names = request, [o.name for o in request.objectives]
        self.tables: list[tuple[Dataset, dict[int, int]]] = []
        self.general: tuple[np.ndarray, np.ndarray] | None = None
        file = request.option("scores")
        self.scores = {name: scores_of(str(file), name) for name in self.names} if file is not None else {}

    def change(self, rows: Dataset, name: str) -> Dataset:
        """For `change_rows`."""
        if name == "train":
            request = self.request
            found = [labels(part["preferences"], self.names) for part in stretches(rows, ["preferences"])]
            self.general = general_labels(np.concatenate(found), [request.weights[n] for n in self.names])
            tokenizer = load_tokenizer(request.model)
            for dimension in self.names:
                changed = self._behind(rows, dimension)
                tokens, _ = tokenize_comparisons(changed, tokenizer, self.names, max_length=request.args.max_length)
                self.tables.append((tokens, {row: place for place, row in enumerate(tokens["index"][:])}))
        instruction = general_instruction(self.request.method_options, self.names)
        return rows.map(lambda prompt: {"prompt": prefixed(prompt, instruction)}, input_columns="prompt")

    def _behind(self, rows: Dataset, dimension: str) -> Dataset:
        text, table = dimension_instruction(self.request.method_options, dimension), self.scores.get(dimension, {})

        def change(row: dict[str, Any]) -> dict[str, Any]:
            instruction, label = text, row["preferences"][dimension]
            if table and label is not None:
                side = "response_a" if label >= 0.5 else "response_b"
                score = table.get((text_of(row["prompt"]), text_of(row[side])))
                if score is None:
                    expected = "one for every response that a label prefers"
                    raise InputError(f"a score of {dimension!r} is missing", where="amopo scores", expected=expected)
                instruction = instruction.replace("{score}", f"{score:g}")
            return {"prompt": prefixed(row["prompt"], instruction)}

        return rows.map(change)

    def of(self, row: Mapping[str, Any]) -> list[Any]:
        """The copies of a tokenized row; a row without a label stays as it is, to be passed over."""
        if self.general is None or all(math.isnan(label) for label in row["preferences"]):
            return [dict(row)]
        index = row["index"]
        others = [table[places[index]] if index in places else None for table, places in self.tables]
        return copied(row, others, (float(self.general[0][index]), int(self.general[1][index])))


def general_instruction(options: Mapping[str, Any], names: Sequence[str]) -> str:
    """What stands before a prompt that all dimensions are to be served in; with `words`, these alone by default."""
    words = options.get("words")
    text = str(options.get("general") or ("{dimensions} " if words else GENERAL))
    return text.replace("{dimensions}", " ".join(words[n] for n in names) if words else ", ".join(names))


def dimension_instruction(options: Mapping[str, Any], name: str) -> str:
    """What stands before a dimension's copies; {score}, where scores are given, is still to be filled in."""
    words = options.get("words")
    default = "{dimension} " if words else SCORED if options.get("scores") else DIMENSION
    return str(options.get("dimension") or default).replace("{dimension}", words[name] if words else name)


class AMoPOTrainer(RACOTrainer):
    """`RACOTrainer` whose micro-batches hold the copies of their rows, weighed by `adaptive_weights`."""

    def __init__(self, *args: Any, copies: Copies, sft: float, **kwargs: Any):
        self.copies, self.sft, self.parts = copies, sft, 1.0
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of rows, with all their copies."""
        plain = self.data_collator
        self.data_collator = self._collate_copies
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _collate_copies(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self._collate([copy for row in rows for copy in self.copies.of(row)])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, None]:
        """The step's micro-batches; counts them over all ranks, because the loss is their mean."""
        batches, nothing = super().get_batch_samples(*args, **kwargs)
        if batches:
            count = sum(not bool(batch["preferences"].isnan().all()) for batch in batches)
            self.parts = float(sum_over_ranks(torch.tensor([count], dtype=torch.float64), self.args.device)[0])
        return batches, nothing

    def _differentiate(self, batch: dict[str, Any], stack: GradientStack) -> Tensor:
        with self.accelerator.autocast():
            tokens = token_logprobs(self.model, batch, own_head=self.scorer.own_head)
            scores = summed(tokens, batch)
        logps = LogProbs(scores.logp_a, scores.logp_b, None, None, batch["a_tokens"], batch["b_tokens"])
        preferences = batch["preferences"]
        self.comparison_sums.add(logps, batch_losses(self.objectives, self.args.beta, logps, preferences), preferences)
        noise = torch.randn(len(preferences), 2, dtype=torch.float64, device=preferences.device)
        weights = adaptive_weights(tokens, batch, noise)
        losses = copy_losses(self.objectives, self.args.beta, logps, preferences, weights, self.sft)
        # linear weighting with weights 1/m then adds the objectives' parts up
        losses = losses.times(torch.tensor(len(self.objectives) / self.parts, dtype=torch.float64))
        if self.layers is None:
            differentiate_each(scores, losses, stack)
        else:
            differentiate(scores, losses, stack, self.layers, self.basis)
        return losses.values.sum() / len(self.objectives) * self.args.world_size


# ---- the methods ----


def _number(request: Request, name: str, default: float) -> float:
    value = request.option(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"bad {name}", where=f"method {request.method}", expected="a number >= 0", found=value)
    return float(value)


def check(request: Request) -> list[str]:
    """Raises InputError for options out of range, templates without their place, scores that are not there."""
    _number(request, "gamma", 2.0), _number(request, "sft", 0.0)
    text = request.option("dimension", DIMENSION)
    if "{dimension}" not in str(text):
        raise InputError("an instruction that names nothing", where="amopo dimension", expected="{dimension} in it")
    if "{score}" in str(text) and request.option("scores") is None:
        raise InputError("an instruction with {score}", where="amopo dimension", fix="Give the file: scores.")
    names, words = [o.name for o in request.objectives], request.option("words")
    if words is not None and not (isinstance(words, Mapping) and set(words) == set(names)):
        raise InputError("bad words", where="amopo words", expected="one for every objective", found=words)
    copies = Copies(request)  # reads the scores
    texts = [dimension_instruction(request.method_options, name) for name in names]
    texts = [text.replace("{score}", "") for text in texts]
    check_prefix([general_instruction(request.method_options, names), *texts], load_tokenizer(request.model))
    scored = ", with scores" if copies.scores else ""
    return [f"one training; every pair {len(copies.names) + 1} times: for all dimensions, and for each{scored}"]


def _plain(objective: Objective) -> Objective:
    """Without an anchor, and with its loss's own custom about reference and length."""
    return replace(objective, sft=0.0, reference_free=None, length_normalized=None)


def train(request: Request) -> None:
    """One run of `AMoPOTrainer`."""
    copies, beta = Copies(request), request.args.beta
    gamma = _number(request, "gamma", 2.0)
    objectives = [
        replace(_plain(o), weight=1 / len(request.objectives), loss="simpo", gamma=gamma / (o.beta or beta))
        for o in request.objectives
    ]
    changed = replace(
        request,
        objectives=objectives,
        args=changed_args(request.args, combiner="linear"),
        data_options={**request.data_options, "change_rows": copies.change},
    )
    kind = partial(AMoPOTrainer, copies=copies, sft=_number(request, "sft", 0.0))
    train_one(changed, asked=request, kind=kind)


def load(directory: Path, weights: Mapping[str, float] | None) -> Outcome:
    """The model, asked behind the general instruction."""
    record = run_record(directory)
    instruction = general_instruction(record["method"]["options"], [o["name"] for o in record["objectives"]])
    found = load_model(directory)
    return replace(found, prepare=lambda prompt: prefixed(prompt, instruction))


def train_static(request: Request) -> None:
    """The sigmoid loss of per-token log-probabilities, without a reference, summed with the weights."""
    objectives = [
        replace(o, loss="sigmoid", reference_free=True, length_normalized=True, sft=0.0) for o in request.objectives
    ]
    args = changed_args(request.args, combiner="linear")
    train_one(replace(request, objectives=objectives, args=args), asked=request)


AMOPO: dict[str, Method] = {
    "amopo": Method(
        title="per-dimension copies with SimPO losses, weighed by the policy's confidence",
        source="AMoPO, arXiv 2506.07165",
        settings={"combiner": "linear", "gradient_storage": "stack", "normalize_gradients": False},
        train=train,
        load=load,
        check=check,
        options={
            "gamma": "SimPO's target margin (not over beta); 2 in the authors' script, with beta 0.8.",
            "sft": "Weight of -log pi(preferred)/tokens, 0.",
            "general": "Instruction before all prompts, {dimensions} in it.",
            "dimension": "Instruction before a dimension's copies, {dimension} and, with scores, {score} in it.",
            "words": "Objective -> word in place of its name, for small vocabularies; by default nothing else.",
            "scores": "File of {prompt, responses, scores: {objective: [numbers]}}: the copies name the preferred's.",
        },
    ),
    "amopo-static": Method(
        title="weighted sum of reference-free, length-normalised sigmoid losses",
        source="arXiv 2602.02495, equation 9: AMoPO as RACO's authors compare with it",
        settings={"combiner": "linear"},
        train=train_static,
        check=lambda request: ["one training, each objective's loss without a reference and per token"],
    ),
}
