"""Methods by name: combiners, and schemes that are more than one, for `paretune train --method NAME` and the front.

A new file of methods ends in a dict; a line here joins it.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path

from paretune.combine.by_torchjd import PREFIX
from paretune.errors import InputError
from paretune.pipelines.methods.amopo import AMOPO
from paretune.pipelines.methods.conditioned import CONDITIONED
from paretune.pipelines.methods.contract import (
    Method,
    Outcome,
    Request,
    changed_args,
    check_directory,
    load_model,
)
from paretune.pipelines.methods.cpo import CPO
from paretune.pipelines.methods.filters import FILTERS
from paretune.pipelines.methods.mixtures import MIXTURES
from paretune.pipelines.methods.modpo import MODPO
from paretune.pipelines.methods.plain import CONTROLS, PLAIN, combiner_method
from paretune.training.config import RACOConfig
from paretune.training.rundir import run_record

METHODS: dict[str, Method] = {
    **PLAIN,
    **FILTERS,
    **MODPO,
    **AMOPO,
    **MIXTURES,
    **CONDITIONED,
    **CPO,
}


def find_method(name: str) -> Method:
    """The method of that name; "torchjd:NAME", and combiners that are controls, count too.

    Raises:
        InputError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    if name in CONTROLS or name.startswith(PREFIX):
        return combiner_method(name)
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    raise InputError("unknown method", expected=f"one of {', '.join(METHODS)}, {PREFIX}NAME", found=name, fix=fix)


def prepared(request: Request) -> Request:
    """The request with the method's own settings in its configuration.

    Raises:
        InputError: no such method, an option that it does not have, or a setting that contradicts it.
    """
    method = find_method(request.method)
    for key in request.method_options:
        if key not in method.options:
            has = f"one of {', '.join(method.options)}" if method.options else "none"
            raise InputError(f"unknown option {key!r}", where=f"method {request.method}", expected=has, found=key)
    defaults = {f.name: f.default for f in fields(RACOConfig) if f.default is not MISSING}
    for key, value in method.settings.items():
        given = getattr(request.args, key)
        if given not in (value, defaults.get(key)):
            fix = f"Leave {key} out: the method sets it."
            where = f"method {request.method}"
            raise InputError(f"{key} contradicts the method", where=where, expected=value, found=given, fix=fix)
    options = dict(request.data_options)
    if method.change_rows is not None:
        options["change_rows"] = method.change_rows(request)
    return replace(request, args=changed_args(request.args, **method.settings), data_options=options)


def check_method(request: Request) -> list[str]:
    """What the request expands to, in words.

    Raises:
        InputError: what is missing or contradicts itself, before a weight is read.
    """
    request = prepared(request)
    check_directory(request)
    return find_method(request.method).check(request)


def run_method(request: Request) -> None:
    """Trains; leaves a finished run in the request's directory, whose run.json names the method.

    Raises:
        InputError: anything a person can put right, before the expensive work starts.
    """
    request = prepared(request)
    check_method(request)
    if request.overwrite and not request.resume and request.args.process_index == 0:
        shutil.rmtree(request.directory / "parts", ignore_errors=True)
    find_method(request.method).train(request)


def load_outcome(directory: Path | str, weights: Mapping[str, float] | None = None) -> Outcome:
    """The policy that a finished run amounts to.

    Args:
        directory: of a run.
        weights: by objective, where the method is steerable; None takes those that the run was asked for.

    Raises:
        InputError: no finished run is there; weights for a method that is not steerable.
    """
    record = run_record(Path(directory).expanduser())
    if record.get("status") != "finished":
        raise InputError("not a finished run", where=str(directory), expected="its run.json, finished")
    asked = record.get("method", {})
    method = find_method(asked["name"]) if asked else None  # runs of RACOTrainer itself name none
    if weights is not None and (method is None or not method.steerable):
        fix = "Train it with those weights, or leave them out."
        raise InputError("this run answers at its own weights only", where=str(directory), fix=fix)
    if method is None:
        return load_model(directory)
    return method.load(Path(directory).expanduser(), asked.get("weights") if weights is None else weights)


__all__ = [  # noqa: RUF022 (nouns first)
    "METHODS", "Method", "Outcome", "Request",
    "check_method", "find_method", "load_outcome", "prepared", "run_method",
]  # fmt: skip
