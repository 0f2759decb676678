"""Weightings of torchjd (Quinton & Rey, arXiv 2406.16232) as combiners: any that needs no more than the Gram, by name.

torchjd is optional; this module imports without it. A name such as AlignedMTL means its class AlignedMTLWeighting; the
options are those of the class's constructor. Where the constructor takes a `pref_vector`, the weights are that vector;
where not, the method has no weights and they only give m.

The Gram that torchjd sees has trace 1: several of its methods add or compare with absolute epsilons (1e-4, 1e-12),
which would otherwise decide once gradients are short. What a weighting with a memory (GradVac, PCD) remembers is of
Grams scaled so.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from paretune.combine.combination import Combination, checked, combination, gram_angle, trace
from paretune.errors import InputError

PREFIX = "torchjd:"
_INSTALL = "pip install 'paretune[rivals]' (or: pip install 'torchjd>=0.18')."
# More than one step's Gram: independent batches, the Jacobian's entries, or another weighting as an argument.
_MORE_THAN_A_GRAM = ("CRMOGM", "ExcessMTL", "MoDo", "SDMGrad")
# Constructor arguments that are objects, or that the weights and m are given as.
_NOT_OPTIONS = ("self", "pref_vector", "projector", "weights", "n_tasks")


def _package() -> Any:
    try:
        import torchjd.aggregation
    except ImportError as error:
        raise InputError("torchjd is not installed, and this combiner is its", fix=f"Install it: {_INSTALL}") from error
    return torchjd.aggregation


def torchjd_names() -> list[str]:
    """The names that `torchjd:NAME` takes.

    Raises:
        InputError: torchjd is not installed.
    """
    found = [name.removesuffix("Weighting") for name in _package().__all__ if name.endswith("Weighting")]
    return sorted(name for name in found if name and name not in (*_MORE_THAN_A_GRAM, "Generalized"))


@cache
def torchjd_combiner(name: str) -> Callable[..., Combination]:
    """The weighting of that name as a combiner, one function per name.

    Raises:
        InputError: torchjd is not installed, or has no weighting of that name that a Gram is enough for.
    """
    known = torchjd_names()
    if name in _MORE_THAN_A_GRAM:
        raise InputError("a Gram is not enough for this weighting of torchjd", found=name, expected=", ".join(known))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        fix = f"Did you mean {PREFIX}{near[0]}?" if near else ""
        raise InputError("torchjd has no such weighting", expected=f"one of {', '.join(known)}", found=name, fix=fix)
    made = getattr(_package(), f"{name}Weighting")
    constructor = inspect.signature(made.__init__).parameters
    stateful = hasattr(made, "reset")

    def combine(
        gram: Tensor, weights: Tensor, *, seed: int = 0, state: dict[str, Any] | None = None, **options: Any
    ) -> Combination:
        h, w, _ = checked(gram, weights)
        size = trace(h)
        unit = torch.tensor(h, dtype=torch.float64) / (size or 1.0)
        own = dict(options)
        if "pref_vector" in constructor:
            own["pref_vector"] = torch.tensor(w, dtype=torch.float64)
        if "weights" in constructor:
            own["weights"] = torch.tensor(w, dtype=torch.float64)
        try:
            weighting = made(**own)
        except ImportError as error:
            raise InputError(f"torchjd's {name} needs more: {error}", where=f"combiner {PREFIX}{name}") from error
        with torch.random.fork_rng(devices=[]):
            if stateful and state:
                _restore(weighting, unit, state)
            torch.manual_seed(seed)
            a: list[float] = weighting(unit).double().tolist()
        if stateful and state is not None:
            state.update(_kept(weighting))
        return combination(a, w, w, clip_active=False, info={"angle_to_linear": gram_angle(h, a, w)})

    keyword, plain = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    facts = {"seed": 0, **({"state": None} if stateful else {})}
    parameters = [inspect.Parameter(key, plain) for key in ("gram", "weights")]
    parameters += [inspect.Parameter(key, keyword, default=value) for key, value in facts.items()]
    parameters += [p.replace(kind=keyword) for key, p in constructor.items() if key not in _NOT_OPTIONS]
    combine.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    combine.__name__, combine.__doc__ = f"torchjd_{name}", made.__doc__
    return combine


def _kept(weighting: Any) -> dict[str, Any]:
    """What a weighting of torchjd remembers: its buffers, and what it counts, as plain lists and numbers."""
    kept = {key: value.tolist() for key, value in weighting.named_buffers()}
    return kept | {key: value for key, value in vars(weighting).items() if key.startswith("_n_")}


def _restore(weighting: Any, gram: Tensor, state: dict[str, Any]) -> None:
    """Gives a new weighting the memory `state`. One call makes what it keeps; the values are then put in its place.

    An objective that was not met so far starts from 0, as all do at the first step.
    """
    weighting(gram)
    for key, made in list(weighting.named_buffers()):
        setattr(weighting, key, torch.tensor(_zeroed(state[key]), dtype=made.dtype))
    for key in [key for key in vars(weighting) if key.startswith("_n_")]:
        setattr(weighting, key, state[key])


def _zeroed(value: Any) -> Any:
    """Entries of objectives not met so far are None: they become 0, and a row of a matrix a row of zeros."""
    if not isinstance(value, list):
        return value or 0
    wide = next((len(row) for row in value if isinstance(row, list)), None)
    return [[0.0] * wide if row is None and wide is not None else _zeroed(row) for row in value]


def aligned_mtl(gram: Tensor, weights: Tensor, *, scale_mode: str = "min") -> Combination:
    """Aligned-MTL (Senushkin et al., CVPR 2023, Algorithm 1), torchjd's: the gradients' principal components, aligned.

    The weights are the paper's task weights (Aligned-MTL with preferences). scale_mode: which singular value becomes
    all of them: "min" (the paper), "median" or "rmse" (its authors' code).
    """
    return torchjd_combiner("AlignedMTL")(gram, weights, scale_mode=scale_mode)


def imtl_g(gram: Tensor, weights: Tensor) -> Combination:
    """IMTL-G (Liu et al., ICLR 2021), torchjd's: the update has the same projection on every gradient's direction.

    It ignores the weights, as the method does. Coefficients sum to 1 and may be negative; nearly dependent gradients
    make them large.
    """
    return torchjd_combiner("IMTLG")(gram, weights)
