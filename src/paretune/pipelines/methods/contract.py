"""What a method is, what it is asked for, and the training that most methods are: one run of `RACOTrainer`.

A method file defines functions of a `Request` and a dict of `Method`s; `methods/__init__.py` joins the dicts.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError
from paretune.objectives import Objective, as_dicts, normalize_weights
from paretune.policy.loading import load_scored, load_tokenizer
from paretune.training.config import RACOConfig
from paretune.training.data import RowChange
from paretune.training.given import full_paths
from paretune.training.record import plain
from paretune.training.rundir import (
    MAY_CHANGE,
    changed_settings,
    check_free,
    check_same_data,
    clear,
    find_checkpoint,
    run_record,
)
from paretune.training.trainer import RACOTrainer


@dataclass(frozen=True)
class Request:
    """One training, as it is asked for.

    Args:
        method: a key of `METHODS`.
        model: directory or hub id that training starts from.
        args: of the run; `output_dir` receives all that it leaves.
        objectives: m of them, with their weights.
        train_dataset, eval_dataset, peft_config, ref_model, data_options, model_options: as `RACOTrainer`.
        method_options: of the method (`Method.options`).
        singles: objective -> directory of a finished run trained on that objective alone; what is missing here and
            needed is trained as a part.
        callbacks: makes the trainer's callbacks, anew for every training of the method.
        settings: further entries of `settings` in run.json (the command's own keys).
        resume: True goes on from whatever output_dir holds and starts what is not there; or a checkpoint's path.
        overwrite: start over where a run is.
        repeats: the record of the run that this one repeats; in what they differ is said.
    """

    method: str
    model: str
    args: RACOConfig
    objectives: Sequence[Objective]
    train_dataset: Any
    eval_dataset: Any = None
    peft_config: Any = None
    ref_model: str | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    singles: Mapping[str, str] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    settings: Mapping[str, Any] = field(default_factory=dict)
    resume: bool | str = False
    overwrite: bool = False
    repeats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def weights(self) -> dict[str, float]:
        """Normalised, by objective."""
        return {o.name: o.weight for o in normalize_weights(list(self.objectives))}

    def option(self, name: str, default: Any = None) -> Any:
        value = self.method_options.get(name)
        return default if value is None else value


@dataclass(frozen=True)
class Outcome:
    """A trained policy as it answers: what `evaluation.sample.sample` takes, each prompt put through `prepare`: text or
    messages, as it was given, before a chat template makes text of it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prepare: Callable[[Any], Any] = lambda prompt: prompt


@dataclass(frozen=True)
class Method:
    """What a name expands to.

    Args:
        title: one line for people.
        source: paper, with equation or section.
        settings: fields of `RACOConfig` that the method sets.
        train: leaves a run in the request's directory, run.json with it.
        load: the policy that a finished run amounts to, at given weights where it is steerable.
        check: raises InputError for what is missing, before anything expensive; returns in words what will be done.
        change_rows: what it makes of the rows before they are tokenized; it may raise InputError.
        options: its `method_options`, each with one sentence.
        uses_weights: False where one run serves all weightings because weights are ignored.
        needs_singles: whether it needs a run per objective (`single_run`).
        steerable: whether one training serves every weighting when it answers.
    """

    title: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Callable[[Request], None] = lambda request: train_one(request)
    load: Callable[[Path, Mapping[str, float] | None], Outcome] = lambda directory, weights: load_model(directory)
    check: Callable[[Request], list[str]] = lambda request: ["one training"]
    change_rows: Callable[[Request], RowChange] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    uses_weights: bool = True
    needs_singles: bool = False
    steerable: bool = False


def load_model(directory: Path | str) -> Outcome:
    """The model or adapter that a run left."""
    return Outcome(load_scored(str(directory)), load_tokenizer(str(directory)))


# ---- one training ----


def build_trainer(request: Request, *, kind: Callable[..., RACOTrainer] = RACOTrainer) -> RACOTrainer:
    """The trainer of a request; everything is checked, nothing is trained."""
    return kind(
        model=request.model,
        args=request.args,
        objectives=list(request.objectives),
        train_dataset=request.train_dataset,
        eval_dataset=request.eval_dataset,
        peft_config=copy.deepcopy(request.peft_config),  # peft writes into it
        ref_model=request.ref_model,
        callbacks=request.callbacks(),
        data_options=dict(request.data_options),
        model_options={"merged_to": str(request.directory.absolute() / "base"), **request.model_options},
    )


def train_one(
    request: Request, *, asked: Request | None = None, kind: Callable[..., RACOTrainer] = RACOTrainer
) -> None:
    """One run of a trainer, from its checks to its record.

    Args:
        request: what is trained.
        asked: the request that it stands for, for the record, where that is another.
        kind: of trainer.
    """
    trainer = build_trainer(request, kind=kind)
    record, directory = trainer.record, str(request.directory)
    record.content["settings"] |= request.settings
    record.content["method"] = described(asked or request)
    found = find_checkpoint(request.args, request.resume)
    record.before = dict(request.repeats)
    if found.path is not None:
        record.before = run_record(request.directory)
        check_same_data(record.content, directory)
        record.say(*found.notices, *changed_settings(record.content, directory, plain(request.args.to_dict())))
    elif request.overwrite and request.args.process_index == 0:
        clear(directory)
    finish(trainer, found.path)


def finish(trainer: RACOTrainer, checkpoint: str | None) -> None:
    """Trains, evaluates at the end where there is data for it, and leaves model, tokenizer, state and record."""
    record = trainer.record
    record.unsaved = True
    with record.watched(trainer.args):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.eval_data is not None and not _evaluated(trainer):
            trainer.evaluate()
        trainer.save_state()
    record.unsaved = False
    record.end(trainer.args, "finished", {**record.content["final"], **_last(trainer)})


def _evaluated(trainer: RACOTrainer) -> bool:
    """Whether the last step's model was evaluated; not where an earlier one was loaded back as the best."""
    step = trainer.state.global_step
    ends = [[k for k in line if k.startswith("eval_") and k.endswith("_loss")] for line in trainer.state.log_history]
    last = any(found and line["step"] == step for found, line in zip(ends, trainer.state.log_history, strict=True))
    return last and not trainer.args.load_best_model_at_end


def _last(trainer: RACOTrainer) -> dict[str, Any]:
    return {key: value for line in trainer.state.log_history for key, value in line.items() if key.startswith("eval_")}


def described(request: Request) -> dict[str, Any]:
    """The `method` of run.json: its name, its options, the weights asked for, and what identifies the request."""
    options = plain(dict(request.method_options))
    return {"name": request.method, "options": options, "weights": request.weights, "request": digest(request)}


def digest(request: Request) -> str:
    """Identifies what is trained: equal requests train the same, whatever their directory."""
    args = {key: value for key, value in request.args.to_dict().items() if key not in MAY_CHANGE}
    reading = {key: value for key, value in request.data_options.items() if key != "change_rows"}  # a function
    content = {
        **{"method": request.method, "model": full_paths(request.model), "ref_model": request.ref_model},
        **{"args": args, "objectives": as_dicts(list(request.objectives)), "adapter": repr(request.peft_config)},
        **{"data": full_paths(request.train_dataset) if isinstance(request.train_dataset, str | list) else None},
        **{"reading": reading, "loading": request.model_options, "options": request.method_options},
    }
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()[:16]


# ---- methods of several trainings ----


def changed_args(args: RACOConfig, **changes: Any) -> RACOConfig:
    """A copy with other values of some fields."""
    changed, known = copy.copy(args), {f.name for f in dataclasses.fields(args)}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"RACOConfig has no field {name!r}")
        setattr(changed, name, value)
    return changed


