"""Chooses a checkpoint of a front the way people think: `max helpful where harmless >= 0.95 and kl <= 5`.

    QUERY     = (max | min) NAME [where CONDITION (and CONDITION)*]
    CONDITION = NAME (>= | <= | > | <) NUMBER [scaled]

A NAME is an objective (in quotes if it has spaces) or `kl` (nats to the base). A NUMBER is a raw score unless `scaled`
follows it: 0 is then the base and 1 the oracle, or the run on that objective alone, as front.json says.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.errors import InputError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt
}  # fmt: skip
_TOKEN = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|(>=|<=|>|<)|([^\s<>=\"']+|=+))")
_GRAMMAR = "max NAME where NAME >= NUMBER and …"


@dataclass(frozen=True)
class Condition:
    """A bound on a score, raw or scaled."""

    name: str
    op: str
    bound: float
    scaled: bool

    def __str__(self) -> str:
        return f"{self.name} {self.op} {self.bound:g}{' scaled' if self.scaled else ''}"


@dataclass(frozen=True)
class Query:
    """What is asked for."""

    largest: bool
    name: str
    conditions: tuple[Condition, ...]


def parse(text: str, names: Sequence[str]) -> Query:
    """A query about objectives of these names (and `kl`).

    Raises:
        InputError: words that are none; an unknown name (the nearest is named); a bound that is no number.
    """
    words = _words(text)
    if not words or words[0].lower() not in ("max", "min"):
        raise _bad(text, "max or min first", words[0] if words else "nothing")
    if len(words) < 2:
        raise _bad(text, "a name after max or min", "nothing")
    name, rest = _name(words[1], names), words[2:]
    if rest and rest[0].lower() != "where":
        raise _bad(text, "where", rest[0])
    conditions, rest = [], rest[1:] if rest else []
    if len(words) > 2 and not rest:
        raise _bad(text, "a condition after where", "nothing")
    while rest:
        if len(rest) < 3 or rest[1] not in _OPERATORS:
            raise _bad(text, f"NAME {' or '.join(_OPERATORS)} NUMBER", " ".join(rest[:3]))
        try:
            bound = float(rest[2])
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise _bad(text, f"a number after {rest[1]}", rest[2])
        scaled = len(rest) > 3 and rest[3].lower() == "scaled"
        conditions.append(Condition(_name(rest[0], names), rest[1], bound, scaled))
        if scaled and conditions[-1].name == "kl":
            raise _bad(text, "kl in nats", "scaled")
        rest = rest[4 if scaled else 3 :]
        if rest and (rest[0].lower() != "and" or len(rest) == 1):
            raise _bad(text, "and, with another condition", " ".join(rest))
        rest = rest[1:]
    return Query(words[0].lower() == "max", name, tuple(conditions))


def _words(text: str) -> list[str]:
    found, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _bad(text, "words, signs and numbers", text[place:])
        found.append(next(group for group in match.groups() if group is not None))
        place = match.end()
    return found


def _name(word: str, names: Sequence[str]) -> str:
    known = [*names, "kl"]
    if word in known:
        return word
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    raise InputError("unknown objective", where="pick", expected=f"one of {', '.join(known)}", found=word, fix=fix)


def _bad(text: str, expected: str, found: str) -> InputError:
    fix = f"Write it as {_GRAMMAR!r}."
    return InputError(f"cannot read {text!r}", where="pick", expected=expected, found=found or "nothing", fix=fix)


@dataclass(frozen=True)
class Choice:
    """What satisfies a query best: cells of front.json, the best first; or none, and then those that come nearest."""

    query: Query
    cells: list[Mapping[str, Any]]
    satisfied: bool


def choose(front: Mapping[str, Any], text: str) -> Choice:
    """The cells in order of what is asked for.

    Args:
        front: content of front.json. Scores are those at its first temperature.
        text: see `parse`.

    Raises:
        InputError: a query that cannot be read; a front without scored cells.
    """
    query = parse(text, front["objectives"])
    asked = {query.name, *(c.name for c in query.conditions)}
    cells = [
        cell
        for cell in front["cells"]
        if cell["kind"] in ("train", "read") and all(value(front, cell, name) is not None for name in asked)
    ]
    if not cells:
        raise InputError("no finished cell has these scores", where="pick", expected=", ".join(sorted(asked)))

    def goal(cell: Mapping[str, Any]) -> float:
        return (-1 if query.largest else 1) * float(value(front, cell, query.name) or 0.0)

    fitting = [cell for cell in cells if all(_holds(front, cell, c) for c in query.conditions)]
    if fitting:
        return Choice(query, sorted(fitting, key=goal), True)
    lacking = {cell["name"]: sum(_lack(front, cell, c) for c in query.conditions) for cell in cells}
    return Choice(query, sorted(cells, key=lambda cell: (lacking[cell["name"]], goal(cell))), False)


def value(front: Mapping[str, Any], cell: Mapping[str, Any], name: str, *, scaled: bool = False) -> float | None:
    """A cell's score of that name; None where it has none."""
    key = next(iter(front["temperatures"]), None)
    if name == "kl" or key is None or key not in cell["scores"]:
        return cell["kl"] if name == "kl" else None
    raw = float(cell["scores"][key]["scores"][name])
    low, high = front["temperatures"][key]["scale"][name]
    return (raw - low) / (high - low) if scaled else raw


