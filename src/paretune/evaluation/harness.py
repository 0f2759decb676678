"""Tasks of EleutherAI's lm-evaluation-harness (`lm_eval`, an extra) on models in memory, with paired differences.

    tasks = load_tasks(["mmlu"])                          # their data, before any model is loaded
    before, after = (run_tasks(m, tokenizer, tasks) for m in (base, policy))
    change = score_differences(after, before, draws=2000, seed=0)

The harness decides prompts, metrics and few-shot examples; here only its per-document values get intervals.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError
from paretune.evaluation.margins import mean_with_interval


@dataclass(frozen=True)
class Tasks:
    """Loaded tasks and groups: the outermost as objects of the harness, and its manager, which knows their names."""

    names: tuple[str, ...]
    loaded: list[Any]
    manager: Any


@dataclass(frozen=True)
class Score:
    """One metric of one task or group.

    Args:
        value: the harness's figure.
        documents: (D,) its values per document, where `value` is their mean; None where it is anything else (a
            perplexity, a mean of subtasks of different sizes), which then has no interval.
        count: documents asked.
        higher_is_better: None where the harness does not say.
    """

    value: float
    documents: np.ndarray | None
    count: int
    higher_is_better: bool | None


Scores = dict[str, dict[str, Score]]  # task or group -> metric -> score


def check_installed() -> None:
    """Raises InputError where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        problem = "tasks of lm-evaluation-harness need the package lm_eval"
        raise InputError(problem, where="lm_eval", fix="pip install 'paretune[lm-eval]'.") from error


def load_tasks(names: Sequence[str], folder: str | None = None) -> Tasks:
    """Tasks and groups by name, with their data, which the harness takes from the hub unless the task says otherwise.

    Args:
        names: as `lm-eval ls tasks` lists them.
        folder: of further tasks (YAML files as the harness reads them), which go before its own.

    Raises:
        InputError: the harness is not installed, no such folder or task (the nearest is named), data that cannot be
            had, or a task that runs what a model writes or shows it pictures.
    """
    check_installed()
    if not names:
        raise InputError("no tasks are named", where="lm_eval")
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        raise InputError("no such folder", where="lm_eval_path", found=folder)
    manager = _manager(names, folder)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            fix = f"{hint}`lm-eval ls tasks` lists the harness's own; lm_eval_path: FOLDER adds yours."
            raise InputError(f"unknown task {name!r}", where="lm_eval", fix=fix)
    try:
        found = manager.load(list(names))
    except Exception as error:  # clients of data sets raise anything, from OSError to errors of their own
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        raise InputError(
            "the tasks or their data cannot be loaded",
            where=f"lm_eval {', '.join(names)}",
            found=reason,
            fix="The harness gets data from the hub: check the network and HF_HUB_OFFLINE; what was "
            "loaded once is kept. A task of yours may name local files (dataset_path: json).",
        ) from error
    for name, task in found["tasks"].items():
        for mark, what in (("UNSAFE_CODE", "runs code that a model wrote"), ("MULTIMODAL", "shows pictures or sound")):
            if getattr(task, mark, False):
                raise InputError(f"the task {what}, which is not supported", where=f"lm_eval {name}")
    inner = {child for children in found["group_map"].values() for child in children}
    outer = {name: one for name, one in {**found["groups"], **found["tasks"]}.items() if name not in inner}
    return Tasks(tuple(names), list(outer.values()), manager)


def _manager(names: Sequence[str], folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    path = os.path.expanduser(folder)
    own = TaskManager(include_path=path, include_defaults=False)
    if set(names) <= set(own.all_subtasks):  # then the harness's own, more than ten thousand files, need not be read
        return own
    return TaskManager(include_path=path)


def run_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 16,
) -> Scores:
    """A model's scores. The harness seeds Python's, numpy's and torch's global generators with its own fixed seeds.

    Args:
        model: causal language model of transformers or a PEFT wrapper of one, on its device.
        limit: only the first so many documents of each task.
        shots: examples before each document; None is what the task says. A task that says 0 keeps it.
        batch_size: requests per forward pass.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    said = logging.getLogger("lm_eval.models.huggingface")
    level = said.level
    said.setLevel(logging.ERROR)  # it warns that the model is an object, which is what we want
    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    finally:
        said.setLevel(level)
    found = simple_evaluate(
        wrapped,
        tasks=list(tasks.loaded),
        task_manager=tasks.manager,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,  # intervals are ours
        log_samples=True,
    )
    return scores_of(found)


def scores_of(found: Any) -> Scores:
    """Scores from the harness's results with samples (`lm_eval.result_schema.EvalResults`)."""
    children: dict[str, list[str]] = found.get("group_subtasks", {})

    def leaves(name: str) -> list[str]:
        below = children.get(name)
        return [leaf for child in below for leaf in leaves(child)] if below else [name]

    scores: Scores = {}
    for name, row in found["results"].items():
        for key, value in row.items():
            metric, comma, form = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, str) or np.ndim(value):
                continue
            samples = [s for leaf in leaves(name) for s in found["samples"].get(leaf, ()) if s["filter"] == form]
            documents = _documents([s.get(metric) for s in samples], float(value))
            better = found["higher_is_better"].get(name, {}).get(metric)
            label = metric if form == "none" else f"{metric} ({form})"
            scores.setdefault(name, {})[label] = Score(float(value), documents, len(samples), better)
    return scores


def _documents(values: list[Any], mean: float) -> np.ndarray | None:
    """The values, where they are numbers whose mean is the figure."""
    if not values or any(not isinstance(value, int | float | np.number | np.bool_) for value in values):
        return None
    found = np.array(values, dtype=np.float64)
    return found if math.isclose(float(found.mean()), mean, rel_tol=1e-9, abs_tol=1e-12) else None


# ---- figures ----


def score_figures(scores: Scores, *, draws: int, seed: int) -> dict[str, Any]:
    """{task: {metric: {value, low, high, n, higher_is_better}}}, with 95 % intervals from drawing documents anew."""
    return {
        task: {
            metric: {**_figure(s.value, s.documents, s.count, draws, seed), "higher_is_better": s.higher_is_better}
            for metric, s in metrics.items()
        }
        for task, metrics in scores.items()
    }


def score_differences(scores: Scores, other: Scores, *, draws: int, seed: int) -> dict[str, Any]:
    """{task: {metric: {value, low, high, n}}} of scores minus other, paired by document."""
    found: dict[str, Any] = {}
    for task, metrics in scores.items():
        for metric, a in metrics.items():
            b = other[task][metric]
            both = a.documents is not None and b.documents is not None
            documents = a.documents - b.documents if both else None  # type: ignore[operator]
            found.setdefault(task, {})[metric] = _figure(a.value - b.value, documents, a.count, draws, seed)
    return found


def _figure(value: float, documents: np.ndarray | None, count: int, draws: int, seed: int) -> dict[str, Any]:
    if documents is None:
        return {"value": value, "low": None, "high": None, "n": count}
    return mean_with_interval(documents, np.arange(len(documents)), draws=draws, seed=seed)
