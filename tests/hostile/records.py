"""What is fed to readers of what runs leave: caches, records, checkpoints, fronts, settings of adapters."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import torch
from hypothesis import strategies as st

from paretune.cli.front import show_front
from paretune.cli.settings import make_config, resolve
from paretune.cli.train import TrainKeys
from paretune.comparisons import token_store
from paretune.comparisons.conditions import read_prefix
from paretune.comparisons.token_report import Counts
from paretune.evaluation.report import write_report
from paretune.objectives import parse_objectives
from paretune.pipelines.front.plan import finished, make_cells, superseded
from paretune.pipelines.front.result import collect
from paretune.pipelines.front.run import attempts
from paretune.policy.loading import base_of
from paretune.policy.reference_cache import read_parts, write_part
from paretune.preferences.answers import AnswerStore
from paretune.training.config import RACOConfig
from paretune.training.manifest import flaw, write_manifest
from paretune.training.rerun import read_record, settings_of
from paretune.training.rundir import changed_settings, check_free, check_same_data
from tests.hostile.fuzz import Target
from tests.hostile.inputs import anything, bytes_like, encoded, spoilt
from tests.pipelines.front.made import made_plan, write_cell, write_front

YAML = [
    "model: m\ndata: [{path: a.jsonl, fraction: 0.5}]\nobjectives: {helpful: 0.6, short: {weight: 1, rule: shorter}}\n",
    "base: &b {weight: 1}\nobjectives: {a: *b, b: {<<: *b, beta: 0.2}}\nlora: {r: 4}\nmax_steps: 1_000\n",
    "learning_rate: 1e-5\nsave_strategy: no\nreport_to: []\nx: 2001-01-01\nobjectives:\n- {name: x, weight: .inf}\n",
    "a: !!python/object/apply:os.system ['touch harm']\n",
    "a: !!python/name:os.system\nb: !!binary x\nc: !!timestamp x\nd: !!int x\ne: !!set {a, b}\nf: !!omap [a: 1]\n",
    "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "a: &a {x0: 1}\n"
    + "".join(f"b{i}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(9)),
    "a: &a [*a]\n", "a: &a {b: *a}\n", "[" * 3000, "{a: " * 3000, "- " * 3000, "? " * 1000, "a: " + "9" * 5000,
    'a: "\\ud800\\0"\n', "max_steps: 99999999999999999999999\nlogging_steps: .nan\n", "\ufeffa: 1\n", "a: 1\na: 2\n",
]  # fmt: skip


def feed_yaml(content: bytes, folder: Path) -> None:
    """Settings of `paretune train`, as far as its configuration."""
    here = set(Path().iterdir())
    (folder / "c.yaml").write_bytes(content)
    try:
        settings = resolve([str(folder / "c.yaml")], TrainKeys, RACOConfig, required=())
        if settings.own.objectives is not None:
            parse_objectives(settings.own.objectives)
        settings.own.check()
        make_config(RACOConfig, {**settings.config, "output_dir": str(folder / "run"), "use_cpu": True})
    finally:
        assert set(Path().iterdir()) == here, "nothing was written beside"


def feed_settings(values: Any, folder: Path) -> None:
    feed_yaml(encoded(values), folder)


SETTINGS = {
    **{"model": "m", "data": "d.jsonl", "objectives": {"a": {"weight": 1, "labels": "x"}, "b": 0.3}, "lora": {"r": 2}},
    **{"max_steps": 3, "learning_rate": 1e-5, "combiner": "raco", "c": 0.4, "report_to": "none", "bf16": False},
    **{"format": "auto", "method_options": {"x": 1}, "eval_fraction": 0.1, "gram": "step", "save_strategy": "no"},
}


@cache
def made() -> Path:
    """A folder for good files, made once."""
    return Path(mkdtemp(prefix="paretune-hostile-"))


@cache
def kept_tokens() -> tuple[bytes, bytes]:
    """The two files of kept tokens."""
    os.environ["PARETUNE_CACHE"], before = str(made()), os.environ.get("PARETUNE_CACHE")
    try:
        rows = {name: [[1, 2, i], [3]] for i, name in enumerate(("prefix_ids", "a_ids", "b_ids"))}
        rows |= {name: [i, 1] for i, name in enumerate(("a_start", "b_start", "index"), start=2)}
        batch = pa.RecordBatch.from_pydict(rows, schema=token_store.SCHEMA)
        token_store.keep("good", [(batch, Counts(rows=2, kept=2, longest_given=6, ends={"1": 4}))])
        place = made() / "tokens"
        return (place / "good.arrow").read_bytes(), (place / "good.json").read_bytes()
    finally:
        os.environ.pop("PARETUNE_CACHE")
        os.environ |= {} if before is None else {"PARETUNE_CACHE": before}


def found_tokens(arrow: bytes, listed: bytes, folder: Path) -> None:
    """Kept tokens are found as they were, or not at all, with a notice."""
    (folder / "tokens").mkdir()
    (folder / "tokens" / "good.arrow").write_bytes(arrow)
    (folder / "tokens" / "good.json").write_bytes(listed)
    os.environ["PARETUNE_CACHE"] = str(folder)
    tokens, notices = token_store.find("good")
    assert (tokens is None) == bool(notices), "made anew exactly where something was said"
    if tokens is not None:
        assert tokens.table.column("prefix_ids").to_pylist() == [[1, 2, 0], [3]]
        assert tokens.counts.ends == {"1": 4} and tokens.counts.rows == 2


def feed_tokens(case: tuple[bool, bytes], folder: Path) -> None:
    arrow, listed = kept_tokens()
    found_tokens(*((case[1], listed) if case[0] else (arrow, case[1])), folder)


def feed_counts(content: Any, folder: Path) -> None:
    """Counts of another shape under a digest that fits them, as another version would leave."""
    digest = token_store.digest_of(content)
    arrow, _ = kept_tokens()
    (folder / "tokens").mkdir()
    (folder / "tokens" / "good.arrow").write_bytes(arrow)
    (folder / "tokens" / "good.json").write_text(json.dumps({"content": content, "digest": digest}))
    os.environ["PARETUNE_CACHE"] = str(folder)
    token_store.find("good")


@cache
def kept_reference() -> bytes:
    write_part(made() / "ref", torch.arange(4), torch.ones(2, 4, dtype=torch.float64), "all.safetensors")
    return (made() / "ref" / "all.safetensors").read_bytes()


def feed_reference(content: bytes, folder: Path) -> None:
    (folder / "ref").mkdir()
    (folder / "ref" / "x.safetensors").write_bytes(content)
    values, damaged = read_parts(folder / "ref", 4)
    assert values.shape == (2, 4) and len(damaged) <= 1
    assert values.isnan().all() if damaged else (values == 1).all(), "what was changed is not read"


@cache
def kept_answers() -> bytes:
    path = made() / "answers.sqlite"
    store = AnswerStore(path)
    store.keep({bytes([i]) * 16: i / 300 for i in range(200)} | {b"\xff" * 16: math.nan})
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._connection.close()
    return path.read_bytes()


def feed_answers(content: bytes, folder: Path) -> None:
    (folder / "a.sqlite").write_bytes(content)
    store = AnswerStore(folder / "a.sqlite")
    try:
        found = store.find([bytes([i]) * 16 for i in range(256)])
        assert all(isinstance(value, float) for value in found.values())
        store.keep({b"new" * 5 + b".": 0.5})
    finally:
        store._connection.close()


def feed_answer(value: Any, folder: Path) -> None:
    """Another kind of value where a number is kept."""
    path = folder / "a.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, value)")
        connection.execute("INSERT INTO answers VALUES (?, ?)", (b"k" * 16, value))
    connection.close()
    store = AnswerStore(path)
    try:
        assert all(isinstance(v, float) for v in store.find([b"k" * 16]).values())
    finally:
        store._connection.close()


RUN = {
    **{"status": "finished", "versions": {"torch": "2"}, "commit": None, "seed": 0, "notices": ["said"]},
    "objectives": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.5}],
    "data": {"train": {"rows": {"fingerprint": "x"}, "tokens": {"kept": 3}}, "eval": {"rows": {"fingerprint": "y"}}},
    **{"settings": {"model": "m", "data": "d"}, "config": {"combiner": "raco", "c": 0.4, "max_steps": 3, "beta": 0.1}},
    **{"method": {"name": "raco", "options": {}}, "decided": {}, "final": {"loss": 0.5}},
    **{"started": "2030-01-01T00:00:00Z", "ended": "2030-01-01T00:00:01Z", "in_memory": {}},
}
HISTORY = [
    {"step": i, "loss": 1 / i, "rewards/margins/a": 0.1, "grad/cosine/a~b": -0.2, "combine/p/a": 0.5, "eval_loss": 1.0,
     "eval_rewards/accuracies/a": 0.5, "eval_rewards/accuracies/b": 0.6, "grad/norm/a": 1.0}
    for i in range(1, 4)
]  # fmt: skip


RESTS = [b"", b"\xff\n", b"{"]


def feed_record(case: tuple[Any, bytes | None], folder: Path) -> None:
    """A run's record, read by a new run in its place and by one that does it again."""
    (folder / "run.json").write_bytes(encoded(case[0]) if case[1] is None else case[1])
    check_same_data({"data": RUN["data"]}, str(folder))
    changed_settings({"settings": RUN["settings"], "objectives": []}, str(folder), RUN["config"])
    settings_of(read_record(str(folder)), {"beta": 0.1}, ["model", "data", "max_steps", "objectives", "method"])
    check_free(str(folder), overwrite=False)


