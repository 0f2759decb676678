"""`paretune judge-bench`: how good judges are, against labels that are known."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.cli.keys import key
from paretune.cli.settings import read_config, resolve
from paretune.cli.summary import table
from paretune.errors import InputError
from paretune.files import write_text

INTRO = """
paretune judge-bench DATA [CONFIG.yaml] [--key value ...]

Asks judges about pairs whose better side is known, in both orders, and says how often they are right, how often both
orders agree, how much they favour the first slot, how far to believe their probabilities, and how often one judge
agrees with another; with intervals, beside chance and the longer response.

  paretune judge-bench pairs.jsonl --judge Qwen/Qwen3-4B
  paretune judge-bench LLMBar/ --references references.jsonl --sources sources.yaml --injections 50 --out bench.json

DATA holds rows of {input, output_1, output_2, label[, reference]}, label 1 or 2, as LLMBar has them; or is a folder of
such .json files. `--judge M` tries the protocol without a reference and, where rows have references, the two with one.
`--sources {NAME: {judge: ..., ...}}` takes any sources of `paretune label`: judges here and on servers, reward models,
implicit rewards, rules. docs/judges.md explains the figures and the options of judges.
"""

GROUPS = {
    "What is judged": ["data", "references", "take"],
    "By whom": ["judge", "sources", "injections", "seed"],
    "Asking": ["cache", "retry_failed", "dry_run", "out"],
}


@dataclass
class JudgeBenchKeys:
    """Keys of `paretune judge-bench`."""

    data: str | list | dict | None = key("File, folder of .json files or hub id: {input, output_1, output_2, label}.")
    references: str | None = key("File of {prompt, responses} or {prompt, reference}: references for rows without one.")
    take: int | None = key("Only the first so many rows of each file.")
    judge: str | dict | None = key("A model, or {judge: MODEL, ...} with options: every protocol that the data allows.")
    sources: str | dict | None = key("{name: {judge: MODEL, ...}}, written here or in a YAML file that is named.")
    injections: int = key("So many losing responses get each sentence of the injection test set. 0: none.", 0)
    seed: int = key("Decides which those are, and the bootstrap's resamples.", 0)
    cache: str | None = key("File in which answers are kept [answers.sqlite in paretune's cache folder].")
    retry_failed: bool = key("Ask again what failed in an earlier run.", False)
    dry_run: bool = key("Say how many calls there would be, and stop.", False)
    out: str | None = key("A .json file for all figures.")


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (JudgeBenchKeys,)))
        return 0
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv = ["--data", *argv]
    keys: JudgeBenchKeys = resolve(argv, JudgeBenchKeys, None, required=("data",)).own
    _check(keys)

    from paretune.pipelines.judge_bench import both_orders, read_bench, run_bench, tiny_judges
    from paretune.pipelines.labelling import announce
    from paretune.preferences.answers import AnswerStore, default_path
    from paretune.preferences.specs import parse_sources
    from paretune.preferences.verdicts import plan

    bench = read_bench(keys.data, references=keys.references, take=keys.take)
    spec = _spec(keys, any("reference" in one.columns for one in bench.candidates))
    labellers = [both_orders(labeller) for labeller in parse_sources(spec)]
    store = AnswerStore(keys.cache or default_path())
    planned = plan(labellers, bench.candidates, store, seed=keys.seed, retry_failed=keys.retry_failed)
    lines = announce(planned, labellers)
    if keys.injections and lines:
        lines.append(f"and the injections: at most {keys.injections} responses, each {_injected_calls()} calls a judge")
    if keys.dry_run:
        print("\n".join([f"{len(bench.candidates):,} pairs", *lines]))
        return 0
    logger = logging.getLogger(__name__)
    for line in lines:
        logger.info("%s", line)
    report = run_bench(
        bench,
        labellers,
        store,
        injections=keys.injections,
        seed=keys.seed,
        retry_failed=keys.retry_failed,
        planned=planned,
    )
    report.warnings = [*tiny_judges(spec), *report.warnings]
    if keys.out is not None:
        content = {**dataclasses.asdict(report), "settings": _settings(keys, spec)}
        write_text(Path(keys.out).expanduser(), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for warning in report.warnings:
        logger.warning("%s", warning)
    print(_summary(dataclasses.asdict(report), keys.out))
    return 0


def _check(keys: JudgeBenchKeys) -> None:
    if (keys.judge is None) == (keys.sources is None):
        raise InputError("who judges?", expected="one of judge and sources")
    if keys.injections < 0:
        raise InputError("bad injections", expected="a number of items, 0 for none", found=keys.injections)
    if keys.take is not None and keys.take < 1:
        raise InputError("bad take", expected="a positive whole number", found=keys.take)
    if keys.out is not None:
        out = Path(keys.out).expanduser()
        if out.suffix != ".json" or not out.parent.is_dir():
            raise InputError("bad out", expected="a .json file in a folder that is there", found=keys.out)
        if isinstance(keys.data, str) and out.resolve() == Path(keys.data).expanduser().resolve():
            raise InputError("out is the file that is read", where=keys.out, fix="Name another file.")


def _injected_calls() -> int:
    from paretune.preferences.judges.injections import load_injections

    return 2 * len(load_injections())


def _spec(keys: JudgeBenchKeys, with_references: bool) -> dict[str, Any]:
    from paretune.preferences.judges.protocols import PROTOCOLS

    if keys.judge is None:
        spec = read_config(keys.sources) if isinstance(keys.sources, str) else keys.sources
        assert spec is not None
        return spec
    entry = {"judge": keys.judge} if isinstance(keys.judge, str) else dict(keys.judge)
    if "protocol" in entry:
        return {str(entry["protocol"]): entry}
    return {name: {**entry, "protocol": name} for name in PROTOCOLS[: len(PROTOCOLS) if with_references else 1]}


def _settings(keys: JudgeBenchKeys, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**dataclasses.asdict(keys), "judge": None, "sources": spec}


def _summary(report: Mapping[str, Any], out: str | None) -> str:
    head = ["judge", "items", "accuracy", "both orders averaged", "orders agree", "first slot", "calibration", "failed"]
    rows = []
    for name, own in report["judges"].items():
        figures = own["figures"]
        shown = [_count(figures.get("accuracy_both"))]
        shown += [_share(figures.get(key)) for key in ("accuracy", "accuracy_both", "agreement")]
        rows.append([name, *shown, _signed(figures.get("first_slot_excess")), _error(figures.get("calibration_error"))])
        rows[-1].append(f"{100 * own['failed']:.1f} %")
    rows.append(["chance", "-", "50.0 %", "50.0 %", "-", "-", "-", "-"])
    lines = [table(head, rows), "", *_on_common(report["judges"])]
    sets = list(report["items"])
    if len(sets) > 1:
        rows = [[name, f"{report['items'][name]:,}"] for name in sets]
        for row in rows:
            row += [_share(own["sets"].get(row[0])) for own in report["judges"].values()]
        lines += [table(["accuracy by set", "items", *report["judges"]], rows), ""]
    if report["agreement"]:
        rows = [
            [pair.replace("~", " ~ "), _count(figure), _share(figure)] for pair, figure in report["agreement"].items()
        ]
        lines += [table(["judges", "items", "agree"], rows), ""]
    lines += _injections(report)
    total = sum(report["items"].values())
    lines.append(f"{total:,} items; in brackets 95 % bootstrap intervals over items.")
    if out is not None:
        lines.append(f"In {out}: all figures.")
    return "\n".join(lines)


def _on_common(judges: Mapping[str, Any]) -> list[str]:
    """Judges that judged different items, beside each other on the same ones."""
    rows = [[name, _count(own["common"]), _share(own["common"])] for name, own in judges.items() if "common" in own]
    if not rows:
        return []
    return [table(["on the items that all judged", "items", "both orders averaged"], rows), ""]


def _injections(report: Mapping[str, Any]) -> list[str]:
    tried = {name: own["injections"] for name, own in report["judges"].items() if own.get("injections")}
    if not tried:
        return []
    head = ["injected", *(part for name in tried for part in (f"{name}: turned", "moved"))]
    each = next(iter(tried.values()))["each"]
    rows = [["all attacks"], ["all controls"], *([name] for name in each)]
    for own in tried.values():
        for row, figure in zip(rows, [own["attacks"], own["controls"], *own["each"].values()], strict=True):
            turned, moved = figure["turned"], figure["moved"]
            row += ["-", "-"] if turned is None else [f"{100 * turned:.1f} %", f"{moved:+.3f}"]
    return [
        table(head, rows),
        "",
        "turned: verdicts that went over to the losing response with the sentence in it; moved: its mean gain in P.",
        "",
    ]


def _count(figure: Mapping[str, Any] | None) -> str:
    return f"{figure['n']:,}" if figure else "0"


def _share(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return "-"
    return f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _signed(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def _error(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
