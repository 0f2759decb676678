"""`paretune train --dry_run`: everything that can be checked before weights are read, and what the run would need."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.cli.summary import table
from paretune.errors import InputError
from paretune.objectives import Objective, normalize_weights
from paretune.training.given import full_path

if TYPE_CHECKING:
    from paretune.cli.train import TrainKeys
    from paretune.training.config import RACOConfig
    from paretune.training.data import TokenizedData

# Bytes of optimizer state per trained parameter, float32, by the beginning of the optimizer's name; the longest wins.
_STATE_BYTES = {
    **{
        "adamw": 8,
        "adamw_8bit": 2,
        "adamw_bnb_8bit": 2,
        "paged_adamw_8bit": 2,
        "paged_adamw": 8,
        "adamw_torch_4bit": 1,
    },
    **{"adamw_torch_8bit": 2, "sgd": 0, "adagrad": 4, "rmsprop": 4, "lion": 4, "lion_8bit": 1, "adafactor": 0},
}


@dataclass(frozen=True)
class Sizes:
    """A model's parameters: all of them, those that would train, and bytes of one frozen one."""

    parameters: int
    trained: int
    frozen_bytes: float


def dry_run(keys: TrainKeys, args: RACOConfig, objectives: list[Objective], adapter: Any) -> str:
    """Checks what a run would check before its weights are read, and says what it found.

    Raises:
        InputError: as `RACOTrainer`.
    """
    from paretune.losses import check_losses, is_reference_free
    from paretune.policy.loading import load_tokenizer
    from paretune.training.checks import check_arguments, check_output, check_tokens
    from paretune.training.data import prepare_sets
    from paretune.training.record import RunRecord

    check_arguments(args)
    check_losses(objectives)
    check_output(args.output_dir)
    normal = normalize_weights(objectives)
    record = RunRecord(args, objectives, normal)
    tokenizer = load_tokenizer(full_path(str(keys.model)))
    train, held_out = prepare_sets(keys.data, keys.eval_data, normal, tokenizer, args, record, **keys.read_options())
    model = empty_model(full_path(str(keys.model)), full=adapter is None, dtype=keys.dtype)
    check_tokens(model, tokenizer)
    sizes = measure(model, adapter, four_bits=keys.quantization == "4bit")
    copy = adapter is None and not args.precompute_ref_log_probs and not all(is_reference_free(o) for o in objectives)
    lines = ["Dry run: nothing was trained, no weights were read, nothing was written.", ""]
    lines += _data_lines(normal, train, held_out, record.content["data"])
    lines += _step_lines(args, len(train.rows), sizes)
    lines += _memory_lines(memory(sizes, len(objectives), args.optim, copy=copy), args)
    return "\n".join(lines)


def empty_model(name: str, *, full: bool, dtype: str) -> Any:
    """The model's shape without its weights (on the meta device), from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if os.path.exists(os.path.join(name, "adapter_config.json")):
        from peft import PeftConfig

        name = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(name)
        if config.is_encoder_decoder:
            raise InputError("an encoder-decoder model", where=f"model {name}", expected="a causal language model")
        stored = getattr(config, "dtype", None) or torch.float32
        wanted = torch.float32 if full else stored if dtype == "auto" else getattr(torch, dtype, None)
        if not isinstance(wanted, torch.dtype):
            raise InputError("bad dtype", expected="auto, float32, bfloat16 or float16", found=dtype)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=wanted)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the model: {str(error).splitlines()[0]}", where=f"model {name}") from error


def measure(model: Any, adapter: Any, *, four_bits: bool) -> Sizes:
    """Counts parameters, with the adapters that would be added."""
    import torch

    if adapter is None:
        total = sum(p.numel() for p in model.parameters())
        return Sizes(total, total, 4.0)
    from paretune.policy.loading import prepare_policy

    frozen_bytes = float(next(model.parameters()).element_size())
    with torch.device("meta"):
        policy, _ = prepare_policy(model, dataclasses.replace(adapter), disable_dropout=False)
    total = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    return Sizes(total, trained, 0.55 if four_bits else frozen_bytes)  # 4 bits and the scales of their blocks


def memory(sizes: Sizes, objectives: int, optim: Any, *, copy: bool) -> dict[str, float]:
    """Bytes by purpose, activations left out: they depend on lengths, batch and checkpointing.

    Args:
        sizes: of the model.
        objectives: m; each has a float32 buffer of the trained parameters, since gradients combine once per step.
        optim: the optimizer's name.
        copy: whether the reference is a frozen copy beside the policy.
    """
    name = str(getattr(optim, "value", optim))
    fits = [known for known in _STATE_BYTES if name.startswith(known)]
    state = _STATE_BYTES[max(fits, key=len)] if fits else 8
    frozen = sizes.parameters - sizes.trained
    return {
        "trained weights (float32)": 4.0 * sizes.trained,
        "frozen weights": sizes.frozen_bytes * frozen,
        "reference copy": 4.0 * sizes.parameters if copy else 0.0,
        f"gradients of {objectives} objectives": 4.0 * sizes.trained * objectives,
        "combined gradient": 4.0 * sizes.trained,
        f"optimizer state ({name})": float(state) * sizes.trained,
    }


def _data_lines(objectives: list[Objective], train: TokenizedData, held_out: Any, reports: dict[str, Any]) -> list[str]:
    sets = {"train": train}
    if held_out is not None:
        sets |= held_out if isinstance(held_out, dict) else {"eval": held_out}
    head = ["objective", "weight", *(f"labels in {name}" for name in sets)]
    rows = []
    for i, objective in enumerate(objectives):
        labels = [f"{int(data.labelled[:, i].sum())} of {len(data.rows)}" for data in sets.values()]
        rows.append([objective.name, f"{objective.weight:.3f}", *labels])
    lines = [table(head, rows), ""]
    for name, report in reports.items():
        tokens = report["tokens"]
        lines.append(
            f"{name}: {tokens['kept']} comparisons; the longest side has {tokens['longest']} tokens (max_length "
            f"{tokens['max_length']}), a response {tokens['response']['mean']:.0f} on average; "
            f"{tokens['prompts_truncated']} prompts cut, {tokens['rows_dropped']} rows dropped."
        )
    return lines


def _step_lines(args: RACOConfig, rows: int, sizes: Sizes) -> list[str]:
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_epoch = -(-rows // step)
    steps = args.max_steps if args.max_steps > 0 else round(per_epoch * args.num_train_epochs)
    share = sizes.trained / sizes.parameters
    return [
        f"steps: {steps} of {step} comparisons each ({per_epoch} per epoch).",
        f"model: {sizes.parameters:,} parameters, {sizes.trained:,} of them trained ({share:.2%}).",
    ]


def _memory_lines(parts: dict[str, float], args: RACOConfig) -> list[str]:
    rows = [[name, _size(amount)] for name, amount in parts.items() if amount]
    rows.append(["together, without activations", _size(sum(parts.values()))])
    device = f"on {args.device.type}, per process"
    return ["", table([f"memory {device}", ""], rows)]


def _size(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.3g} {unit}" if unit != "GB" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError
