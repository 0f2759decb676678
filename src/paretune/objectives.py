"""An objective: what a person wants more of, how much they want it, and the loss that measures it.

Objectives are data. Nothing in the library knows a name like "helpful" or how many objectives there are.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from paretune.errors import InputError


@dataclass(frozen=True)
class Objective:
    """One objective of a run.

    Args:
        name: key of this objective in every row's `preferences`, and suffix of its metrics.
        weight: its share of the linear objective, non-negative. A run normalises weights to sum 1 and says so.
        loss: a key of `paretune.losses.LOSSES`.
        beta: inverse temperature of its loss, positive; None takes the run's `beta`.
        reference_free: leave the reference out of its margin; None takes the loss's custom (SimPO: True).
        length_normalized: divide log-probabilities by the response's token count; None takes the loss's custom.
        gamma: SimPO's target margin over beta (`gamma_beta_ratio` in its repository).
        epsilon: robust DPO's assumed share of flipped labels, in [0, 0.5).
        sft: weight of -log pi(preferred)/tokens added to its loss; 0 is none.
        labels: name of the row column or layout field that holds its labels (an ordinary DPO file: `chosen`).
        rule: name of a rule that labels rows as they are read (`shorter`), instead of `labels`.
    """

    name: str
    weight: float = 1.0
    loss: str = "sigmoid"
    beta: float | None = None
    reference_free: bool | None = None
    length_normalized: bool | None = None
    gamma: float = 0.5
    epsilon: float = 0.1
    sft: float = 0.0
    labels: str | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        where = f"objective {self.name!r}"
        if not _plain(self.name):
            expected = f"1 to {_LONGEST} printable characters without '/' and '~'"
            raise InputError("bad objective name", expected=expected, found=self.name)
        for key in ("loss", "labels", "rule"):
            value = getattr(self, key)
            if not isinstance(value, str) and (value is not None or key == "loss"):
                raise InputError(f"bad {key}", where=where, expected="text", found=value)
        for key in ("reference_free", "length_normalized"):
            if not isinstance(getattr(self, key), bool | None):
                raise InputError(f"bad {key}", where=where, expected="true or false", found=getattr(self, key))
        _number(where, "weight", self.weight, low=0.0)
        if self.beta is not None:
            _number(where, "beta", self.beta, low=0.0, open_low=True)
        _number(where, "gamma", self.gamma, low=0.0)
        _number(where, "epsilon", self.epsilon, low=0.0, high=0.5)
        _number(where, "sft", self.sft, low=0.0)
        if self.labels is not None and self.rule is not None:
            raise InputError("both labels and rule are given", where=where, fix="Keep the one that gives its labels.")


_LONGEST = 200


def _plain(name: Any) -> bool:
    """Whether a name can stand in a metric's name and in a file's."""
    return isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable() and not {"/", "~"} & set(name)


def _number(where: str, key: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
    inside = isinstance(value, int | float) and not isinstance(value, bool)
    inside = inside and abs(value) <= sys.float_info.max  # an integer beyond it is no float; nor is NaN below it
    inside = inside and (low < value if open_low else low <= value) and value < high
    if not inside:
        bound = f"a number {'>' if open_low else '>='} {low:g}" + (f" and < {high:g}" if high < math.inf else "")
        raise InputError(f"bad {key}", where=where, expected=bound, found=value)


def parse_objectives(spec: Mapping[str, Any] | Iterable[Any]) -> list[Objective]:
    """Objectives from a configuration: a mapping name -> options (or a bare weight), or a list of either form.

    Raises:
        InputError: unknown option (the nearest one is named), repeated name, bad value, or no objective at all.
    """
    if isinstance(spec, Mapping):
        entries: list[Any] = [
            {"name": name, **(options if isinstance(options, Mapping) else _bare(options))}
            for name, options in spec.items()
        ]
    elif isinstance(spec, str) or not isinstance(spec, Iterable):
        raise InputError("bad objectives", expected="a mapping or a list", found=spec)
    else:
        entries = list(spec)
    objectives = []
    known = [field.name for field in fields(Objective)]
    for entry in entries:
        if isinstance(entry, Objective):
            objectives.append(entry)
            continue
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise InputError("an objective without a name", expected="a mapping with the key 'name'", found=entry)
        for key in entry:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
                raise InputError(f"unknown option {key!r}", where=f"objective {entry['name']!r}", fix=hint)
        objectives.append(Objective(**entry))
    if not objectives:
        raise InputError("no objectives", expected="at least one", fix="Name them under 'objectives:'.")
    names = [o.name for o in objectives]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"objective {name!r} is given {names.count(name)} times", fix="Give each name once.")
    return objectives


def _bare(weight: Any) -> dict[str, Any]:
    return {} if weight is None else {"weight": weight}


def normalize_weights(objectives: list[Objective]) -> list[Objective]:
    """The same objectives with weights that sum to 1.

    Raises:
        InputError: all weights are zero.
    """
    total = sum(o.weight for o in objectives)
    if total <= 0:
        raise InputError("all weights are zero", expected="at least one positive weight")
    if math.isinf(total):
        raise InputError("the weights are too large to add up", found=[o.weight for o in objectives])
    return [replace(o, weight=o.weight / total) for o in objectives]


def as_dicts(objectives: list[Objective]) -> list[dict[str, Any]]:
    """Plain dictionaries for the run's record."""
    return [asdict(o) for o in objectives]
