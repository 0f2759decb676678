"""Two files of comparisons in the exact world, and training that goes on from one to the other.

A policy trained on file A goes on with file B. Two kinds of B: *prompts*, where B asks prompts of another kind, with
another knob, and *objectives*, where B's rows are labelled by other objectives than A's.

S seeds (a world each), R runs, N comparisons of a file, B of a step, M objectives, P parameters. NaN: no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.sandbox import bandit_arms
from paretune.sandbox.bandit import Bandit, low_rank, make_bandit
from paretune.sandbox.bandit_arms import BIAS_SCALE, Rows, Step, step_of
from paretune.sandbox.bandit_fronts import ceiling
from paretune.sandbox.bandit_runs import Comparisons, sampled
from paretune.sandbox.batched_raco import raco_many, raco_two
from studies.many_objectives.worlds import LABELS, WORLDS

BETA, C = 0.2, 0.4
SIZE = 2_000  # comparisons of a file
BATCH = 64
# Uneven, so that a policy takes a side and can lose it again: with even ones opposed knobs cancel out.
WEIGHTS = {m: torch.tensor(w, dtype=torch.float64) for m, w in ((2, (0.7, 0.3)), (3, (0.4, 0.2, 0.4)))}


@dataclass(frozen=True)
class Case:
    """One seed's world and its two files.

    Attributes:
        kinds: (X,) bool, prompts of file A's kind; all of them where only the objectives change.
        weights: (M,). of_a, of_b: (M,), the same over the objectives that label A's rows, and B's.
    """

    world: Bandit
    kinds: Tensor
    a: Comparisons
    b: Comparisons
    weights: Tensor

    @property
    def of_a(self) -> Tensor:
        return _over(self.weights, self.a)

    @property
    def of_b(self) -> Tensor:
        return _over(self.weights, self.b)


def _over(weights: Tensor, data: Comparisons) -> Tensor:
    own = weights * ~data.labels.isnan().all(0)
    return own / own.sum()


def prompts_case(seed: int, base: str) -> Case:
    """Two objectives; prompts with a positive first feature are A's, the others B's, and each kind has its own knob."""
    world = make_bandit(objectives=2, knob=0.0, seed=seed)
    generator = torch.Generator().manual_seed(20_000 + seed)
    knobs = torch.randn(2, world.reference.shape[1], generator=generator, dtype=torch.float64)
    knobs = knobs - knobs.mean(-1, keepdim=True)
    knobs = knobs / knobs.square().mean(-1, keepdim=True).sqrt()
    if base == "camps":  # the development world: the second kind wants the opposite knob
        knobs = torch.stack((knobs[0], -knobs[0]))
    kinds = world.features[:, 0] > 0
    own = torch.where(kinds[:, None], knobs[0], knobs[1])
    rewards = world.rewards + torch.stack((own, -own))
    world = replace(world, rewards=rewards)
    drawn = sampled(world, LABELS, 8 * SIZE, seed)
    of_a = kinds[drawn.a // world.reference.shape[1]]
    a, b = (_take(drawn, part.nonzero()[:SIZE, 0]) for part in (of_a, ~of_a))
    return Case(world, kinds, a, b, WEIGHTS[2])


def objectives_case(seed: int, base: str) -> Case:
    """Three objectives: A's rows are labelled by the first two, B's by the last two."""
    world = WORLDS[base](3, seed)
    drawn = sampled(world, LABELS, 2 * SIZE, seed)
    a, b = _take(drawn, torch.arange(SIZE)), _take(drawn, torch.arange(SIZE, 2 * SIZE))
    a.labels[:, 2], b.labels[:, 0] = torch.nan, torch.nan
    return Case(world, torch.ones(len(world.features)).bool(), a, b, WEIGHTS[3])


CASES = {"prompts": prompts_case, "objectives": objectives_case}


def _take(data: Comparisons, rows: Tensor) -> Comparisons:
    return Comparisons(data.a[rows], data.b[rows], data.labels[rows].clone())


class Files(NamedTuple):
    """Both files of all seeds."""

    a: Rows
    b: Rows


def files_of(cases: Sequence[Case]) -> Files:
    return Files(*(rows_of([case.world for case in cases], [getattr(case, name) for case in cases]) for name in "ab"))


def rows_of(worlds: Sequence[Bandit], data: Sequence[Comparisons]) -> Rows:
    """`bandit_arms.rows_of`, missing labels included: (S, N, Y), (S, N, D), (S, N, M)."""
    whole = [Comparisons(one.a, one.b, one.labels.nan_to_num(0.5)) for one in data]
    return bandit_arms.rows_of(worlds, whole)._replace(labels=torch.stack([one.labels for one in data]))


def batch(files: Files, seeds: Sequence[int], step: int, from_a: int) -> Rows:
    """(S, B, ...): `from_a` rows of A, then rows of B; drawn from the seed and the step alone, so arms share them."""
    drawn = torch.from_numpy(
        np.stack([np.random.default_rng((seed, step, 3)).integers(SIZE, size=(2, BATCH)) for seed in seeds])
    )
    seed = torch.arange(len(seeds))[:, None]
    old, new = drawn[:, 0, :from_a], drawn[:, 1, from_a:]
    return Rows(*(torch.cat((a[seed, old], b[seed, new]), 1) for a, b in zip(files.a, files.b, strict=True)))


def margins(source: Step, theta: Tensor) -> Tensor:
    """(S, B, R): differences of scores, of policies theta (S, R, P) on the batch that `source` was made of."""
    bias = theta[..., : source.sides.shape[2]]
    return BIAS_SCALE * source.sides @ bias.mT + (source.left * source.right).sum(-1)


def gradients_of(theta: Tensor, rows: Rows, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(S, R, M, P) of the mean losses over labelled rows, and which objectives have a label in all seeds, (M,).

    Args:
        theta: (S, R, P). reference: (S, R, P), the policies whose scores the margins are taken against; those of
            `starts` have no scores and are pi_ref.
    """
    there = ~rows.labels.isnan()
    share = there.double() / there.double().sum(1, keepdim=True).clamp(min=1.0)
    known = rows._replace(labels=rows.labels.nan_to_num(0.5))
    beta = torch.full((rows.labels.shape[-1],), BETA, dtype=torch.float64)
    source, before = step_of(theta, known, beta), step_of(reference, known, beta)
    at = BETA * (margins(source, theta) - margins(before, reference))[..., None]
    slopes = share[:, :, None] * BETA * (at.sigmoid() - known.labels[:, :, None])
    return source.pull(slopes), there.any(1).all(0)