def part(request: Request, name: str, **changes: Any) -> Request:
    """A request for one of the method's trainings, in output_dir/parts/NAME; `changes` are fields of the request."""
    args = changed_args(changes.pop("args", request.args), output_dir=str(request.directory / "parts" / name))
    own = {key: value for key, value in request.data_options.items() if key != "change_rows"}  # of the whole method
    before = {key: value for key, value in request.repeats.items() if key in ("versions", "commit")}
    fixed = {"args": args, "data_options": own, "resume": True, "overwrite": False, "repeats": before}
    return replace(request, **{**fixed, **changes})


def train_part(request: Request, train: Callable[[Request], None] = train_one) -> str:
    """Trains a part, goes on with it, or leaves it where it is finished; returns its directory.

    Raises:
        InputError: a part is there that was trained by other settings.
    """
    there = run_record(request.directory)
    if there and there.get("method", {}).get("request") != digest(request):
        fix = "Choose another output_dir, or start over with --overwrite."
        raise InputError("a part trained with other settings is there", where=str(request.directory), fix=fix)
    if there.get("status") != "finished":
        train(request)
        gc.collect()  # a trainer refers to itself, and its model would stay beside the next one
    return str(request.directory)


def single_run(request: Request, objective: str) -> str:
    """The directory of a run on one objective alone: the given one, or a part that is trained now."""
    if objective in request.singles:
        return str(request.singles[objective])
    weights = [replace(o, weight=float(o.name == objective)) for o in request.objectives]
    args = changed_args(request.args, combiner="linear")
    return train_part(part(request, f"single-{objective}", method="single", objectives=weights, args=args,
                           method_options={"objective": objective}))  # fmt: skip


def check_singles(request: Request) -> list[str]:
    """Raises InputError where a given run of one objective cannot be one; says which are there, which are trained."""
    names = [o.name for o in request.objectives]
    for name, directory in request.singles.items():
        where = f"singles {name}"
        if name not in names:
            raise InputError("no such objective", where=where, expected=f"one of {', '.join(names)}", found=name)
        there = run_record(Path(directory).expanduser())
        if there.get("status") != "finished":
            raise InputError("not a finished run", where=where, expected="its run.json, finished", found=directory)
        on = {o["name"]: o["weight"] for o in there.get("objectives", []) if o["weight"] > 0}
        if list(on) != [name]:
            raise InputError("not trained on that objective alone", where=where, expected=name, found=", ".join(on))
    return [
        f"{name}: {'the run in ' + str(request.singles[name]) if name in request.singles else 'a training on it alone'}"
        for name in names
    ]


def check_directory(request: Request) -> None:
    """Raises InputError where output_dir holds something that is neither gone on from nor written over."""
    if not request.resume:
        check_free(str(request.directory), request.overwrite)
