"""Sources as a person writes them: a mapping per objective.

    concise:  {rule: shorter}
    polite:   {function: "my_rewards:polite", soft: 0.5}
    helpful:  {judge: Qwen/Qwen3-4B, protocol: guided}
    correct:  {gate: [{rule: numeric_answer}, {rule: shorter, tie: 20}]}
    overall:  {sum: [{rule: keywords, words: [refund], weight: 2}, {rule: repetition, weight: 0.5}]}
    by_topic: {choose: topic, cases: {maths: {rule: numeric_answer}, chat: {rule: longer}}, otherwise: {rule: shorter}}
    kind:     {ensemble: [{reward_model: rm-0}, {reward_model: rm-1}], way: worst}

The first key that `KINDS` or the combinations know says what kind it is; of the others, those of `LabelOptions` say how
answers become labels, and the rest are the kind's own options. An option of labels is refused where it would have no
effect: on a gate or a choice, whose labels are its parts'; on a part of a sum or an ensemble, which takes its scores.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from paretune.errors import InputError
from paretune.preferences.ensembles import ensemble_way
from paretune.preferences.functions import function_source
from paretune.preferences.judges.judge import judge_source
from paretune.preferences.labels import LabelOptions
from paretune.preferences.rule_source import rule_source
from paretune.preferences.source import Source


def _reward_model(name: str, value: Any, options: dict[str, Any]) -> Source:
    from paretune.preferences.reward_models.sources import reward_model_source  # transformers: rules do without

    return reward_model_source(name, value, options)


def _implicit(name: str, value: Any, options: dict[str, Any]) -> Source:
    from paretune.preferences.reward_models.implicit import implicit_source

    return implicit_source(name, value, options)


# kind -> (objective, its value, its options) -> a source; InputError for an option that it does not know
KINDS: dict[str, Callable[[str, Any, dict[str, Any]], Source]] = {
    "rule": rule_source,
    "function": function_source,
    "judge": judge_source,
    "reward_model": _reward_model,
    "implicit": _implicit,
}
COMBINATIONS = ("gate", "sum", "choose", "ensemble")
_LARGEST = sys.float_info.max  # an integer beyond it is no float, infinity and NaN are no weight
_LABEL_OPTIONS = tuple(option.name for option in fields(LabelOptions))


@dataclass(frozen=True)
class Labeller:
    """A source, or a combination of several, and how its answers become labels.

    Args:
        name: the objective; of a part, the objective and the part's place.
        options: how its verdict becomes labels.
        source: of a plain one; None for a combination. `entry`, as it was written without the options of labels: from
            it another process makes the same source.
        combination: one of `COMBINATIONS`, or "".
        parts: of a combination; `weights` of a sum; `cases` of a choice, the value of `column` that takes each part,
            None for the one taken otherwise; `way` of an ensemble, and its `strength`: tau, or the penalty.
    """

    name: str
    options: LabelOptions
    source: Source | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    combination: str = ""
    parts: tuple[Labeller, ...] = ()
    weights: tuple[float, ...] = ()
    column: str = ""
    cases: tuple[str | None, ...] = ()
    way: str = ""
    strength: float = 0.0

    def sources(self) -> Iterator[Source]:
        """All that can be asked."""
        if self.source is not None:
            yield self.source
        for part in self.parts:
            yield from part.sources()

    def part_for(self, columns: Mapping[str, Any]) -> Labeller | None:
        """Of a choice, the part that a row's columns choose; None where no case fits."""
        key = _case(columns.get(self.column))
        for wanted in dict.fromkeys((key, None)):
            if wanted in self.cases:
                return self.parts[self.cases.index(wanted)]
        return None

    def chooses(self) -> bool:
        """Whether a choice is in it."""
        return self.combination == "choose" or any(part.chooses() for part in self.parts)

    def lacks_case(self, columns: Mapping[str, Any]) -> bool:
        """Whether a choice in it that is reached has no case for a row's columns."""
        if self.combination != "choose":
            return any(part.lacks_case(columns) for part in self.parts)
        part = self.part_for(columns)
        return part is None or part.lacks_case(columns)


def _case(value: Any) -> str | None:
    """A column's value as the name of a case: 1 and 1.0 are one, `true` is a word; None where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # as a table spells it
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_sources(spec: Any) -> list[Labeller]:
    """The labellers of `{objective: {kind: value, ...}}`.

    Raises:
        InputError: not a mapping, an unknown kind or option, a bad value.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise InputError("bad sources", expected="a mapping {objective: {rule: NAME}}", found=spec)
    labellers = []
    for name, entry in spec.items():
        if not isinstance(name, str) or not name or any(c in name for c in "/~\n"):
            raise InputError("bad objective name", expected="a non-empty string without '/', '~'", found=name)
        labellers.append(parse_source(name, entry))
    return labellers


