"""What cannot be right in a run of ours is an error at its start, never ignored."""

from __future__ import annotations

import difflib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig

from paretune.errors import InputError

REWARDS = ("margins", "accuracies", "chosen", "rejected")
_ONE_BY_ONE = "the optimizer steps parameters during the backward pass, before gradients can be combined"


def check_arguments(args: TrainingArguments) -> None:
    """Raises InputError for settings of `TrainingArguments` under which the combined gradient would be wrong."""
    refused: list[tuple[bool, str, str, str]] = [
        (args.fp16, "fp16", "its loss scaler rescales one loss; here there are several", "Use bf16."),
        (
            args.label_smoothing_factor != 0,
            "label_smoothing_factor",
            "it smooths token labels",
            "Give soft preferences.",
        ),
        (any(k in str(args.optim).lower() for k in ("layerwise", "lomo")), "optim", _ONE_BY_ONE, "Choose adamw_torch."),
        (args.use_liger_kernel, "use_liger_kernel", "a fused loss hides the log-probabilities", "Leave it out."),
        (args.torch_compile, "torch_compile", "compiled layers do not give gradients per row", "Leave it out."),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size",
            "it changes which rows make a step",
            "Set the batch sizes.",
        ),
        (args.train_sampling_strategy != "random", "train_sampling_strategy", "steps are drawn by us", "Leave it out."),
        (args.parallelism_config is not None, "parallelism_config", "tensor or context parallel", "Leave it out."),
    ]
    for wrong, name, reason, fix in refused:
        if wrong:
            raise InputError(f"{name} does not work with several objectives: {reason}", fix=fix)
    wrapper = "the model is not wrapped in DDP: the m gradients are summed by one reduction of ours"
    no_wrapper = ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
    ddp = [(getattr(args, f"ddp_{name}") is not None, f"ddp_{name}", wrapper) for name in no_wrapper]
    for changed, name, reason in [*_loader_settings(args), *ddp]:
        if changed:
            raise InputError(f"{name} would have no effect: {reason}", fix="Leave it out.")
    later = getattr(args, "activation_checkpointing_kwargs", None)  # transformers 5.23 has it, 5.17 not yet
    for kwargs in (later, args.gradient_checkpointing_kwargs):
        if isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            raise InputError(
                "use_reentrant=True loses gradients per row", where="checkpointing", fix="Set it to false."
            )
    check_trackers(args)
    check_optimizer(args)
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs in one process (DataParallel) would lose gradients",
            fix="Start one process per GPU with torchrun, or choose one with CUDA_VISIBLE_DEVICES.",
        )


def _loader_settings(args: TrainingArguments) -> list[tuple[bool, str, str]]:
    """Settings of a loader that is not ours, whether they were changed, and what happens instead."""
    given: Any = args.accelerator_config
    ours, plain = "steps and their micro-batches are drawn by us, the same for any number of ranks", AcceleratorConfig()
    fields = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")
    summed = "the gradients of a step are summed over ranks once, at its last micro-batch"
    return [
        (args.dataloader_drop_last, "dataloader_drop_last", "the last step takes the rows that are left"),
        (args.dataloader_prefetch_factor is not None, "dataloader_prefetch_factor", "workers keep PyTorch's default"),
        *((getattr(given, f) != getattr(plain, f), f"{f} of accelerator_config", ours) for f in fields),
        (bool(given.gradient_accumulation_kwargs), "gradient_accumulation_kwargs of accelerator_config", summed),
    ]


def check_optimizer(args: TrainingArguments) -> None:
    """Raises InputError where the optimizer is not installed or its numbers are out of range; it is made after loading.

    The rate is checked for every optimizer; some would take a negative one and climb.
    """
    ranges = {"learning_rate": (0.0, math.inf), "weight_decay": (0.0, math.inf), "adam_epsilon": (0.0, math.inf)}
    for name, (low, high) in {**ranges, "adam_beta1": (0.0, 1.0), "adam_beta2": (0.0, 1.0)}.items():
        value = getattr(args, name)
        if not low <= value < high:
            rule = f"a number >= {low:g}" + (f" and < {high:g}" if high < math.inf else "")
            raise InputError(f"bad {name}", expected=rule, found=value)
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        text = str(error).strip().splitlines()[0]
        raise InputError(f"the optimizer is not there: {text}", where=f"optim {optimizer_name(args)}") from error
    except ValueError:  # of optimizers that ask for the model, which is not there yet
        return


def check_best_metric(args: TrainingArguments, names: Sequence[str], sets: Sequence[str]) -> None:
    """Raises InputError where no evaluation gives `metric_for_best_model`; the trainer finds out at the first one.

    Args:
        args: of the run.
        names: of the objectives.
        sets: names of several evaluation sets; empty where there is one.
    """
    if args.metric_for_best_model is None or not (args.load_best_model_at_end or args.save_strategy == "best"):
        return
    each = [f"{metric}/{name}" for name in names for metric in ("loss", *(f"rewards/{kind}" for kind in REWARDS))]
    known = [f"eval_{name}_" for name in sets] or ["eval_"]
    known = [prefix + metric for prefix in known for metric in ("loss", *each, "logps/a", "logps/b")]
    wanted = str(args.metric_for_best_model)
    wanted = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
        fix = f"Did you mean {near[0]}?" if near else ""
        expected = f"one of {', '.join(known[:3])}, …"
        raise InputError("no such metric", where="metric_for_best_model", expected=expected, found=wanted, fix=fix)


def optimizer_name(args: TrainingArguments) -> str:
    return str(getattr(args.optim, "value", args.optim))


def check_trackers(args: TrainingArguments) -> None:
    """Raises InputError where a tracker of `report_to` is not there; the trainer finds out after loading the model."""
    there = get_available_reporting_integrations()
    for name in args.report_to or ():
        if name not in there:
            has = f"none, or of those installed: {', '.join(there) or 'no one'}"
            raise InputError("the tracker is not there", where="report_to", expected=has, found=str(name))


def check_output(output_dir: str) -> None:
    """Raises InputError where the run could not write what it leaves."""
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # a name of its own: ranks that start together probe the same directory
            pass
    except OSError as error:
        raise InputError(
            f"cannot write there: {error.strerror or error}", where=f"output_dir {output_dir}", fix="Choose another."
        ) from error
    if not os.access(path, os.W_OK):
        raise InputError("cannot write there", where=f"output_dir {output_dir}", fix="Choose another.")


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Raises InputError where the tokenizer writes tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            "the tokenizer does not belong to the model",
            expected=f"at most {rows} tokens",
            found=f"{len(tokenizer)}",
            fix="Use the model's own tokenizer, or resize its embeddings first.",
        )


def check_weights(model: Any) -> None:
    """Raises InputError where a weight is not finite: training could only spread it."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.detach().abs().amax().isfinite():
            raise InputError(
                "the model holds weights that are not finite (NaN or infinite)",
                where=f"weight {name}",
                fix="Take an earlier checkpoint of it.",
            )
