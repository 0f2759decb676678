"""The exact world for many seeds at once, each seed a world of its own, and training in it.

The world, its policy of low rank and its losses are those of `paretune.sandbox`; only the order of the sums differs:
arms of a seed share their batch, so that a step is a few matrix products per seed. A test holds the gradients equal to
`bandit_runs.losses_and_gradients`.

S seeds, R runs of a seed (arms times weights), 2 objectives, B rows, X prompts, Y responses, D features, K rank,
P = Y + D K + Y K parameters in the order of `bandit.low_rank`. float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.sandbox.bandit import Bandit, low_rank, make_bandit
from paretune.sandbox.bandit_runs import Comparisons, sampled
from paretune.sandbox.labels import PRESETS, Labelling
from studies.noisy_gram.arms import Arm, Memory, Step, decide
from studies.noisy_gram.grams import self_products

BETA, KAPPA, RANK, BIAS = 0.2, 1.0, 4, 2.0
ROWS = 4_000
OTHER, UNUSED = {"fresh": 0, "large": 512}, 1_000_000  # rows of other batches (0: as many), and where they start


# What `make_bandit` is asked for beside the seed, and the labels. Nothing was chosen in the untuned world: another
# size, a richer skill, twice the private reward (as in studies/does_raco_win), and the noise is the other objective's.
UNTUNED = {"responses": 16, "features": 8, "skill_rank": 3, "own": 0.6}
CONDITIONS: dict[str, tuple[dict[str, Any], Labelling]] = {
    "clean": ({}, PRESETS["clean"]),
    "noisy-one": ({}, PRESETS["noisy-one"]),
    "scaled": ({}, PRESETS["scaled"]),
    "untuned, noisy-two": (UNTUNED, Labelling(flip=(0.0, 0.3))),
}


@dataclass(frozen=True)
class Worlds:
    """S seeds: their worlds, their comparisons, and the betas of their labels.

    a, b (S, N) responses and x (S, N) prompts of the comparisons; labels (S, 2, N); features (S, X, D), reference
    (S, X, Y), rewards (S, 2, X, Y) of the training prompts, then the held-out ones.
    """

    seeds: tuple[int, ...]
    bandits: tuple[Bandit, ...]
    x: Tensor
    a: Tensor
    b: Tensor
    labels: Tensor
    features: Tensor
    reference: Tensor
    rewards: Tensor
    betas: Tensor
    n_train: int


def make_worlds(condition: str, seeds: Sequence[int], rows: int = ROWS) -> Worlds:
    """A seed fixes the world (rewards, features, reference), its comparisons and labels, the start and the batches."""
    shape, labelling = CONDITIONS[condition]
    labelling = labelling.with_kappa(KAPPA)
    bandits = tuple(make_bandit(seed=seed, **shape) for seed in seeds)
    data: list[Comparisons] = [sampled(one, labelling, rows, seed) for one, seed in zip(bandits, seeds, strict=True)]
    responses = bandits[0].reference.shape[1]
    a, b = (torch.stack([getattr(one, side) for one in data]) for side in ("a", "b"))
    labels = torch.stack([one.labels.mT for one in data])
    assert not labels.isnan().any(), "presets with missing labels are not part of this study"
    stacked = [torch.stack([getattr(one, name) for one in bandits]) for name in ("features", "reference", "rewards")]
    betas = torch.tensor(labelling.betas(BETA, 2), dtype=torch.float64)
    return Worlds(
        tuple(seeds), bandits, a // responses, a % responses, b % responses, labels, *stacked, betas, bandits[0].n_train
    )


class Rows(NamedTuple):
    """B comparisons for each seed: features (S, B, D), signs (S, Y, B) = 1 at a and -1 at b, labels (S, 2, B)."""

    features: Tensor
    signs: Tensor
    labels: Tensor


def rows_of(worlds: Worlds, index: Tensor) -> Rows:
    """The comparisons of index (S, B)."""
    x, a, b = (values.gather(1, index) for values in (worlds.x, worlds.a, worlds.b))
    responses = worlds.reference.shape[-1]
    features = worlds.features.gather(1, x[..., None].expand(-1, -1, worlds.features.shape[-1]))
    signs = (F.one_hot(a, responses) - F.one_hot(b, responses)).double().mT
    labels = worlds.labels.gather(2, index[:, None].expand(-1, 2, -1))
    return Rows(features, signs, labels)


def batch_rows(worlds: Worlds, step: int, size: int) -> Rows:
    """Drawn with replacement from the seed and the step alone, as `bandit_runs.train` draws."""
    chosen = [np.random.default_rng((seed, step)).integers(worlds.a.shape[1], size=size) for seed in worlds.seeds]
    return rows_of(worlds, torch.from_numpy(np.stack(chosen)))


class Parts(NamedTuple):
    """What the gradients of one batch are made of. Rows come first, so that sums over them are matrix products."""

    slopes: Tensor  # (S, B, R, 2), d L_i / d margin, the mean's 1 / B in it
    z: Tensor  # (S, B, R, K), U' features
    dv: Tensor  # (S, B, R, K), V(a) - V(b)
    losses: Tensor  # (S, R, 2)


def split(theta: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """bias (..., Y), U (..., D, K), V (..., Y, K)."""
    y = (theta.shape[-1] - d * RANK) // (1 + RANK)
    bias, u, v = theta.split([y, d * RANK, y * RANK], -1)
    return bias, u.unflatten(-1, (d, RANK)), v.unflatten(-1, (y, RANK))


def _per_row(left: Tensor, right: Tensor) -> Tensor:
    """left (S, B, Q), right (S, R, Q, K) -> (S, B, R, K)."""
    seeds, runs, q, k = right.shape
    return (left @ right.transpose(1, 2).reshape(seeds, q, runs * k)).unflatten(2, (runs, k))


def forward(rows: Rows, theta: Tensor, betas: Tensor) -> Parts:
    """Margins, losses and slopes of theta (S, R, P)."""
    bias, u, v = split(theta, rows.features.shape[-1])
    z = _per_row(rows.features, u)
    dv = _per_row(rows.signs.mT, v)
    margins = BIAS * (rows.signs.mT @ bias.mT) + (z * dv).sum(-1)
    x = betas * margins[..., None]
    p = rows.labels.mT[:, :, None]
    losses = (F.softplus(x) - p * x).mean(1)
    return Parts((x.sigmoid() - p) * (betas / x.shape[1]), z, dv, losses)


def gradients(rows: Rows, parts: Parts) -> Tensor:
    """(S, R, 2, P)."""
    seeds, _, runs, _ = parts.slopes.shape
    to_bias = BIAS * (rows.signs @ parts.slopes.flatten(2)).view(seeds, -1, runs, 2).permute(0, 2, 3, 1)
    scaled_u = (parts.slopes[..., None] * parts.dv[:, :, :, None]).flatten(2)
    scaled_v = (parts.slopes[..., None] * parts.z[:, :, :, None]).flatten(2)
    to_u, to_v = (
        (left @ right).view(seeds, -1, runs, 2, RANK).permute(0, 2, 3, 1, 4).flatten(3)
        for left, right in ((rows.features.mT, scaled_u), (rows.signs, scaled_v))
    )
    return torch.cat((to_bias, to_u, to_v), -1)


def squared_norms(rows: Rows, parts: Parts, inverse: Tensor | None = None) -> Tensor:
    """nu (S, B, R): ||grad margin||^2 of each row, or <., D^-1 .> with the diagonal inverse (S, R, P)."""
    if inverse is None:
        phi = rows.features.square().sum(-1)[..., None]
        return 2.0 * BIAS**2 + phi * parts.dv.square().sum(-1) + 2.0 * parts.z.square().sum(-1)
    bias, u, v = split(inverse, rows.features.shape[-1])
    either = rows.signs.abs().mT
    of_u = (_per_row(rows.features.square(), u) * parts.dv.square()).sum(-1)
    return BIAS**2 * (either @ bias.mT) + of_u + (_per_row(either, v) * parts.z.square()).sum(-1)


def halves(rows: Rows, parts: Parts) -> tuple[Tensor, Tensor]:
    """Gradients of the two halves of a batch, each a mean over its own rows."""
    half = parts.slopes.shape[1] // 2
    sides = []
    for chosen in (slice(0, half), slice(half, 2 * half)):
        part = Rows(rows.features[:, chosen], rows.signs[..., chosen], rows.labels[..., chosen])
        slopes = parts.slopes[:, chosen] * (parts.slopes.shape[1] / half)
        sides.append(gradients(part, Parts(slopes, parts.z[:, chosen], parts.dv[:, chosen], parts.losses)))
    return sides[0], sides[1]


def agreeing(parts: Parts, chosen: slice, c: float) -> Parts:
    """RACO of every row by itself: slopes times 1 + c where the two agree in sign, 1 - c where not (any weights).

    The gradients of one row are colinear, so the correction can only point along g_0 or against it.
    """
    slopes = parts.slopes[:, :, chosen]
    factor = 1.0 + c * (slopes[..., 0] * slopes[..., 1]).sign()
    return Parts(slopes * factor[..., None], parts.z[:, :, chosen], parts.dv[:, :, chosen], parts.losses)


def starts(worlds: Worlds, runs: int) -> Tensor:
    """(S, R, P): the seed's start, the same for all its runs."""
    policy = low_rank(RANK, bias_scale=BIAS)
    theta = torch.stack([policy.start(one, seed) for one, seed in zip(worlds.bandits, worlds.seeds, strict=True)])
    return theta[:, None].expand(-1, runs, -1).clone()


