"""`paretune train --dry_run`: everything that can be checked before weights are read, and what the run would need."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.cli.summary import table
from paretune.errors import InputError
from paretune.objectives import Objective, normalize_weights
from paretune.training.given import full_path

if TYPE_CHECKING:
    from paretune.cli.train import TrainKeys
    from paretune.comparisons.batches import Layout
    from paretune.pipelines.methods import Request
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


def dry_run(keys: TrainKeys, request: Request, words: list[str]) -> str:
    """Checks what a run would check before its weights are read, and says what it found.

    Args:
        keys: of the command.
        request: with the method's settings in its configuration.
        words: what the method expands to.

    Raises:
        InputError: as `RACOTrainer`.
    """
    from paretune.losses import check_losses
    from paretune.pipelines.methods import find_method
    from paretune.policy.loading import check_weight_files, four_bits, load_tokenizer
    from paretune.training.checks import check_arguments, check_output, check_tokens
    from paretune.training.combining import StepCombiner
    from paretune.training.data import prepare_sets
    from paretune.training.record import RunRecord

    args, objectives, adapter = request.args, list(request.objectives), request.peft_config
    check_arguments(args)
    check_losses(objectives)
    check_output(args.output_dir)
    if keys.quantization is not None:
        four_bits("auto")
    name = full_path(str(keys.model))
    check_weight_files(name)
    normal = normalize_weights(objectives)
    StepCombiner(args, normal)  # its options, tried
    record = RunRecord(args, objectives, normal)
    tokenizer = load_tokenizer(name)
    train, held_out = prepare_sets(keys.data, keys.eval_data, normal, tokenizer, args, record, **request.data_options)
    model = empty_model(name, full=adapter is None, dtype=keys.dtype)
    check_tokens(model, tokenizer)
    copy = reference_bytes(keys, args, objectives, model, full=adapter is None)
    layout = expected_layout(args, model)
    sizes = measure(model, adapter, four_bits=keys.quantization == "4bit")
    fixed = memory(sizes, args, copy)
    ways = gradient_ways(args, normal, sizes, layout, held=fixed)
    lines = ["Dry run: nothing was trained, no weights were read, nothing was written.", ""]
    method = find_method(request.method)
    lines += [f"method {request.method}: {method.title} ({method.source})", *(f"  {word}" for word in words), ""]
    lines += [*(f"  {notice}" for notice in record.content["notices"] if ": the method makes" in notice)]
    lines += _data_lines(normal, train, held_out, record.content["data"])
    lines += _step_lines(args, len(train.rows), sizes)
    lines += _memory_lines(fixed, ways, args)
    return "\n".join(lines)


def reference_bytes(keys: TrainKeys, args: RACOConfig, objectives: list[Objective], model: Any, *, full: bool) -> float:
    """Bytes of the reference that stays beside the policy; 0 where it is the policy without adapters, or none.

    Raises:
        InputError: a ref_model that is not there, or that has another vocabulary.
    """
    from paretune.losses import is_reference_free
    from paretune.policy.loading import check_weight_files
    from paretune.policy.reference import check_reference

    if all(is_reference_free(o) for o in objectives):
        return 0.0
    parameters = list(model.parameters())
    if keys.ref_model is not None:
        name = full_path(keys.ref_model)
        check_weight_files(name, "ref_model")
        other = empty_model(name, full=False, dtype="auto", where="ref_model")
        check_reference(model, other)
        parameters, full = list(other.parameters()), True
    if args.precompute_ref_log_probs or not full:
        return 0.0
    return float(sum(p.numel() * p.element_size() for p in parameters))


def empty_model(name: str, *, full: bool, dtype: str, where: str = "model") -> Any:
    """The model's shape without its weights (on the meta device), from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from paretune.policy.loading import base_of, is_adapter

    if is_adapter(name):
        name = base_of(name, where)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise InputError("an encoder-decoder model", where=f"{where} {name}", expected="a causal language model")
        stored = getattr(config, "dtype", None) or torch.float32
        wanted = torch.float32 if full else stored if dtype == "auto" else getattr(torch, dtype, None)
        if not isinstance(wanted, torch.dtype):
            raise InputError("bad dtype", expected="auto, float32, bfloat16 or float16", found=dtype)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=wanted)
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the model: {str(error).splitlines()[0]}", where=f"{where} {name}") from error


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