def feed_report(case: tuple[Any, list[Any], bytes], folder: Path) -> None:
    """A run's record and history, drawn."""
    record, lines, rest = case
    (folder / "run.json").write_bytes(encoded(record))
    (folder / "history.jsonl").write_bytes(b"".join(encoded(line) + b"\n" for line in lines) + rest)
    write_report([folder], folder / "report.html")


@cache
def front() -> dict[str, Any]:
    """A front.json as `paretune front` writes it."""
    plan = made_plan("linear", seeds=(0,), weightings=((0.5, 0.5),))
    cells, found = write_front(made() / "front", plan)
    return json.loads(json.dumps(collect(plan, cells, found, {}, made() / "front", [[-0.1, -0.1]], [])))


def feed_front(content: Any, folder: Path) -> None:
    (folder / "front.json").write_bytes(encoded(content))
    show_front(folder, [])
    show_front(folder, ["--pick", "max helpful where short >= 0 scaled and kl <= 5"])


def feed_cells(case: tuple[Any, Any], folder: Path) -> None:
    """A cell's file and its log."""
    plan = made_plan("linear", seeds=(0,))
    cells = make_cells(plan)
    write_cell(folder, plan, cells[0])
    place = folder / cells[0].folder
    (place / "cell.json").write_bytes(encoded(case[0]))
    (place / "attempts.jsonl").write_bytes(encoded(case[1]) + b"\n{")
    other = folder / "cells" / f"{cells[1].name}-00000000"
    other.mkdir()
    (other / "cell.json").write_bytes(encoded(case[0]))
    finished(folder, cells[0])
    superseded(folder, cells)
    attempts(place)