def parse_source(name: str, entry: Any, within: str = "") -> Labeller:
    """One labeller; `within` a sum or an ensemble, which takes its scores alone."""
    where = f"source {name!r}"
    if not isinstance(entry, Mapping):
        raise InputError("bad source", where=where, expected=f"a mapping with one of {_known()}", found=entry)
    kinds = [key for key in entry if key in KINDS or key in COMBINATIONS]
    if len(kinds) != 1:
        near = [m for key in entry for m in difflib.get_close_matches(str(key), [*KINDS, *COMBINATIONS], n=1)]
        fix = f"Did you mean {near[0]!r}?" if near and not kinds else ""
        raise InputError(
            "bad source", where=where, expected=f"one of {_known()}", found=", ".join(map(str, entry)), fix=fix
        )
    kind, value = kinds[0], entry[kinds[0]]
    own = {key: option for key, option in entry.items() if key != kind and key not in _LABEL_OPTIONS}
    try:
        options = LabelOptions(**{key: entry[key] for key in _LABEL_OPTIONS if key in entry})
    except InputError as error:
        raise InputError(str(error), where=where) from None
    if kind in KINDS:
        made = Labeller(name, options, source=KINDS[kind](name, value, own), entry={kind: value, **own})
    elif kind == "choose":
        made = _choose(name, value, own, options, within)
    else:
        made = {"gate": _gate, "sum": _sum, "ensemble": _ensemble}[kind](name, value, own, options)
    for key in _LABEL_OPTIONS:
        if key in entry and (why := _no_effect(key, made, within)):
            raise InputError(f"option {key!r} has no effect", where=where, found=why[0], fix=why[1])
    return made


def _no_effect(option: str, labeller: Labeller, within: str) -> tuple[str, str] | None:
    """Why an option of labels would change nothing, and where it belongs; None where it has an effect."""
    if labeller.combination == "gate":
        return "a gate, which has the labels of its parts", "Give it to the parts."
    if labeller.combination == "choose":
        return "a choice, which has the labels of its cases", "Give it to the cases."
    if option == "consistent_only":
        if any(_in_both_orders(source) for source in labeller.sources()):
            return None
        return "nothing that compares pairs in both orders", "Leave it out."
    if within:
        return f"a part of {within}, which takes its scores", f"Give it to the {within} as a whole."
    return None


def _in_both_orders(source: Source) -> bool:
    pairs = [] if source.compare is None else source.schedule.next_pairs(2, {}, 0)
    return any(pair[::-1] in pairs for pair in pairs)


def _known() -> str:
    return ", ".join([*KINDS, *COMBINATIONS])


def _gate(name: str, value: Any, own: dict[str, Any], options: LabelOptions) -> Labeller:
    _no_more(name, own, ())
    entries = _several(name, "gate", value)
    return Labeller(name, options, combination="gate", parts=_parts(name, entries))


def _sum(name: str, value: Any, own: dict[str, Any], options: LabelOptions) -> Labeller:
    _no_more(name, own, ())
    entries, weights = [], []
    for entry in _several(name, "sum", value):
        weight = entry.get("weight", 1.0) if isinstance(entry, Mapping) else 1.0
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= _LARGEST:
            raise InputError("bad weight", where=f"source {name!r}", expected="a finite number", found=weight)
        weights.append(float(weight))
        entries.append({k: v for k, v in entry.items() if k != "weight"} if isinstance(entry, Mapping) else entry)
    return Labeller(name, options, combination="sum", parts=_parts(name, entries, "sum"), weights=tuple(weights))


def _choose(name: str, value: Any, own: dict[str, Any], options: LabelOptions, within: str) -> Labeller:
    _no_more(name, own, ("cases", "otherwise"))
    cases = own.get("cases")
    if not isinstance(value, str) or not isinstance(cases, Mapping) or not cases:
        expected = "{choose: COLUMN, cases: {VALUE: {rule: NAME}}}"
        raise InputError("bad choice", where=f"source {name!r}", expected=expected, found={"choose": value, **own})
    keys = [_case(case) for case in cases]
    if None in keys or len(set(keys)) < len(keys):
        raise InputError("bad cases", where=f"source {name!r}", expected="values, each once", found=list(cases))
    parts = [parse_source(f"{name}.{case}", entry, within) for case, entry in zip(keys, cases.values(), strict=True)]
    if own.get("otherwise") is not None:
        keys.append(None)
        parts.append(parse_source(f"{name}.otherwise", own["otherwise"], within))
    return Labeller(name, options, combination="choose", parts=tuple(parts), column=value, cases=tuple(keys))


def _ensemble(name: str, value: Any, own: dict[str, Any], options: LabelOptions) -> Labeller:
    _no_more(name, own, ("way", "tau", "penalty"))
    way, strength = ensemble_way(f"source {name!r}", own)
    parts = _parts(name, _several(name, "ensemble", value), "ensemble")
    return Labeller(name, options, combination="ensemble", parts=parts, way=way, strength=strength)


def _several(name: str, kind: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(
            f"bad {kind}", where=f"source {name!r}", expected="a list of at least two sources", found=value
        )
    return value


def _parts(name: str, entries: list[Any], within: str = "") -> tuple[Labeller, ...]:
    return tuple(parse_source(f"{name}.{i}", entry, within) for i, entry in enumerate(entries, start=1))


def _no_more(name: str, own: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in own:
        if key not in known:
            near = difflib.get_close_matches(str(key), [*known, *_LABEL_OPTIONS], n=1)
            fix = f"Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"unknown option {key!r}", where=f"source {name!r}", fix=fix)