def held_out(worlds: Worlds, theta: Tensor) -> Tensor:
    """(S, R, 3): expected rewards of both objectives and KL to the reference, exactly, on held-out prompts."""
    bias, u, v = split(theta, worlds.features.shape[-1])
    features, reference, rewards = (
        t[..., worlds.n_train :, :] for t in (worlds.features, worlds.reference, worlds.rewards)
    )
    found = []
    for part in range(0, theta.shape[1], 64):  # as much as stays in the cache
        chosen = slice(part, part + 64)
        scores = torch.einsum("sxd,srdk->srxk", features, u[:, chosen]) @ v[:, chosen].mT
        logp = F.log_softmax(reference[:, None] + BIAS * bias[:, chosen, None] + scores, -1)
        p = logp.exp()
        gains = torch.einsum("srxy,smxy->srm", p, rewards) / p.shape[2]
        kl = (p * (logp - reference[:, None])).sum(-1).mean(-1)
        found.append(torch.cat((gains, kl[..., None]), -1))
    return torch.cat(found, 1)


class Group(NamedTuple):
    """Runs of one arm: weights (W, 2), or (S, W, 2) where every seed has its own; steps lr () or (S, W)."""

    arm: Arm
    weights: Tensor
    lr: Tensor


class Paths(NamedTuple):
    """T recorded points of S x R runs.

    at (T,) steps; points (T, S, R, 3) of `held_out`; effective (T, S, R): the first objective's share of the
    coefficients, mean over the steps so far; lengths (T, S, R): mean of the formula's ||update|| / ||g_0|| so far.
    """

    at: Tensor
    points: Tensor
    effective: Tensor
    lengths: Tensor


