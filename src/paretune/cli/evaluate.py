"""`paretune evaluate`: held-out losses, margins and accuracies of models, and what alignment cost them elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli import evaluate_lm
from paretune.cli.evaluate_models import Reading, check_there, named, own_reference, references_of, score
from paretune.cli.keys import READING, DataKeys, key, objectives_of
from paretune.cli.settings import resolve
from paretune.cli.summary import table
from paretune.errors import InputError
from paretune.objectives import Objective, parse_objectives
from paretune.training.given import full_path
from paretune.training.rundir import run_record

if TYPE_CHECKING:
    from datasets import Dataset

    from paretune.evaluation.margins import Margins

logger = logging.getLogger(__name__)

INTRO = """
paretune evaluate [CONFIG.yaml] --model RUN_OR_MODEL [--model ...] [--data FILE] [--key value ...]

Scores comparisons that a model was not trained on: per objective the loss, the margin (implicit reward of the preferred
response minus that of the other), how often it is positive (accuracy), and both rewards, with 95 % intervals from
drawing whole groups of rows anew. Beside them stands how often "the shorter response wins" would be right: a model that
is not better than that, or than its complement, may have learnt lengths.

  paretune evaluate --model runs/first                      # the rows that the run itself held out
  paretune evaluate --model runs/first --data test.jsonl --json figures.json
  paretune evaluate --model runs/first --model runs/second --data test.jsonl      # and paired differences
  paretune evaluate --model some/model --ref_model its/base --data test.jsonl --objectives helpful,harmless
  paretune evaluate --model runs/first --lm_text book.txt --lm_eval mmlu --lm_eval_shots 5   # what it cost

lm_text and lm_eval are measured on each model and on what it was trained from; without comparisons to score,
they are measured alone. lm_eval needs `pip install 'paretune[lm-eval]'` and, for most tasks, data from the hub.

What is not given comes from the run.json of the first model that is a run; where it held several sets out, or data is a
mapping {name: FILE, ...}, each set gets its tables. The reference of an adapter is its base, of
a fully trained run the model it started from, of any other model ref_model or else the first run's.
"""

GROUPS = {
    "What is scored": ["model", "ref_model", "dtype", "batch_size"],
    "On which data": ["data", "eval_fraction", *READING, "max_length"],
    "By what": ["objectives", "beta"],
    "What alignment cost": ["lm_text", "lm_window", "lm_eval", "lm_eval_shots", "lm_eval_limit", "lm_eval_path"],
    "What comes out": ["json", "draws", "seed"],
}


@dataclass
class EvaluateKeys(DataKeys):
    """Keys of `paretune evaluate`; None takes what the run was trained with."""

    model: str | list | None = key("A run's directory, a model's directory or hub id; several are compared.")
    ref_model: str | None = key("The reference of all of them.")
    objectives: str | list | dict | None = key("As in train; or names separated by commas.")
    beta: float | None = key("Inverse temperature of objectives without one of their own [the run's, else 0.2].")
    max_length: int | None = key("Tokens of prompt and response [the run's, else 2048].")
    eval_fraction: float | None = key("Score only the share of data that a run with this eval_fraction held out.")
    format: str | None = key("Layout of the rows [the run's, else recognised].")  # type: ignore[assignment]
    ties: str | None = key("What a tie of the raco layout means [the run's, else missing].")  # type: ignore[assignment]
    pairs: str | None = key("Pairs made of K scored responses [the run's, else all].")  # type: ignore[assignment]
    on_bad_row: str | None = key("'error' or 'skip' [the run's, else error].")  # type: ignore[assignment]
    split: str | None = key("Split of a hub data set or folder [the run's for its own data, else train].")  # type: ignore[assignment]
    streaming: bool | None = key("Read a hub data set without downloading it whole [as split].")  # type: ignore[assignment]
    conversational: bool | None = key("Turn plain text into messages [the run's, else false].")  # type: ignore[assignment]
    lm_text: str | None = key("A text file: the loss of predicting it, in nats per token.")
    lm_window: int | None = key("Tokens read at once, half of them new [the models' context, at most 1024].")
    lm_eval: str | list | None = key("Tasks of lm-evaluation-harness, separated by commas: mmlu, hellaswag, …")
    lm_eval_shots: int | None = key("Examples before each question [the task's own number].")
    lm_eval_limit: int | None = key("Only the first so many documents of each task.")
    lm_eval_path: str | None = key("Folder of further tasks, as YAML files of the harness.")
    dtype: str = key("auto: as stored; or float32, bfloat16, float16.", "auto")
    batch_size: int = key("Comparisons per forward pass.", 16)
    draws: int = key("Bootstrap draws behind each interval.", 2000)
    seed: int = key("Of the draws.", 0)
    json: str | None = key("Write all figures to this file.")


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (EvaluateKeys,)))
        return 0
    keys: EvaluateKeys = resolve(argv, EvaluateKeys, None, required=("model",)).own
    for name in ("batch_size", "draws"):
        if getattr(keys, name) < 1:
            raise InputError(f"bad {name}", expected="a whole number of at least 1", found=getattr(keys, name))
    names = [full_path(name) for name in ([keys.model] if isinstance(keys.model, str) else keys.model or [])]
    records = [_record(Path(name)) for name in names]
    plan = evaluate_lm.plan_of(keys)
    own = [own_reference(name, record, keys.ref_model) for name, record in zip(names, records, strict=True)]
    written: dict[str, Any] = {"names": names}
    said: list[str] = []
    if plan is None or _has_rows(keys, records):
        written, said = _rows(keys, names, records, own)
    if plan is not None:
        for name in names:
            check_there(name, {})  # texts are scored by the model in the directory itself
        bases = [None if ref is None else named(name, ref) for name, ref in zip(names, own, strict=True)]
        cost = evaluate_lm.measure(plan, keys, names, bases, _four_bits(records))
        written, said = {**written, **cost}, [*said, evaluate_lm.render(cost, _labels_of(cost))]
    if keys.json is not None:
        from paretune.training.record import write_json

        write_json(Path(keys.json).expanduser(), written)
    print("\n\n".join(said))
    return 0


def _has_rows(keys: EvaluateKeys, records: list[dict[str, Any]]) -> bool:
    """Whether comparisons are asked for or held out by a run; said where there are none."""
    run = _run(records)
    source = "data" if run.get("config", {}).get("eval_fraction") is not None else "eval_data"
    if keys.data is not None or keys.objectives is not None or keys.eval_fraction is not None:
        return True
    if run.get("settings", {}).get(source) is not None:
        return True
    logger.warning("no comparisons are given, and no model is a run that held some out of a file: no margins")
    return False


def _run(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of the first model that is a run."""
    return next((record for record in records if record.get("objectives")), {})


