"""Problems whose constants are known: m losses with l_i-Lipschitz gradients, none below 0, many instances at once.

Theorem 3.1 of RACO (arXiv 2602.02495) asks for exactly that. Each family states where its l_i comes from.

R runs, I instances (a run is one instance's), M losses, P parameters. All tensors are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.sandbox.bandit import make_bandit, tabular
from paretune.sandbox.bandit_runs import losses_and_gradients, make_batch, population, smoothness
from paretune.sandbox.labels import Labelling


@dataclass(frozen=True)
class Problem:
    """A family of I instances.

    Attributes:
        constants: (I, M), Lipschitz constants of the gradients.
        start: (I, P).
        evaluate: theta (R, P), instance of each run (R,) -> losses (R, M) and gradients (R, M, P).
        convex: whether every loss is.
    """

    name: str
    constants: Tensor
    start: Tensor
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    convex: bool


def quadratics(instances: int, m: int = 2, *, dims: int = 10, condition: float = 30.0, seed: int = 0) -> Problem:
    """L_i = (x - a_i)' A_i (x - a_i) / 2, eigenvalues log-uniform in [1 / condition, 1]. l_i: the largest of them."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(_normal(generator, instances, m, dims, dims))[0]
    share = torch.rand(instances, m, dims, generator=generator, dtype=torch.float64)
    matrix = turn @ torch.diag_embed(condition**-share) @ turn.mT
    centre, start = _normal(generator, instances, m, dims), 2.0 * _normal(generator, instances, dims)

    def evaluate(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        away = theta[:, None] - centre[rows]
        slope = (matrix[rows] @ away[..., None])[..., 0]
        return (away * slope).sum(-1) / 2, slope

    return Problem("quadratics", torch.linalg.eigvalsh(matrix)[..., -1], start, evaluate, convex=True)


def dpo_tables(instances: int, m: int = 2, *, beta: float = 0.2, seed: int = 0) -> Problem:
    """Sigmoid DPO of a table of scores in a small exact world: what the library trains, where it is convex.

    6 prompts, 8 responses, every pair once with its label's probability. l_i: `bandit_runs.smoothness`.
    """
    worlds = [make_bandit(objectives=m, prompts=6, held_out=0, responses=8, seed=seed + k) for k in range(instances)]
    data = [population(world, Labelling(kappa=1.0)) for world in worlds]
    policy, betas = tabular(), torch.full((m,), beta, dtype=torch.float64)
    constants = torch.stack([smoothness(w, d, betas.tolist()) for w, d in zip(worlds, data, strict=True)])
    pairs = [torch.stack([getattr(d, name) for d in data]) for name in ("a", "b", "labels")]
    start = torch.stack([policy.start(world, 0) for world in worlds])

    def evaluate(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # scores and pull of a table do not look at the world, only at its shape
        return losses_and_gradients(worlds[0], policy, theta, make_batch(*(p[rows] for p in pairs)), betas)

    return Problem("DPO tables", constants, start, evaluate, convex=True)


def wells(instances: int, m: int = 2, *, dims: int = 10, terms: int = 12, seed: int = 0) -> Problem:
    """L_i = mean over k of z_k^2 / (1 + z_k^2), z = U_i x - b_i (Geman & McClure): bounded, not convex, many minima.

    The second derivative of z^2 / (1 + z^2) lies in [-1/2, 2], so l_i = 2 / terms times the largest eigenvalue of U'U.
    """
    generator = torch.Generator().manual_seed(seed)
    u = _normal(generator, instances, m, terms, dims) / dims**0.5
    b = _normal(generator, instances, m, terms)
    constants = 2.0 / terms * torch.linalg.eigvalsh(u.mT @ u)[..., -1]

    def evaluate(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = (u[rows] @ theta[:, None, :, None])[..., 0] - b[rows]
        slope = 2.0 * z / (1.0 + z.square()).square() / terms
        return (z.square() / (1.0 + z.square())).mean(-1), (u[rows].mT @ slope[..., None])[..., 0]

    return Problem("wells", constants, _normal(generator, instances, dims), evaluate, convex=False)


def concave_front(instances: int, m: int = 2, *, dims: int = 5, seed: int = 0) -> Problem:
    """L_i = 1 - exp(-||x - a_i||^2), a_1 = -a_2 = (1, ..., 1) / sqrt(dims) (Fonseca & Fleming 1995): a concave front.

    Eigenvalues of the Hessian, with s = ||x - a_i||^2, are 2 exp(-s) and 2 exp(-s) (1 - 2 s), so l_i = 2.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = torch.full((2, dims), dims**-0.5, dtype=torch.float64)
    centre[1] *= -1.0

    def evaluate(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        away = theta[:, None] - centre
        height = (-away.square().sum(-1)).exp()
        return 1.0 - height, 2.0 * away * height[..., None]

    if m != 2:
        raise ValueError("the concave front is a problem of two losses")
    start = 0.5 * _normal(generator, instances, dims)
    return Problem("concave front", torch.full((instances, 2), 2.0, dtype=torch.float64), start, evaluate, convex=False)


FAMILIES: dict[str, Callable[..., Problem]] = {
    "quadratics": quadratics,
    "DPO tables": dpo_tables,
    "wells": wells,
    "concave front": concave_front,
}


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
