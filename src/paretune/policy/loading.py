"""Loads a causal language model and its tokenizer, and makes it ready to train: dtypes, adapters, dropout."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from paretune.errors import InputError


def check_model_path(name: str, where: str = "model") -> None:
    """Raises InputError, before anything is read, where a name looks like a path but no model is there."""
    local = name.startswith((".", "/", "~")) or os.path.exists(name) or name.count("/") > 1
    path = os.path.expanduser(name)
    if not local:
        return
    if not os.path.isdir(path):
        raise InputError("no such model directory", where=where, found=name, fix="Give a directory or a hub id.")
    if not any(os.path.exists(os.path.join(path, f)) for f in ("config.json", "adapter_config.json")):
        raise InputError("not a model directory", where=f"{where} {name}", expected="config.json in it")


def check_weight_files(name: str, where: str = "model") -> None:
    """Raises InputError where a model's directory, or that of an adapter's base, lacks files of weights; reads none."""
    check_model_path(name, where)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").exists():
        if not any((folder / f"adapter_model.{end}").exists() for end in ("safetensors", "bin")):
            raise InputError("no weights are there", where=f"{where} {name}", expected="adapter_model.safetensors")
        return check_weight_files(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path), where)
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if (folder / whole).exists():
            return
        if index.exists():
            try:
                parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise InputError("unreadable index of weights", where=str(index)) from error
            lacking = sorted(part for part in parts if not (folder / part).exists())
            if lacking:
                raise InputError("weights are missing", where=f"{where} {name}", expected=", ".join(lacking))
            return
    expected = "model.safetensors, or its parts and their index"
    raise InputError("no weights are there", where=f"{where} {name}", expected=expected)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    check_model_path(name)
    try:
        return AutoTokenizer.from_pretrained(os.path.expanduser(name))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load a tokenizer: {_first_line(error)}", where=f"model {name}") from error


def load_policy(
    name: str, *, full: bool, dtype: str = "auto", quantize: bool = False, merged_to: str | None = None
) -> PreTrainedModel:
    """The causal language model of a directory or hub id; for an adapter's directory, its base with it merged in.

    Args:
        name: directory or hub id.
        full: all weights will train: they are loaded as float32, whatever the checkpoint's dtype, because bfloat16 has
            too few digits to add a learning rate's worth of change to a weight (transformers 5 would load bfloat16).
        dtype: of a frozen base; "auto" is the checkpoint's.
        quantize: load a frozen base in 4 bits (QLoRA; needs bitsandbytes).
        merged_to: where a base with its adapter merged in is saved when it stays frozen: new adapters on it would
            otherwise name the base without the old ones as theirs.

    Raises:
        InputError: no such model, not a causal language model, or quantization asked for where it cannot be.
    """
    check_model_path(name)
    path = os.path.expanduser(name)
    path = os.path.abspath(path) if os.path.exists(path) else path  # new adapters name it as their base, for any folder
    options: dict[str, Any] = {"dtype": torch.float32 if full else torch_dtype(dtype)}
    if quantize:
        if full:
            raise InputError("4-bit weights cannot train", fix="Add 'lora:' to train adapters on a 4-bit base.")
        options["quantization_config"] = four_bits(torch_dtype(dtype))
    try:
        if os.path.exists(os.path.join(path, "adapter_config.json")):
            base = _read(str(PeftConfig.from_pretrained(path).base_model_name_or_path), options)
            merged = PeftModel.from_pretrained(base, path).merge_and_unload()
            if merged_to is not None and not full:
                merged.save_pretrained(merged_to)
                merged.name_or_path = merged_to
            return merged
        if AutoConfig.from_pretrained(path).is_encoder_decoder:
            raise InputError("an encoder-decoder model", where=f"model {name}", expected="a causal language model")
        return _read(path, options)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the model: {_first_line(error)}", where=f"model {name}") from error


def _read(path: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model, all of whose weights are in the checkpoint: transformers would draw those that are not at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(f"the checkpoint lacks {len(missing)} weights of the model", where=path, found=f"no {names}")
    _keep_four_bits_differentiable(model)
    return model


def _keep_four_bits_differentiable(model: nn.Module) -> None:
    """bitsandbytes packs weights on the CPU at the first evaluation, for good, and the packed product has no gradient:
    training after an evaluation would silently lose it. Nor does it pack every size of layer."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (not an attribute of every module)


def load_scored(name: str, *, dtype: str = "auto", quantize: bool = False) -> nn.Module:
    """The model of a directory or hub id, to be scored: an adapter stays apart from its base, so it can be off.

    Raises:
        InputError: as `load_policy`; an adapter whose base is not there.
    """
    check_model_path(name)
    path = os.path.expanduser(name)
    if not os.path.exists(os.path.join(path, "adapter_config.json")):
        return load_policy(name, full=False, dtype=dtype, quantize=quantize).requires_grad_(False).eval()
    name_of_base = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    base = load_policy(name_of_base, full=False, dtype=dtype, quantize=quantize)
    try:
        return PeftModel.from_pretrained(base, path).requires_grad_(False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the adapter: {_first_line(error)}", where=f"model {name}") from error


def torch_dtype(name: str) -> Any:
    """The type of a name; `auto` stays as it is."""
    if name == "auto":
        return "auto"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
    if dtype is None:
        raise InputError("bad dtype", expected="auto, float32, bfloat16 or float16", found=name)
    return dtype


def four_bits(dtype: Any) -> BitsAndBytesConfig:
    """How a base is loaded in 4 bits.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError("4-bit loading needs bitsandbytes", fix="pip install 'paretune[quant]'.") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def prepare_policy(
    model: nn.Module, peft_config: PeftConfig | None, *, disable_dropout: bool
) -> tuple[nn.Module, list[str]]:
    """The model ready to train, and what had to be said about it.

    Adapters are added where asked for; trained weights become float32 and a frozen base keeps its dtype; the model's
    own dropout is switched off (the reference has none, so margins would not start at 0), an adapter's is kept.

    Raises:
        InputError: nothing would train.
    """
    notices: list[str] = []
    if disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout) and module.p > 0 and not isinstance(model, PeftModel):
                module.p = 0.0
    _keep_four_bits_differentiable(model)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise InputError("a peft_config for a model that already has adapters", fix="Leave peft_config out.")
        if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        try:
            with warnings.catch_warnings():
                # peft asks transformers by a name that is on its way out: nothing that a user could change
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # it sets it right by itself
                model = get_peft_model(model, peft_config)
        except ValueError as error:
            raise InputError(f"the adapter does not fit the model: {_first_line(error)}", where="lora") from error
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("nothing to train", expected="at least one parameter that requires gradients")
    half = [p for p in trained if p.dtype in (torch.float16, torch.bfloat16)]
    for parameter in half:
        parameter.data = parameter.data.float()
    if half:
        notices.append(f"{len(half)} trained parameters were made float32; frozen ones keep their dtype")
    return model, notices
