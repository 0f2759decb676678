"""`paretune train`: aligns a model with several objectives."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli.keys import READING, DataKeys, ModelKeys, key, lora_config, objectives_of, resolved
from paretune.cli.rundir import line_callback, no_new_folder
from paretune.cli.settings import hints_of, make_config, resolve
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.given import full_path
from paretune.training.rerun import read_record, settings_of
from paretune.training.rundir import check_checkpoint, parts_of, run_record

if TYPE_CHECKING:
    from paretune.pipelines.methods import Request
    from paretune.training.config import RACOConfig

INTRO = """
paretune train [CONFIG.yaml] [--key value ...]

Aligns a causal language model with several objectives at once: each has a label per comparison and a weight, and where
they conflict, the update is the one that the weights allow (RACO, arXiv 2602.02495).

  paretune train --model Qwen/Qwen3-0.6B --data train.jsonl --eval_fraction 0.1 \\
      --objectives '{helpful: 0.6, harmless: 0.4}' --lora true --output_dir runs/first
  paretune train first.yaml --dry_run               # checks everything, trains nothing
  paretune train first.yaml --resume                # goes on from the newest whole checkpoint
  paretune train --from runs/first/run.json --output_dir runs/again   # the same run once more
  paretune train first.yaml --lora.r 8 --objectives.helpful.weight 0.5

An ordinary DPO file needs no labelling: --objectives '{helpful: {weight: 0.7, labels: chosen}, concise: {weight: 0.3,
rule: shorter}}'. In the YAML file the same keys stand one per line. Numbers in brackets are defaults.
"""

GROUPS = {
    "What is aligned": ["model", "ref_model", "lora", "dtype", "quantization"],
    "On which data": [
        *["data", "eval_data", "eval_fraction", *READING, "max_length"],
    ],
    "To what": [
        *["objectives", "beta", "method", "method_options", "singles", "combiner", "combiner_options", "c", "clip"],
        *["normalize", "normalize_gradients"],
    ],
    "How": [
        *["learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"],
        *["gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "activation_checkpointing", "seed"],
        *["early_stopping_patience"],
    ],
    "The run": [
        "output_dir",
        "dry_run",
        "resume",
        "max_hours",
        "overwrite",
        "logging_steps",
        "eval_steps",
        "save_steps",
        "report_to",
    ],
}


@dataclass
class TrainKeys(ModelKeys, DataKeys):
    """Keys of `paretune train` beside the fields of `RACOConfig`."""

    eval_data: str | list | dict | None = key("Held-out rows, given as data is; or see eval_fraction.")
    objectives: str | list | dict | None = key(
        "Mapping name -> weight or {weight, loss, beta, labels, rule, …}, or a list. Weights are normalised to sum 1."
    )
    method: str | None = key(
        "What is more than a combiner: single, modpo, amopo, … (docs/methods.md); or a combiner's name; null: combiner."
    )
    method_options: dict | None = key("The method's own options, by name.")
    singles: dict | None = key(
        "Objective -> a finished run on it alone, for methods that need one; else it is trained."
    )
    scheme: str | None = key("The same as method, an older name for it.")
    early_stopping_patience: int | None = key(
        "Stop after so many evaluations without a better metric_for_best_model; needs load_best_model_at_end."
    )
    ref_model: str | None = key("The reference, where it is not the model that training starts from.")
    resume: bool | str = key("true: from the last checkpoint in output_dir; or a checkpoint's path.", False)
    overwrite: bool = key("Start over in an output_dir that holds a run; its files are removed first.", False)
    dry_run: bool = key("Check settings, data, lengths and memory; read no weights, write nothing.", False)

    def check(self) -> None:
        """Raises InputError for values that do not go together."""
        super().check()
        if self.scheme is not None and self.method not in (None, self.scheme):
            fix = "Leave scheme out: it is an older name for method."
            raise InputError("scheme contradicts method", expected=self.method, found=self.scheme, fix=fix)
        patience = self.early_stopping_patience
        if patience is not None and patience < 1:
            expected = "a whole number of at least 1, or null"
            raise InputError("bad early_stopping_patience", expected=expected, found=patience)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from paretune.training.config import RACOConfig

    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (RACOConfig, TrainKeys), inherited=TrainingArguments))
        return 0
    from paretune.pipelines.methods import check_method, prepared, run_method

    argv, record, base = from_record(argv)
    settings = resolve(argv, TrainKeys, RACOConfig, required=("model", "data", "objectives"), base=base)
    keys: TrainKeys = settings.own
    keys.check()
    objectives = objectives_of(keys.objectives) or []
    adapter = lora_config(keys.lora)
    name = keys.method or keys.scheme
    config = settings.config if name is None else {**settings.config, **method_settings(name, settings.config)}
    args = make_config(RACOConfig, with_defaults(config, keys.dtype))
    check_early_stopping(keys.early_stopping_patience, args)
    check_resume(args.output_dir, keys.resume)
    request = replace(_request(name or args.combiner, keys, args, objectives, adapter), repeats=record)
    with no_new_folder(args.output_dir):  # an error before training leaves no empty folder behind
        words = check_method(request)
        if keys.dry_run:
            from paretune.cli.dry_run import dry_run

            print(dry_run(keys, prepared(request), words))
            return 0
        run_method(request)
    if args.process_index == 0:
        print(_told(args.output_dir))
    return 0


def from_record(argv: list[str]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The command line without `--from RUN.json`, that run's record, and its settings.

    Raises:
        InputError: no such record, or no folder for the new run.
    """
    from paretune.cli.report import config_defaults
    from paretune.training.config import RACOConfig

    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--from=") else [word])]
    if "--from" not in words:
        return argv, {}, {}
    place = words.index("--from")
    if place + 1 == len(words):
        raise InputError("--from needs the run.json of a run")
    record = read_record(words[place + 1])
    rest = words[:place] + words[place + 2 :]
    known = {*hints_of(RACOConfig), *hints_of(TrainKeys)}
    base = settings_of(record, config_defaults(), known)
    for key_, said in (record.get("in_memory") or {}).items():
        if base.get(key_) is None and key_ not in ("eval_data", "ref_model") and f"--{key_}" not in rest:
            fix = f"Give --{key_}, or repeat the run from Python."
            raise InputError(f"the run's {key_} was no file", where=f"from {words[place + 1]}", found=said, fix=fix)
    if not any(word.partition("=")[0] in ("--output_dir", "--output-dir") for word in rest):
        raise InputError("output_dir is missing", where="--from", fix="Give --output_dir a folder for the new run.")
    return rest, record, base


def method_settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the method sets of the configuration.

    Raises:
        InputError: no such method, or a given key that contradicts it.
    """
    from paretune.pipelines.methods import find_method

    sets = dict(find_method(name).settings)
    for key_, value in sets.items():
        if key_ in given and given[key_] != value:
            fix = f"Leave {key_} out: the method sets it."
            raise InputError(f"{key_} contradicts method {name}", expected=value, found=given[key_], fix=fix)
    return sets


def check_resume(output_dir: str, resume: bool | str) -> None:
    """Raises InputError where there is nothing to go on from: neither a checkpoint nor a method's finished parts."""
    if resume is not True or not parts_of(output_dir):
        check_checkpoint(output_dir, resume)


def _told(output_dir: str) -> str:
    from paretune.cli.summary import summary

    folder = Path(output_dir).expanduser()
    record, history = run_record(folder), folder / "history.jsonl"
    if not history.exists():  # nothing was trained but parts
        return f"{record.get('method', {}).get('name')}: finished, {output_dir}"
    return summary(record, [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()], output_dir)


def with_defaults(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What the machine decides where nobody else did: bars on a terminal only, pinned memory with a GPU only, and bf16
    autocast where `dtype: auto` may choose and the GPU computes in it."""
    import torch

    gpu = torch.cuda.is_available() and not config.get("use_cpu")
    chosen = {"disable_tqdm": not sys.stderr.isatty(), "dataloader_pin_memory": gpu}
    if gpu and dtype == "auto" and not config.get("fp16"):
        chosen["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    return {**chosen, **config}


def check_early_stopping(patience: int | None, args: RACOConfig) -> None:
    """Raises InputError where nothing would be compared, or the best model would not be the one that is left."""
    if patience is None:
        return
    if args.eval_strategy == "no" or not args.load_best_model_at_end:
        raise InputError(
            "early stopping needs evaluations during the run, and keeps the best model",
            where="early_stopping_patience",
            fix="Set eval_strategy and save_strategy to steps (or epoch), and load_best_model_at_end: true.",
        )


def _callbacks(keys: TrainKeys) -> list[Any]:
    found = [] if sys.stderr.isatty() else [line_callback()]
    if keys.early_stopping_patience is not None:
        found.append(_early_stopping(keys.early_stopping_patience))
    return found


def _early_stopping(patience: int) -> Any:
    """transformers' callback, which takes evaluations of other sets than the metric's for a mistake."""
    from transformers import EarlyStoppingCallback

    class EarlyStopping(EarlyStoppingCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:  # type: ignore[override]
            if f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}" in metrics:
                super().on_evaluate(args, state, control, metrics, **kwargs)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            kept = state.stateful_callbacks.get("EarlyStopping", {}) if state.global_step else {}
            # a resumed run has waited as long as its checkpoint had
            self.early_stopping_patience_counter = kept.get("attributes", {}).get("early_stopping_patience_counter", 0)

    return EarlyStopping(patience)


def _request(method: str, keys: TrainKeys, args: RACOConfig, objectives: list[Objective], adapter: Any) -> Request:
    from paretune.pipelines.methods import Request

    return Request(
        method=method,
        model=full_path(str(keys.model)),
        args=args,
        objectives=objectives,
        train_dataset=keys.data,
        eval_dataset=keys.eval_data,
        peft_config=adapter,
        ref_model=keys.ref_model,
        data_options=keys.read_options(),
        model_options=keys.load_options(args.output_dir),
        method_options=keys.method_options or {},
        singles=keys.singles or {},
        callbacks=lambda: _callbacks(keys),
        settings=resolved(keys),
        resume=keys.resume,
        overwrite=keys.overwrite,
    )
