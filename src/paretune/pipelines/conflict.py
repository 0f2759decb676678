"""Will RACO differ from linear weighting on this model and this data? The gradients of one step's rows tell.

One optimizer step's worth of comparisons, drawn as training draws them, gives every objective's gradient at the model
as it is, before any training; their Gram matrix gives cosines, norms, and the angle between RACO's update and linear
weighting's. The rows are taken in batches, and each figure again with one batch left out (the jackknife: Efron & Stein
1981), which says how much it would move with other rows. Angles hold for steps of as many rows: larger steps have less
noise in their gradients, and usually other cosines.

Letters in shapes: K batches, M objectives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paretune.combine.labelled import combine_labelled
from paretune.combine.raco import raco
from paretune.comparisons.batches import collate, to_device
from paretune.comparisons.tokens import pad_id
from paretune.errors import InputError
from paretune.gradients import GradientStack, RowLayers, joined, trainable_parameters
from paretune.losses import batch_losses, check_losses, is_reference_free
from paretune.objectives import Objective, normalize_weights
from paretune.policy.eligibility import made_batch
from paretune.policy.loading import prepare_policy
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference, choose_reference
from paretune.training.checks import check_tokens, check_weights
from paretune.training.sampler import stratified_order
from paretune.training.step import differentiate, differentiate_each, log_probs, single_pass_reason

# Degrees between RACO's update and linear weighting's. At 3 the two differ by a twentieth of their length, at 8 by a
# seventh; the most there can be is asin(c), 24 at c = 0.4.
HARDLY, CLEARLY = 3.0, 8.0
# Cosines above this are no conflict, here as in the summary that a run ends with.
NO_CONFLICT = -0.05
# Two gradients below this are one with two signs: c and the weights then decide how far to go, not where.
OPPOSED = -0.999
# Student's t at 97.5 % with K - 1 degrees of freedom, for the numbers of batches used: LoRA's, all weights'.
_T = {8: 2.365, 4: 3.182}


@dataclass(frozen=True)
class Figure:
    """A measured number and its 95 % interval, None where the rows do not allow one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Conflict:
    """What `measure_conflict` found; angles in degrees, norms in the loss's unit per parameter's."""

    objectives: list[str]
    weights: list[float]
    c: float
    rows: int
    labels: dict[str, int]
    norms: dict[str, Figure]
    cosines: dict[str, Figure]  # "a~b"
    angle: Figure
    effective_weights: list[float]  # RACO's coefficients over their sum
    elsewhere: list[tuple[list[float], float]]  # other weights, and the angle there
    sentence: str


