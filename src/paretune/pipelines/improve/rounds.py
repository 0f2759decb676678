"""One round: a supervised start (the first, where asked for), draws, labels, alignment, signs of hacking.

Each part goes on by its own means and is named in parts.json when it is finished; round.json comes last.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.comparisons.rows import Text, text_of
from paretune.errors import InputError
from paretune.files import write_text
from paretune.pipelines.improve.measure import draw, read_draws, round_seed, score
from paretune.pipelines.improve.plan import ImprovePlan, reference_of
from paretune.pipelines.improve.serving import served
from paretune.pipelines.improve.signs import displacement, signs
from paretune.pipelines.labelling import NothingLabelled, label_candidates, report_path, write_labelled
from paretune.pipelines.methods import run_method
from paretune.pipelines.methods.contract import changed_args
from paretune.pipelines.sampling import open_responses
from paretune.pipelines.sampling_here import sample_here
from paretune.pipelines.sampling_server import sample_from_server
from paretune.preferences.answers import AnswerStore
from paretune.preferences.candidates import read_candidates
from paretune.preferences.specs import Labeller
from paretune.training.record import write_json
from paretune.training.rundir import find_checkpoint

logger = logging.getLogger(__name__)


class Parts:
    """Which parts of a round are finished."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "parts.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[str, Any] = read_json(self.path) or {}

    def finish(self, name: str, **facts: Any) -> None:
        """Keeps that a part is finished, and what there is to say about it."""
        self.finished[name] = facts
        write_json(self.path, self.finished)


def read_json(path: Path) -> dict[str, Any] | None:
    """A whole file's content; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_round(plan: ImprovePlan, number: int, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs a round, or what is left of it; round 0 only looks at the model that is given.

    Args:
        earlier: what the rounds before left, from round 0 on.

    Returns:
        The content of round.json: `model` is what the round left; without it `stopped` says why there is none.

    Raises:
        InputError: whatever its parts raise.
    """
    folder = plan.round_folder(number)
    there = read_json(folder / "round.json")
    if there is not None:
        return there
    parts, store = Parts(folder), AnswerStore(plan.cache)
    if number == 0:
        content: dict[str, Any] = {"round": 0, "model": plan.align.model}
    else:
        start = str(earlier[-1]["model"])
        if number == 1 and plan.sft is not None:
            start = _supervised(plan, start, parts)
        content = {"round": number, "start": start}
        _sample(plan, number, start, parts)
        nothing = _label(plan, parts, store)
        if nothing is not None:
            content["stopped"] = nothing
            write_json(folder / "round.json", content)
            return content
        content["model"] = _align(plan, start, earlier, parts)
    content |= {"parts": parts.finished, "signs": _watch(plan, content, earlier, parts, store)}
    write_json(folder / "round.json", content)
    return read_json(folder / "round.json") or {}  # as a later command will read it


def _supervised(plan: ImprovePlan, start: str, parts: Parts) -> str:
    """A model that imitates the references of the prompts that are trained on."""
    from paretune.training.sft import SFTConfig, run_supervised, supervised_trainer

    folder = parts.folder / "sft"
    if "sft" in parts.finished:
        return str(folder)
    rows = []
    for row in plan.prompts:
        reference: Text | None = reference_of(row)
        if reference is not None and isinstance(row.prompt, list):
            reference = [{"role": "assistant", "content": str(reference)}]
        if reference is not None:
            rows.append({"prompt": row.prompt, "response": reference})
    data = parts.folder / "references.jsonl"
    write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
    args = SFTConfig(output_dir=str(folder), **(plan.sft or {}))
    options = {**plan.align.model_options, "merged_to": str(folder.absolute() / "base")}
    trainer, record = supervised_trainer(
        start,
        args,
        str(data),
        peft_config=copy.deepcopy(plan.align.peft_config),
        callbacks=plan.align.callbacks(),
        model_options=options,
    )
    found = find_checkpoint(args, True)
    record.say(*found.notices)
    run_supervised(trainer, record, found.path)
    del trainer
    gc.collect()
    parts.finish("sft", rows=len(rows), without_reference=len(plan.prompts) - len(rows))
    return str(folder)


def _sample(plan: ImprovePlan, number: int, start: str, parts: Parts) -> None:
    if "sample" in parts.finished:
        return
    serving = plan.serving
    name, url = (start, None) if serving is None else (serving.name_of(start), serving.url)
    settings = dataclasses.replace(plan.sampling, model=name, server=url, seed=round_seed(plan.seed, number))
    refused = 0  # for what is in the prompt: asking again would not help
    with open_responses(parts.folder / "responses.jsonl", settings, overwrite=False) as file:
        if any(row.key not in file.finished for row in plan.prompts):
            if serving is None:
                sample_here(plan.prompts, settings, file, batch_size=plan.batch_size)
            else:
                with served(serving, start, parts.folder / "serve.log", keys=_key_names(plan)):
                    refused = sample_from_server(plan.prompts, settings, file, serving.access).get("refused", 0)
        done = file.finish(plan.prompts)
    if done + refused < len(plan.prompts) or not done:
        found, fix = f"{len(plan.prompts) - done} of {len(plan.prompts)}", "The same command asks for them again."
        raise InputError("prompts without draws: the server failed", where=str(url), found=found, fix=fix)
    gc.collect()
    responses = sum(len(json.loads(line)["responses"]) for line in file.finished.values())
    if refused:
        logger.warning("%s: the server refused %d of %d prompts", parts.folder.name, refused, len(plan.prompts))
    left_out = done * settings.n - responses
    parts.finish("sample", prompts=done, refused=refused, responses=responses, left_out=left_out)


