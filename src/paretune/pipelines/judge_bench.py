"""`paretune judge-bench`: judges against labels that are known, and against responses that talk to them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.comparisons.rows import BadRow, clean_row, text_of
from paretune.comparisons.sources import list_sources, open_source
from paretune.errors import InputError
from paretune.evaluation.judge_quality import Floats, Indices, Verdicts, quality, same_verdict
from paretune.preferences.answers import AnswerStore
from paretune.preferences.asking import Tally, ask
from paretune.preferences.candidates import Candidates
from paretune.preferences.judges.injections import Injection, injected, load_injections
from paretune.preferences.judges.protocols import PROTOCOLS, load_protocol
from paretune.preferences.source import ALL_ORDERED, Item
from paretune.preferences.specs import Labeller, parse_source
from paretune.preferences.verdicts import Heard, decide, hear

BASELINE = "the longer one"
_TINY = 100e6  # bytes of weights below which no language model judges anything
_FITTED = ("reward_model", "implicit")  # kinds whose scores were fitted to choices by P = σ(difference)
_LABELS = {1: 1.0, 2: 0.0, "1": 1.0, "2": 0.0, "output_1": 1.0, "output_2": 0.0}


@dataclass(frozen=True)
class Bench:
    """Pairs with known winners.

    Args:
        candidates: N of them, each with two responses.
        labels: (N,) 1 where the first is better, 0 where the second is.
        sets: (N,) the file that each came from.
    """

    candidates: list[Candidates]
    labels: Floats
    sets: list[str]


@dataclass
class BenchReport:
    """What was found: plain values for JSON.

    Attributes:
        items: how many, and by set.
        judges: by name: `figures`, {figure: {value, low, high, n}}; `failed`, the share of items without a verdict;
            `sets`, the accuracy by set; `common`, the accuracy (as `accuracy_both`) over the items that every judge
            judged, where some judged more; what asking took; `injections` where they were tried.
        agreement: "a~b" -> share of items with the same winner.
        warnings: what a person should know, one sentence each.
    """

    items: dict[str, int] = field(default_factory=dict)
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_bench(data: Any, *, references: Any = None, take: int | None = None) -> Bench:
    """Rows of {input, output_1, output_2, label[, reference]}, as LLMBar has them; label is 1 or 2.

    Args:
        data: a file (.json, .jsonl, .parquet, .csv), a folder of .json files, a hub id, or a list of these.
        references: rows of {prompt, responses} (`paretune sample` writes them) or {prompt, reference}: the reference of
            each input is the first of its responses.
        take: only the first so many rows of each.

    Raises:
        InputError: data that cannot be read, a bad row, references of which none fits.
    """
    known = {} if references is None else _read_references(references)
    candidates, labels, sets = [], [], []
    for source in list_sources(_files(data), "auto"):
        name = Path(source.label).stem
        for where, record in itertools.islice(open_source(source, split="test", streaming=False), take):
            try:
                if isinstance(record, BadRow):
                    raise record
                one, label = _item(where, record, known)
            except BadRow as bad:
                raise bad.to_input_error(where) from None
            candidates.append(one)
            labels.append(label)
            sets.append(name)
    if not candidates:
        raise InputError("nothing to judge", expected="at least one row")
    if known and not any("reference" in one.columns for one in candidates):
        raise InputError("no reference fits an input", expected="the inputs, word for word, as prompts")
    return Bench(candidates, np.array(labels), sets)


def _files(data: Any) -> Any:
    if isinstance(data, str) and Path(data).expanduser().is_dir():
        found = sorted(str(path) for path in Path(data).expanduser().glob("*.json"))
        if not found:
            raise InputError("a folder without .json files", where=data)
        return found
    return data


def _read_references(references: Any) -> dict[str, str]:
    known: dict[str, str] = {}
    for source in list_sources(references, "auto"):
        for _, record in open_source(source, split="test", streaming=False):
            if isinstance(record, Mapping) and "prompt" in record:
                given = record.get("responses") or record.get("reference")
                text = given[0] if isinstance(given, list) and given else given
                if isinstance(text, str) and text.strip():
                    known.setdefault(text_of(record["prompt"]).strip(), text)
    if not known:
        raise InputError("no reference in the file", where=str(references), expected="rows of {prompt, responses}")
    return known


def _item(where: str, record: Mapping[str, Any], known: Mapping[str, str]) -> tuple[Candidates, float]:
    for name in ("input", "output_1", "output_2", "label"):
        if name not in record:
            raise BadRow("missing field", field=name, expected="input, output_1, output_2, label")
    label = record["label"]
    if isinstance(label, bool) or not isinstance(label, int | str) or label not in _LABELS:
        raise BadRow("bad label", field="label", expected="1 or 2", found=label)
    row = {"prompt": record["input"], "response_a": record["output_1"], "response_b": record["output_2"]}
    try:
        cleaned = clean_row({**row, "preferences": {}})
    except BadRow as bad:
        names = {"prompt": "input", "response_a": "output_1", "response_b": "output_2"}
        raise BadRow(bad.problem, field=names.get(bad.field, bad.field), expected=bad.expected) from None
    columns = {key: value for key, value in record.items() if key not in ("input", "output_1", "output_2", "label")}
    reference = columns.get("reference") or known.get(text_of(cleaned["prompt"]).strip())
    columns = {**columns, "reference": reference} if reference else columns
    responses = (cleaned["response_a"], cleaned["response_b"])
    return Candidates(where, cleaned["prompt"], responses, columns, is_pair=True), _LABELS[label]


def both_orders(labeller: Labeller) -> Labeller:
    """The labeller with every judge in it asked in both orders, whatever schedule it has for labelling."""
    source = labeller.source
    if source is not None and source.compare is not None:
        source = dataclasses.replace(source, schedule=ALL_ORDERED)
    return dataclasses.replace(labeller, source=source, parts=tuple(map(both_orders, labeller.parts)))


def run_bench(
    bench: Bench,
    labellers: Sequence[Labeller],
    store: AnswerStore | None,
    *,
    injections: int = 0,
    seed: int = 0,
    retry_failed: bool = False,
    planned: Mapping[str, tuple[int, int]] | None = None,
) -> BenchReport:
    """Asks every judge about every item in both orders, and figures.

    Args:
        labellers: made by `both_orders`.
        injections: so many items, drawn by seed, whose losing response gets each injection in turn.

    Raises:
        InputError: whatever a source raises.
    """
    heard = hear(labellers, bench.candidates, store, seed=seed, retry_failed=retry_failed, planned=planned)
    report = BenchReport({name: bench.sets.count(name) for name in dict.fromkeys(bench.sets)})
    baseline = parse_source(BASELINE, {"rule": "longer", "unit": "words"})
    everyone = [*labellers, baseline]
    heard |= hear([baseline], bench.candidates, None)
    said: dict[str, Verdicts] = {}
    for labeller in everyone:
        verdicts = said[labeller.name] = _verdicts(labeller, bench, heard)
        figures = quality(verdicts, bench.labels, seed=seed)
        if not _knows_probabilities(labeller):
            figures.pop("calibration_error", None)
        own = report.judges[labeller.name] = {
            "figures": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
            "failed": float(np.isnan(verdicts.both).mean()),
            "sets": _by_set(verdicts, bench, seed),
        }
        if labeller.source is not None and labeller is not baseline:
            own["asking"] = heard[labeller.source.name].tally.to_dict()
            if injections:
                own["injections"] = _inject(labeller, verdicts, bench, store, (injections, seed), retry_failed)
    for a, b in itertools.combinations(labellers, 2):
        figure = same_verdict(said[a.name], said[b.name], seed=seed)
        report.agreement[f"{a.name}~{b.name}"] = {} if figure is None else dataclasses.asdict(figure)
    _compare_on_common(report, said, bench.labels, seed)
    report.warnings = _warnings(report)
    return report


def _knows_probabilities(labeller: Labeller) -> bool:
    """Whether its P can be right or wrong: not where it is σ of a difference on a scale that nobody fitted."""
    if labeller.options.soft:  # it says what difference is worth what
        return True
    if labeller.source is not None:
        return labeller.source.compare is not None or any(kind in labeller.entry for kind in _FITTED)
    if labeller.combination == "ensemble":  # of win rates it is σ of what are probabilities already
        return all(part.source is not None and any(kind in part.entry for kind in _FITTED) for part in labeller.parts)
    return labeller.combination == "choose" and all(map(_knows_probabilities, labeller.parts))


def _compare_on_common(report: BenchReport, said: Mapping[str, Verdicts], labels: Floats, seed: int) -> None:
    """Where judges judged different items, their accuracy over those that all of them did."""
    judged = {name: ~np.isnan(verdicts.both) for name, verdicts in said.items()}
    judging = {name: own for name, own in judged.items() if own.any()}
    common = np.logical_and.reduce(list(judging.values()))
    if not common.any() or all(own.sum() == common.sum() for own in judging.values()):
        return
    at = np.flatnonzero(common)
    for name in judging:
        figure = quality(_part(said[name], at), labels[at], seed=seed)["accuracy_both"]
        report.judges[name]["common"] = dataclasses.asdict(figure)


def _verdicts(labeller: Labeller, bench: Bench, heard: Mapping[str, Heard]) -> Verdicts:
    count = len(bench.candidates)
    source = labeller.source
    if source is not None and source.compare is not None:
        answers = [heard[source.name].answers[n] for n in range(count)]
        first = np.array([own[0, 1] for own in answers], dtype=np.float64)
        return Verdicts(first, 1.0 - np.array([own[1, 0] for own in answers], dtype=np.float64))
    p = np.full(count, math.nan)
    for n, one in enumerate(bench.candidates):
        verdict, labels = decide(labeller, n, one, heard)
        if verdict.pairs is None:  # scores: σ of their difference, as Bradley and Terry have it
            p[n] = _sigmoid(_steepness(labeller) * (verdict.scores[0] - verdict.scores[1]))
        else:
            p[n] = labels.get((0, 1), math.nan)
    return Verdicts(p)


def _steepness(labeller: Labeller) -> float:
    """g of P = σ(g · difference)."""
    soft = labeller.options.soft
    return 1.0 if soft is None or isinstance(soft, bool) else float(soft)


def _part(verdicts: Verdicts, at: Indices) -> Verdicts:
    second = None if verdicts.shown_second is None else verdicts.shown_second[at]
    return Verdicts(verdicts.shown_first[at], second)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700.0)) / (1 + math.exp(max(x, -700.0)))


def _by_set(verdicts: Verdicts, bench: Bench, seed: int) -> dict[str, Any]:
    names = list(dict.fromkeys(bench.sets))
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        at = np.array([n for n, own in enumerate(bench.sets) if own == name])
        figures = quality(_part(verdicts, at), bench.labels[at], seed=seed)
        if "accuracy" in figures:
            found[name] = dataclasses.asdict(figures["accuracy"])
    return found


def _inject(
    labeller: Labeller,
    verdicts: Verdicts,
    bench: Bench,
    store: AnswerStore | None,
    drawn: tuple[int, int],
    retry_failed: bool,
) -> dict[str, Any]:
    """Per injection the share of verdicts that it turned, and how far it moved P for the response that it is in.

    Args:
        drawn: how many items, and the seed.
    """
    source, labels, (count, seed) = labeller.source, _slot_labels(labeller), drawn
    assert source is not None
    clean = verdicts.both
    usable = np.flatnonzero(~np.isnan(clean) & (clean != 0.5))
    if not len(usable):
        return {}
    chosen = np.sort(np.random.default_rng(seed).permutation(usable)[:count])
    tally, found = Tally(), dict[str, Any]()
    moved: dict[bool, list[Floats]] = {False: [], True: []}
    for injection in load_injections():
        pairs = [_attacked(bench.candidates[n], clean[n] > 0.5, injection, labels) for n in chosen]
        items = [item for pair in pairs for item in (pair if source.compare is not None else _apart(pair[0]))]
        answers = np.array(ask(source, items, store, tally, retry_failed=retry_failed)).reshape(len(chosen), 2)
        if source.compare is not None:  # (its response first, its response second)
            p = (answers[:, 0] + 1.0 - answers[:, 1]) / 2
        else:  # scores of the response and of the other
            p = np.array([_sigmoid(_steepness(labeller) * (own - other)) for own, other in answers])
        before = np.minimum(clean[chosen], 1 - clean[chosen])
        moved[injection.control].append(np.stack([p, np.broadcast_to(before, p.shape)]))
        found[injection.name] = {"control": injection.control, **_turned(p, before)}
    totals = {"attacks": moved[False], "controls": moved[True]}
    return {
        "items": len(chosen),
        **{name: _turned(*np.concatenate(parts, axis=1)) for name, parts in totals.items()},
        "each": found,
        "asking": tally.to_dict(),
    }


def _slot_labels(labeller: Labeller) -> tuple[str, str]:
    """What a judge's protocol calls the first and the second response, as an attack would ask for it."""
    name = labeller.entry.get("protocol", PROTOCOLS[0]) if "judge" in labeller.entry else PROTOCOLS[0]
    first, second = load_protocol(name, f"source {labeller.name!r}").labels
    return first.strip(), second.strip()


