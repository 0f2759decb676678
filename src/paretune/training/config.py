"""The configuration of a run: `transformers.TrainingArguments` and what multi-objective alignment adds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from paretune.combine import COMBINERS, find_combiner
from paretune.combine.contract import check_options, needs, options_of
from paretune.errors import InputError
from paretune.training.interruption import RunArguments

# Options of combiners that have keys of their own.
_OWN_KEYS = {"c", "clip", "tau"}
_CHOICES = {
    "layout": ("auto", "shared", "flat"),
    "gradient_mode": ("auto", "single_pass", "per_objective"),
    "gradient_storage": ("auto", "stack", "two_pass"),
    "stack_dtype": ("float32", "bfloat16"),
    "stack_device": ("auto", "cpu"),
    "normalize": ("step", "dataset"),
    "gram": ("batch", "averaged"),
}


@dataclass
class RACOConfig(RunArguments):
    """Every field of `TrainingArguments` works, and these; defaults follow the paper (arXiv 2602.02495, section 5).

    Raises:
        InputError: a value outside its range, before anything is loaded.
    """

    output_dir: str = field(default="paretune-run", metadata={"help": "Where the run writes all it leaves."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate; LoRA usually wants 10x more."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Comparisons per device and micro-batch."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Micro-batches per optimizer step."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: a share of the run below 1, else steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged lines."})
    train_sampling_strategy: str = field(default="random", metadata={"help": "Only 'random': steps are stratified."})

    combiner: str = field(
        default="raco", metadata={"help": f"How gradients combine: {', '.join(COMBINERS)}, torchjd:NAME."}
    )
    combiner_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the combiner that have no key of their own, by name."}
    )
    c: float = field(default=0.4, metadata={"help": "Radius of the correction in units of ||g_0||, in [0, 1)."})
    clip: bool = field(default=True, metadata={"help": "Clip the dual coefficients by the weights (RACO)."})
    tau: float = field(default=1e-5, metadata={"help": "Relative noise of the gradients, for ties in the dual."})
    beta: float = field(default=0.2, metadata={"help": "Inverse temperature of objectives without one of their own."})
    gram: str = field(
        default="batch",
        metadata={
            "help": "Whose Gram decides how gradients combine: the 'batch' gradients', or 'averaged' ones' over steps, "
            "which are less noisy and double what is kept (docs/averaged.md)."
        },
    )
    gram_decay: float = field(default=0.9, metadata={"help": "Of gram: averaged; 0.9 averages as 19 equal steps do."})
    normalize: str = field(
        default="step",
        metadata={"help": "Mean of a loss over its labels in the 'step', or over the expected count ('dataset')."},
    )
    normalize_gradients: bool = field(
        default=False, metadata={"help": "Scale the objectives' gradients to one norm before they are combined."}
    )
    layout: str = field(default="auto", metadata={"help": "'shared' computes a prompt once; 'flat' twice; 'auto'."})
    gradient_mode: str = field(
        default="auto", metadata={"help": "'single_pass' for all objectives, 'per_objective' one each, or 'auto'."}
    )
    gradient_storage: str = field(
        default="auto",
        metadata={
            "help": "Until they are combined, 'stack' keeps all gradients; 'two_pass' none, for a second backward pass "
            "and steps of one micro-batch; 'auto' stacks them where they fit."
        },
    )
    stack_dtype: str = field(default="float32", metadata={"help": "Of stacked gradients; 'bfloat16' halves them."})
    stack_device: str = field(default="auto", metadata={"help": "'cpu' stacks gradients on the host; 'auto' does not."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Tokens of prompt and response; prompts are cut from the left to fit."}
    )
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Share of the data held out for evaluation; no group or prompt is cut."}
    )
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Score the reference once before training, cached on disk."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch off the model's own dropout (an adapter's stays as asked)."}
    )
    max_skipped_steps: int = field(
        default=5,
        metadata={"help": "Steps in a row with non-finite gradients before the run stops."},
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize; null: as many as rows and cores are worth."}
    )

    def __post_init__(self) -> None:
        check_engines(self.deepspeed, self.fsdp)
        for name, (low, high) in {"c": (0.0, 1.0), "beta": (0.0, math.inf), "tau": (0.0, 1.0)}.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and low <= value < high) or (name != "c" and value == 0):
                rule = f"a number {'>=' if name == 'c' else '>'} {low:g}" + (
                    f" and < {high:g}" if high < math.inf else ""
                )
                raise InputError(f"bad {name}", expected=rule, found=value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"bad {name}", expected=f"one of {', '.join(choices)}", found=getattr(self, name))
        if not 0.0 <= self.gram_decay < 1.0:
            raise InputError("bad gram_decay", expected="0 <= gram_decay < 1", found=self.gram_decay)
        self._check_combiner()
        if self.max_length is not None and self.max_length < 2:
            raise InputError("bad max_length", expected="at least 2 tokens, or null", found=self.max_length)
        if self.per_device_train_batch_size < 1 or self.gradient_accumulation_steps < 1:
            raise InputError("batch sizes must be at least 1")
        if self.gradient_storage == "two_pass" and self.gradient_accumulation_steps > 1:
            raise InputError(
                "two_pass needs all of a step in one micro-batch: it goes backward twice over one forward pass",
                where=f"gradient_accumulation_steps {self.gradient_accumulation_steps}",
                fix="Set it to 1 and per_device_train_batch_size to the step, or gradient_storage to stack.",
            )
        if self.greater_is_better is None and self.metric_for_best_model:
            metric = self.metric_for_best_model.partition("/")[0]  # transformers goes by the end of the whole name
            self.greater_is_better = not metric.endswith("loss")
        self.remove_unused_columns = False  # the batch is ours, not the model's signature
        super().__post_init__()

    def _check_combiner(self) -> None:
        combiner = find_combiner(self.combiner)
        if not isinstance(self.combiner_options, dict):
            raise InputError(
                "bad combiner_options", expected="a mapping of names to values", found=self.combiner_options
            )
        for name in _OWN_KEYS & self.combiner_options.keys() & self._own_options().keys():
            raise InputError(f"{name} has a key of its own", where="combiner_options", fix=f"Set {name} itself.")
        check_options(self.combiner, combiner, self.options_of_combiner())
        if self.normalize_gradients and "present" in needs(combiner):
            fix = "Leave it out, or choose a combiner of gradients."
            raise InputError(f"{self.combiner} does not weigh gradients", where="normalize_gradients", fix=fix)

    def _own_options(self) -> dict[str, Any]:
        """Those of the keys c, clip and tau that a combiner of ours takes; torchjd's options mean other things."""
        if self.combiner not in COMBINERS:
            return {}
        return {key: getattr(self, key) for key in _OWN_KEYS & options_of(find_combiner(self.combiner)).keys()}

    def options_of_combiner(self) -> dict[str, Any]:
        """The options that this combiner is called with, by name."""
        return {**self._own_options(), **self.combiner_options}


def check_engines(deepspeed: Any, fsdp: Any) -> None:
    """Raises InputError for engines that own gradients, asked for here or by the configuration of `accelerate launch`.

    Args:
        deepspeed, fsdp: of the arguments.
    """
    shards = "load a model that is too large in shards (docs/training.md)"
    plain = f"Start plain processes (torchrun, or accelerate launch without it), and {shards}."
    engines = {
        "deepspeed": (deepspeed, "DEEPSPEED", "its engine owns gradients", plain),
        "fsdp": (fsdp, "FSDP", "its wrapper is made for one loss, and on CPUs there is none", f"Instead, {shards}."),
        "Megatron-LM": (None, "MEGATRON_LM", "its engine owns gradients", plain),
    }
    for name, (asked, variable, reason, fix) in engines.items():
        by_launcher = os.environ.get(f"ACCELERATE_USE_{variable}", "false").lower() in ("true", "1")
        if asked or by_launcher:
            where = "" if asked else "accelerate's configuration"
            raise InputError(f"{name} does not work with several objectives: {reason}", where=where, fix=fix)