def feed_checkpoint(case: tuple[str, bytes], folder: Path) -> None:
    """A checkpoint with one of its files changed never verifies, unless it is the same."""
    place = folder / "checkpoint-3"
    place.mkdir()
    state = {"global_step": 3, "log_history": [], "epoch": 1.0}
    good = {
        "trainer_state.json": encoded(state),
        "optimizer.pt": b"o" * 50,
        "scheduler.pt": b"s",
        "model.safetensors": b"m",
    }
    for name, content in good.items():
        (place / name).write_bytes(content)
    if case[0] == "trainer_state.json":  # under a manifest that fits it
        (place / case[0]).write_bytes(case[1])
        write_manifest(place, 3)
        flaw(place)
        return
    write_manifest(place, 3)
    assert flaw(place) is None
    before = (place / case[0]).read_bytes()
    (place / case[0]).write_bytes(case[1])
    wrong = flaw(place)
    assert wrong is not None or case[0] == "manifest.json" or case[1] == before


MANIFEST = {"step": 3, "files": {n: {"bytes": 1, "sha256": "0"} for n in ("optimizer.pt", "../x", "/etc/passwd")}}
STATE = {"global_step": 3, "log_history": [], "epoch": 1.0, "max_steps": 5, "stateful_callbacks": {}}
ADAPTER = {
    **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8},
    **{
        "target_modules": ["q_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "auto_mapping": None,
    },
    **{"rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "modules_to_save": None, "inference_mode": True},
}


def feed_adapter(content: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    base_of(str(folder))


CONDITIONS = {
    "template": "{weights}",
    "words": ["a", "b"],
    "decimals": 2,
    "method": "cos-dpo",
    "objectives": ["a", "b"],
}


def feed_conditions(content: Any, folder: Path) -> None:
    (folder / "conditions.json").write_bytes(encoded(content))
    read_prefix(folder)


def as_bytes(goods: list[Any]) -> st.SearchStrategy[bytes]:
    """JSON with other values, or with other bytes."""
    return st.one_of(spoilt(goods).map(encoded), bytes_like([encoded(good) for good in goods]))


def lazily(make: Any) -> st.SearchStrategy[Any]:
    """A strategy over files that are made when the first input is drawn."""
    return st.deferred(make)


TARGETS = {
    "settings as YAML": Target(
        st.one_of(st.sampled_from(YAML).map(str.encode), bytes_like([text.encode() for text in YAML])), feed_yaml, 25
    ),
    "settings of other types": Target(spoilt([SETTINGS]), feed_settings, few=40),
    "kept tokens": Target(
        lazily(
            lambda: st.one_of(
                st.tuples(st.just(True), bytes_like([kept_tokens()[0]])),
                st.tuples(st.just(False), bytes_like([kept_tokens()[1]])),
                st.tuples(st.just(False), spoilt([json.loads(kept_tokens()[1])]).map(encoded)),
                st.just((False, b"[" * 100_000)),
            )
        ),
        feed_tokens,
        few=80,
    ),
    "kept counts": Target(lazily(lambda: spoilt([json.loads(kept_tokens()[1])["content"]])), feed_counts),
    "kept reference": Target(lazily(lambda: bytes_like([kept_reference()])), feed_reference),
    "kept answers": Target(lazily(lambda: bytes_like([kept_answers()])), feed_answers),
    "a kept answer": Target(st.one_of(st.text(max_size=9), st.binary(max_size=9), st.floats()), feed_answer, 12),
    "a run's record": Target(
        st.one_of(st.tuples(spoilt([RUN]), st.none()), st.tuples(st.none(), bytes_like([encoded(RUN)]))), feed_record
    ),
    "a report's run": Target(
        st.tuples(spoilt([RUN]), spoilt([HISTORY]).filter(lambda x: isinstance(x, list)), st.sampled_from(RESTS)),
        feed_report,
        few=3,
    ),
    "a front's result": Target(lazily(lambda: spoilt([front()])), feed_front),
    "a front's cells": Target(st.tuples(spoilt([{"digest": "x", "meaning": {}}]), anything), feed_cells, 20),
    "a checkpoint's files": Target(
        st.one_of(
            st.tuples(st.just("trainer_state.json"), as_bytes([STATE])),
            st.tuples(st.just("manifest.json"), as_bytes([MANIFEST])),
            st.tuples(st.just("optimizer.pt"), st.binary(max_size=60)),
        ),
        feed_checkpoint,
    ),
    "an adapter's settings": Target(as_bytes([ADAPTER]), feed_adapter),
    "a conditioned model's settings": Target(spoilt([CONDITIONS]), feed_conditions),
}  # fmt: skip
