"""`paretune sft`: a supervised start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.cli.keys import READING, DataKeys, ModelKeys, key, lora_config, objectives_of, resolved
from paretune.cli.rundir import line_callback, no_new_folder
from paretune.cli.settings import make_config, resolve
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
paretune sft [CONFIG.yaml] [--key value ...]

Teaches a model to give the responses of a data set: the supervised start before `paretune train`. The loss is on the
response's tokens only.

  paretune sft --model Qwen/Qwen3-0.6B-Base --data references.jsonl --output_dir runs/start
  paretune sft --model Qwen/Qwen3-0.6B-Base --data comparisons.jsonl --target preferred --output_dir runs/start
  paretune train --model runs/start --data comparisons.jsonl --objectives '{helpful: 0.6, harmless: 0.4}'

Rows hold a prompt and a response (or completion, or reference), or messages whose last one is the response. Of
comparisons, target says what to imitate: reference, a, b, or preferred (by the objectives' weighted labels).
"""

GROUPS = {
    "What is trained": ["model", "lora", "dtype", "quantization"],
    "On which data": [
        *["data", "target", "objectives", "eval_data", "eval_fraction", *READING, "max_length"],
    ],
    "How": [
        *["learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"],
        *["gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "activation_checkpointing", "seed"],
    ],
    "The run": ["output_dir", "resume", "max_hours", "overwrite", "logging_steps", "save_steps", "report_to"],
}


@dataclass
class SftKeys(ModelKeys, DataKeys):
    """Keys of `paretune sft` beside the fields of `SFTConfig`."""

    target: str | None = key("What to imitate of comparisons: reference, a, b or preferred.")
    objectives: str | list | dict | None = key("Whose labels say which side is preferred, and their weights [all].")
    eval_data: str | list | dict | None = key("Held-out rows, given as data is; or see eval_fraction.")
    resume: bool | str = key("true: from the last checkpoint in output_dir; or a checkpoint's path.", False)
    overwrite: bool = key("Start over in an output_dir that holds a run; its files are removed first.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from paretune.training.record import plain
    from paretune.training.sft import SFTConfig, run_supervised, supervised_trainer

    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (SFTConfig, SftKeys), inherited=TrainingArguments))
        return 0
    settings = resolve(argv, SftKeys, SFTConfig, required=("model", "data"))
    keys: SftKeys = settings.own
    keys.check()
    adapter = lora_config(keys.lora)
    args = make_config(SFTConfig, with_defaults(settings.config, keys.dtype))
    check_checkpoint(args.output_dir, keys.resume)
    if not keys.resume:
        check_free(args.output_dir, keys.overwrite)
    with no_new_folder(args.output_dir):
        trainer, record = supervised_trainer(
            full_path(str(keys.model)),
            args,
            keys.data,
            keys.eval_data,
            target=keys.target,
            objectives=objectives_of(keys.objectives),
            peft_config=adapter,
            callbacks=[] if sys.stderr.isatty() else [line_callback()],
            data_options=keys.read_options(),
            model_options=keys.load_options(args.output_dir),
        )
        record.content["settings"] = resolved(keys)
        found = find_checkpoint(args, keys.resume)
        if found.path is not None:
            record.before = run_record(Path(args.output_dir))
            check_same_data(record.content, args.output_dir)
            record.say(*found.notices, *changed_settings(record.content, args.output_dir, plain(args.to_dict())))
        elif keys.overwrite and args.process_index == 0:
            clear(args.output_dir)
        final = run_supervised(trainer, record, found.path)
    if args.process_index == 0:
        print(_summary(final, record.content["notices"], args.output_dir))
    return 0


def _summary(final: dict[str, Any], notices: list[str], output_dir: str) -> str:
    losses = [("train", final.get("train_loss")), ("held-out", final.get("eval_loss"))]
    told = ", ".join(f"{name} {value:.3f}" for name, value in losses if value is not None)
    lines = [f"Loss in nats per response token: {told}."]
    if notices:
        lines += ["", "To know:", *(f"  - {notice}" for notice in notices)]
    lines += [
        "",
        f"In {output_dir}: the model, run.json and history.jsonl.",
        f"Align it: paretune train --model {output_dir} --data ... --objectives ...",
    ]
    return "\n".join(lines)
