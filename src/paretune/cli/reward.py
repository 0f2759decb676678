"""`paretune reward`: trains a reward model."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.cli.keys import READING, DataKeys, key, lora_config, objectives_of, resolved
from paretune.cli.rundir import line_callback, no_new_folder
from paretune.cli.settings import make_config, resolve
from paretune.cli.summary import table
from paretune.cli.train import with_defaults
from paretune.training.given import full_path
from paretune.training.rundir import (
    changed_settings,
    check_checkpoint,
    check_free,
    check_same_data,
    clear,
    find_checkpoint,
    run_record,
)

INTRO = """
paretune reward [CONFIG.yaml] [--key value ...]

Trains a reward model: one head per objective that the data labels, missing labels left out. What it leaves is an
ordinary model of transformers, and a source of `paretune label`.

  paretune reward --data rows.jsonl --model Qwen/Qwen3-0.6B --eval_fraction 0.1 --output_dir rm
  paretune reward --data scored.jsonl --model Qwen/Qwen3-0.6B --kind listwise --lora true --output_dir rm
  paretune reward --data scored.jsonl --model Qwen/Qwen3-0.6B --kind ridge --output_dir rm    # trains only heads
  paretune label responses.jsonl --sources '{helpful: {reward_model: rm}}' --out train.jsonl

Pairwise models learn from comparisons with preferences, in any layout that `paretune train` reads; pointwise,
listwise and ridge ones from rows of {prompt, responses, scores: {objective: [one per response]}}, or of {prompt,
response, scores: {objective: number}}. docs/reward_models.md explains the kinds and the figures.
"""

GROUPS = {
    "What is trained": ["model", "kind", "token_level", "lora"],
    "On which data": [
        *["data", "objectives", "eval_data", "eval_fraction", *READING, "max_length"],
    ],
    "How": [
        *["centring", "margin_scale", "calibrate", "learning_rate", "num_train_epochs", "max_steps"],
        *["per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "seed"],
    ],
    "The run": ["output_dir", "resume", "max_hours", "overwrite", "logging_steps", "save_steps", "report_to"],
}


@dataclass
class RewardKeys(DataKeys):
    """Keys of `paretune reward` beside the fields of `RewardConfig`."""

    model: str | None = key("The base: a causal language model, an encoder or a reward model; directory or hub id.")
    lora: bool | dict | None = key(
        "Train adapters, merged into the model in the end: true, or a mapping of LoraConfig's options."
    )
    objectives: str | list | dict | None = key("Which objectives get a head [all that the data labels].")
    eval_data: str | list | dict | None = key("Held-out rows, given as data is; or see eval_fraction.")
    resume: bool | str = key("true: from the last checkpoint in output_dir; or a checkpoint's path.", False)
    overwrite: bool = key("Start over in an output_dir that holds a run; its files are removed first.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from paretune.pipelines.rewards.run import prepare_reward, run_reward
    from paretune.pipelines.rewards.training import RewardConfig
    from paretune.training.record import plain

    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (RewardConfig, RewardKeys), inherited=TrainingArguments))
        return 0
    settings = resolve(argv, RewardKeys, RewardConfig, required=("model", "data"))
    keys: RewardKeys = settings.own
    args = make_config(RewardConfig, with_defaults(settings.config, "auto"))
    adapter = lora_config(keys.lora)
    if adapter is not None:
        adapter = dataclasses.replace(adapter, task_type="TOKEN_CLS" if args.token_level else "SEQ_CLS")
    check_checkpoint(args.output_dir, keys.resume)
    if not keys.resume:
        check_free(args.output_dir, keys.overwrite)
    with no_new_folder(args.output_dir):
        run = prepare_reward(
            full_path(str(keys.model)),
            args,
            keys.data,
            keys.eval_data,
            objectives=objectives_of(keys.objectives),
            peft_config=adapter,
            callbacks=[] if sys.stderr.isatty() else [line_callback()],
            data_options=keys.read_options(),
        )
        run.record.content["settings"] = resolved(keys)
        found = find_checkpoint(args, keys.resume)
        if found.path is not None:
            run.record.before = run_record(Path(args.output_dir))
            check_same_data(run.record.content, args.output_dir)
            run.record.say(
                *found.notices, *changed_settings(run.record.content, args.output_dir, plain(args.to_dict()))
            )
        elif keys.overwrite and args.process_index == 0:
            clear(args.output_dir)
        final = run_reward(run, found.path)
    if args.process_index == 0:
        print(_summary(final, run.record.content["notices"], args.output_dir, list(run.examples.names)))
    return 0


def _summary(final: dict[str, Any], notices: list[str], output_dir: str, names: list[str]) -> str:
    lines = []
    if final.get("train_loss") is not None:
        lines += [f"Training loss {final['train_loss']:.4f}.", ""]
    for name, strength in final.get("ridge_strength", {}).items():
        lines.append(f"Ridge head {name}: strength {strength:g}.")
    if "heads" in final:
        head = ["held out", "pairs", "ranked right", "95 % interval", "ECE", "after temperature", "temperature"]
        rows = [[name, *_figures(figures)] for name, figures in final["heads"].items()]
        if any("explained" in figures for figures in final["heads"].values()):
            head.append("variance explained")
            for row, figures in zip(rows, final["heads"].values(), strict=True):
                row.append(_percent(figures.get("explained")))
        lines += [table(head, rows), ""]
    if notices:
        lines += ["To know:", *(f"  - {notice}" for notice in notices), ""]
    sources = ", ".join(f"{name}: {{reward_model: {output_dir}}}" for name in names)
    return "\n".join(
        [
            *lines,
            f"In {output_dir}: the model, run.json and history.jsonl.",
            f"Label with it: paretune label responses.jsonl --sources '{{{sources}}}' --out train.jsonl",
        ]
    )


def _figures(figures: dict[str, Any]) -> list[str]:
    accuracy = figures.get("accuracy") or {}
    between = [_percent(accuracy.get(key)) for key in ("low", "high")]
    return [
        f"{figures.get('pairs', 0):,}",
        _percent(accuracy.get("value")),
        "-" if "-" in between else " to ".join(between),
        *(_number(figures.get(key)) for key in ("ece", "ece_after_temperature", "temperature")),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