def _four_bits(records: list[dict[str, Any]]) -> list[bool]:
    return [record.get("settings", {}).get("quantization") == "4bit" for record in records]


def _rows(
    keys: EvaluateKeys, names: list[str], records: list[dict[str, Any]], own: list[str | None]
) -> tuple[dict[str, Any], list[str]]:
    """The figures of all comparisons, and their tables, one text per set."""
    run = _run(records)
    settings = {**run.get("settings", {}), **{k: run.get("config", {}).get(k) for k in ("beta", "max_length")}}
    objectives = _objectives(keys, run)
    sets = read_sets(keys, run, settings, objectives)
    for name, record in zip(names, records, strict=True):
        check_there(name, record)
    references = references_of(names, own, objectives)
    beta = keys.beta if keys.beta is not None else float(settings.get("beta") or 0.2)
    max_length = keys.max_length if keys.max_length is not None else settings.get("max_length", 2048)
    read = Reading(sets, objectives, beta, max_length, keys.dtype, keys.batch_size)
    scored = [
        score(read, name, record, reference, four_bits=four)
        for name, record, reference, four in zip(names, records, references, _four_bits(records), strict=True)
    ]
    about = {"names": names, "references": references, "beta": beta}
    results = {name: _compare([of[name] for of in scored], rows, objectives, keys) for name, rows in sets.items()}
    alone = results.get(WHOLE)
    said = [
        (f"== {name} ==\n" if name else "") + render({**result, **about}, [o.name for o in objectives])
        for name, result in results.items()
    ]
    return {**(alone if alone is not None else {"sets": results}), **about}, said


WHOLE = ""  # the name of a set that is the only one


def _record(path: Path) -> dict[str, Any]:
    """The run.json of a run's directory; of one of its checkpoints, the run's."""
    return run_record(path) or (run_record(path.parent) if path.name.startswith("checkpoint-") else {})


def _objectives(keys: EvaluateKeys, run: dict[str, Any]) -> list[Objective]:
    given = objectives_of(keys.objectives)
    if given is not None:
        return given
    if not run:
        fix = "Name them: --objectives helpful,harmless."
        raise InputError("no objectives are given, and no model is a run that has them", fix=fix)
    return parse_objectives(run["objectives"])


