"""The parts a page is put together from; the template draws each kind in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plots:
    """One figure: small multiples with legend and caption; `wide` ones are larger. Panels and signs are our SVG."""

    panels: Sequence[str]
    caption: str
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False
    kind: str = "plots"


@dataclass(frozen=True)
class Table:
    """Figures in rows; the first columns are words. `folded`: shown when asked for, and in print."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    words: int = 1
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Words:
    """Paragraphs, or a list of them."""

    lines: Sequence[str]
    listed: bool = False
    kind: str = "words"


@dataclass(frozen=True)
class Code:
    """Lines to type or to keep."""

    text: str
    caption: str = ""
    kind: str = "code"


@dataclass(frozen=True)
class Examples:
    """Prompts with what each model wrote; one dict per prompt: prompt, answers [(who, text, [(name, score)])]."""

    items: Sequence[dict[str, Any]]
    caption: str
    kind: str = "examples"


Block = Plots | Table | Words | Code | Examples


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block] = ()
    inner: Sequence[Section] = field(default_factory=list)


def number(value: float | None, form: str = ".3f") -> str:
    """A figure for people: a true minus, and a dash for what is not known."""
    return "–" if value is None else format(value, form).replace("-", "−")


def share(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.0f}\u00a0%"


def weights_text(weights: dict[str, float], objectives: Sequence[str]) -> str:
    """Weights in the objectives' order, as 0.6 / 0.4, which no line breaks apart."""
    shown = [f"{weights[name]:.3g}" if name in weights else "–" for name in objectives]
    return "\u00a0/\u00a0".join(shown) if weights else "–"


METHOD_NAMES = {"linear": "linear", "cagrad": "CAGrad", "mgda": "MGDA", "raco": "RACO", "pcgrad": "PCGrad"}


def method_name(method: str) -> str:
    """A method as people write it."""
    return METHOD_NAMES.get(method, method)


def seed_text(seed: int | None) -> str:
    return "seed not recorded" if seed is None else f"seed {seed}"
