"""From the Gram matrix of m gradients and the weights to m coefficients: start with `raco.py`.

`COMBINERS` maps each name of the configuration to its function (gram (m, m), weights (m,), **options) -> Combination;
`contract.py` says what else such a function may ask for, and docs/methods.md what each does.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from paretune.combine.bargain import nash_mtl
from paretune.combine.by_torchjd import PREFIX, aligned_mtl, imtl_g, torchjd_combiner
from paretune.combine.combination import Combination, angle
from paretune.combine.cones import dualproj, upgrad
from paretune.combine.controls import random_correction, replay
from paretune.combine.normalized import gapo, mgda, mgda_decoupled, p_gapo
from paretune.combine.raco import raco
from paretune.combine.rivals import cagrad, cagrad_fast, cagrad_uniform, linear, pcgrad
from paretune.combine.scalarized import famo, smooth_tchebycheff, tchebycheff
from paretune.errors import InputError

COMBINERS: dict[str, Callable[..., Combination]] = {
    "raco": raco,
    "cagrad": cagrad,
    "cagrad_uniform": cagrad_uniform,
    "cagrad_fast": cagrad_fast,
    "linear": linear,
    "mgda": mgda,
    "mgda_decoupled": mgda_decoupled,
    "gapo": gapo,
    "p_gapo": p_gapo,
    "pcgrad": pcgrad,
    "imtl_g": imtl_g,
    "nash_mtl": nash_mtl,
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "famo": famo,
    "tchebycheff": tchebycheff,
    "smooth_tchebycheff": smooth_tchebycheff,
    # controls for studies, not methods
    "random_correction": random_correction,
    "replay": replay,
}


def find_combiner(name: str) -> Callable[..., Combination]:
    """The combiner of that name: of `COMBINERS`, or a weighting of torchjd as "torchjd:NAME".

    Raises:
        InputError: there is none (the nearest name is given), or torchjd is not installed.
    """
    if name in COMBINERS:
        return COMBINERS[name]
    if str(name).startswith(PREFIX):
        return torchjd_combiner(name.removeprefix(PREFIX))
    near = difflib.get_close_matches(str(name), COMBINERS, n=1, cutoff=0.5)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    expected = f"one of {', '.join(COMBINERS)}, or {PREFIX}NAME"
    raise InputError("unknown combiner", expected=expected, found=name, fix=fix)


__all__ = [
    "COMBINERS",
    "Combination",
    "aligned_mtl",
    "angle",
    "cagrad",
    "cagrad_fast",
    "cagrad_uniform",
    "dualproj",
    "famo",
    "find_combiner",
    "gapo",
    "imtl_g",
    "linear",
    "mgda",
    "mgda_decoupled",
    "nash_mtl",
    "p_gapo",
    "pcgrad",
    "raco",
    "random_correction",
    "replay",
    "smooth_tchebycheff",
    "tchebycheff",
    "upgrad",
]
