"""`paretune data FILE`: what a data set holds, before anything is trained on it.

paretune data train.jsonl
paretune data finetune_truth.jsonl finetune_info.jsonl --format truthfulqa
paretune data dpo.jsonl --objectives '{helpful: {labels: chosen}, concise: {rule: shorter}}'
paretune data train.jsonl --tokenizer runs/first --max-length 1024 --json > data.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from typing import Any

import yaml

from paretune.errors import InputError
from paretune.objectives import Objective, parse_objectives

WIDEST = 100  # columns; wider tables are harder to read along


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments. Nothing heavy is imported for them, so that `--help` answers at once."""
    parser.add_argument("data", nargs="+", metavar="FILE", help="a .jsonl, .json, .parquet or .csv file, or a hub id")
    parser.add_argument("--format", default="auto", help="the layout of its rows (default: recognised by their fields)")
    parser.add_argument(
        "--objectives",
        metavar="LIST",
        help="names, comma-separated, or YAML as in a configuration: '{concise: {rule: shorter}}' (default: all found)",
    )
    parser.add_argument("--split", default="train", help="split of a hub data set (default: train)")
    parser.add_argument(
        "--ties", default="missing", help="what a tie of the raco layout means: missing, equal, release"
    )
    parser.add_argument(
        "--pairs", default="all", help="pairs made of K scored responses: all, best-worst, pareto, conflict"
    )
    parser.add_argument(
        "--on-bad-row", default="error", help="'error' stops at a bad row, 'skip' leaves it out and counts it"
    )
    parser.add_argument("--take", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--tokenizer", metavar="PATH", help="a model directory or hub id: lengths in tokens too")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="with --tokenizer: which rows would not fit")
    parser.add_argument("--json", action="store_true", help="all figures as JSON instead of the drawing")


def run(args: argparse.Namespace) -> int:
    """Prints the summary of the data set and returns 0.

    Raises:
        InputError: what reading, tokenizing or an argument finds wrong.
    """
    if args.max_length is not None and args.tokenizer is None:
        raise InputError("--max-length counts tokens", fix="Name the tokenizer too: --tokenizer PATH.")
    objectives = None if args.objectives is None else _objectives(args.objectives)

    from paretune.comparisons.drawing import render
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.summary import summarize

    rows, report = read_comparisons(
        args.data if len(args.data) > 1 else args.data[0],
        format=args.format,
        objectives=objectives,
        ties=args.ties,
        pairs=args.pairs,
        on_bad_row=args.on_bad_row,
        split=args.split,
        take=args.take,
    )
    tokenized, tokens = None, None
    if args.tokenizer is not None:
        from paretune.comparisons.tokens import tokenize_comparisons
        from paretune.policy.loading import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer)
        tokenized, tokens = tokenize_comparisons(rows, tokenizer, report.objectives, max_length=args.max_length)
    summary = summarize(rows, report.objectives, tokenized)
    if args.json:
        found: dict[str, Any] = {"summary": summary.to_dict(), "data": report.to_dict()}
        found["tokens"] = None if tokens is None else asdict(tokens)
        _write(json.dumps(found, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    else:
        _write(render(summary, report, tokens, width=min(WIDEST, shutil.get_terminal_size().columns)))
    return 0


def _objectives(text: str) -> list[Objective]:
    try:
        spec = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("unreadable YAML", where="--objectives", expected="names or a mapping", found=text) from error
    if isinstance(spec, str):
        spec = [name.strip() for name in spec.split(",") if name.strip()]
    return parse_objectives(spec)


def _write(text: str) -> None:
    """Characters that the terminal's encoding lacks (the blocks, on an old one) become question marks, not an error."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
