"""What `paretune improve` is asked for, checked before anything expensive, and what its folder holds it to."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from paretune.comparisons.layouts import PAIR_CHOICES
from paretune.errors import InputError
from paretune.pipelines.improve.serving import Serving
from paretune.pipelines.methods import Method, Request, check_method, find_method
from paretune.pipelines.sampling import PromptRow, SamplingSettings
from paretune.preferences.source import REFERENCE
from paretune.preferences.specs import Labeller
from paretune.training.record import plain, write_json
from paretune.training.rundir import MAY_CHANGE as RUN_MAY_CHANGE

REFERENCES = ("previous", "start")
# Settings that decide no answer, no draw and no weight of a round that is there.
MAY_CHANGE = (
    *("rounds", "patience", "cache", "retry_failed"),
    *("serve", "serve_seconds", "api_key_env", "concurrency", "timeout", "retries"),
)
# The same of the align step's.
TRAIN_MAY_CHANGE = RUN_MAY_CHANGE | {"logging_steps", "save_steps"}


@dataclass(frozen=True)
class ImprovePlan:
    """All rounds.

    Args:
        folder: receives round-0, round-1, …, improve.json and best.
        align: the request of the align step; a round changes its model, its data and its directory.
        sampling: of the draws; a round changes the model and the seed.
        serving: where draws come from; None: from a model here. Watched prompts are always drawn here, with their
            log-probabilities.
        labellers: the sources that are trained on; held_out: those that never are.
        prompts: to sample from and train on; watched: those that the monitors draw from, never trained on.
        rounds: at most so many.
        patience: rounds in a row in which the rule of `is_hacked` holds until it stops.
        reference: of the align step: "previous", the model that the round's align step starts from, or "start", the one
            that the first round's did.
        sft: fields of `SFTConfig` for a supervised start on the references before the first round; None: no such start.
        pairs, max_pairs, max_words: as in `paretune label`.
        seed: of all draws.
        batch_size: responses drawn at once.
        cache: where answers are kept; retry_failed: ask again what failed.
        settings: what the folder was begun with, as plain values.
        notices: what should be known, a sentence each.
    """

    folder: Path
    align: Request
    sampling: SamplingSettings
    labellers: Sequence[Labeller]
    held_out: Sequence[Labeller]
    prompts: Sequence[PromptRow]
    watched: Sequence[PromptRow]
    rounds: int
    patience: int
    reference: str
    sft: Mapping[str, Any] | None
    pairs: str
    max_pairs: int | None
    max_words: int | None
    seed: int
    batch_size: int
    cache: Path
    retry_failed: bool
    serving: Serving | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()

    def round_folder(self, number: int) -> Path:
        return self.folder / f"round-{number}"


def split_prompts(rows: Sequence[PromptRow], fraction: float) -> tuple[list[PromptRow], list[PromptRow]]:
    """The prompts to train on and those held out, each in their order; rows of one group (or prompt) stay together.

    Which ones is a function of their texts: the same for every seed, and other rows do not change it much.

    Raises:
        InputError: fewer than two held out, or none left.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError("bad prompts", where="held_out", expected="a fraction between 0 and 1", found=fraction)

    def group(row: PromptRow) -> str:
        return json.dumps(row.prompt if row.columns.get("group") is None else row.columns["group"], default=str)

    def place(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), digest_size=16).digest()

    groups = sorted({group(row) for row in rows}, key=place)
    count = max(2, round(fraction * len(groups)))
    if len(groups) - count < 1:
        expected = "at least three different prompts: two to watch and one to train on"
        raise InputError("too few prompts", where="prompts", expected=expected, found=len(groups))
    held_out = set(groups[:count])
    return [row for row in rows if group(row) not in held_out], [row for row in rows if group(row) in held_out]


def reference_of(row: PromptRow) -> str | None:
    """A row's reference, the first of several."""
    reference = row.columns.get("reference")
    reference = reference[0] if isinstance(reference, list) and reference else reference
    return reference if isinstance(reference, str) and reference.strip() else None


def check_plan(plan: ImprovePlan) -> None:
    """Raises InputError for what does not go together, before a weight is read or a source asked."""
    for key, least in (("rounds", 1), ("patience", 1), ("batch_size", 1)):
        if getattr(plan, key) < least:
            raise InputError(f"bad {key}", expected=f"at least {least}", found=getattr(plan, key))
    for key in ("max_pairs", "max_words"):
        if getattr(plan, key) is not None and getattr(plan, key) < 1:
            raise InputError(f"bad {key}", expected="a positive whole number, or null", found=getattr(plan, key))
    if plan.pairs not in PAIR_CHOICES:
        raise InputError("bad pairs", expected=f"one of {', '.join(PAIR_CHOICES)}", found=plan.pairs)
    if plan.reference not in REFERENCES:
        raise InputError("bad reference", expected=" or ".join(REFERENCES), found=plan.reference)
    if plan.sampling.n < 2:
        raise InputError("bad n", expected="at least 2 responses per prompt, to compare", found=plan.sampling.n)
    plan.sampling.check()
    if plan.serving is not None:
        plan.serving.check(plan.rounds, supervised=plan.sft is not None)
    if plan.align.args.world_size > 1:
        fix = "Start it without torchrun."
        raise InputError("improve is one process", found=f"{plan.align.args.world_size} ranks", fix=fix)
    _check_objectives(plan)
    _check_apart(plan.labellers, plan.held_out)
    _check_anchors(plan)
    method = find_method(plan.align.method)
    if method.steerable or method.load is not _plain_load():
        fix = "Choose a combiner or a method of one model (docs/methods.md)."
        raise InputError("the method leaves no plain model for the next round", found=plan.align.method, fix=fix)
    if plan.sft is not None and not any(reference_of(row) for row in plan.prompts):
        fix = "Give the rows a reference, or set sft_on_references: false."
        raise InputError("no prompt has a reference to imitate", where="sft_on_references", fix=fix)
    check_method(plan.align)


