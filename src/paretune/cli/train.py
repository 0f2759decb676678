"""`paretune train`: aligns a model with several objectives."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli.keys import DataKeys, ModelKeys, full_path, key, lora_config, objectives_of
from paretune.cli.settings import make_config, resolve
from paretune.errors import InputError
from paretune.objectives import Objective

if TYPE_CHECKING:
    from paretune.training.config import RACOConfig
    from paretune.training.trainer import RACOTrainer

logger = logging.getLogger(__name__)

INTRO = """
paretune train [CONFIG.yaml] [--key value ...]

Aligns a causal language model with several objectives at once: each has a label per comparison and a weight, and where
they conflict, the update is the one that the weights allow (RACO, arXiv 2602.02495).

  paretune train --model Qwen/Qwen3-0.6B --data train.jsonl --eval_fraction 0.1 \\
      --objectives '{helpful: 0.6, harmless: 0.4}' --lora true --output_dir runs/first
  paretune train first.yaml --dry_run               # checks everything, trains nothing
  paretune train first.yaml --resume                # goes on from the last checkpoint
  paretune train first.yaml --lora.r 8 --objectives.helpful.weight 0.5

An ordinary DPO file needs no labelling: --objectives '{helpful: {weight: 0.7, labels: chosen}, concise: {weight: 0.3,
rule: shorter}}'. In the YAML file the same keys stand one per line. Numbers in brackets are defaults.
"""

GROUPS = {
    "What is aligned": ["model", "ref_model", "lora", "dtype", "quantization"],
    "On which data": [
        *["data", "eval_data", "eval_fraction", "format", "ties", "pairs", "on_bad_row", "take", "max_length"],
    ],
    "To what": ["objectives", "beta", "combiner", "c", "clip", "normalize", "normalize_gradients"],
    "How": [
        *["learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"],
        *["gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "activation_checkpointing", "seed"],
    ],
    "The run": [
        "output_dir",
        "dry_run",
        "resume",
        "overwrite",
        "logging_steps",
        "eval_steps",
        "save_steps",
        "report_to",
    ],
}

# What a run leaves, and what starting over removes: an adapter's file beside a full model would change what is loaded.
LEFT = (
    *("run.json", "history.jsonl", "trainer_state.json", "adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
)


@dataclass
class TrainKeys(ModelKeys, DataKeys):
    """Keys of `paretune train` beside the fields of `RACOConfig`."""

    eval_data: str | list | dict | None = key("Held-out rows, given as data is; or see eval_fraction.")
    objectives: str | list | dict | None = key(
        "Mapping name -> weight or {weight, loss, beta, labels, rule, …}, or a list. Weights are normalised to sum 1."
    )
    ref_model: str | None = key("The reference, where it is not the model that training starts from.")
    resume: bool | str = key("true: from the last checkpoint in output_dir; or a checkpoint's path.", False)
    overwrite: bool = key("Start over in an output_dir that holds a run; its files are removed first.", False)
    dry_run: bool = key("Check settings, data, lengths and memory; read no weights, write nothing.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from paretune.training.config import RACOConfig

    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (RACOConfig, TrainKeys), inherited=TrainingArguments))
        return 0
    settings = resolve(argv, TrainKeys, RACOConfig, required=("model", "data", "objectives"))
    keys: TrainKeys = settings.own
    keys.check()
    objectives = objectives_of(keys.objectives) or []
    adapter = lora_config(keys.lora)
    args = make_config(RACOConfig, _defaults(settings.config, keys.dtype))
    checkpoint = find_checkpoint(args.output_dir, keys.resume)
    if not keys.dry_run and checkpoint is None:
        check_free(args.output_dir, keys.overwrite)
    if keys.dry_run:
        from paretune.cli.dry_run import dry_run

        with no_new_folder(args.output_dir):
            print(dry_run(keys, args, objectives, adapter))
        return 0
    with no_new_folder(args.output_dir):  # an error before training leaves no empty folder behind
        trainer = _build(keys, args, objectives, adapter)
        if checkpoint is not None:
            check_same_data(trainer, Path(args.output_dir))
        elif keys.overwrite:
            clear(args.output_dir)
        trainer.record.content["settings"] = settings.resolved() | {"model": full_path(str(keys.model))}
        run(trainer, checkpoint)
    from paretune.cli.summary import summary

    print(summary(trainer.record.content, trainer.state.log_history, args.output_dir))
    return 0


def _defaults(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """bf16 autocast where `dtype: auto` may choose and this process's GPU computes in it; bars only on a terminal."""
    config = {"disable_tqdm": not sys.stderr.isatty(), **config}
    if "bf16" in config or "fp16" in config or dtype != "auto" or config.get("use_cpu"):
        return config
    import torch

    return {**config, "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)}


def _build(keys: TrainKeys, args: RACOConfig, objectives: list[Objective], adapter: Any) -> RACOTrainer:
    from paretune.training.trainer import RACOTrainer

    return RACOTrainer(
        model=full_path(str(keys.model)),
        args=args,
        objectives=objectives,
        train_dataset=keys.data,
        eval_dataset=keys.eval_data,
        peft_config=adapter,
        ref_model=keys.ref_model,
        callbacks=[] if sys.stderr.isatty() else [line_callback()],
        data_options=keys.read_options(),
        model_options=keys.load_options(args.output_dir),
    )


def run(trainer: RACOTrainer, checkpoint: str | None) -> None:
    """Trains, evaluates at the end where there is data for it, and leaves model, tokenizer, state and record."""
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.eval_data is not None and not _evaluated(trainer):
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    trainer.record.end(trainer.args, "finished", {**trainer.record.content["final"], **_last(trainer)})


def _evaluated(trainer: RACOTrainer) -> bool:
    """Whether the last step's model was evaluated; not where an earlier one was loaded back as the best."""
    step = trainer.state.global_step
    last = any("eval_loss" in line and line["step"] == step for line in trainer.state.log_history)
    return last and not trainer.args.load_best_model_at_end


def _last(trainer: RACOTrainer) -> dict[str, Any]:
    return {key: value for line in trainer.state.log_history for key, value in line.items() if key.startswith("eval_")}


def line_callback() -> Any:
    """Where there is no terminal to draw a bar on: one line per logged step, on stderr."""
    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            shown = [f"{key} {logs[key]:.4g}" for key in ("loss", "eval_loss", "learning_rate") if key in logs]
            cosines = [value for key, value in logs.items() if key.startswith("grad/cosine/")]
            shown += [f"least cosine {min(cosines):+.2f}"] if cosines else []
            if shown:
                print(f"step {state.global_step}/{state.max_steps}: {', '.join(shown)}", file=sys.stderr, flush=True)

    return Lines()


# ---- the output directory ----


def find_checkpoint(output_dir: str, resume: bool | str) -> str | None:
    """The checkpoint to go on from; None to start anew.

    A checkpoint is complete when its trainer_state.json, which is written last, is whole: a run killed while it saved
    goes on from the one before.

    Raises:
        InputError: asked to resume where there is nothing to resume from.
    """
    if resume is False or resume == "":
        return None
    if isinstance(resume, str):
        if not _complete(Path(resume).expanduser()):
            raise InputError("not a complete checkpoint", where=f"resume {resume}", expected="a checkpoint-N directory")
        return str(Path(resume).expanduser())
    found = [path for path in checkpoints(output_dir) if _complete(path)]
    if not found:
        raise InputError("no checkpoint to go on from", where=f"output_dir {output_dir}", fix="Start without --resume.")
    return str(found[-1])


def checkpoints(output_dir: str) -> list[Path]:
    """The checkpoint-N directories in order of N, complete or not."""
    found = [path for path in Path(output_dir).expanduser().glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def _complete(path: Path) -> bool:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (path / "optimizer.pt").exists()


def check_free(output_dir: str, overwrite: bool) -> None:
    """Raises InputError where the directory holds a run already, unless it may be overwritten."""
    path = Path(output_dir).expanduser()
    if overwrite or not path.is_dir():
        return
    status = run_record(path).get("status")
    if status == "finished":
        fix = "Choose another output_dir, or start over with --overwrite."
        raise InputError("a finished run is there", where=f"output_dir {output_dir}", fix=fix)
    if checkpoints(output_dir):
        fix = "Go on with --resume, or start over with --overwrite."
        raise InputError("checkpoints of an unfinished run are there", where=f"output_dir {output_dir}", fix=fix)


def run_record(path: Path) -> dict[str, Any]:
    """The run.json of a directory; empty where there is none that can be read."""
    try:
        content = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_same_data(trainer: RACOTrainer, path: Path) -> None:
    """Raises InputError where the training data is not what the run began with: its steps would be other ones."""

    def fingerprint(content: dict[str, Any]) -> Any:
        return content.get("data", {}).get("train", {}).get("rows", {}).get("fingerprint")

    before = fingerprint(run_record(path))
    if before is not None and before != fingerprint(trainer.record.content):
        fix = "Give the data that the run began with, or start over with --overwrite."
        raise InputError("the training data changed since the run began", where="resume", fix=fix)


def clear(output_dir: str) -> None:
    """Removes what an earlier run left there, and nothing else."""
    import shutil

    path = Path(output_dir).expanduser()
    for name in LEFT:
        (path / name).unlink(missing_ok=True)
    for pattern in ("model-*-of-*.safetensors",):
        for part in path.glob(pattern):
            part.unlink()
    for old in checkpoints(output_dir):
        shutil.rmtree(old)


@contextmanager
def no_new_folder(output_dir: str) -> Iterator[None]:
    """Removes the folders that were made for output_dir in between and are empty at the end."""
    path = Path(os.path.abspath(os.path.expanduser(output_dir)))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in new:  # the innermost first
            try:
                folder.rmdir()
            except OSError:
                break
