"""Training in the exact world: many runs, each with its own combiner, weights, seed and step, as one tensor.

What is learnt is what the library learns elsewhere: sigmoid DPO losses of labelled comparisons, one per objective,
whose gradients `paretune.combine` combines. The derivatives are written out, since a loss depends on the scores only
through margins; `tests/sandbox/test_bandit.py` holds them equal to autograd of `paretune.losses`.

R runs, N comparisons (or B of them in a batch), M objectives, T training prompts, Y responses, P parameters. float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.combine import Combination, find_combiner
from paretune.combine.contract import check_options
from paretune.combine.labelled import combine_labelled
from paretune.errors import InputError
from paretune.sandbox.bandit import Bandit, Policy
from paretune.sandbox.labels import Labelling, prefer, select_conflict


@dataclass(frozen=True)
class Comparisons:
    """N comparisons of responses a and b to training prompts.

    Attributes:
        a, b: (N,) int64, prompt * Y + response.
        labels: (N, M), the probability that a is better, NaN missing.
    """

    a: Tensor
    b: Tensor
    labels: Tensor


def population(bandit: Bandit, labelling: Labelling) -> Comparisons:
    """Every pair of responses to every training prompt, once, with its label's probability: nothing is drawn.

    Raises:
        InputError: a labelling that leaves out labels or rows, which only a draw can do.
    """
    if labelling.missing not in (0.0, ()) or labelling.disjoint or labelling.conflict is not None:
        fix = "Draw comparisons with `sampled`."
        raise InputError("the population has all labels of all rows", where="labelling", found=labelling, fix=fix)
    responses = bandit.reference.shape[1]
    first, second = torch.triu_indices(responses, responses, offset=1)
    base = responses * torch.arange(bandit.n_train)[:, None]
    a, b = (base + first).flatten(), (base + second).flatten()
    return Comparisons(a, b, _labels(bandit, a, b, replace(labelling, soft=True), np.random.default_rng(0)))


def sampled(bandit: Bandit, labelling: Labelling, n: int, seed: int) -> Comparisons:
    """`n` comparisons: prompts evenly, two different responses of the reference, labels by `labelling`.

    Raises:
        InputError: the responses do not yield the conflicting share that is asked for.
    """
    rng = np.random.default_rng(seed)
    # a share of conflicts is met by leaving rows out; the rarer kind makes up about a sixth of the default world's
    pool = n if labelling.conflict is None else 16 * n
    responses = bandit.reference.shape[1]
    prompts = rng.permutation(pool) % bandit.n_train
    scores = bandit.reference.numpy()[prompts]
    # the two largest of scores plus Gumbel noise are two draws without replacement (Kool et al. 2019)
    pair = np.argsort(-(scores + rng.gumbel(size=scores.shape)), 1, kind="stable")[:, :2]
    a, b = (torch.from_numpy(prompts * responses + pair[:, side]) for side in (0, 1))
    if labelling.conflict is not None:
        rewards_a, rewards_b = (bandit.rewards.flatten(1).T[cells].numpy() for cells in (a, b))
        rows = select_conflict(rewards_a, rewards_b, labelling.conflict, rng, tie=labelling.tie)
        if len(rows) < n:
            expected, found = f"{n} rows of which {labelling.conflict:g} conflict", f"{len(rows)} of {pool} drawn"
            raise InputError("too few rows of one kind", expected=expected, found=found)
        kept = torch.from_numpy(rng.permutation(rows)[:n])
        a, b = a[kept], b[kept]
    return Comparisons(a, b, _labels(bandit, a, b, labelling, rng))


def _labels(bandit: Bandit, a: Tensor, b: Tensor, labelling: Labelling, rng: np.random.Generator) -> Tensor:
    rewards = bandit.rewards.flatten(1).T
    return torch.from_numpy(prefer(rewards[a].numpy(), rewards[b].numpy(), labelling, rng))


class Batch(NamedTuple):
    """B comparisons for each of R runs: cells a, b (R, 1, B); labels p and shares of the mean, (R, M, B)."""

    a: Tensor
    b: Tensor
    p: Tensor
    share: Tensor


def make_batch(a: Tensor, b: Tensor, labels: Tensor) -> Batch:
    """From cells (R, B) and labels (R, B, M). A mean runs over the comparisons that carry the objective's label."""
    labels = labels.mT
    labelled = (~labels.isnan()).double()
    share = labelled / labelled.sum(-1, keepdim=True).clamp(min=1.0)
    return Batch(a[:, None], b[:, None], labels.nan_to_num(0.5), share)


