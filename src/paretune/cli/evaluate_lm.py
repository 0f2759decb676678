"""The part of `paretune evaluate` that needs no comparisons: a text's loss, and tasks of lm-evaluation-harness.

Both are asked of every model and of what it was trained from: the difference is what alignment cost.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.cli.summary import table
from paretune.errors import InputError

if TYPE_CHECKING:
    from paretune.evaluation.harness import Scores, Tasks
    from paretune.evaluation.text_loss import TextLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is asked, checked and, as far as it is data, loaded."""

    text: str | None
    tasks: Tasks | None


@dataclass
class Found:
    """One model's answers."""

    text: TextLoss | None = None
    scores: Scores | None = None


def plan_of(keys: Any) -> Plan | None:
    """None where neither `lm_text` nor `lm_eval` is asked.

    Raises:
        InputError: before any model is loaded: a bad number, text or task, or no harness.
    """
    for name in ("lm_eval_limit", "lm_eval_shots", "lm_window"):
        least = 0 if name == "lm_eval_shots" else 1
        if getattr(keys, name) is not None and getattr(keys, name) < least:
            raise InputError(f"bad {name}", expected=f"a whole number of at least {least}", found=getattr(keys, name))
    names = keys.lm_eval or []
    names = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for key in ("lm_eval_limit", "lm_eval_shots", "lm_eval_path"):
        if getattr(keys, key) is not None and not names:
            raise InputError(f"{key} without tasks", fix="Name them: --lm_eval TASK,TASK.")
    if keys.lm_window is not None and keys.lm_text is None:
        raise InputError("lm_window without a text", fix="Give it: --lm_text FILE.")
    if not names and keys.lm_text is None:
        return None
    from paretune.evaluation import harness
    from paretune.evaluation.text_loss import read_text

    text = None if keys.lm_text is None else read_text(keys.lm_text)
    return Plan(text, harness.load_tasks(names, keys.lm_eval_path) if names else None)


def measure(
    plan: Plan, keys: Any, names: Sequence[str], bases: Sequence[str | None], four_bits: Sequence[bool]
) -> dict[str, Any]:
    """Every model and base measured once: the keys `lm_text` and `lm_eval` of the figures.

    Args:
        names: the models, as directories or hub ids.
        bases: what each was trained from, or None where that is not known.
        four_bits: whether each was trained on a base in 4 bits.
    """
    subjects: dict[str, bool] = {}
    for name, base, four in zip(names, bases, four_bits, strict=True):
        for subject in (name, base):
            if subject is not None:
                subjects.setdefault(subject, four)
    window = _window(keys.lm_window, list(subjects)) if plan.text is not None else 0
    found = {name: _measure(plan, keys, name, four, window) for name, four in subjects.items()}
    # Without a known base, the first model is what the others are compared with.
    others = {name: base or names[0] for name, base in zip(names, bases, strict=True)}
    pairs = {name: other for name, other in others.items() if other != name}
    return _figures(plan, keys, found, pairs, window)


def _window(given: int | None, subjects: Sequence[str]) -> int:
    """As given, else the shortest context of all models, at most WINDOW: all read the text in the same pieces."""
    from transformers import AutoConfig

    from paretune.evaluation.text_loss import WINDOW, context_of
    from paretune.policy.loading import base_of, is_adapter

    if given is not None:
        return given
    shortest = WINDOW
    for name in subjects:
        path = os.path.expanduser(name)
        path = base_of(path) if is_adapter(path) else path
        shortest = min(shortest, context_of(AutoConfig.from_pretrained(path, trust_remote_code=False)) or WINDOW)
    return shortest


def _measure(plan: Plan, keys: Any, name: str, four: bool, window: int) -> Found:
    import torch

    from paretune.evaluation.harness import run_tasks
    from paretune.evaluation.text_loss import text_loss
    from paretune.policy.loading import load_scored, load_tokenizer

    model, tokenizer = load_scored(name, dtype=keys.dtype, quantize=four), load_tokenizer(name)
    if not four:  # the quantizer has put its weights where they belong
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = Found()
    if plan.text is not None:
        found.text = text_loss(model, tokenizer, plan.text, window=window)
    if plan.tasks is not None:
        options = {"limit": keys.lm_eval_limit, "shots": keys.lm_eval_shots, "batch_size": keys.batch_size}
        found.scores = run_tasks(model, tokenizer, plan.tasks, **options)
    return found