def read_sets(
    keys: EvaluateKeys, run: dict[str, Any], settings: dict[str, Any], objectives: list[Objective]
) -> dict[str, Dataset]:
    """The comparisons to score, by the name of their set: as given, else the run's held-out ones.

    Raises:
        InputError: the run has none, or the data is bad.
    """
    data, fraction = keys.data, keys.eval_fraction
    if data is None:
        fraction = fraction if fraction is not None else run.get("config", {}).get("eval_fraction")
        source = "data" if fraction is not None else "eval_data"
        data = settings.get(source)
        if data is None:
            _in_memory(run, source)
            raise InputError("no data is given, and the run held no rows out", fix="Give it: --data FILE.")
    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.rows import split_groups

    options = {name: value for name, value in keys.read_options().items() if value is not None}
    # said of the run's own data: other data is recognised unless it is said what it is
    own = {"format", "split", "streaming"} if keys.data is not None else set()
    for name in READING:
        if name not in options and settings.get(name) is not None and name not in own:
            options[name] = settings[name]
    sets = {}
    for name, part in (data if isinstance(data, dict) and "path" not in data else {WHOLE: data}).items():
        rows, report = read_comparisons(part, objectives=objectives, **options)
        for warning in report.warnings:
            logger.warning(f"{name}: {warning}" if name else warning)
        sets[str(name)] = rows if fraction is None else split_groups(rows, fraction)[1]
    return sets


def _in_memory(run: dict[str, Any], source: str) -> None:
    """Raises InputError where the run's rows were given as objects, which have no name to read them by."""
    what = run.get("in_memory", {}).get(source)
    if what is None:
        return
    marks = [found["rows"]["fingerprint"] for found in run.get("data", {}).values() if found["rows"].get("fingerprint")]
    raise InputError(
        "the run was given its rows in memory, where they cannot be read again",
        where=f"{source} of the run",
        found=f"{what} (fingerprints: {', '.join(marks)})" if marks else what,
        fix="Save them to a file and give it: --data FILE.",
    )


def _compare(scored: list[Margins], rows: Dataset, objectives: list[Objective], keys: EvaluateKeys) -> dict[str, Any]:
    import numpy as np

    from paretune.comparisons.rows import group_of
    from paretune.evaluation.margins import compare

    common = sorted(set.intersection(*({int(i) for i in margins.index} for margins in scored)))
    if not common:
        raise InputError("no comparison fits all models", fix="Raise max_length.")
    if any(len(margins.index) > len(common) for margins in scored):
        logger.warning("%d comparisons fit all models and are scored", len(common))
    kept = np.array(common)
    groups = [group_of(row) for row in rows.select(common)]
    return compare([m.select(kept) for m in scored], groups, objectives, draws=keys.draws, seed=keys.seed)


# ---- text ----


def render(result: dict[str, Any], objectives: list[str]) -> str:
    """The tables of a comparison in plain text."""
    columns = ("loss", "margin", "accuracy", "chosen", "rejected")
    labels = _labels(result["names"])
    several = len(labels) > 1
    head = [*(["model"] if several else []), "objective", "labels", *columns]
    rows = []
    for label, found in zip(labels, result["models"], strict=True):
        for name in objectives:
            cells = [_cell(found[name][column], column) for column in columns]
            rows.append([*([label] if several else []), name, str(found[name]["loss"]["n"]), *cells])
    count = result["groups"]
    what = f"{result['comparisons']} comparisons in {count} groups (or prompts); 95 % intervals over groups."
    if count == 1:
        what = f"{result['comparisons']} comparisons of one group (or prompt), which says nothing about others."
    lines = [what, "", table(head, rows)]
    for label, found in zip(labels[1:], result["differences"], strict=True):
        rows = [[name, *(_cell(found[name][c], c, sign=True) for c in columns)] for name in objectives]
        lines += ["", f"{label} minus {labels[0]}, paired:", table(["objective", *columns], rows)]
    base = [[name, _cell(result["baseline"][name]["shorter"], "accuracy")] for name in objectives]
    lines += ["", table(["length-only baseline", "accuracy of 'the shorter response wins'"], base), ""]
    for label, reference in zip(labels, result["references"], strict=True):
        if reference is not None:
            lines.append(f"reference of {label}: {reference}")
    return "\n".join(lines).rstrip()


def _labels(names: list[str]) -> list[str]:
    """Their last folders where these tell them apart."""
    short = [os.path.basename(name.rstrip("/")) or name for name in names]
    return short if len(set(short)) == len(short) else names


def _labels_of(cost: dict[str, Any]) -> Callable[[str], str]:
    names = list(next(iter(cost.values()))["models"])
    return dict(zip(names, _labels(names), strict=True)).__getitem__


def _cell(figure: dict[str, Any], column: str, *, sign: bool = False) -> str:
    if figure["value"] is None:
        return "-"
    form = ("+.1%" if sign else ".1%") if column == "accuracy" else "+.3f" if sign or column not in ("loss",) else ".3f"
    text = format(figure["value"], form)
    if figure["low"] is None:
        return text
    return f"{text} [{format(figure['low'], form)}, {format(figure['high'], form)}]"
