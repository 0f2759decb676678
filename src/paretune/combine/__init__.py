"""From the Gram matrix of m gradients and the weights to m coefficients: start with `raco.py`.

`COMBINERS` maps each name of the configuration to its function (gram (m, m), weights (m,), **options) -> Combination.
"""

from __future__ import annotations

from collections.abc import Callable

from paretune.combine.combination import Combination, angle
from paretune.combine.raco import raco
from paretune.combine.rivals import cagrad, linear, mgda, pcgrad

COMBINERS: dict[str, Callable[..., Combination]] = {
    "raco": raco,
    "cagrad": cagrad,
    "linear": linear,
    "mgda": mgda,
    "pcgrad": pcgrad,
}

__all__ = ["COMBINERS", "Combination", "angle", "cagrad", "linear", "mgda", "pcgrad", "raco"]
