"""What a combiner asks for beside the Gram and the weights, read from its signature.

A combiner is a function (gram (m, m), weights (m,), **options) -> Combination. It may declare keyword-only parameters
with the names of FACTS; whoever calls it (`combine_labelled`) then supplies them. Every other parameter is an option.

    losses   (m,) float64: the objectives' losses in this step, means over their labels in the global batch
    seed     int: the step's number, for what is drawn at random
    state    dict that lives as long as the run, the same on all ranks, kept in checkpoints. Its values are numbers,
             shared by all objectives, or lists with one entry per objective along each axis; None: not met so far
    present  (m,) bool: this combiner deals with absent objectives itself. It gets all of them, a gradient of 0 and a
             loss of NaN where absent, and what it returns is final
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from paretune.combine.combination import Combination
from paretune.errors import InputError

FACTS = ("losses", "seed", "state", "present")


@cache
def needs(combiner: Callable[..., Combination]) -> frozenset[str]:
    """Which FACTS the combiner takes."""
    return frozenset(FACTS) & inspect.signature(combiner).parameters.keys()


@cache
def options_of(combiner: Callable[..., Combination]) -> Mapping[str, inspect.Parameter]:
    """The combiner's options by name, with their defaults."""
    parameters = inspect.signature(combiner).parameters
    own = {name: p for name, p in parameters.items() if name not in ("gram", "weights", *FACTS)}
    return MappingProxyType(own)


def check_options(name: str, combiner: Callable[..., Combination], options: Mapping[str, Any]) -> None:
    """Raises InputError for an option that the combiner does not have (the nearest is named) or that is missing."""
    known = options_of(combiner)
    where = f"combiner_options of {name}"
    for option in options:
        if option in needs(combiner):
            raise InputError(f"{option} is not an option: the run supplies it", where=where, fix="Leave it out.")
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1, cutoff=0.5)
            fix = f"Did you mean {near[0]!r}?" if near else "Leave it out."
            expected = f"one of {', '.join(known)}" if known else "none"
            raise InputError(f"unknown option {option!r}", where=where, expected=expected, fix=fix)
    missing = [option for option, p in known.items() if p.default is p.empty and option not in options]
    if missing:
        raise InputError(f"{missing[0]} is missing", where=where, fix=f"Give combiner_options: {{{missing[0]}: …}}.")


def try_combiner(name: str, combiner: Callable[..., Combination], weights: Tensor, options: Mapping[str, Any]) -> None:
    """Combines m made gradients of length 1, so that bad values of options are found before anything is loaded.

    Raises:
        InputError: what the combiner refuses, or a value it cannot compute with.
    """
    m = len(weights)
    made: dict[str, Any] = {
        "losses": torch.ones(m, dtype=torch.float64), "seed": 0, "state": {}, "present": torch.ones(m).bool(),
    }  # fmt: skip
    try:
        combiner(torch.eye(m, dtype=torch.float64), weights, **{key: made[key] for key in needs(combiner)}, **options)
    except InputError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        shown = {key: options[key] for key in options}
        raise InputError(f"bad options: {error}", where=f"combiner {name}", found=shown) from error
