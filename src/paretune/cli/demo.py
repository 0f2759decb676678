"""`paretune demo`: a real trade-off between real objectives, made, trained and measured here, offline, in minutes.

paretune demo
paretune demo --out demo --seeds 3 --workers 4

It trains two small base models from scratch, aligns each by linear weighting, CAGrad, MGDA and RACO at several
weightings, scores fresh samples exactly, prints the table and writes a report. What is there is not done again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="where everything goes (default: demo)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of every cell (default: 1)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes side by side (default: the cores, 8 at most)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the demo, prints its table and names its report."""
    from paretune.cli.report import config_defaults
    from paretune.evaluation.report import write_report
    from paretune.pipelines.demo import Plan, run_demo
    from paretune.training.checks import check_output

    check_output(args.out)
    folder = Path(args.out)
    workers = args.workers or min(8, os.cpu_count() or 2)
    plan = Plan(seeds=tuple(range(max(1, args.seeds))), workers=max(1, workers))
    result = run_demo(folder, plan, lambda line: print(f"demo: {line}", file=sys.stderr, flush=True))
    for world in result["worlds"]:
        print(table(world))
    print(f"report: {write_report([folder], folder / 'report.html', config_defaults())}")
    return 0


def table(world: dict[str, Any]) -> str:
    """One world's trade-off: mean exact rewards of fresh samples for held-out prompts, with 95 % intervals."""
    names = world["objectives"]
    lines = ["", f"{world['name']}: {world['description']}"]
    lines.append(
        "  " + f"{'method':10s} {'weights':16s}" + "".join(f"{name:>24s}" for name in names) + f"{'KL, nats':>10s}"
    )
    rows: list[tuple[str, str, dict[str, Any]]] = [("base", "", world["base"])]
    rows += [("single", name, point) for name, points in world["ceilings"].items() for point in points]
    for point in sorted(world["points"], key=lambda p: (p["method"], list(p["weights"].values()), p["seed"])):
        weights = "" if point["method"] == "mgda" else " ".join(f"{w:.2f}" for w in point["weights"].values())
        rows.append((point["method"], weights, point))
    for method, weights, point in rows:
        cells = []
        for name in names:
            low, high = point["ci"][name]
            cells.append(f"{point['scores'][name]:.3f} [{low:.3f}, {high:.3f}]".rjust(24))
        kl = f"{point['kl']:10.2f}" if "kl" in point else ""
        lines.append(f"  {method:10s} {weights:16s}" + "".join(cells) + kl)
    return "\n".join(lines)
