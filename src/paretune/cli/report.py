"""`paretune report`: an HTML page from run directories or from a demo's folder.

paretune report runs/first
paretune report runs/linear runs/raco -o compared.html
paretune report DEMO_DIR

The page is one file that needs no network: the front (of a demo, or of runs with the same held-out rows), every
point's runs, the conflict over time, what the combination did, what the runs warned of, and how to reproduce them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paretune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run's directory, or the folder of a demo")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page (default: report.html in the directory; of several, here)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page, names it and returns 0.

    Raises:
        InputError: a directory without a run or a demo, a file that cannot be read or written.
    """
    paths = list(dict.fromkeys(Path(name).expanduser() for name in args.runs))
    out = Path(args.output).expanduser() if args.output else (paths[0] if len(paths) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise InputError("a directory, not a file", where=f"-o {out}", fix=f"Name a file: -o {out / 'report.html'}.")

    from paretune.evaluation.report import write_report

    print(f"report: {write_report(paths, out, config_defaults())}")
    return 0


def config_defaults() -> dict[str, Any]:
    """A run's configuration where nothing is asked for, as run.json would hold it."""
    from paretune.training.config import RACOConfig
    from paretune.training.record import plain

    defaults: dict[str, Any] = plain(RACOConfig().to_dict())
    return defaults
