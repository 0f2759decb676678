"""What a finished run says: figures per objective, what the objectives did to each other, where things lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def summary(record: dict[str, Any], history: Sequence[dict[str, Any]], output_dir: str) -> str:
    """The text.

    Args:
        record: content of run.json.
        history: the run's logged lines.
        output_dir: where the run wrote.
    """
    names = [objective["name"] for objective in record["objectives"]]
    weights = {objective["name"]: objective["weight"] for objective in record["objectives"]}
    train = [line for line in history if "loss" in line]
    evaluation: dict[str, Any] = {}
    for line in history:
        evaluation.update({k: v for k, v in line.items() if k.startswith("eval_")})
    end = train[-max(1, len(train) // 10) :]  # one step alone is noise
    last = {key: mean(end, key) for line in end for key in line}
    head = ["objective", "weight", "effective", "loss", "margin", "accuracy"]
    held_out = any(key.startswith("eval_loss/") for key in evaluation)
    head += ["eval loss", "eval margin", "eval accuracy"] if held_out else []
    rows = []
    for name in names:
        row = [name, f"{weights[name]:.3f}", _number(mean(train, f"combine/effective_weight/{name}"))]
        for prefix, source in (("", last), ("eval_", evaluation))[: 1 + held_out]:
            row += _row_of(prefix, source, name)[1:]
        rows.append(row)
    lines = [table(head, rows), ""]
    for part in _named_sets(evaluation, names):
        lines += [table([f"held-out {part}", *head[3:6]], [_row_of(f"eval_{part}_", evaluation, n) for n in names]), ""]
    lines += _conflicts(train, len(names))
    lines += _closing(record, history, output_dir)
    return "\n".join(lines)


def _row_of(prefix: str, source: dict[str, Any], name: str) -> list[str]:
    """An objective's loss, margin and accuracy."""
    return [
        name,
        _number(source.get(f"{prefix}loss/{name}")),
        _number(source.get(f"{prefix}rewards/margins/{name}"), "+.3f"),
        _share(source.get(f"{prefix}rewards/accuracies/{name}")),
    ]


def _named_sets(evaluation: Iterable[str], names: Sequence[str]) -> list[str]:
    """Names of the evaluation sets, where there are several: `eval_<set>_loss/<objective>`."""
    ends = tuple(f"_loss/{name}" for name in names)
    return list(
        dict.fromkeys(
            key.removeprefix("eval_").rpartition("_loss/")[0]
            for key in evaluation
            if key.startswith("eval_") and key.endswith(ends)
        )
    )


def _conflicts(train: Sequence[dict[str, Any]], count: int) -> list[str]:
    lines = []
    keys = sorted({key for line in train for key in line if key.startswith("grad/cosine/")})
    for key in keys:
        a, b = key.removeprefix("grad/cosine/").split("~")
        value = mean(train, key)
        if value is not None:
            word = "conflict" if value < -0.05 else "agree" if value > 0.05 else "hardly touch"
            lines.append(f"The gradients of {a} and {b} {word}: mean cosine {value:+.2f}.")
    clipped = mean(train, "combine/clip_active")
    if clipped is not None and count > 1:
        lines.append(f"Clipping by the weights changed the update in {clipped:.0%} of the steps.")
    angle = mean(train, "combine/angle_to_linear")
    if angle is not None and count > 1:
        lines.append(f"The update stood {math.degrees(angle):.1f} degrees from the weighted mean of the gradients.")
    return lines


def _closing(record: dict[str, Any], history: Sequence[dict[str, Any]], output_dir: str) -> list[str]:
    lines: list[str] = []
    if record.get("notices"):
        lines += ["", "To know:", *(f"  - {notice}" for notice in record["notices"])]
    steps = max((line.get("step", 0) for line in history), default=0)
    seconds = next((line["train_runtime"] for line in reversed(history) if "train_runtime" in line), None)
    took = f" in {seconds:.0f} s" if seconds else ""
    lines += [
        "",
        f"{steps} steps{took}. In {output_dir}: the model, run.json (settings, versions, data, final figures), "
        "history.jsonl (every logged step).",
        f"Score it on held-out rows: paretune evaluate --model {output_dir}",
    ]
    return lines


def mean(lines: Iterable[dict[str, Any]], key: str) -> float | None:
    """The mean over the logged lines that have it."""
    values = [line[key] for line in lines if isinstance(line.get(key), int | float)]
    return sum(values) / len(values) if values else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text: the first column to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
