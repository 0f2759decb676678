"""Not methods but controls for studies: what would any correction of that length do, what would these numbers do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, gram_angle, norm
from paretune.combine.raco import corrected
from paretune.errors import InputError


def random_correction(
    gram: Tensor, weights: Tensor, c: float = 0.4, *, stream: int = 0, tau: float = 1e-5, seed: int = 0
) -> Combination:
    """g_0 + c ||g_0|| G_r / ||G_r|| with r uniform on the simplex: as long a correction as RACO's, of random direction.

    The paper's bound (arXiv 2602.02495, Theorem 3.1) holds for it too. info: correction_zero and angle_to_linear.

    Args:
        c, tau: as `raco`. stream: another one draws other mixtures. seed: the step.
    """
    if not 0.0 <= c < 1.0:
        raise InputError("bad c", expected="0 <= c < 1", found=c)
    h, w, _ = checked(gram, weights)
    r = np.random.default_rng((stream, seed)).dirichlet(np.ones(len(w))).tolist()
    a = corrected(h, w, r, norm(h, w), c, tau)
    info = {"correction_zero": a is w, "angle_to_linear": gram_angle(h, a, w)}
    return combination(a, r, r, clip_active=False, info=info)


def replay(
    gram: Tensor, weights: Tensor, *, coefficients: Sequence[Sequence[float]], seed: int, present: Tensor | None = None
) -> Combination:
    """Given coefficients: those of step `seed`, whatever the gradients. They are final, for absent objectives too.

    Args:
        coefficients: (steps, m), for instance another run's logged `combine/coefficient/<objective>`.
        seed: the step's number, from 0. present: (m,) bool; nothing depends on it.

    Raises:
        InputError: no coefficients for this step, or not m of them.
    """
    h, w, _ = checked(gram, weights)
    if not 0 <= seed < len(coefficients):
        fix = "Give as many as the run has steps."
        raise InputError(
            "no coefficients to replay", where=f"step {seed}", expected=f"{len(coefficients)} steps", fix=fix
        )
    a = [float(x) for x in coefficients[seed]]
    if len(a) != len(w) or not bool(torch.tensor(a).isfinite().all()):
        raise InputError("bad coefficients", where=f"step {seed}", expected=f"{len(w)} finite numbers", found=a)
    return combination(a, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})
