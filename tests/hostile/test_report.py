"""A report about runs whose every text is markup: it is shown, and does nothing, in a browser too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paretune.evaluation.report import write_report
from tests.evaluation.report.demo_made import made_demo
from tests.evaluation.report.dom import read
from tests.evaluation.report.test_browser import looked_at

MARKUP = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    '"><svg onload=window.hacked=4>',
    "' onmouseover='window.hacked = 5' x='",
    '<a href="javascript:window.hacked=6" autofocus onfocus=window.hacked=7>link</a>',
    "javascript:window.hacked=8",
    "</title></style></svg></text><iframe srcdoc='<script>parent.hacked=9</script>'>",
    "]]><!--<script>window.hacked = 10</script>--><![CDATA[",
    "{{ ''.__class__.__mro__ }}{% raw %}",
    "&lt;script&gt;window.hacked = 11&lt;/script&gt;",
]
_OBJECTIVE = "\u00a0"  # ends an objective's name, which must stay the same wherever it stands
# What names things that must be found again: files, methods that are drawn by their names, states, dates.
_KEPT = {"run", "method", "kind", "status", "created", "combiner", "step", "ended", "started"}


def spoilt(value: Any, count: list[int]) -> Any:
    """The value with every text replaced, and every key that is data's own (not one of ours: those have no space)."""
    if isinstance(value, dict):
        return {key: value[key] if key in _KEPT else spoilt(value[key], count) for key in value}
    if isinstance(value, list):
        return [spoilt(entry, count) for entry in value]
    if isinstance(value, str) and not value.endswith(_OBJECTIVE):
        count[0] += 1
        return f"{value[:12]} {MARKUP[count[0] % len(MARKUP)]}"
    return value


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = made_demo(tmp_path_factory.mktemp("hostile") / "demo", seeds=(0,), steps=3)
    result = json.loads((demo / "result.json").read_text())
    result["worlds"] = result["worlds"][:1]
    names = {name: f"{name} {MARKUP[i]}{_OBJECTIVE}" for i, name in enumerate(result["worlds"][0]["objectives"])}
    count = [0]
    (demo / "result.json").write_text(json.dumps(spoilt(renamed(result, names), count)))
    for path in demo.rglob("run.json"):
        path.write_text(json.dumps(spoilt(renamed(json.loads(path.read_text()), names), count)))
    assert count[0] > 200
    return write_report([demo], demo.parent / "report.html")


def renamed(value: Any, names: dict[str, str]) -> Any:
    """The same with other names of the objectives."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry, names) for entry in value]
    return names.get(value, value) if isinstance(value, str) else value


def test_nothing_of_the_texts_is_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tree = read(text)
    assert len(tree.all("script")) == 1, "ours"
    for node in tree.walk():
        assert node.tag not in {"iframe", "img", "object", "embed", "base", "form", "link"}
        for key, value in node.attributes.items():
            assert not key.startswith("on") and "javascript:" not in value.lower() or key in ("data-tip", "aria-label")
            assert key not in ("href", "xlink:href", "src", "srcdoc") or value.startswith("#")
    shown = tree.text + "".join(node.attributes.get("data-tip", "") for node in tree.walk())
    assert all(markup in shown for markup in MARKUP[:3]), "and the texts are there, as texts"


def test_nothing_of_the_texts_runs_in_a_browser(page: Path, tmp_path: Path) -> None:
    found = looked_at(page, tmp_path, 1080)
    assert found["hacked"] is None and found["plots"] > 5
