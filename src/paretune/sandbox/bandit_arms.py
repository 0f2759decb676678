"""The exact world, fast: many seeds and runs as one tensor, with rules of combination that are tensors too.

`bandit_runs.train` is the plain meaning: it asks `paretune.combine` run by run. Studies need a hundred times as many
runs. Here the runs of a seed share its batches, so a comparison is a row of a matrix, and margins and gradients of all
runs are a few matrix products, and RACO is solved for all of them at once (`batched_raco.py`). Other combiners remain
with `bandit_runs.train`. `tests/sandbox/test_bandit_arms.py` holds all of it equal to the plain meaning. `low_rank`
policies, every comparison labelled by every objective; Grams and coefficients are float64, the rest is float64 or,
twice as fast, float32.

S seeds, R runs of each, B comparisons of a step, M objectives, Y responses, D features of a prompt, K the policy's
rank, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.sandbox.bandit import Bandit, low_rank
from paretune.sandbox.bandit_runs import Comparisons
from paretune.sandbox.batched_raco import raco_many, raco_two

BIAS_SCALE, RANK = 2.0, 4  # of `low_rank` as it stands


class Step(NamedTuple):
    """One step's comparisons and what the runs' policies make of them.

    Attributes:
        sides: (S, B, Y), 1 at response a and -1 at response b. phi: (S, B, D), features of the prompts.
        left: (S, B, R, K), V(a) - V(b). right: (S, B, R, K), U' phi.
        slopes: (S, B, R, M), derivatives of the objectives' mean losses with respect to the margins.
    """

    sides: Tensor
    phi: Tensor
    left: Tensor
    right: Tensor
    slopes: Tensor

    def pull(self, slopes: Tensor) -> Tensor:
        """Gradients (S, R, A, P) of A sums of margins, given their coefficients (S, B, R, A)."""
        s, b, runs, a = slopes.shape
        bias = BIAS_SCALE * (self.sides.mT @ slopes.reshape(s, b, -1)).view(s, -1, runs, a)
        u = self.phi.mT @ (slopes[..., None] * self.left[:, :, :, None]).reshape(s, b, -1)
        v = self.sides.mT @ (slopes[..., None] * self.right[:, :, :, None]).reshape(s, b, -1)
        parts = [bias.permute(0, 2, 3, 1)]
        parts += [one.view(s, -1, runs, a, RANK).permute(0, 2, 3, 1, 4).flatten(3) for one in (u, v)]
        return torch.cat(parts, -1)

    def row_gram(self, size: int) -> Tensor:
        """Inner products of the margins' gradients within consecutive groups of `size` rows.

        Returns:
            (S, R, B / size, size, size).
        """
        sides, phi = (one.unflatten(1, (-1, size))[:, None] for one in (self.sides, self.phi))
        left, right = (one.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4) for one in (self.left, self.right))
        same_sides, same_phi = sides @ sides.mT, phi @ phi.mT
        return (BIAS_SCALE**2 + right @ right.mT) * same_sides + (left @ left.mT) * same_phi

    def part(self, span: slice) -> Step:
        """Some of the runs."""
        return self._replace(left=self.left[:, :, span], right=self.right[:, :, span], slopes=self.slopes[:, :, span])


class Combined(NamedTuple):
    """What a rule makes of the gradients of one step.

    Attributes:
        update: (S, R, P), what the optimizer is given.
        coefficients: (S, R, M), of the gradients; of the part that is made of them where something else is added.
        turned: (S, R), radians that clipping turned the update by; 0 for rules that do not clip.
        interior: (S, R), 1 where the mixture that the dual chose has more than one objective; 0 for other rules.
    """

    update: Tensor
    coefficients: Tensor
    turned: Tensor
    interior: Tensor


# (step's number, its comparisons, gradients (S, R, M, P), gram (S, R, M, M), weights (S, R, M)) -> Combined
Rule = Callable[[int, Step, Tensor, Tensor, Tensor], Combined]


@dataclass(frozen=True)
class Arm:
    """Runs that share a rule.

    Attributes:
        weights: (R, M), or (S, R, M) where seeds differ. lr: (R,) or (S, R), step sizes.
    """

    rule: Rule
    weights: Tensor
    lr: Tensor


def weighted(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
    """Linear weighting."""
    return _mixed(gradients, weights)


def corrected(c: float = 0.4, clip: bool = True) -> Rule:
    """RACO, or without `clip` weighted CAGrad: `raco_two` for two objectives, `raco_many` for more."""

    def rule(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        solve = raco_two if gram.shape[-1] == 2 else raco_many
        return _mixed(gradients, *solve(gram, weights, c, clip))

    return rule


def random_correction(c: float) -> Rule:
    """g_0 plus a vector of length c ||g_0|| in a direction drawn anew each step, evenly over all directions."""

    def rule(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        drawn = np.random.default_rng((step, 1)).standard_normal(gradients[:, :, 0].shape)
        way = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))
        made = _mixed(gradients, weights)
        return made._replace(
            update=made.update + c * made.update.norm(dim=-1, keepdim=True) * way.to(made.update.dtype)
        )

    return rule


def replayed(coefficients: Tensor) -> Rule:
    """Coefficients (steps, S, R, M) laid down beforehand: a schedule that sees no gradient."""

    def rule(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        return _mixed(gradients, coefficients[step])

    return rule


def per_micro_batch(size: int, c: float = 0.4) -> Rule:
    """RACO of each consecutive `size` rows by themselves, then the mean of the updates, as released code does it.

    Two objectives only. The rows' gradients are never formed: a row's m gradients are multiples of its margin's.
    `coefficients` are the weights; `turned` is the angle between the update and RACO's of the whole batch.
    """

    def rule(step: int, source: Step, gradients: Tensor, gram: Tensor, weights: Tensor) -> Combined:
        s, b, runs, m = source.slopes.shape
        if b % size:
            raise InputError("rows left over", expected=f"a multiple of {size} rows per step", found=b)
        slopes = source.slopes.unflatten(1, (-1, size)).permute(0, 3, 1, 4, 2)  # (S, R, groups, M, size)
        grams = (slopes @ source.row_gram(size) @ slopes.mT).double()
        own, _, interior = raco_two(grams, weights[:, :, None].expand(*grams.shape[:-1]), c, True)
        mixed = (own[..., None, :].to(slopes.dtype) @ slopes)[..., 0, :].permute(0, 2, 3, 1).reshape(s, b, runs, 1)
        update = source.pull(mixed)[:, :, 0]
        whole = _mixed(gradients, raco_two(gram, weights, c, True)[0]).update
        return Combined(update, weights, vector_angle(update, whole), interior.mean(-1))

    return rule


def _mixed(
    gradients: Tensor, coefficients: Tensor, turned: Tensor | None = None, interior: Tensor | None = None
) -> Combined:
    zeros = coefficients.new_zeros(coefficients.shape[:-1])
    update = (coefficients[..., None, :].to(gradients.dtype) @ gradients)[..., 0, :]
    return Combined(update, coefficients, zeros if turned is None else turned, zeros if interior is None else interior)


def vector_angle(u: Tensor, v: Tensor) -> Tensor:
    """(...,) radians between vectors (..., P)."""
    u, v = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300) for x in (u, v))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


@dataclass(frozen=True)
class Trace:
    """What `train_arms` leaves of R runs, arm after arm, for each of S seeds.

    Attributes:
        steps: (T,) int64, updates made before each recorded point. theta: (T, S, R, P).
        coefficients: (steps, S, R, M), of every step.
        stretch: (S, R), mean over steps of ||G_0|| / ||g_0||.
        turned: (steps, S, R). interior: (S, R), mean over steps. See `Combined`.
        angle: (S, R), mean over steps of the radians between the update and g_0.
    """

    steps: Tensor
    theta: Tensor
    coefficients: Tensor
    stretch: Tensor
    turned: Tensor
    interior: Tensor
    angle: Tensor


class Rows(NamedTuple):
    """All comparisons of S seeds, N each: sides (S, N, Y), phi (S, N, D), labels (S, N, M)."""

    sides: Tensor
    phi: Tensor
    labels: Tensor


def rows_of(worlds: Sequence[Bandit], data: Sequence[Comparisons]) -> Rows:
    """One world and one set of comparisons per seed.

    Raises:
        InputError: missing labels.
    """
    parts = []
    for world, one in zip(worlds, data, strict=True):
        if one.labels.isnan().any():
            raise InputError("missing labels", where="data", fix="Use bandit_runs.train, which leaves objectives out.")
        responses = world.reference.shape[1]
        sides = torch.zeros(len(one.a), responses, dtype=torch.float64)
        at = torch.arange(len(one.a))
        sides[at, one.a % responses] = 1.0
        sides[at, one.b % responses] = -1.0
        parts.append((sides, world.features[one.a // responses], one.labels))
    return Rows(*(torch.stack(column) for column in zip(*parts, strict=True)))


def step_of(theta: Tensor, rows: Rows, betas: Tensor) -> Step:
    """What the policies theta (S, R, P) make of B comparisons of each seed."""
    s, runs, _ = theta.shape
    responses, features = rows.sides.shape[2], rows.phi.shape[2]
    bias, u, v = theta.split([responses, features * RANK, responses * RANK], -1)
    u, v = (one.unflatten(2, (-1, RANK)).permute(0, 2, 1, 3).reshape(s, -1, runs * RANK) for one in (u, v))
    left, right = ((one @ two).unflatten(2, (runs, RANK)) for one, two in ((rows.sides, v), (rows.phi, u)))
    margins = BIAS_SCALE * (rows.sides @ bias.mT) + (left * right).sum(-1)
    slopes = betas / rows.sides.shape[1] * ((margins[..., None] * betas).sigmoid() - rows.labels[:, :, None])
    return Step(rows.sides, rows.phi, left, right, slopes)


def train_arms(
    worlds: Sequence[Bandit],
    data: Sequence[Comparisons],
    arms: Sequence[Arm],
    *,
    seeds: Sequence[int],
    steps: int,
    betas: Sequence[float],
    record: Sequence[int],
    batch_size: int = 64,
    optimizer: str = "sgd",
    dtype: torch.dtype = torch.float64,
) -> Trace:
    """All runs of all seeds side by side: the batches and starts of `bandit_runs.train`, constant step sizes.

    Args:
        worlds, data: of each seed; worlds of one shape.
        record: steps at which the parameters are kept, from 0 to `steps`.

    Raises:
        InputError: missing labels, or an unknown optimizer.
    """
    if optimizer not in ("sgd", "adam"):
        raise InputError("unknown optimizer", expected="sgd or adam", found=optimizer)
    every = Rows(*(one.to(dtype) for one in rows_of(worlds, data)))
    n = every.sides.shape[1]
    weights = torch.cat([_each(arm.weights, 2, len(seeds)) for arm in arms], 1)
    lr = torch.cat([_each(arm.lr, 1, len(seeds)) for arm in arms], 1)[..., None].to(dtype)
    bounds = np.cumsum([0, *(arm.weights.shape[-2] for arm in arms)]).tolist()
    spans = [slice(i, j) for i, j in zip(bounds[:-1], bounds[1:], strict=True)]
    starts = [low_rank(rank=RANK).start(world, seed) for world, seed in zip(worlds, seeds, strict=True)]
    theta = torch.stack(starts)[:, None].repeat(1, weights.shape[1], 1).to(dtype)
    beta = torch.tensor(betas, dtype=dtype)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    kept, coefficients, turned = [], [], []
    sums = torch.zeros(3, *weights.shape[:2], dtype=torch.float64)
    for step in range(steps + 1):
        if step in record:
            kept.append(theta)
        if step == steps:
            break
        drawn = [np.random.default_rng((seed, step)).integers(n, size=batch_size) for seed in seeds]
        at = torch.from_numpy(np.stack(drawn))
        source = step_of(theta, Rows(*(one[torch.arange(len(seeds))[:, None], at] for one in every)), beta)
        gradients = source.pull(source.slopes)
        gram = (gradients @ gradients.mT).double()
        parts = [
            arm.rule(step, source.part(span), gradients[:, span], gram[:, span], weights[:, span])
            for arm, span in zip(arms, spans, strict=True)
        ]
        update, mixed, angles, interior = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        linear = (weights[..., None, :].to(dtype) @ gradients)[..., 0, :]
        longer = update.norm(dim=-1) / linear.norm(dim=-1).clamp(min=1e-300)
        sums += torch.stack((longer, interior, vector_angle(update, linear)))
        coefficients.append(mixed)
        turned.append(angles)
        if optimizer == "adam":
            first, second = 0.9 * first + 0.1 * update, 0.999 * second + 0.001 * update.square()
            update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        theta = theta - lr * update
    stretch, interior, angle = sums / max(steps, 1)
    points = torch.tensor(sorted(set(record)))
    return Trace(points, torch.stack(kept), torch.stack(coefficients), stretch, torch.stack(turned), interior, angle)


def _each(values: Tensor, dims: int, seeds: int) -> Tensor:
    """The same for all seeds where no seed is named."""
    return values.double().expand(seeds, *values.shape[-dims:])
