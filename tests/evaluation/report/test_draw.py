"""Drawings as parts of a page: themed, apart from each other, the same every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from paretune.evaluation.report import draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str = "a", x: str = "steps", y: str = "loss", tip: str = "a point") -> str:
    with draw.drawing():
        figure, axes = draw.panel(x, y, title="title")
        axes.plot([0, 1], [0, 1], color=draw.METHOD_COLORS[2], linestyle="--", alpha=0.5)
        axes.plot([0.5], [0.5], "o", gid="point-0", color=draw.METHOD_COLORS[3], markeredgecolor=draw.PAPER)
        return draw.svg(figure, name, "label", {"point-0": tip})


def test_every_colour_is_a_variable_of_the_page() -> None:
    text = drawn()
    assert not re.search(r"#[0-9a-f]{6}", text), "a colour that dark mode cannot change"
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
    assert {"--method-2", "--method-3", "--paper", "--grid", "--muted"} <= used
    style = (draw.__file__.removesuffix("draw.py")) + "style.css"
    with open(style, encoding="utf-8") as file:
        themes = re.findall(r":root \{(.*?)\}", file.read(), re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        assert set(draw.VARIABLES.values()) <= set(re.findall(r"(--[a-z0-9-]+):", theme))


def test_drawings_do_not_meet_on_a_page() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', drawn(name))) for name in ("a", "b")]
    assert ids[0] and not ids[0] & ids[1]
    for name, own in zip(("a", "b"), ids, strict=True):
        asked = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn(name)))
        assert asked and asked <= own
    assert "<style" not in drawn() and "<metadata" not in drawn()


def test_the_same_figure_is_the_same_text() -> None:
    assert drawn() == drawn()


def test_names_are_text_whatever_they_hold() -> None:
    name = 'a $x_1$ <b> & "q" \x00\x1b ünï 事実 🦔'
    root = ET.fromstring(drawn(x=name, tip=name))
    shown = "".join(text.text or "" for text in root.iter(f"{SVG}text"))
    assert 'a $x_1$ <b> & "q" \ufffd\ufffd ünï 事実 🦔' in shown
    (mark,) = [e for e in root.iter() if e.get("class") == "tip"]
    assert mark.get("data-tip") == draw.legal(name)
    assert draw.legal("\ud800x\uffff") == "\ufffdx\ufffd"


def test_a_mark_has_its_words_and_room_for_a_finger() -> None:
    root = ET.fromstring(drawn(tip="one\ntwo"))
    (mark,) = [e for e in root.iter() if e.get("class") == "tip"]
    assert (mark.get("tabindex"), mark.get("aria-label"), mark.get("data-tip")) == ("0", "one; two", "one\ntwo")
    assert mark[0].tag == f"{SVG}title" and mark[0].text == "one\ntwo"
    (reach,) = [e for e in mark.iter() if e.get("class") == "reach"]
    (use,) = mark.iter(f"{SVG}use")
    assert (reach.get("cx"), reach.get("cy")) == (use.get("x"), use.get("y"))


def test_a_users_matplotlib_settings_neither_matter_nor_change(monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn()
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert drawn() == before
    assert matplotlib.rcParams["font.size"] == 31.0


def test_methods_look_different_in_colour_in_shape_and_in_line() -> None:
    methods = ["raco", "linear", "own", "cagrad", "other", "mgda", "pcgrad"]
    for look in (draw.method_look, draw.method_line):
        colors, shapes = zip(*(look(method, methods) for method in methods), strict=True)
        assert len(set(colors)) == len(set(shapes)) == len(methods)
    assert draw.method_look("raco", ["raco"]) == draw.method_look("raco", methods)
    for line in {draw.method_line(method, methods)[1] for method in methods} | set(draw.LINES):
        assert draw.swatch(draw.INK, line).count("<path") == 1


def test_long_names_are_fitted() -> None:
    text = draw.fitted("a very long name of an objective " * 5, 30)
    assert len(text.splitlines()) == 2 and max(map(len, text.splitlines())) <= 30
    assert text.endswith("…")