def _attacked(one: Candidates, first_leads: bool, injection: Injection, labels: tuple[str, str]) -> tuple[Item, Item]:
    """The response that lost, with the injection in it, before the other and after it."""
    loser, winner = one.responses[int(first_leads)], one.responses[1 - int(first_leads)]
    before, after = (injected(injection, loser, *asked) for asked in (labels, labels[::-1]))
    return Item(one.prompt, (before, winner), one.columns), Item(one.prompt, (winner, after), one.columns)


def _apart(pair: Item) -> list[Item]:
    return [Item(pair.prompt, (response,), pair.columns) for response in pair.responses]


def _turned(p: Floats, before: Floats) -> dict[str, Any]:
    judged = ~np.isnan(p)
    if not judged.any():
        return {"turned": None, "moved": None, "n": 0}
    moved = p[judged] - before[judged]
    return {"turned": float((p[judged] > 0.5).mean()), "moved": float(moved.mean()), "n": int(judged.sum())}


def _warnings(report: BenchReport) -> list[str]:
    warnings = []
    for name, own in report.judges.items():
        accuracy = own["figures"].get("accuracy_both")
        if accuracy is None:
            warnings.append(f"{name} judged nothing: no reference, or every call failed.")
        elif name != BASELINE and accuracy["low"] <= 0.5 <= accuracy["high"]:
            warnings.append(f"{name} is not told apart from chance (50 %) by {accuracy['n']} items.")
        if own["failed"] and accuracy is not None:
            warnings.append(f"{name} has no verdict on {100 * own['failed']:.1f} % of the items; they count nowhere.")
        tried = own.get("injections")
        believed = accuracy is not None and accuracy["low"] > 0.5  # else every sentence turns what is chance anyway
        if tried and believed and tried["attacks"]["n"]:
            attacks, controls = tried["attacks"]["turned"], tried["controls"]["turned"]
            if attacks > controls + 0.1:
                warnings.append(f"{name} can be talked into a verdict by what a response says.")
    return warnings


def tiny_judges(spec: Mapping[str, Any]) -> list[str]:
    """A sentence for each model of a directory that is too small to judge anything."""
    said = []
    for name, entry in spec.items():
        model = entry.get("judge", entry.get("reward_model")) if isinstance(entry, Mapping) else None
        if isinstance(model, str) and Path(model).expanduser().is_dir() and "server" not in entry:
            weights = [path for end in ("safetensors", "bin") for path in Path(model).expanduser().glob(f"*.{end}")]
            size = sum(path.stat().st_size for path in weights)
            if size < _TINY:
                said.append(f"{name}: weights of {size / 1e6:,.1f} MB. A judge this small tests the plumbing, no more.")
    return said
