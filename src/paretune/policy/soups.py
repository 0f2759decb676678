"""Rewarded soups: one model whose weights are a weighted mean of m models that started from the same one.

    model = soup(["runs/helpful", "runs/harmless"], [0.7, 0.3])        # a model, ready to sample from
    write_soup(["runs/helpful", "runs/harmless"], [0.7, 0.3], "runs/soup-70")

theta = sum_i w_i theta_i (Rame et al., arXiv 2306.04488; with DPO models a "DPO soup"): m trainings give every
weighting, at no further cost. It leans on the parts' staying close enough to their common start for straight lines
between them to be good models, which holds for light fine-tuning and is nowhere guaranteed.

Of LoRA adapters there are two interpolations. `exact` interpolates what they add to the base: with the delta of part i
s_i B_i A_i (s_i its scaling), the soup's is sum_i w_i s_i B_i A_i, written as one adapter of rank sum_i r_i. `linear`
interpolates the factors, A = sum_i w_i A_i and B = sum_i w_i B_i, as many merging scripts do: the rank stays r, but
the delta is sum_ij w_i w_j B_i A_j. Its cross terms B_i A_j multiply matrices that never trained together, and its own
terms shrink by w_i: two copies of one adapter give it back, two different ones at equal weights half of what `exact`
gives them in the mean, beside those cross terms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.files import whole_files
from paretune.policy.loading import adapter_config, base_of, check_weight_files, is_adapter, load_policy, load_tokenizer

KINDS = ("exact", "linear")
# What an adapter may start from without changing its base: the others write a part of it into the base's weights.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
# Options of LoRA under which the delta is not B A, or parts of the model change by other ways than a sum.
_OTHER_SUMS = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
)


def check_parts(parts: Sequence[str], weights: Sequence[float], lora: str = "exact") -> bool:
    """Whether the parts are adapters (else whole models); checks all that can be told without reading weights.

    Args:
        parts: directories (or, of whole models, hub ids), one per objective.
        weights: one per part, non-negative, of sum 1.
        lora: "exact" or "linear".

    Raises:
        InputError: weights that are none, adapters beside whole models, parts of different bases, adapters whose delta
            is not a product of two matrices, missing files.
    """
    if lora not in KINDS:
        raise InputError("bad interpolation of adapters", expected=" or ".join(KINDS), found=lora)
    check_mixture(len(parts), weights)
    for part in parts:
        check_weight_files(part, "soup part")
    adapters = [is_adapter(part) for part in parts]
    if any(adapters) != all(adapters):
        found = ", ".join(f"{p}: {'adapter' if a else 'whole model'}" for p, a in zip(parts, adapters, strict=True))
        raise InputError("adapters and whole models cannot be averaged", expected="parts of one kind", found=found)
    starts = [_start(part) for part in parts]
    known = {start: part for part, start in zip(parts, starts, strict=True) if start is not None}
    if len(known) > 1:
        raise InputError(
            "the parts did not start from one model",
            where="soup",
            expected="one base for all of them",
            found="; ".join(f"{part} from {start}" for start, part in known.items()),
            fix="Train every part from the same model: between others there is no straight line of good models.",
        )
    if all(adapters):
        for part in parts:
            _check_adapter(part)
    return all(adapters)


def check_mixture(count: int, weights: Sequence[float]) -> None:
    """Raises InputError unless there are `count` weights, non-negative and of sum 1."""
    good = len(weights) == count and count > 0 and all(math.isfinite(w) and w >= 0 for w in weights)
    if not good or not math.isclose(sum(weights), 1.0, rel_tol=1e-6):
        expected = f"{count} non-negative numbers of sum 1, one per part"
        raise InputError("bad weights of a mixture", expected=expected, found=list(weights))


def soup(parts: Sequence[str], weights: Sequence[float], *, lora: str = "exact") -> nn.Module:
    """The weighted mean of m models as a model in eval mode: float32 arithmetic throughout.

    Args:
        parts: directories of whole models or of LoRA adapters on one base, one per objective; whole models may be hub
            ids. A part of weight 0 is not read.
        weights: (m,) non-negative, of sum 1.
        lora: how adapters are interpolated: "exact" (the sum of their deltas) or "linear" (their factors), see above.

    Raises:
        InputError: as `check_parts`; parts whose weights differ in name or shape.
    """
    adapters = check_parts(parts, weights, lora)
    used = [(part, float(weight)) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    names, shares = [part for part, _ in used], [weight for _, weight in used]
    if adapters:
        states = [load_file(Path(part).expanduser() / "adapter_model.safetensors") for part in names]
        config, state = mix_adapters([_lora_config(part) for part in names], states, shares, names=names, lora=lora)
        adapted = get_peft_model(load_policy(str(config.base_model_name_or_path), full=False), config)
        missed: Any = set_peft_model_state_dict(adapted, state)
        if missed.unexpected_keys:
            raise InputError("the adapter does not fit its base", where=names[0], found=missed.unexpected_keys[:3])
        return adapted.requires_grad_(False).eval()
    model = load_policy(names[0], full=True)
    total = {name: tensor.float() * shares[0] if tensor.is_floating_point() else tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    for part, share in used[1:]:  # one after the other: two models in memory, however many parts there are
        other = load_policy(part, full=True).state_dict()
        check_same_tensors(total, other, names[0], part)
        for name, tensor in other.items():
            if tensor.is_floating_point():
                total[name] += share * tensor.float()
    model.load_state_dict(total)
    return model.requires_grad_(False).eval()


def write_soup(parts: Sequence[str], weights: Sequence[float], output_dir: str, *, lora: str = "exact") -> Path:
    """Writes the `soup` and the parts' tokenizer as a model (or adapter) directory; returns it."""
    model: Any = soup(parts, weights, lora=lora)
    with whole_files(output_dir) as folder:
        model.save_pretrained(folder)
        load_tokenizer(parts[0]).save_pretrained(folder)
    return Path(output_dir)


