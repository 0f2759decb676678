"""The page in a browser: nothing overlaps, nothing is cut, model output does nothing, points speak. None: skipped.

A headless browser opens a copy of the page with a script at its end that looks around and leaves what it found there.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paretune.evaluation.report import write_report
from tests.evaluation.report.demo_made import made_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

PROBE = """
<script>
addEventListener("load", () => {
  const wide = WIDTH; document.body.style.maxWidth = wide + "px"; document.body.style.margin = "0";
  const hacked = window.hacked === undefined ? null : window.hacked;
  const found = {hacked, cut: [], overlaps: [], wider: [], empty: 0};
  for (const plot of document.querySelectorAll("svg.plot")) {
    const box = plot.getBoundingClientRect();
    if (box.width < 200 || box.height < 120) found.empty += 1;
    const texts = [...plot.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    for (const [i, [what, a]] of texts.entries()) {
      if (a.left < box.left - 2 || a.right > box.right + 2 || a.top < box.top - 2 || a.bottom > box.bottom + 2)
        found.cut.push(plot.getAttribute("aria-label") + ": " + what);
      for (const [other, b] of texts.slice(i + 1)) {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 1 && y > 0.4 * Math.min(a.height, b.height, a.width, b.width))
          found.overlaps.push(plot.getAttribute("aria-label") + ": " + what + " / " + other);
      }
    }
  }
  for (const node of document.querySelectorAll("main *")) {
    if (node.closest(".scroll, pre, svg")) continue;
    if (node.getBoundingClientRect().right > wide + 1) found.wider.push(node.tagName + "." + node.className);
  }
  for (const table of document.querySelectorAll(".scroll"))
    if (table.scrollWidth > table.clientWidth + 1 && getComputedStyle(table).overflowX !== "auto")
      found.wider.push("a table that cannot be scrolled");
  found.plots = document.querySelectorAll("svg.plot").length;
  const mark = document.querySelector(".tip"), box = document.getElementById("tip");
  found.shownBefore = !box.hidden;
  if (mark) {
    mark.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    found.tip = [box.hidden, box.textContent === mark.dataset.tip, box.children.length, getComputedStyle(box).display];
    const at = box.getBoundingClientRect();
    found.tipInside = at.left >= 0 && at.right <= innerWidth + 1;
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
    found.tipGone = box.hidden;
    found.inked = getComputedStyle(mark.querySelector("use")).stroke;
  }
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.letters = getComputedStyle(document.querySelector("svg.plot text")).fill;
  const out = document.createElement("div");
  out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


def looked_at(page: Path, folder: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What the probe found in the page at a width."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    copy = folder / f"{width}{dark}.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE.replace("WIDTH", str(width)) + "</body>"))
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += ["--disable-default-apps", "--metrics-recording-only", "--disable-dev-shm-usage"]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    words += [f"--window-size={max(width, 500)},900", "--virtual-time-budget=4000", "--dump-dom", copy.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, env=environment)
    match = re.search(r'<div id="found">(.*?)</div>', done.stdout.decode("utf-8", "replace"), re.DOTALL)
    assert match, f"the page did not load: {done.stderr.decode('utf-8', 'replace')[-500:]}"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.parametrize(("width", "dark"), [(1080, False), (390, True)], ids=["desk, light", "phone, dark"])
def test_nothing_overlaps_and_nothing_is_cut(demo_page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = looked_at(demo_page, tmp_path, width, dark=dark)
    assert found["plots"] > 20 and not found["empty"]
    assert found["cut"] == []
    assert found["overlaps"] == []
    assert found["wider"] == []
    assert found["hacked"] is None
    assert not found["shownBefore"]
    assert found["tip"] == [False, True, 0, "block"]
    assert found["tipInside"] and found["tipGone"]
    light, black = "rgb(255, 255, 255)", "rgb(28, 29, 33)"
    assert (found["paper"] == light) is (found["letters"] == black) is not dark
    assert found["inked"] not in {"rgb(0, 0, 0)", "none", found["paper"]}, "the roles' colours reach the marks"


def test_a_run_in_a_browser(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", ["a rather long name of an objective", "b", "c"], (0.2, 0.3, 0.5), "raco", 3, 400)
    page = write_report([run], tmp_path / "page.html")
    found = looked_at(page, tmp_path, 390)
    assert found["plots"] == 9 and not found["empty"]
    assert found["cut"] == found["overlaps"] == found["wider"] == []
