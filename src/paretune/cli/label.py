"""`paretune label`: gives rows their preferences."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli.engines import ENGINE_KEYS, EngineKeys
from paretune.cli.keys import key
from paretune.cli.settings import read_config, resolve
from paretune.cli.summary import table
from paretune.errors import InputError

if TYPE_CHECKING:
    from paretune.preferences.specs import Labeller

INTRO = """
paretune label DATA [CONFIG.yaml] [--key value ...]

Gives rows one preference per objective: from rules, functions of yours, reward models, judges. What a source answered
is kept on disk, so the same command goes on where it was stopped and asks nothing twice.

  paretune label responses.jsonl --out train.jsonl \\
      --sources '{concise: {rule: shorter}, polite: {function: "mine:polite", soft: 0.5}}'
  paretune label responses.jsonl --sources sources.yaml --pairs best-worst --out train.jsonl
  paretune train --model M --data train.jsonl --objectives '{concise: 0.4, polite: 0.6}'

DATA holds rows of {prompt, responses: [...]} (`paretune sample` writes them), or comparisons in any layout that
`paretune train` reads; the labels that comparisons carry stay, and sources add objectives and fill what is missing.
docs/labelling.md lists the rules, the options of every source and how they combine.
"""

GROUPS = {
    "What is labelled": ["data", "sources", "out", "overwrite", "take", "on_bad_row", "max_words"],
    "Which pairs": ["pairs", "max_pairs", "seed"],
    "Asking": ["cache", "retry_failed", "dry_run", *ENGINE_KEYS],
}


@dataclass
class LabelKeys(EngineKeys):
    """Keys of `paretune label`."""

    data: str | list | dict | None = key("File (.jsonl, .json, .parquet, .csv) or hub id of responses or comparisons.")
    sources: str | dict | None = key("{objective: {rule: NAME, ...}}, written here or in a YAML file that is named.")
    out: str | None = key("The .jsonl file that is written; the report goes beside it as NAME.labels.json.")
    pairs: str = key("Pairs of K responses: all, best-worst, overall-best-worst, pareto or conflict.", "all")
    max_pairs: int | None = key("Most pairs that are made of one prompt's responses.")
    max_words: int | None = key("Responses of more words are left out.")
    seed: int = key("Decides which pairs stay under max_pairs, and orders that a schedule draws.", 0)
    take: int | None = key("Only the first so many rows.")
    on_bad_row: str = key("'error' stops at a bad row; 'skip' leaves it out and counts it.", "error")
    cache: str | None = key("File in which answers are kept [answers.sqlite in paretune's cache folder].")
    retry_failed: bool = key("Ask again what failed in an earlier run.", False)
    dry_run: bool = key("Say how many calls there would be, and stop.", False)
    overwrite: bool = key("Replace a file that an earlier `paretune label` did not write.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (LabelKeys,)))
        return 0
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv = ["--data", *argv]
    keys: LabelKeys = resolve(argv, LabelKeys, None, required=("data", "sources", "out")).own
    keys.check_engine()
    out = _checked_out(keys)

    from paretune.pipelines.labelling import announce, label_candidates, report_path, write_labelled
    from paretune.preferences.answers import AnswerStore, default_path
    from paretune.preferences.candidates import read_candidates
    from paretune.preferences.specs import parse_sources
    from paretune.preferences.verdicts import plan

    if out.exists() and not report_path(out).exists() and not keys.overwrite:
        fix = "Name another file, or replace it with --overwrite true."
        raise InputError("a file that `paretune label` did not write", where=str(out), fix=fix)
    spec = read_config(keys.sources) if isinstance(keys.sources, str) else keys.sources
    labellers = parse_sources(spec)
    candidates, read = read_candidates(keys.data, on_bad_row=keys.on_bad_row, take=keys.take, max_words=keys.max_words)
    store = AnswerStore(keys.cache or default_path())
    if keys.dry_run:
        planned = plan(labellers, candidates, store, seed=keys.seed, retry_failed=keys.retry_failed)
        lines = announce(planned, labellers) or ["No source makes calls: rules are computed."]
        print("\n".join([f"{len(candidates):,} prompts", *lines]))
        return 0
    with _on_engine(keys, labellers) as asked:
        rows, report = label_candidates(
            candidates,
            asked,
            store,
            pairs=keys.pairs,
            max_pairs=keys.max_pairs,
            seed=keys.seed,
            retry_failed=keys.retry_failed,
            read=read,
        )
    settings = {**dataclasses.asdict(keys), "sources": spec}
    beside = write_labelled(rows, {**dataclasses.asdict(report), "settings": settings}, out)
    for warning in report.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    print(_summary(dataclasses.asdict(report), str(out), str(beside)))
    return 0


@contextmanager
def _on_engine(keys: LabelKeys, labellers: list[Labeller]) -> Iterator[list[Labeller]]:
    """The labellers, asked where the keys say."""
    if keys.engine == "local":
        yield labellers
        return
    from paretune.pipelines.labelling_shards import goes_elsewhere, spread

    if not any(goes_elsewhere(labeller) for labeller in labellers):
        fix = "Rules are computed and servers asked by the command itself: leave --engine out."
        raise InputError("nothing for Ray to do", where="sources", fix=fix)
    engine = keys.ray_tasks()
    try:
        yield [spread(labeller, engine, max(1, engine.slots())) for labeller in labellers]
    finally:
        engine.close()


def _checked_out(keys: LabelKeys) -> Path:
    out = Path(str(keys.out)).expanduser()
    if out.suffix != ".jsonl":
        raise InputError("bad out", expected="a .jsonl file", found=str(out))
    if isinstance(keys.data, str) and out.resolve() == Path(keys.data).expanduser().resolve():
        raise InputError("out is the file that is read", where=str(out), fix="Name another file.")
    if not out.parent.is_dir():
        raise InputError("no such folder", where=str(out.parent), fix="Make it, or name another file.")
    return out


def _summary(report: Mapping[str, Any], out: str, beside: str) -> str:
    head = ["objective", "labels", "ties", "missing", "by people", "by source", "~ length"]
    rows = []
    for name, figures in report["objectives"].items():
        counts = [f"{figures[k]:,}" for k in ("labels", "ties", "missing")]
        shares = [_share(figures["share"][k]) for k in ("people", "source")]
        rows.append([name, *counts, *shares, _signed(figures["length_correlation"])])
    lines = [table(head, rows), ""]
    head = ["source", "asked", "found", "failed", "per second", "used", "orders disagree", "first slot"]
    rows = []
    for name, figures in report["sources"].items():
        used = ", ".join(f"{value:,.6g} {what}" for what, value in figures["usage"].items()) or "-"
        rate = "-" if figures["per_second"] is None else f"{figures['per_second']:,.3g}"
        order = [_share(figures.get("inconsistent")), _signed(figures.get("first_slot_excess"))]
        rows.append([name, *(f"{figures[k]:,}" for k in ("asked", "found", "failed")), rate, used, *order])
    if all(row[6] == "-" for row in rows):  # no judge among them
        head, rows = head[:6], [row[:6] for row in rows]
    lines += [table(head, rows), ""]
    agree = [
        [pair.replace("~", " ~ "), f"{f['pairs']:,}", _share(f["agree"])] for pair, f in report["agreement"].items()
    ]
    if agree:
        lines += [table(["objectives", "pairs", "agree"], agree), ""]
    lines += [f"{count:,} {what}" for what, count in report["counts"].items() if count]
    names = [name for name, figures in report["objectives"].items() if figures["labels"]]
    objectives = ", ".join(f"{name}: {1 / len(names):.2g}" for name in names)
    return "\n".join(
        [
            *lines,
            "",
            f"In {out}: the rows; in {beside}: this report.",
            f"Align: paretune train --model M --data {out} --objectives '{{{objectives}}}' --output_dir runs/labelled",
        ]
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