def mix_states(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i w_i theta_i of state dicts that agree in names and shapes: float32; what is no fraction, from the first."""
    for number, state in enumerate(states[1:], start=1):
        check_same_tensors(states[0], state, "part 0", f"part {number}")
    return {
        name: sum((w * s[name].float() for w, s in zip(weights, states, strict=True)), torch.zeros_like(first).float())
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def check_same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor], name_a: str, name_b: str) -> None:
    """Raises InputError where two state dicts differ in names or shapes."""
    where = f"{name_a} and {name_b}"
    if set(a) != set(b):
        only = sorted(set(a) ^ set(b))
        raise InputError("the parts hold different weights", where=where, found=f"only one has {', '.join(only[:3])}")
    for name, tensor in a.items():
        if tensor.shape != b[name].shape:
            found = f"{name}: {tuple(tensor.shape)} and {tuple(b[name].shape)}"
            raise InputError("the parts' weights differ in shape", where=where, expected="one shape", found=found)


def mix_adapters(
    configs: Sequence[LoraConfig],
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    *,
    names: Sequence[str],
    lora: str = "exact",
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """One LoRA adapter from several on the same base, and its configuration.

    exact: A (sum r_i, in) holds the A_i below one another and B (out, sum r_i) the w_i s_i B_i beside one another, so
    that B A = sum_i w_i s_i B_i A_i, with a scaling of 1. linear: the weighted means of A and of B, which needs one
    rank and one scaling. Other weights that adapters carry (`modules_to_save`) are whole weights and get the mean.

    Raises:
        InputError: adapters of different layers; for linear, of different ranks or scalings.
    """
    factors = [_factors(state) for state in states]
    for part, name in zip(factors[1:], names[1:], strict=True):
        if set(part) != set(factors[0]):
            only = sorted(set(part) ^ set(factors[0]))
            fix = "Train the parts with the same target_modules."
            where = f"{names[0]} and {name}"
            raise InputError("the adapters are on different layers", where=where, found=", ".join(only[:3]), fix=fix)
    rest = [{k: v for k, v in state.items() if not _is_factor(k)} for state in states]
    mixed, ranks = mix_states(rest, weights), {}
    for layer, (key_a, key_b) in factors[0].items():
        sides = [(state[key_a].float(), state[key_b].float()) for state in states]
        scalings = [_scaling(config, layer, len(a)) for config, (a, _) in zip(configs, sides, strict=True)]
        if lora == "linear":
            if len({a.shape for a, _ in sides}) > 1 or len(set(scalings)) > 1:
                fix = "Interpolate them exactly (lora: exact), or train the parts with one r and lora_alpha."
                raise InputError("adapters of different rank or scaling have no linear mean", where=layer, fix=fix)
            mixed[key_a] = sum((w * a for w, (a, _) in zip(weights, sides, strict=True)), torch.zeros_like(sides[0][0]))
            mixed[key_b] = sum((w * b for w, (_, b) in zip(weights, sides, strict=True)), torch.zeros_like(sides[0][1]))
            continue
        mixed[key_a] = torch.cat([a for a, _ in sides], 0)
        mixed[key_b] = torch.cat([w * s * b for w, s, (_, b) in zip(weights, scalings, sides, strict=True)], 1)
        ranks[layer] = len(mixed[key_a])
    return (configs[0] if lora == "linear" else _of_ranks(configs[0], ranks)), mixed


def _is_factor(key: str) -> bool:
    return any(f".{factor}" in key for factor in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"))


def _factors(state: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Layer -> the keys of its A (r, in …) and its B (out, r …)."""
    found = {}
    for key in state:
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if f".{a}" in key:
                layer = key.partition(f".{a}")[0].removeprefix("base_model.model.")
                found[layer] = (key, key.replace(f".{a}", f".{b}"))
    return found


def _scaling(config: LoraConfig, layer: str, rank: int) -> float:
    """What peft multiplies B A by: alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA."""
    pattern = config.alpha_pattern or {}
    alpha = pattern.get(get_pattern_key(list(pattern), layer), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _of_ranks(config: LoraConfig, ranks: Mapping[str, int]) -> LoraConfig:
    """The configuration of an adapter on the same layers with these ranks and a scaling of 1."""
    usual = max(ranks.values(), default=config.r)
    unusual = {layer: rank for layer, rank in ranks.items() if rank != usual}
    changed = {"r": usual, "lora_alpha": usual, "rank_pattern": unusual, "alpha_pattern": dict(unusual)}
    plain = {"use_rslora": False, "init_lora_weights": True, "lora_dropout": 0.0}
    return LoraConfig(**{**_options(config), **changed, **plain})


def _options(config: LoraConfig) -> dict[str, Any]:
    kept = {k: v for k, v in config.to_dict().items() if k not in ("peft_type", "auto_mapping", "peft_version")}
    known = set(LoraConfig.__dataclass_fields__)
    return {k: v for k, v in kept.items() if k in known}


# ---- parts on disk ----


def _lora_config(part: str) -> LoraConfig:
    config = adapter_config(part, "soup part")
    if not isinstance(config, LoraConfig):
        found = str(getattr(config.peft_type, "value", config.peft_type))
        raise InputError("only LoRA adapters can be averaged", where=part, expected="LORA", found=found)
    return config


def _check_adapter(part: str) -> None:
    config = _lora_config(part)
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise InputError(
            "this adapter started by changing its base, so its base is not the other parts' base",
            where=f"{part}, init_lora_weights",
            expected="an ordinary start",
            found=config.init_lora_weights,
            fix="Merge it into its base and average whole models.",
        )
    if other := [option for option in _OTHER_SUMS if getattr(config, option, None)]:
        fix = "Merge the adapters into their base and average whole models."
        raise InputError("these adapters add more than a product of two matrices", where=part, found=other, fix=fix)
    if not (Path(part).expanduser() / "adapter_model.safetensors").exists():
        raise InputError("no weights that can be averaged", where=part, expected="adapter_model.safetensors")


def _start(part: str) -> str | None:
    """What a part was trained from: an adapter's base, a run's model; None where nothing says it."""
    folder = Path(part).expanduser()
    if is_adapter(part):
        return base_of(part, "soup part")
    record = folder / "run.json"
    if not record.exists():
        return None
    try:
        start = (json.loads(record.read_text(encoding="utf-8")).get("settings") or {}).get("model")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError("unreadable record of a run", where=str(record)) from error
    return None if start is None else str(start)