def _figures(
    plan: Plan, keys: Any, found: dict[str, Found], pairs: dict[str, str], window: int
) -> dict[str, dict[str, Any]]:
    from paretune.evaluation import harness, text_loss

    drawn = {"draws": keys.draws, "seed": keys.seed}

    def part(figures: Callable[..., Any], differences: Callable[..., Any], key: str) -> dict[str, Any]:
        return {
            "models": {name: figures(getattr(of, key), **drawn) for name, of in found.items()},
            "differences": {
                name: {
                    "minus": other,
                    "of": differences(getattr(found[name], key), getattr(found[other], key), **drawn),
                }
                for name, other in pairs.items()
            },
        }

    figures: dict[str, dict[str, Any]] = {}
    if plan.text is not None:
        about = {"file": keys.lm_text, "window": window}
        figures["lm_text"] = {**about, **part(text_loss.loss_figures, text_loss.loss_difference, "text")}
    if plan.tasks is not None:
        import lm_eval

        asked = {"tasks": list(plan.tasks.names), "limit": keys.lm_eval_limit, "shots": keys.lm_eval_shots}
        asked["lm_eval"] = lm_eval.__version__
        figures["lm_eval"] = {**asked, **part(harness.score_figures, harness.score_differences, "scores")}
    return figures


# ---- text ----


def render(figures: dict[str, Any], label: Callable[[str], str]) -> str:
    """The tables in plain text; `label` shortens a model's name."""
    lines: list[str] = []
    if "lm_text" in figures:
        of = figures["lm_text"]
        rows = [
            [label(name), str(one["loss"]["n"]), cell(one["loss"]), f"{one['perplexity']:.3f}"]
            + [f"{one['bits_per_byte']:.4f}", *_change(of, name, label)]
            for name, one in of["models"].items()
        ]
        head = ["model", "tokens", "loss, nats per token", "perplexity", "bits per byte", "loss minus that of", ""]
        lines += [
            f"Text {of['file']}, in windows of {of['window']} tokens that overlap by half:",
            "",
            table(head, rows),
        ]
    if "lm_eval" in figures:
        of = figures["lm_eval"]
        rows = [
            [task, metric, label(name), str(one["n"]), cell(one), *_change(of, name, label, task, metric)]
            for task, metrics in next(iter(of["models"].values())).items()
            for metric in metrics
            for name, one in ((name, scores[task][metric]) for name, scores in of["models"].items())
        ]
        shots = "the tasks' own number of" if of["shots"] is None else f"{of['shots']}"
        limit = "" if of["limit"] is None else f", the first {of['limit']} documents of each task"
        said = f"lm-evaluation-harness {of['lm_eval']}, {shots} examples per prompt{limit}:"
        head = ["task", "metric", "model", "documents", "score", "minus that of", ""]
        lines += [*([""] if lines else []), said, "", _table(head, rows)]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Without the two columns of differences where there is none."""
    if all(row[-2:] == ["", ""] for row in rows):
        head, rows = head[:-2], [row[:-2] for row in rows]
    return table(head, rows)


def _change(of: dict[str, Any], name: str, label: Callable[[str], str], *inside: str) -> list[str]:
    """With what a model is compared, and the difference."""
    if name not in of["differences"]:
        return ["", ""]
    found = of["differences"][name]
    value = found["of"]
    for key in inside:
        value = value[key]
    return [label(found["minus"]), "other tokens" if value is None else cell(value, "+.4f")]


def cell(figure: dict[str, Any], form: str = ".4f") -> str:
    """A figure with its interval, where it has one."""
    text = format(figure["value"], form)
    if figure["low"] is None:
        return text
    return f"{text} [{format(figure['low'], form)}, {format(figure['high'], form)}]"