def _holds(front: Mapping[str, Any], cell: Mapping[str, Any], condition: Condition) -> bool:
    found = value(front, cell, condition.name, scaled=condition.scaled)
    return found is not None and _OPERATORS[condition.op](found, condition.bound)


def _lack(front: Mapping[str, Any], cell: Mapping[str, Any], condition: Condition) -> float:
    """How far a bound is missed, in scaled units so that objectives compare; of kl in shares of the bound."""
    if _holds(front, cell, condition):
        return 0.0
    miss = abs(float(value(front, cell, condition.name, scaled=condition.scaled) or 0.0) - condition.bound)
    if condition.name == "kl":
        return miss / max(abs(condition.bound), 1e-12)
    low, high = front["temperatures"][next(iter(front["temperatures"]))]["scale"][condition.name]
    return miss if condition.scaled else miss / (high - low)


def told(front: Mapping[str, Any], choice: Choice, folder: str) -> str:
    """The choice in words: where it is, its scores with intervals, which bound it might miss, the runner-up.

    Raises:
        InputError: no cell satisfies the query; the nearest is named with what it lacks.
    """
    best = choice.cells[0]
    if not choice.satisfied:
        missed = [c for c in choice.query.conditions if not _holds(front, best, c)]
        shows = ", ".join(f"{c.name} {value(front, best, c.name, scaled=c.scaled):.4g}" for c in missed)
        wanted = " and ".join(map(str, choice.query.conditions))
        nearest = f"nearest is {best['name']} with {shows} ({folder}/{best['run']})"
        raise InputError("no finished cell satisfies that", where="pick", expected=wanted, found=nearest)
    lines = [f"picked {best['name']}", f"  directory  {folder}/{best['run']}"]
    if best["kind"] == "read":
        weights = ", ".join(f"{name}: {w:g}" for name, w in best["weights"].items())
        lines.append(f"  read at    {{{weights}}}: one training serves all weightings")
    lines += _score_lines(front, best, choice.query)
    if len(choice.cells) > 1:
        second = choice.cells[1]
        shows = ", ".join(f"{n} {value(front, second, n):.4g}" for n in front["objectives"])
        lines.append(f"runner-up {second['name']}: {shows} ({folder}/{second['run']})")
    lines.append("These are the scores it was chosen by: expect a little less on other prompts.")
    return "\n".join(lines)


def _score_lines(front: Mapping[str, Any], cell: Mapping[str, Any], query: Query) -> list[str]:
    key = next(iter(front["temperatures"]))
    part = cell["scores"][key]
    width = max(map(len, [*front["objectives"], "directory"]))
    lines = []
    for name in front["objectives"]:
        low, high = part["ci"][name]
        scaled = value(front, cell, name, scaled=True)
        text = f"{part['scores'][name]:.4g} [{low:.4g}, {high:.4g}], scaled {scaled:.3f}"
        doubtful = [c for c in query.conditions if c.name == name and not _sure(front, c, low, high, key)]
        doubt = f"; {doubtful[0]} is not certain: the interval reaches beyond it" if doubtful else ""
        lines.append(f"  {name:<{width}}  {text}{doubt}")
    if cell["kl"] is not None:
        lines.append(f"  {'kl':<{width}}  {cell['kl']:.3g} nats")
    return lines


def _sure(front: Mapping[str, Any], condition: Condition, low: float, high: float, key: str) -> bool:
    """Whether both ends of a score's interval satisfy a condition."""
    bottom, top = front["temperatures"][key]["scale"][condition.name]
    ends = [(x - bottom) / (top - bottom) if condition.scaled else x for x in (low, high)]
    return all(_OPERATORS[condition.op](end, condition.bound) for end in ends)