def _key_names(plan: ImprovePlan) -> set[str]:
    """The environment variables that hold the sources' keys."""
    labellers, names = [*plan.labellers, *plan.held_out], set()
    while labellers:
        one: Labeller = labellers.pop()
        labellers += one.parts
        names.add(str(one.entry.get("api_key_env") or ""))
    return names - {""}


def _label(plan: ImprovePlan, parts: Parts, store: AnswerStore) -> str | None:
    """None, or why there is nothing to train on, whoever asks again."""
    if "label" in parts.finished:
        return parts.finished["label"].get("nothing")
    responses = parts.folder / "responses.jsonl"
    nothing = _nothing_to_compare(plan, responses)
    if nothing is None:
        candidates, read = read_candidates(str(responses), max_words=plan.max_words)
        try:
            rows, report = label_candidates(
                candidates,
                plan.labellers,
                store,
                pairs=plan.pairs,
                max_pairs=plan.max_pairs,
                seed=plan.seed,
                retry_failed=plan.retry_failed,
                read=read,
            )
        except NothingLabelled as error:
            if error.failed:
                raise  # the same command with retry_failed may mend it; a stop would stay
            nothing = f"no pair of the policy's responses that is chosen (pairs: {plan.pairs}) has a label"
    if nothing is not None:
        parts.finish("label", rows=0, nothing=nothing)
        return nothing
    for warning in report.warnings:
        logger.warning("%s: %s", parts.folder.name, warning)
    write_labelled(rows, dataclasses.asdict(report), parts.folder / "train.jsonl")
    parts.finish("label", rows=len(rows), warnings=report.warnings)
    return None


def _nothing_to_compare(plan: ImprovePlan, responses: Path) -> str | None:
    found = [json.loads(line)["responses"] for line in responses.read_text(encoding="utf-8").splitlines()]
    if all(len(texts) < 2 for texts in found):
        whole = " that are not cut off" if plan.sampling.drop_cut else ""
        return f"the policy gives no prompt two different responses{whole}: nothing to compare"
    most = plan.max_words
    if most is not None and all(sum(len(text_of(text).split()) <= most for text in texts) < 2 for texts in found):
        return f"the policy gives no prompt two different responses of at most {most} words (max_words)"
    return None


def _align(plan: ImprovePlan, start: str, earlier: Sequence[Mapping[str, Any]], parts: Parts) -> str:
    folder = parts.folder / "run"
    if "align" in parts.finished:
        return str(folder)
    reference = None
    if plan.reference == "start" and len(earlier) > 1:
        reference = str(earlier[1]["start"])
    request = dataclasses.replace(
        plan.align,
        model=start,
        ref_model=reference,
        args=changed_args(plan.align.args, output_dir=str(folder)),
        train_dataset=str(parts.folder / "train.jsonl"),
        resume=True,
    )
    run_method(request)
    gc.collect()  # a trainer refers to itself, and its model would stay beside the next one
    parts.finish("align", reference=reference or start)
    return str(folder)


def _watch(
    plan: ImprovePlan,
    content: Mapping[str, Any],
    earlier: Sequence[Mapping[str, Any]],
    parts: Parts,
    store: AnswerStore,
) -> dict[str, Any]:
    """The signs of hacking, also in monitors.json."""
    path, model = parts.folder / "held_out.jsonl", str(content["model"])
    draws = read_draws(path) if path.exists() else draw(plan, model, plan.align.model, path)
    start = read_draws(plan.round_folder(0) / "held_out.jsonl") if earlier else None
    scored = score(
        [*plan.labellers, *plan.held_out], draws, start, store, seed=plan.seed, retry_failed=plan.retry_failed
    )
    found = signs(plan, draws, scored, [one["signs"] for one in earlier])
    if earlier:
        data = parts.folder / "train.jsonl"
        found["displacement"] = displacement(plan, model, str(content["start"]), data)
        labels = read_json(report_path(data)) or {}
        kept = ("failed", "inconsistent", "first_slot_excess")
        found["labelling"] = {
            name: {key: figures.get(key) for key in kept} for name, figures in labels.get("sources", {}).items()
        }
    write_json(parts.folder / "monitors.json", found)
    return found


def check_round(content: Mapping[str, Any], where: Path) -> None:
    """Raises InputError where a round's model is no longer there."""
    model = content.get("model")
    if model is not None and Path(str(model)).is_absolute() and not Path(str(model)).exists():
        raise InputError("the round's model is gone", where=str(where), expected=str(model))