def coefficients(combiner: str, gram: Tensor, weights: Tensor, there: Tensor) -> Tensor:
    """(..., M) from Grams (..., M, M) and weights (M,); objectives that are not there are left out of the dual.

    As `paretune.combine.labelled`: the rest is solved with weights renormalised and multiplied by its share of weight.
    """
    out = weights * there
    if combiner == "linear":
        return out.expand(gram.shape[:-1])
    kept, total = there.nonzero()[:, 0], out.sum()
    part, own = gram[..., kept, :][..., kept], (weights[kept] / total).expand(*gram.shape[:-2], -1)
    solve = raco_two if len(kept) == 2 else raco_many
    found = gram.new_zeros(gram.shape[:-1])
    found[..., kept] = total * solve(part, own, C, True)[0]
    return found


def go_on(
    files: Files,
    seeds: Sequence[int],
    theta: Tensor,
    reference: Tensor,
    combiners: Sequence[str],
    *,
    from_a: int,
    span: range,
    rate: float,
    every: int,
) -> Tensor:
    """Plain steps of R arms for all seeds: theta and reference (S, R, P) -> (T, S, R, P), start included.

    Args:
        combiners: of each arm. from_a: rows of A in every batch. span: numbers of the steps.
        every: points are kept each so many steps.
    """
    m = files.a.labels.shape[-1]
    kept = [theta]
    for done, step in enumerate(span, start=1):
        found, there = gradients_of(theta, batch(files, seeds, step, from_a), reference)
        gram = found @ found.mT
        mixed = torch.stack([coefficients(name, gram[:, r], WEIGHTS[m], there) for r, name in enumerate(combiners)], 1)
        theta = theta - rate * (mixed[..., None, :] @ found)[..., 0, :]
        if done % every == 0 or done == len(span):
            kept.append(theta)
    return torch.stack(kept)


def starts(cases: Sequence[Case], seeds: Sequence[int]) -> Tensor:
    return torch.stack([low_rank().start(case.world, seed) for case, seed in zip(cases, seeds, strict=True)])


def held_out_policy(case: Case, theta: Tensor) -> Tensor:
    """(T, P) -> (T, X, Y), log-probabilities for held-out prompts."""
    world = case.world
    return F.log_softmax(world.reference + low_rank().scores(world, theta), -1)[:, world.n_train :]


def gains(case: Case, theta: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    """(T, M) on held-out prompts of A's kind, and of B's: 0 the reference policy, 1 the best for that objective alone
    at a KL of 1 nat on that kind of prompt (`tops`, (2, M))."""
    world, logp = case.world, held_out_policy(case, theta)
    rewards = torch.einsum("txy,mxy->txm", logp.exp(), world.rewards[:, world.n_train :])
    base = torch.einsum("xy,mxy->xm", world.reference.exp()[world.n_train :], world.rewards[:, world.n_train :])
    found = []
    for kind, top in zip(kinds_of(case), tops, strict=True):
        start = base[kind].mean(0)
        found.append((rewards[:, kind].mean(1) - start) / (top - start))
    return found[0], found[1]


def kinds_of(case: Case) -> tuple[Tensor, Tensor]:
    """Held-out prompts of A's and of B's kind; the same where there is one kind."""
    own = case.kinds[case.world.n_train :]
    return own, (~own if not own.all() else own)


def tops(case: Case) -> Tensor:
    """(2, M), see `gains`."""
    world, alone, found = case.world, torch.eye(len(case.world.rewards), dtype=torch.float64), []
    for kind in kinds_of(case):
        reference, rewards = world.reference[world.n_train :][kind], world.rewards[:, world.n_train :][:, kind]
        part = Bandit(world.features[world.n_train :][kind], reference, rewards, 0)
        found.append(ceiling(part, alone, 1.0).diagonal())
    return torch.stack(found)


def moved(case: Case, theta: Tensor, origin: Tensor) -> Tensor:
    """(T,): KL in nats on held-out prompts between policies (T, P) and the policy (P,) that training went on from."""
    logp, start = held_out_policy(case, theta), held_out_policy(case, origin[None])
    return (logp.exp() * (logp - start)).sum(-1).mean(-1)
