"""The command that draws a study's results.json as its figure.svg."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib


def figure_command(about: str | None, folder: Path, draw: Callable[[dict[str, Any]], Any]) -> None:
    """Reads a study's results, draws them and writes the figure.

    Args:
        about: for `--help`.
        folder: of the study.
        draw: from its results to a figure of matplotlib.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=folder / "results.json")
    parser.add_argument("--out", type=Path, default=folder / "figure.svg")
    options = parser.parse_args()
    # the same results give the same file: no date, no random identifiers; text stays text
    matplotlib.rcParams.update({"svg.hashsalt": "paretune", "svg.fonttype": "none"})
    figure = draw(json.loads(options.results.read_text(encoding="utf-8")))
    figure.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None, dpi=110)