Watch = Callable[[int, Rows, Parts, Tensor, Tensor, list[Tensor], Tensor | None], None]


def train(
    worlds: Worlds,
    groups: Sequence[Group],
    *,
    steps: int,
    size: int,
    optimizer: str,
    record: Sequence[int],
    watch: Watch | None = None,
) -> Paths:
    """All groups side by side on the same batches.

    Args:
        optimizer: "sgd", or "adam" (arXiv 1412.6980, default betas) on the combined gradient.
        record: the steps (updates made) at which points are kept.
        watch: called before each update with step, rows, parts, gradients, theta, coefficients of the groups, D^-1.
    """
    seeds, device_runs = len(worlds.seeds), [group.weights.shape[-2] for group in groups]
    theta = starts(worlds, sum(device_runs))
    lr = torch.cat([group.lr.double().expand(seeds, group.weights.shape[-2]) for group in groups], 1)[..., None]
    w = torch.cat([group.weights.expand(seeds, -1, -1) for group in groups], 1)
    memories = [Memory() for _ in groups]
    needs_halves = any(group.arm.gram == "halves" for group in groups)
    needs_metric = any(group.arm.metric == "adam" for group in groups)
    flags = [group.arm.published for group in groups for _ in range(group.weights.shape[-2])]
    as_published = torch.tensor(flags).expand(seeds, -1)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    share, length = theta.new_zeros(theta.shape[:2]), theta.new_zeros(theta.shape[:2])
    kept: list[tuple[Tensor, ...]] = []
    for step in range(steps + 1):
        if step in record:
            count = max(step, 1)
            kept.append((torch.tensor(step), held_out(worlds, theta), share / count, length / count))
        if step == steps:
            break
        rows = batch_rows(worlds, step, size)
        parts = forward(rows, theta, worlds.betas)
        g = gradients(rows, parts)
        own = self_products(parts.slopes, squared_norms(rows, parts))
        both = halves(rows, parts) if needs_halves else None
        inverse = own_metric = None
        if needs_metric and optimizer == "adam" and step:
            inverse = 1.0 / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            own_metric = self_products(parts.slopes, squared_norms(rows, parts, inverse))
        chosen = []
        for group, memory, part in zip(groups, memories, slices(device_runs), strict=True):
            metric = group.arm.metric == "adam" and inverse is not None
            other = None
            if group.arm.gram in OTHER:
                drawn = batch_rows(worlds, step + UNUSED, OTHER[group.arm.gram] or size)
                other = gradients(drawn, forward(drawn, theta[:, part], worlds.betas))
            elif group.arm.gram == "each":
                g[:, part] = gradients(rows, agreeing(parts, part, group.arm.c))
            offered = Step(
                g[:, part],
                None if both is None else (both[0][:, part], both[1][:, part]),
                (own_metric if metric and own_metric is not None else own)[:, part],
                size,
                inverse[:, part] if metric and inverse is not None else None,
                other,
            )
            chosen.append(decide(group.arm, offered, w[:, part], memory)[0])
        if watch:
            watch(step, rows, parts, g, theta, chosen, inverse)
        a = torch.cat(chosen, 1)
        update = (a[..., None, :] @ g)[..., 0, :]
        share += a[..., 0] / a.sum(-1)
        ratio = update.norm(dim=-1) / (w[..., None, :] @ g)[..., 0, :].norm(dim=-1).clamp(min=1e-300)
        length += ratio
        # at equal KL shorter steps win whatever their direction, so all arms make steps of one length
        update = torch.where(as_published, 1.0, 1.0 / ratio.clamp(min=1e-300))[..., None] * update
        if optimizer == "adam":
            first, second = 0.9 * first + 0.1 * update, 0.999 * second + 0.001 * update.square()
            update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        theta = theta - lr * update
    at, points, effective, lengths = (torch.stack(column) for column in zip(*kept, strict=True))
    return Paths(at, points, effective, lengths)


def slices(counts: Sequence[int]) -> list[slice]:
    """Where each group's runs stand."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