def losses_and_gradients(
    bandit: Bandit, policy: Policy, theta: Tensor, batch: Batch, betas: Tensor
) -> tuple[Tensor, Tensor]:
    """Every run's M losses (R, M) and their gradients (R, M, P), for theta (R, P), betas (M,) and R batches or one.

    L_i = mean of softplus(beta_i z) - p beta_i z: `paretune.losses.sigmoid` in both orientations, mixed by p.
    """
    scores = policy.scores(bandit, theta)[:, : bandit.n_train].flatten(1)[:, None]
    a, b = (cells.expand(len(theta), -1, -1) for cells in (batch.a, batch.b))
    x = betas[:, None] * (scores.gather(2, a) - scores.gather(2, b))
    losses = (batch.share * (F.softplus(x) - batch.p * x)).sum(-1)
    slopes = batch.share * betas[:, None] * (x.sigmoid() - batch.p)
    by_cell = scores.new_zeros(*slopes.shape[:2], scores.shape[2])
    by_cell.scatter_add_(2, a.expand_as(slopes), slopes)
    by_cell.scatter_add_(2, b.expand_as(slopes), -slopes)
    return losses, policy.pull(bandit, theta, by_cell.unflatten(2, (bandit.n_train, -1)))


@dataclass(frozen=True)
class Run:
    """One run: how gradients are combined, by which weights (M,), on which seed's data and start, with which step."""

    combiner: str
    weights: tuple[float, ...]
    lr: float
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Paths:
    """What `train` leaves: the recorded points of R runs, S of them, the last after the last step.

    Attributes:
        steps: (S,) int64, updates made before each point.
        theta: (S, R, P).
        losses: (S, R, M), of the batch at that point. cosines: (S, R, M, M), of that batch's gradients.
        angles: (S, R), radians between the update that point would make and g_0.
        clipped: (R,), share of all steps in which clipping turned the update.
    """

    steps: Tensor
    theta: Tensor
    losses: Tensor
    cosines: Tensor
    angles: Tensor
    clipped: Tensor


def train(
    bandit: Bandit,
    policy: Policy,
    data: Mapping[int, Comparisons],
    runs: Sequence[Run],
    *,
    steps: int,
    betas: Sequence[float],
    batch_size: int | None = None,
    optimizer: str = "sgd",
    decay: bool = False,
    every: int = 1,
) -> Paths:
    """All runs side by side. The same arguments give the same bits; runs do not influence one another.

    Args:
        data: the comparisons of every seed that occurs in `runs`, equally many for each.
        betas: of the M objectives; see `Labelling.betas`.
        batch_size: comparisons per step, drawn anew each step, the same for all runs of a seed; None takes all of them.
        optimizer: "sgd" (plain steps) or "adam" (Kingma & Ba, arXiv 1412.6980, at its default betas).
        decay: steps shrink linearly towards 0.
        every: points are recorded each so many steps.

    Raises:
        InputError: a name that does not exist, or seeds whose data differ in size.
    """
    if optimizer not in ("sgd", "adam"):
        raise InputError("unknown optimizer", expected="sgd or adam", found=optimizer)
    for run in runs:
        own = {key: value for key, value in run.options.items() if key != "seed"}  # a fixed one in place of the step
        check_options(run.combiner, find_combiner(run.combiner), own)
    draw = _batches(data, [run.seed for run in runs], batch_size)
    theta = torch.stack([policy.start(bandit, run.seed) for run in runs])
    lr = torch.tensor([[run.lr] for run in runs], dtype=torch.float64)
    weights = torch.tensor([run.weights for run in runs], dtype=torch.float64)
    beta = torch.tensor(betas, dtype=torch.float64)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    points: list[tuple[Tensor, ...]] = []
    clipped = torch.zeros(len(runs), dtype=torch.float64)
    states: list[dict[str, Any]] = [{} for _ in runs]
    for step in range(steps + 1):
        batch = draw(step)
        losses, gradients = losses_and_gradients(bandit, policy, theta, batch, beta)
        gram = gradients @ gradients.mT
        combined = combine(runs, gram, weights, batch.share.any(-1), step, losses, states)
        if step % every == 0 or step == steps:
            angles = torch.tensor([one.info.get("angle_to_linear", 0.0) for one in combined], dtype=torch.float64)
            points.append((torch.tensor(step), theta.clone(), losses, _cosines(gram), angles))
        if step == steps:
            break
        clipped += torch.tensor([one.clip_active for one in combined], dtype=torch.float64)
        update = (torch.stack([one.coefficients for one in combined])[:, None] @ gradients)[:, 0]
        if optimizer == "adam":
            first, second = 0.9 * first + 0.1 * update, 0.999 * second + 0.001 * update.square()
            update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        theta = theta - lr * (1.0 - step / steps if decay else 1.0) * update
    at, thetas, values, cosines, angles = (torch.stack(column) for column in zip(*points, strict=True))
    return Paths(at, thetas, values, cosines, angles, clipped / max(steps, 1))