@dataclass(frozen=True)
class ModelConflict:
    """The figures, and what a step costs on this machine (forward passes of policy and reference, and backward)."""

    conflict: Conflict
    trained: str  # "LoRA" or "all weights"
    parameters: int
    device: str
    seconds_per_step: float
    rows_per_second: float
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_conflict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    objectives: Sequence[Objective],
    *,
    c: float = 0.4,
    beta: float = 0.2,
    size: int = 64,
    full: bool = False,
    seed: int = 0,
) -> ModelConflict:
    """The objectives' conflict at a model before training, on one step's rows.

    Args:
        model: causal language model, on the device to measure on. Adapters are added to it.
        tokenizer: the one that made `rows`.
        rows: of `tokenize_comparisons`, with these objectives' preferences in their order.
        objectives: m of them; weights need not sum to 1.
        c: RACO's radius.
        beta: of objectives without one of their own.
        size: comparisons of the step; all rows where there are fewer.
        full: gradients of all weights, 4 m of them held at once in float32, instead of those of LoRA (r = 16).
        seed: of the rows drawn and of the adapters.

    Raises:
        InputError: too few rows, an objective without a label among them, a loss that does not exist, a model that
            cannot train.
    """
    objectives = normalize_weights(list(objectives))
    check_losses(objectives)
    check_tokens(model, tokenizer)
    check_weights(model)
    batches = _drawn(rows, objectives, 4 if full else 8, size, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = None if full else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        policy, notices = prepare_policy(model, adapter, disable_dropout=True)
    device = next(policy.parameters()).device
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
        scorer = prepare_scorer(policy)
        needed = not all(is_reference_free(o) for o in objectives)
        reference, said = choose_reference(policy, None, scorer, needed=needed)
        made = made_batch(policy, scorer.layout)
        policy.train()
        reason = single_pass_reason(policy, lambda: log_probs(policy, scorer, Reference("none"), made)[0], half=half)
        layers = RowLayers(policy) if reason is None else None
        stacks, labels, seconds = [], [], []
        for batch_rows in batches:
            start = time.perf_counter()
            stacks.append(GradientStack(trainable_parameters(policy), len(objectives)))
            batch = collate(batch_rows, layout=scorer.layout, pad_id=pad_id(tokenizer))
            batch = to_device(batch, device)
            scores, logps = log_probs(policy, scorer, reference, batch)
            losses = batch_losses(objectives, beta, logps, batch["preferences"])
            if layers is None:
                differentiate_each(scores, losses, stacks[-1])
            else:
                differentiate(scores, losses, stacks[-1], layers)
            labels.append(losses.labelled.sum(1).cpu().double())  # waits for the device
            seconds.append(time.perf_counter() - start)
    if layers is not None:
        layers.restore()
    rate = len(batches[-1]) * (len(batches) - 1) / sum(seconds[1:])  # the first one warms up
    used = sum(map(len, batches))
    found = judge(_joint_gram(stacks), torch.stack(labels), objectives, c=c, rows=used)
    why = [f"one backward pass per objective, because {reason}"] if reason is not None else []
    return ModelConflict(
        conflict=found,
        trained="all weights" if full else "LoRA",
        parameters=sum(p.numel() for p in trainable_parameters(policy).values()),
        device=str(device),
        seconds_per_step=used / rate,
        rows_per_second=rate,
        notices=[*notices, *scorer.notices, *said, *why],
    )


def _drawn(rows: Dataset, objectives: Sequence[Objective], k: int, size: int, seed: int) -> list[list[dict[str, Any]]]:
    """The step's rows in k batches of one size."""
    labelled = ~np.isnan(np.asarray(rows["preferences"], dtype=np.float64).reshape(len(rows), -1))
    some = np.flatnonzero(labelled.any(1))
    if size < k:
        raise InputError("too few rows to measure gradients on", where="rows", expected=f"at least {k}", found=size)
    each = min(size, len(some)) // k
    if each < 1:
        raise InputError("too few rows to measure gradients on", expected=f"at least {k} with a label", found=len(some))
    order = some[stratified_order(labelled[some], seed, 0)][: each * k]
    for objective, count in zip(objectives, labelled[order].sum(0).tolist(), strict=True):
        if not count:
            fix = "Take more rows, or leave it out of the objectives."
            raise InputError(f"no label of {objective.name!r} among the {len(order)} rows drawn", fix=fix)
    return [[rows[int(i)] for i in order[start : start + each]] for start in range(0, len(order), each)]


def _joint_gram(stacks: list[GradientStack]) -> Tensor:
    """(K, M, K, M) float64: products of every batch's summed gradients with every other's."""
    k, m = len(stacks), stacks[0].objectives
    return joined(stacks).gram().view(k, m, k, m)


def judge(gram_KMKM: Tensor, labels_KM: Tensor, objectives: Sequence[Objective], *, c: float, rows: int) -> Conflict:
    """All figures from the products of the batches' gradients: a pure function of a few numbers.

    Args:
        gram_KMKM: (K, M, K, M) float64, <sum over batch k of objective i's gradients, the same of batch l and j>.
        labels_KM: (K, M) labels of each objective in each batch; a mean gradient divides by their sum.
        objectives: M of them, with weights that sum to 1.
        c: RACO's radius.
        rows: comparisons in all.
    """
    names = [o.name for o in objectives]
    weights = torch.tensor([o.weight for o in objectives], dtype=torch.float64)
    k = len(labels_KM)
    everything = torch.ones(k, dtype=torch.float64)
    gram, present = _mean_gram(gram_KMKM, labels_KM, everything)
    whole = _figures(gram, present, weights, c, names)
    left_out = []
    for i in range(k):
        keep = everything.clone()
        keep[i] = 0.0
        left_out.append(_figures(*_mean_gram(gram_KMKM, labels_KM, keep), weights, c, names))
    bounds = {"norm": (0.0, math.inf), "cosine": (-1.0, 1.0), "angle": (0.0, math.degrees(math.asin(c)))}
    figures = {
        key: _interval(value, [one[key] for one in left_out], bounds[key.split("/")[0]]) for key, value in whole.items()
    }
    solved = combine_labelled(raco, gram, weights, present, c=c)
    elsewhere = [
        (other.tolist(), _angle(gram, present, other, c)) for other in _other_weights(len(names)) if len(names) > 1
    ]
    norms = {name: figures[f"norm/{name}"] for name in names}
    cosines = {key.removeprefix("cosine/"): figure for key, figure in figures.items() if key.startswith("cosine/")}
    why_zero = str(solved.info.get("why_zero", ""))
    return Conflict(
        objectives=names,
        weights=weights.tolist(),
        c=c,
        rows=rows,
        labels={name: int(count) for name, count in zip(names, labels_KM.sum(0).tolist(), strict=True)},
        norms=norms,
        cosines=cosines,
        angle=figures["angle"],
        effective_weights=(solved.coefficients / solved.coefficients.sum().clamp_min(1e-300)).tolist(),
        elsewhere=elsewhere,
        sentence=sentence(
            norms, weights.tolist(), cosines, figures["angle"], elsewhere, c=c, rows=rows, why_zero=why_zero
        ),
    )


def _mean_gram(gram_KMKM: Tensor, labels_KM: Tensor, keep_K: Tensor) -> tuple[Tensor, Tensor]:
    """The (M, M) Gram of mean gradients over the kept batches, and which objectives have a label in them."""
    labels = (keep_K[:, None] * labels_KM).sum(0)
    sums = torch.einsum("k,kilj,l->ij", keep_K, gram_KMKM, keep_K)
    each = labels.clamp_min(1.0)
    return sums / each[:, None] / each, labels > 0


def _figures(gram: Tensor, present: Tensor, weights: Tensor, c: float, names: list[str]) -> dict[str, float]:
    """Norms, cosines and the angle, by kind/objective; NaN where there is nothing to measure."""
    norms = torch.where(present, gram.diagonal().clamp_min(0).sqrt(), math.nan).tolist()
    found = {f"norm/{name}": norm for name, norm in zip(names, norms, strict=True)}
    for j in range(len(names)):
        for i in range(j):
            product = norms[i] * norms[j]
            found[f"cosine/{names[i]}~{names[j]}"] = float(gram[i, j]) / product if product > 0 else math.nan
    found["angle"] = _angle(gram, present, weights, c)
    return found


def _angle(gram: Tensor, present: Tensor, weights: Tensor, c: float) -> float:
    return math.degrees(combine_labelled(raco, gram, weights, present, c=c).info.get("angle_to_linear", 0.0))


def _interval(value: float, without: list[float], bounds: tuple[float, float]) -> Figure:
    """The jackknife's interval: K leave-one-out values spread as sqrt((K-1)/K sum of squares) of the standard error."""
    if math.isnan(value) or any(math.isnan(one) for one in without):
        return Figure(value, None, None)
    k = len(without)
    mean = math.fsum(without) / k
    reach = _T[k] * math.sqrt((k - 1) / k * math.fsum((one - mean) ** 2 for one in without))
    return Figure(value, max(bounds[0], value - reach), min(bounds[1], value + reach))


def _other_weights(m: int) -> list[Tensor]:
    """Equal weights, and each objective in turn with four fifths."""
    corners = [torch.full((m,), 0.2 / max(m - 1, 1), dtype=torch.float64) for _ in range(m)]
    for i, corner in enumerate(corners):
        corner[i] = 0.8
    return [torch.full((m,), 1.0 / m, dtype=torch.float64), *corners]


def sentence(
    norms: dict[str, Figure],
    weights: Sequence[float],
    cosines: dict[str, Figure],
    angle: Figure,
    elsewhere: Sequence[tuple[list[float], float]],
    *,
    c: float,
    rows: int,
    why_zero: str = "",
) -> str:
    """Whether RACO will differ from linear weighting here, why, and how sure that is.

    By the angle: below HARDLY it hardly will, from CLEARLY on it clearly will, between them a little. Where the
    interval's ends would be judged differently, that is said.
    """
    if len(norms) < 2:
        return "With one objective there is nothing to combine: RACO is that objective alone."
    if c == 0.0:
        return "With c = 0 RACO is linear weighting."
    measured = {pair: figure.value for pair, figure in cosines.items() if not math.isnan(figure.value)}
    if not measured:
        return "No two objectives have a gradient here: the rows hold nothing that could conflict."
    pair = min(measured, key=measured.__getitem__)
    a, b = pair.split("~")
    between = f"the gradients of {a} and {b} have a cosine of {measured[pair]:+.2f}"
    conflict = measured[pair] < NO_CONFLICT
    pulls = [(w * figure.value, name) for w, (name, figure) in zip(weights, norms.items(), strict=True)]
    lengths = sorted(pull for pull in pulls if pull[0] > 0)
    verdict = _verdict(angle.value)
    text = f"RACO will {verdict} from linear weighting here"
    if why_zero:
        text += f": it makes no correction, because {why_zero}"
    elif len(norms) == 2 and measured[pair] < OPPOSED:
        text += f": {between}, opposed in every row, so that all their combinations lie on one line"
    elif verdict == "hardly differ" and conflict:
        text += f": {between}, but with these weights its correction points where linear weighting goes anyway"
    elif verdict == "hardly differ":
        text += f", because there is little conflict: {between}"
    elif conflict:
        text += f": {between}, and its update turns {angle.value:.0f} degrees away"
    else:
        (short, weak), (long, strong) = lengths[0], lengths[-1]
        text += f", less by conflict ({between}) than by size: times its weight, the gradient of {strong} is "
        text += f"{long / short:.1f} times as long as that of {weak}, whose part RACO raises; its update turns "
        text += f"{angle.value:.0f} degrees away"
    text += "."
    best = max(elsewhere, key=lambda one: one[1], default=None)
    if best is not None and best[1] >= CLEARLY and verdict == "hardly differ":
        at = " / ".join(f"{w:.2g}" for w in best[0])
        text += f" With weights {at} it would turn {best[1]:.0f} degrees."
    if angle.low is None or angle.high is None:
        text += f" {rows} rows carry too few labels to say how sure that is."
    elif _verdict(angle.low) != _verdict(angle.high):
        text += (
            f" {rows} rows leave the angle between {angle.low:.0f} and {angle.high:.0f} degrees, so this may change."
        )
    return text


def _verdict(degrees: float) -> str:
    return "hardly differ" if degrees < HARDLY else "differ clearly" if degrees >= CLEARLY else "differ a little"