def _plain_load() -> Any:
    default = next(f.default for f in fields(Method) if f.name == "load")
    return None if default is MISSING else default


def _check_objectives(plan: ImprovePlan) -> None:
    names = [labeller.name for labeller in plan.labellers]
    wanted = [objective.name for objective in plan.align.objectives]
    for name in wanted:
        if name not in names:
            raise InputError("an objective without a source", expected=f"one of {', '.join(names)}", found=name)
    for name in names:
        if name not in wanted:
            fix = "Give it a weight under objectives, or move it to held_out."
            raise InputError("a source that no objective uses", where="sources", found=name, fix=fix)
    for objective in plan.align.objectives:
        if objective.labels is not None or objective.rule is not None:
            fix = "Leave labels and rule out: the source of that name labels it."
            raise InputError("its labels come from its source", where=f"objective {objective.name!r}", fix=fix)


def _check_apart(trained: Sequence[Labeller], held_out: Sequence[Labeller]) -> None:
    """A held-out source that is trained on, under whatever name or as a part of another, would watch nothing."""
    names = {labeller.name for labeller in trained}
    used = {source.fingerprint: labeller.name for labeller in trained for source in labeller.sources()}
    for labeller in held_out:
        if labeller.name in names:
            fix = "Give the held-out source another name and another source."
            raise InputError("a source of that name is trained on", where=f"held_out {labeller.name!r}", fix=fix)
        for source in labeller.sources():
            if source.fingerprint in used:
                raise InputError(
                    "the held-out source is one that is trained on",
                    where=f"held_out {labeller.name!r}",
                    found=f"the same as {used[source.fingerprint]!r}",
                    fix="Hold out a source that the policy is not trained on.",
                )


def _check_anchors(plan: ImprovePlan) -> None:
    """Sources are watched against draws, so that a reference that their schedule needs would be missed too late."""
    for labeller in plan.labellers:
        for source in labeller.sources():
            anchored = source.compare is not None and any(REFERENCE in p for p in source.schedule.next_pairs(2, {}, 0))
            if anchored and not any(reference_of(row) for row in plan.prompts):
                raise InputError(
                    "no prompt has the reference that responses are compared with",
                    where=f"source {labeller.name!r}",
                    fix="Give the rows a reference, or set anchor: first.",
                )


def fingerprints(labellers: Sequence[Labeller]) -> dict[str, list[str]]:
    """By objective, what its answers depend on."""
    return {one.name: [source.fingerprint for source in one.sources()] for one in labellers}


def begin(plan: ImprovePlan) -> None:
    """Writes settings.json into the folder, or finds the same there.

    Raises:
        InputError: the folder was begun with other settings, or holds something else.
    """
    path, told = plan.folder / "settings.json", plain(dict(plan.settings))
    if not path.exists():
        if any(plan.folder.glob("round-*")) or (plan.folder / "run.json").exists():
            raise InputError("not a folder of `paretune improve`", where=f"output_dir {plan.folder}")
        write_json(path, told)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("unreadable settings", where=str(path)) from error
    changed = _changed(
        {key: value for key, value in before.items() if key not in MAY_CHANGE},
        {key: value for key, value in told.items() if key not in MAY_CHANGE},
    )
    if changed:
        shown = [_parting(*values) for values in list(changed.values())[:_SHOWN]]
        raise InputError(
            f"this folder was begun with another {', '.join(changed)}",
            where=f"output_dir {plan.folder}",
            expected="; ".join(f"{key} {was}" for key, (was, _) in zip(changed, shown, strict=False)),
            found="; ".join(f"{key} {now}" for key, (_, now) in zip(changed, shown, strict=False)),
            fix="Choose another output_dir, or give the settings that it was begun with.",
        )
    write_json(path, told)


_SHOWN = 3  # values that a message shows


def _changed(before: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> what it was and what it is, of those that differ; within mappings with the way there, as sources.a.rule,
    but the align step's by their names."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*before, *told]):
        was, now = before.get(key), told.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            inner = _changed(was, now)
            if key == "train":
                inner = {name: values for name, values in inner.items() if name not in TRAIN_MAY_CHANGE}
            changed |= {name if key == "train" else f"{key}.{name}": values for name, values in inner.items()}
        elif was != now:
            changed[key] = was, now
    return changed


def _parting(was: Any, now: Any) -> tuple[str, str]:
    """Both as JSON, cut to where they differ."""
    texts = json.dumps(was), json.dumps(now)
    begin = max(0, len(os.path.commonprefix(texts)) - 20) if max(map(len, texts)) > 80 else 0
    first, second = (f"{'…' * (begin > 0)}{text[begin : begin + 80]}{'…' * (len(text) > begin + 80)}" for text in texts)
    return first, second


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the lock goes with the process.

    Raises:
        InputError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "Wait for it, or choose another output_dir."
            raise InputError("another process works here", where=f"output_dir {folder}", fix=fix) from error
        yield
