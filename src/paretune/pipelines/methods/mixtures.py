"""Methods of one training per objective, mixed afterwards: soups mix weights, MOD mixes what the policies say next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.pipelines.methods.contract import Method, Outcome, Request, check_singles, described, single_run
from paretune.policy.loading import load_tokenizer
from paretune.policy.mixed import mixed_policy
from paretune.policy.soups import KINDS, check_parts, soup, write_soup
from paretune.training.record import RunRecord, write_json
from paretune.training.rundir import clear, run_record

PARTS = "mixture.json"


def train_soup(request: Request) -> None:
    """One run per objective, then their interpolation at the weights asked for."""
    lora = str(request.option("lora", "exact"))
    parts = _train(request, lora=lora)
    if request.args.process_index == 0:
        write_soup(list(parts.values()), list(request.weights.values()), str(request.directory), lora=lora)
    _finish(request, parts)


def train_mod(request: Request) -> None:
    """One run per objective; what is left is a list of them."""
    _finish(request, _train(request))


def load_soup(directory: Path, weights: Mapping[str, float] | None) -> Outcome:
    """The interpolation at these weights, made in memory."""
    parts, kept = _parts(directory), _kept(directory)
    model = soup(list(parts.values()), _of_parts(parts, weights), lora=kept["lora"])
    return Outcome(model, load_tokenizer(next(iter(parts.values()))))


def load_mod(directory: Path, weights: Mapping[str, float] | None) -> Outcome:
    """The policies of the parts, decoding together at these weights."""
    parts = _parts(directory)
    model = mixed_policy(list(parts.values()), _of_parts(parts, weights))
    return Outcome(model, load_tokenizer(next(iter(parts.values()))))


def check_mixture_of(request: Request) -> list[str]:
    """Raises InputError for singles that are none or of another base, and for options that do not exist."""
    lora = request.option("lora", "exact")
    if lora not in KINDS:
        raise InputError("bad interpolation", where="lora", expected=" or ".join(KINDS), found=lora)
    said = check_singles(request)
    for name, directory in request.singles.items():
        _check_base(request, name, directory)
    given = [str(request.singles[o.name]) for o in request.objectives if o.name in request.singles]
    if len(given) > 1:
        check_parts(given, [1.0, *[0.0] * (len(given) - 1)], str(lora))
    return said


def _check_base(request: Request, name: str, directory: str) -> None:
    settings = run_record(Path(directory).expanduser()).get("settings") or {}
    start, wanted = settings.get("model"), request.model
    if start is not None and _place(start) != _place(wanted):
        fix = (
            "Mixtures are of models that started from one: give singles of it, or leave them out and they are trained."
        )
        raise InputError("not trained from this model", where=f"singles {name}", expected=wanted, found=start, fix=fix)


def _place(name: str) -> str:
    path = os.path.expanduser(name)
    return os.path.realpath(path) if os.path.exists(path) else name


def _train(request: Request, **kept: Any) -> dict[str, str]:
    """Objective -> the directory of its part, trained or given; the list of them is written beside `kept`."""
    first = request.args.process_index == 0
    if first and request.overwrite and not request.resume:
        clear(str(request.directory))  # an adapter of an earlier run would change what is loaded
    parts = {o.name: single_run(request, o.name) for o in request.objectives}
    inside = {name: _relative(directory, request.directory) for name, directory in parts.items()}
    if first:
        write_json(request.directory / PARTS, {"parts": inside, **kept})
    return parts


def _relative(directory: str, of: Path) -> str:
    """From the run's own folder where the part lies in it, so that the whole can be moved; else absolute."""
    path, root = Path(directory).expanduser().absolute(), of.expanduser().absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _finish(request: Request, parts: Mapping[str, str]) -> None:
    """The run's record: the parts have those of their trainings."""
    record = RunRecord(request.args, list(request.objectives), list(request.objectives))
    record.given(request.model, request.ref_model, request.peft_config, request.train_dataset, request.eval_dataset,
                 dict(request.data_options), dict(request.model_options))  # fmt: skip
    record.content["settings"] |= request.settings
    record.content["method"] = described(request)
    record.begin(request.args, {"parts": dict(parts)})
    record.end(request.args, "finished", {})


def _kept(directory: Path) -> dict[str, Any]:
    path = directory / PARTS
    if not path.exists():
        raise InputError("not a mixture of runs", where=str(directory), expected=PARTS)
    return json.loads(path.read_text(encoding="utf-8"))


def _parts(directory: Path) -> dict[str, str]:
    """Objective -> the directory of its part."""
    found = {name: str(directory / part) for name, part in _kept(directory)["parts"].items()}
    for name, part in found.items():
        if run_record(Path(part)).get("status") != "finished":
            raise InputError("a part is not there any more", where=f"{directory}, {name}", found=part)
    return found


def _of_parts(parts: Mapping[str, str], weights: Mapping[str, float] | None) -> list[float]:
    return weights_of(list(parts), weights)


def weights_of(names: Sequence[str], weights: Mapping[str, float] | None) -> list[float]:
    """Weights in the order of names, normalised.

    Raises:
        InputError: an objective without a weight or a weight without an objective, or none positive.
    """
    given = dict(weights or {})
    if set(given) != set(names) or min(given.values()) < 0 or sum(given.values()) <= 0:
        expected = f"a non-negative number for each of {', '.join(names)}, one positive at least"
        raise InputError("bad weights", expected=expected, found=given)
    total = sum(given.values())
    return [given[name] / total for name in names]


MIXTURES: dict[str, Method] = {
    "soup": Method(
        title="rewarded (DPO) soup: one training per objective, then the weighted mean of the models' own weights",
        source="arXiv 2306.04488, section 2.2",
        settings={"combiner": "linear"},
        train=train_soup,
        load=load_soup,
        check=check_mixture_of,
        options={"lora": "How adapters are averaged: exact (the sum of what they add) or linear (of A and of B)."},
        needs_singles=True,
        steerable=True,
    ),
    "mod": Method(
        title="multi-objective decoding: one training per objective, whose next-token distributions are mixed",
        source="arXiv 2406.18853, the reverse KL case",
        settings={"combiner": "linear"},
        train=train_mod,
        load=load_mod,
        check=check_mixture_of,
        needs_singles=True,
        steerable=True,
    ),
}
