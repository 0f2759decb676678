"""`paretune data FILE`: what a data set holds, before anything is trained on it.

paretune data train.jsonl
paretune data finetune_truth.jsonl finetune_info.jsonl --format truthfulqa
paretune data dpo.jsonl --objectives '{helpful: {labels: chosen}, concise: {rule: shorter}}'
paretune data train.jsonl --tokenizer runs/first --max-length 1024 --json > data.json
paretune data train.jsonl --model Qwen/Qwen3-0.6B --weights 0.6,0.4

paretune data '[{path: helpful.jsonl, objectives: [helpful]}, {path: short.jsonl, objectives: [short]}]'
paretune data first.yaml      # the data of a configuration of `paretune train`, read as it says

With --model, 64 comparisons' gradients are taken at that model, and a sentence says whether RACO will differ here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import textwrap
import typing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paretune.cli.keys import READING, DataKeys, objectives_of
from paretune.cli.settings import convert, read_config
from paretune.cli.summary import table
from paretune.cli.yaml_values import read_yaml
from paretune.errors import InputError
from paretune.objectives import Objective, normalize_weights, parse_objectives

if TYPE_CHECKING:
    from paretune.pipelines.conflict import Figure, ModelConflict

WIDEST = 100  # columns; wider tables are harder to read along


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments. Nothing heavy is imported for them, so that `--help` answers at once."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FILE",
        help="a .jsonl, .json, .parquet or .csv file, a hub id, sources as YAML as in a configuration, or a "
        "configuration file (.yaml)",
    )
    parser.add_argument("--format", help="the layout of its rows (default: recognised by their fields)")
    parser.add_argument(
        "--objectives",
        metavar="LIST",
        help="names, comma-separated, or YAML as in a configuration: '{concise: {rule: shorter}}' (default: all found)",
    )
    parser.add_argument("--split", help="split of a hub data set (default: train)")
    parser.add_argument("--streaming", action="store_true", default=None, help="read a hub data set without a copy")
    parser.add_argument("--ties", help="what a tie of the raco layout means: missing (default), equal, release")
    parser.add_argument(
        "--pairs", help="pairs of K scored responses: all (default), best-worst, overall-best-worst, pareto, conflict"
    )
    parser.add_argument("--max-pairs", type=int, metavar="N", help="most pairs that are made of one prompt")
    parser.add_argument(
        "--conversational", action="store_true", default=None, help="turn plain text into messages, for a chat template"
    )
    parser.add_argument("--on-bad-row", help="'error' (default) stops at a bad row, 'skip' leaves it out and counts it")
    parser.add_argument("--take", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--tokenizer", metavar="PATH", help="a model directory or hub id: lengths in tokens too")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="with --tokenizer: which rows would not fit")
    parser.add_argument(
        "--model", metavar="PATH", help="a model directory or hub id: how the objectives conflict there"
    )
    parser.add_argument(
        "--weights", metavar="LIST", help="with --model: one weight per objective, comma-separated (default: theirs)"
    )
    parser.add_argument("--c", type=float, default=0.4, help="with --model: radius of the correction (default: 0.4)")
    parser.add_argument("--beta", type=float, default=0.2, help="with --model: inverse temperature (default: 0.2)")
    parser.add_argument("--rows", type=int, default=64, help="with --model: comparisons to measure on (default: 64)")
    parser.add_argument("--full", action="store_true", help="with --model: gradients of all weights instead of LoRA's")
    parser.add_argument("--json", action="store_true", help="all figures as JSON instead of the drawing")


def run(args: argparse.Namespace) -> int:
    """Prints the summary of the data set and returns 0.

    Raises:
        InputError: what reading, tokenizing or an argument finds wrong.
    """
    source = args.tokenizer or args.model
    if args.max_length is not None and source is None:
        raise InputError("--max-length counts tokens", fix="Name the tokenizer too: --tokenizer PATH.")
    if args.weights is not None and args.model is None:
        raise InputError("--weights weigh gradients at a model", fix="Name it: --model PATH.")
    data, objectives, options = _data(args)

    from paretune.comparisons.drawing import render
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.summary import summarize

    rows, report = read_comparisons(data, objectives=objectives, **options)
    tokenized, tokens = None, None
    if source is not None:
        from paretune.comparisons.tokens import tokenize_comparisons
        from paretune.policy.loading import load_tokenizer

        tokenizer = load_tokenizer(source)
        tokenized, tokens = tokenize_comparisons(rows, tokenizer, report.objectives, max_length=args.max_length)
    conflict = None
    if args.model is not None:
        weighted = _weighted(objectives or parse_objectives(report.objectives), args.weights)
        conflict = _conflict(args, weighted, tokenized, tokenizer)
    summary = summarize(rows, report.objectives, tokenized)
    if args.json:
        found: dict[str, Any] = {"summary": summary.to_dict(), "data": report.to_dict()}
        found["tokens"] = None if tokens is None else asdict(tokens)
        found["conflict"] = None if conflict is None else _finite(conflict.to_dict())
        _write(json.dumps(found, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    else:
        width = min(WIDEST, shutil.get_terminal_size().columns)
        text = render(summary, report, tokens, width=width)
        _write(text if conflict is None else f"{text}\n{conflict_text(conflict, width)}")
    return 0


def _data(args: argparse.Namespace) -> tuple[Any, list[Objective] | None, dict[str, Any]]:
    """What to read, for which objectives, and the options of reading that are given.

    A configuration file has all three; what the command line says goes over it.
    """
    data: Any = args.data if len(args.data) > 1 else args.data[0]
    objectives, options = None, {}
    if isinstance(data, str) and data.endswith((".yaml", ".yml")):
        path, config = data, read_config(data)
        data = config.get("data")
        if data in (None, "", []):
            raise InputError("data is missing", where=path, fix="Name the data itself.")
        hints = typing.get_type_hints(DataKeys)
        options = {key: convert(key, config[key], hints[key], path) for key in READING if key in config}
        objectives = objectives_of(config.get("objectives"))
    elif isinstance(data, str) and data.lstrip()[:1] in ("[", "{"):
        data = read_yaml(data, "data")
    if args.objectives is not None:
        objectives = _objectives(args.objectives)
    given = {key: getattr(args, key) for key in READING}
    return data, objectives, options | {key: value for key, value in given.items() if value is not None}


def _objectives(text: str) -> list[Objective]:
    spec = read_yaml(text, "--objectives")
    if isinstance(spec, str):
        spec = [name.strip() for name in spec.split(",") if name.strip()]
    return parse_objectives(spec)


def _weighted(objectives: list[Objective], text: str | None) -> list[Objective]:
    """The objectives with the weights of a comma-separated list, in their order."""
    if text is None:
        return objectives
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError("unreadable weights", where="--weights", expected="0.6,0.4", found=text) from error
    if len(weights) != len(objectives):
        names = ", ".join(o.name for o in objectives)
        raise InputError("bad weights", where="--weights", expected=f"one each for {names}", found=text)
    return [dataclasses.replace(o, weight=weight) for o, weight in zip(objectives, weights, strict=True)]


def _conflict(args: argparse.Namespace, objectives: list[Objective], rows: Any, tokenizer: Any) -> ModelConflict:
    import torch

    from paretune.pipelines.conflict import measure_conflict
    from paretune.policy.loading import load_policy

    if not 0.0 <= args.c < 1.0:
        raise InputError("bad c", where="--c", expected="0 <= c < 1", found=args.c)
    if not args.beta > 0.0:
        raise InputError("bad beta", where="--beta", expected="a number > 0", found=args.beta)
    # before the weights are read: this is quick, and they may not be
    normalize_weights(objectives)
    model = load_policy(args.model, full=args.full).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return measure_conflict(
        model, tokenizer, rows, objectives, c=args.c, beta=args.beta, size=args.rows, full=args.full
    )


def conflict_text(found: ModelConflict, width: int) -> str:
    """The figures as two tables, and the sentence, ending in a newline."""
    conflict = found.conflict
    rows = []
    for i, name in enumerate(conflict.objectives):
        norm = conflict.norms[name]
        effective = f"{conflict.effective_weights[i]:.3f}"
        rows.append([name, f"{conflict.weights[i]:.3f}", effective, str(conflict.labels[name]), *_cells(norm, ".3g")])
    head = ["objective", "weight", "RACO's weight", "labels", "norm", "95 % interval"]
    what = f"{found.trained}, {found.parameters:,} parameters, {found.device}"
    lines = [f"Gradients before training, of {conflict.rows} comparisons ({what})", "", table(head, rows), ""]
    between = [[pair.replace("~", " ~ "), *_cells(figure, "+.2f")] for pair, figure in conflict.cosines.items()]
    if between:
        lines += [table(["gradients of", "cosine", "95 % interval"], between), ""]
    angles = [[f"at the weights given, c = {conflict.c:g}", *_cells(conflict.angle, ".1f")]]
    angles += [["at " + " / ".join(f"{w:.2g}" for w in at), f"{degrees:.1f}", ""] for at, degrees in conflict.elsewhere]
    lines += [table(["RACO's angle to linear weighting", "degrees", "95 % interval"], angles), ""]
    lines.append(
        f"A step of {conflict.rows}: {found.seconds_per_step:.2g} s here ({found.rows_per_second:.3g} rows/s)."
    )
    lines += [f"- {notice}" for notice in found.notices]
    return "\n".join([*lines, "", textwrap.fill(conflict.sentence, max(width, 72)), ""])


def _cells(figure: Figure, form: str) -> list[str]:
    known = figure.low is not None and figure.high is not None
    return [format(figure.value, form), f"{figure.low:{form}} to {figure.high:{form}}" if known else "-"]


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(text: str) -> None:
    """Characters that the terminal's encoding lacks (the blocks, on an old one) become question marks, not an error."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
