"""Drawing: matplotlib's SVG made part of a page.

A plot is drawn once, in colours that stand for roles, and written as SVG whose colours are variables of the page's
style: the same drawing is then dark or light, and stays legible in print and without scripts. What a point means is
written beside it, as text that the page shows on hover, touch or focus.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
ET.register_namespace("", SVG)

# Roles by the colour they are drawn in; style.css gives each variable its light and its dark value.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
METHOD_COLORS = tuple(f"#1000{i:02x}" for i in range(7))
OBJECTIVE_COLORS = tuple(f"#2000{i:02x}" for i in range(6))
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"},
    **{color: f"--method-{i}" for i, color in enumerate(METHOD_COLORS)},
    **{color: f"--objective-{i}" for i, color in enumerate(OBJECTIVE_COLORS)},
}

# Methods differ in shape too: print may be grey, and not everyone sees every colour.
_KNOWN = ("linear", "cagrad", "mgda", "raco", "pcgrad")
_MARKERS = ("s", "^", "D", "o", "v", "P", "X")
_METHOD_LINES = ("--", "-.", ":", "-", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
LINES = ("-", "--", "-.", ":", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))

_STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters: searchable, and in the page's own font
    "text.parse_math": False,  # an objective may be called "$x"
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, whatever a matplotlibrc says; fonts are the browser's, so a glyph that ours lacks is no loss."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panel(x: str, y: str, *, title: str = "", size: tuple[float, float] = (4.5, 3.3)) -> tuple[Figure, Axes]:
    """An empty panel with its axes named; within `drawing()`."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    # letters that fit beside an axis, which is about 0.9 inches shorter than its side
    axes.set_xlabel(fitted(x, int((size[0] - 0.9) * 11.5)))
    axes.set_ylabel(fitted(y, int((size[1] - 0.9) * 11.5)))
    for axis in (axes.xaxis, axes.yaxis):  # few round figures: no room for -1.025 beside -1.000
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    if title:
        axes.set_title(fitted(title, int(size[0] * 10)), loc="left")
    return figure, axes


def fitted(text: str, width: int, lines: int = 2) -> str:
    """The text in at most so many lines of so many letters; what XML cannot hold becomes a question mark."""
    return "\n".join(textwrap.wrap(legal(text), width, max_lines=lines, placeholder="…"))


def legal(text: str) -> str:
    """Without the control characters and halves of pairs that XML and HTML forbid."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def method_look(method: str, methods: list[str]) -> tuple[str, str]:
    """(colour, marker) of a method: the same in every figure, and in every report for those we ship."""
    i = _method_index(method, methods)
    return METHOD_COLORS[i], _MARKERS[i]


def method_line(method: str, methods: list[str]) -> tuple[str, Any]:
    """(colour, line style) of a method."""
    i = _method_index(method, methods)
    return METHOD_COLORS[i], _METHOD_LINES[i]


def _method_index(method: str, methods: list[str]) -> int:
    others = [name for name in methods if name not in _KNOWN]
    i = _KNOWN.index(method) if method in _KNOWN else len(_KNOWN) + others.index(method)
    return i % len(METHOD_COLORS)


def objective_look(i: int) -> tuple[str, Any]:
    """(colour, line style) of the i-th objective, or pair of objectives."""
    return OBJECTIVE_COLORS[i % len(OBJECTIVE_COLORS)], LINES[i % len(LINES)]


def svg(figure: Figure, name: str, label: str, tips: Mapping[str, str]) -> str:
    """The figure as an element of a page; within `drawing()`.

    Args:
        figure: drawn in the colours of roles.
        name: unique within the page: ids of several drawings must not meet.
        label: what it shows, for those who hear the page.
        tips: gid of an artist -> its text.
    """
    matplotlib.rcParams["svg.hashsalt"] = name
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # a style element would hold for the whole page; metadata names places in the network
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _themed(element, name)
    for element in list(root.iter()):
        own = (element.get("id") or "").removeprefix(f"{name}-")
        if own in tips:
            _tip(element, legal(tips[own]))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "plot")
    root.set("role", "group")
    root.set("aria-label", legal(label))
    return ET.tostring(root, encoding="unicode")


def _themed(element: ET.Element, name: str) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == LINK:
            del element.attrib[key]
            element.set("href", f"#{name}-{value[1:]}")
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            element.set(key, _style(value))
        elif key == "d":
            element.set(key, " ".join(value.split()))  # a third of the file is line ends otherwise


def _style(value: str) -> str:
    kept = []
    for part in value.split(";"):
        key, _, what = (x.strip() for x in part.partition(":"))
        if key == "font-family":
            continue
        if key == "font":  # the short form, of matplotlib below 3.10
            key, what = "font-size", next(word for word in what.split() if word.endswith("px"))
        kept.append(f"{key}: " + (f"var({VARIABLES[what]})" if what in VARIABLES else what))
    return "; ".join(kept)


def _tip(element: ET.Element, text: str) -> None:
    element.set("class", "tip")
    element.set("tabindex", "0")
    element.set("role", "img")
    element.set("aria-label", text.replace("\n", "; "))
    element.set("data-tip", text)
    for use in list(element.iter(f"{{{SVG}}}use")):  # a finger is wider than a marker
        around = {"cx": use.get("x", "0"), "cy": use.get("y", "0"), "r": "8", "class": "reach"}
        ET.SubElement(element, f"{{{SVG}}}circle", around)
    title = ET.Element(f"{{{SVG}}}title")
    title.text = text
    element.insert(0, title)


_SHAPES = {
    "o": '<circle cx="12" cy="8" r="4.6"/>',
    "s": '<rect x="7.6" y="3.6" width="8.8" height="8.8"/>',
    "^": '<path d="M12 3 17 13H7z"/>',
    "v": '<path d="M12 13 7 3h10z"/>',
    "D": '<path d="M12 2 18 8 12 14 6 8z"/>',
    "P": '<path d="M10 3h4v3h3v4h-3v3h-4v-3H7V6h3z"/>',
    "X": '<path d="m8 2.5 4 3.5 4-3.5 1.5 1.5L14 8l3.5 4-1.5 1.5-4-3.5-4 3.5L6.5 12 10 8 6.5 4z"/>',
    "*": '<path d="m12 1.5 1.7 4.6h4.8l-3.9 2.9 1.5 4.7-4.1-2.9-4.1 2.9 1.5-4.7-3.9-2.9h4.8z"/>',
}
_DASHES = {"-": "", "--": "6 3", "-.": "7 3 1 3", ":": "1.5 2.5"}


def swatch(color: str, kind: Any, *, hollow: bool = False) -> str:
    """A legend's sign: a marker by matplotlib's letter, or a line by its style."""
    paint = f"var({VARIABLES[color]})"
    if kind in _SHAPES:
        fill = "var(--paper)" if hollow else paint
        body = f'<g style="fill: {fill}; stroke: {paint}; stroke-width: 1.4">{_SHAPES[kind]}</g>'
    else:
        dash = _DASHES[kind] if isinstance(kind, str) else " ".join(str(x * 1.5) for x in kind[1])
        body = f'<path d="M1 8H23" style="stroke: {paint}; stroke-width: 2; stroke-dasharray: {dash or "none"}"/>'
    return f'<svg class="swatch" viewBox="0 0 24 16" aria-hidden="true">{body}</svg>'