def combine(
    runs: Sequence[Run],
    gram: Tensor,
    weights: Tensor,
    present: Tensor,
    step: int,
    losses: Tensor | None = None,
    states: Sequence[dict[str, Any]] | None = None,
) -> list[Combination]:
    """Each run's combiner on its Gram (R, M, M), weights and losses (R, M), over the objectives `present` (R, M).

    losses: where a combiner takes them. states: each run's memory, where one has it.
    """
    return [
        combine_labelled(
            find_combiner(run.combiner), gram[i], weights[i], present[i],
            losses=None if losses is None else losses[i], state=None if states is None else states[i],
            **{"seed": step, **run.options},
        )
        for i, run in enumerate(runs)
    ]  # fmt: skip


def _batches(data: Mapping[int, Comparisons], seeds: Sequence[int], size: int | None) -> Callable[[int], Batch]:
    """step -> Batch of all runs; each seed has its own order, drawn from the seed and the step alone."""
    known = sorted(set(seeds))
    n = len(data[known[0]].a)
    if any(len(data[seed].a) != n for seed in known):
        found = [len(data[seed].a) for seed in known]
        raise InputError("the seeds' data differ in size", expected="equally many comparisons", found=found)
    row = torch.tensor([known.index(seed) for seed in seeds])
    a, b, labels = (torch.stack([getattr(data[seed], name) for seed in known]) for name in ("a", "b", "labels"))
    if size is None:
        everything = make_batch(a[row], b[row], labels[row])
        return lambda step: everything

    def draw(step: int) -> Batch:
        chosen = np.stack([np.random.default_rng((seed, step)).integers(n, size=size) for seed in known])
        index = torch.from_numpy(chosen)
        picked = labels.gather(1, index[..., None].expand(-1, -1, labels.shape[2]))
        return make_batch(a.gather(1, index)[row], b.gather(1, index)[row], picked[row])

    return draw


def _cosines(gram: Tensor) -> Tensor:
    """(R, M, M); NaN where a gradient is 0."""
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return gram / (lengths[:, :, None] * lengths[:, None, :])


def smoothness(bandit: Bandit, comparisons: Comparisons, betas: Sequence[float]) -> Tensor:
    """(M,), Lipschitz constants of the tabular policy's gradients: plain steps up to 1 / sum_i w_i l_i descend.

    The Hessian of L_i is at most beta_i^2 / 4 times the Laplacian of its comparisons' graph, prompt by prompt.
    """
    responses = bandit.reference.shape[1]
    batch = make_batch(comparisons.a[None], comparisons.b[None], comparisons.labels[None])
    constants = []
    for i, beta in enumerate(betas):
        share = batch.share[0, i]
        edges = share.new_zeros(bandit.n_train, responses, responses)
        prompt, a, b = comparisons.a // responses, comparisons.a % responses, comparisons.b % responses
        edges.index_put_((prompt, a, b), share, accumulate=True)
        edges = edges + edges.mT
        laplacian = torch.diag_embed(edges.sum(-1)) - edges
        constants.append(beta**2 / 4 * torch.linalg.eigvalsh(laplacian).max())
    return torch.stack(constants)