def memory(sizes: Sizes, args: RACOConfig, reference: float) -> dict[str, float]:
    """Bytes on the device by purpose. Gradients are told apart (`gradient_ways`); activations are left out: they depend
    on lengths, batch and checkpointing.

    Args:
        sizes: of the model.
        args: of the run.
        reference: bytes of a reference beside the policy.
    """
    from paretune.training.checks import optimizer_name

    name = optimizer_name(args)
    fits = [known for known in _STATE_BYTES if name.startswith(known)]
    state = _STATE_BYTES[max(fits, key=len)] if fits else 8
    return {
        "trained weights (float32)": 4.0 * sizes.trained,
        "frozen weights": sizes.frozen_bytes * (sizes.parameters - sizes.trained),
        "reference": reference,
        f"optimizer state ({name})": float(state) * sizes.trained,
    }


@dataclass(frozen=True)
class Ways:
    """The ways to keep a step's gradients: bytes of each on device and host, which one the run takes, and why.

    `kept` gradients of `objectives`: a step never keeps more than it has outputs.
    """

    objectives: int
    kept: int
    sizes: dict[str, tuple[int, int]]
    taken: str
    why: str
    obstacle: str | None


def expected_layout(args: RACOConfig, model: Any) -> Layout:
    """Whether rows will share prompts, as far as the configuration tells: a trial on the weights may still object."""
    from paretune.policy.eligibility import config_reason

    return "flat" if args.layout == "flat" or config_reason(model) is not None else "shared"


def gradient_ways(
    args: RACOConfig, objectives: list[Objective], sizes: Sizes, layout: Layout, *, held: dict[str, float]
) -> Ways:
    """What the run would decide about its gradients, on this machine as it is now.

    Args:
        args: of the run.
        objectives: m of them.
        sizes: of the model.
        layout: of the rows.
        held: of `memory`; all of it but the optimizer's state is on the device when the run decides.

    Raises:
        InputError: two_pass asked for where it cannot be.
    """
    from paretune.training.storage import choose_storage, free_bytes, kept_gradients, storage_bytes, two_pass_obstacle

    one_pass = args.gradient_mode != "per_objective"
    rows = args.train_batch_size * args.gradient_accumulation_steps
    kept = kept_gradients(args, objectives, layout, rows, one_pass=one_pass)
    obstacle = two_pass_obstacle(args, objectives, layout, one_pass=one_pass)
    free = free_bytes(args.device)
    left = None if free is None else max(0, int(free - sum(v for k, v in held.items() if "optimizer" not in k)))
    chosen = choose_storage(args, trained=sizes.trained, kept=kept, obstacle=obstacle, free=left)
    on_host = chosen.device is not None and args.device.type != "cpu"
    name = "stack" + (" on the host" if on_host else "") + (", bfloat16" if chosen.dtype.itemsize == 2 else "")
    known = "nobody knows the free memory" if free is None else f"{_size(free)} are free on {args.device.type} now"
    why = "; ".join(chosen.notices) or ("as asked for" if args.gradient_storage != "auto" else f"it fits: {known}")
    ways = storage_bytes(sizes.trained, kept)
    return Ways(len(objectives), kept, ways, "two_pass" if chosen.two_pass else name, why, obstacle)


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


def _memory_lines(parts: dict[str, float], ways: Ways, args: RACOConfig) -> list[str]:
    device, host = ways.sizes[ways.taken]
    kept = f"gradients ({ways.taken})"
    rows = [[name, _size(amount)] for name, amount in {**parts, kept: device}.items() if amount]
    rows.append(["together, without activations", _size(sum(parts.values()) + device)])
    lines = ["", table([f"memory on {args.device.type}, per process", ""], rows), ""]
    fewer = f", for {ways.objectives} objectives" if ways.kept < ways.objectives else ""
    head = [f"to keep {ways.kept} gradient{'s' * (ways.kept > 1)}{fewer}", f"on {args.device.type}", "on the host"]
    lines.append(table(head, [[name, *map(_size, amounts)] for name, amounts in ways.sizes.items()]))
    if ways.obstacle is not None:
        lines.append(f"two_pass is not possible: {ways.obstacle}.")
    lines.append(f"gradient_storage: {args.gradient_storage} takes {ways.taken}: {ways.why}.")
    return [*lines, f"The host would hold {_size(host)} of them."] if host else lines


def _size(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.3g} {unit}" if unit != "GB" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError
