"""Loads a causal language model and its tokenizer, and makes it ready to train: dtypes, adapters, dropout."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
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
from paretune.files import whole_files

# transformers would ask a server to convert weights that are not safetensors, and wait for its answer
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# Code that comes with a model is not run, nor asked about; weights are never unpickled.
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


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
    """Raises InputError where a model's directory, or that of an adapter's base, lacks safetensors; reads none."""
    check_model_path(name, where)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    if is_adapter(name):
        if not (folder / "adapter_model.safetensors").exists():
            raise _no_weights(folder, f"{where} {name}", "adapter_model.safetensors")
        return check_weight_files(base_of(name, where), where)
    if (folder / "model.safetensors").exists():
        return
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise _no_weights(folder, f"{where} {name}", "model.safetensors, or its parts and their index")
    try:
        parts = {str(part) for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("unreadable index of weights", where=str(index)) from error
    if strange := sorted(part for part in parts if Path(part).name != part or not part.endswith(".safetensors")):
        raise InputError("weights elsewhere", where=str(index), expected="parts beside it", found=strange[0])
    if lacking := sorted(part for part in parts if not (folder / part).exists()):
        raise InputError("weights are missing", where=f"{where} {name}", expected=", ".join(lacking))


def _no_weights(folder: Path, where: str, expected: str) -> InputError:
    found = {path.name for pattern in _UNSAFE for path in folder.glob(pattern)} - {"training_args.bin"}
    if not found:
        return InputError("no weights are there", where=where, expected=expected)
    fix = "Such files can run code as they are read. Where you trust them, convert them once: load the model with "
    fix += "transformers and save_pretrained it."
    names = ", ".join(sorted(found)[:3])
    return InputError("no weights in safetensors", where=where, expected=expected, found=names, fix=fix)


def is_adapter(name: str) -> bool:
    """Whether a directory holds an adapter."""
    return os.path.exists(os.path.join(os.path.expanduser(name), "adapter_config.json"))


def adapter_config(name: str, where: str = "model") -> PeftConfig:
    """An adapter's configuration.

    Raises:
        InputError: it cannot be read, names no base, or a module to be imported.
    """
    path, where = Path(name).expanduser() / "adapter_config.json", f"{where} {name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        base, module = content.get("base_model_name_or_path"), content.get("megatron_config")
        if not isinstance(base, str) or not base or "\0" in base:
            raise InputError("the adapter names no base", where=where, expected="base_model_name_or_path", found=base)
        if module:  # peft imports what it says
            raise InputError("an adapter of Megatron's layers", where=where, expected="an ordinary adapter")
        return PeftConfig.from_pretrained(str(path.parent))
    except InputError:
        raise
    except Exception as error:  # a wrong type surfaces as whatever the configuration does with it
        raise InputError(f"unreadable adapter_config.json: {_first_line(error)}", where=where) from error


def base_of(name: str, where: str = "model") -> str:
    """The base of an adapter's directory: a directory or hub id.

    Raises:
        InputError: as `adapter_config`; a base that is an adapter on it.
    """
    base = str(adapter_config(name, where).base_model_name_or_path)
    seen = {os.path.realpath(os.path.expanduser(name))}
    at = base
    while is_adapter(at):
        place = os.path.realpath(os.path.expanduser(at))
        if place in seen:
            raise InputError("adapters on each other, without a model", where=f"{where} {name}", found=at)
        seen.add(place)
        at = str(adapter_config(at, where).base_model_name_or_path)
    return base


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    check_model_path(name)
    try:
        return AutoTokenizer.from_pretrained(os.path.expanduser(name), trust_remote_code=False)
    except Exception as error:  # a file of another shape surfaces as whatever reading it raises
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
    check_weight_files(name)
    path = os.path.expanduser(name)
    path = os.path.abspath(path) if os.path.exists(path) else path  # new adapters name it as their base, for any folder
    options: dict[str, Any] = {"dtype": torch.float32 if full else torch_dtype(dtype)}
    if quantize:
        if full:
            raise InputError("4-bit weights cannot train", fix="Add 'lora:' to train adapters on a 4-bit base.")
        options["quantization_config"] = four_bits(torch_dtype(dtype))
    try:
        if is_adapter(path):
            base = _read(base_of(path), options)
            merged = PeftModel.from_pretrained(base, path).merge_and_unload()
            if merged_to is not None and not full:
                with whole_files(merged_to) as folder:
                    merged.save_pretrained(folder)
                merged.name_or_path = merged_to
            return merged
        if AutoConfig.from_pretrained(path, trust_remote_code=False).is_encoder_decoder:
            raise InputError("an encoder-decoder model", where=f"model {name}", expected="a causal language model")
        return _read(path, options)
    except InputError:
        raise
    except Exception as error:  # a configuration of another shape surfaces as whatever building the model raises
        raise InputError(f"cannot load the model: {_first_line(error)}", where=f"model {name}") from error


def _read(path: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model, all of whose weights are in the checkpoint: transformers would draw those that are not at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **SAFE, **options)
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
    check_weight_files(name)
    path = os.path.expanduser(name)
    if not is_adapter(path):
        return load_policy(name, full=False, dtype=dtype, quantize=quantize).requires_grad_(False).eval()
    base = load_policy(base_of(path), full=False, dtype=dtype, quantize=quantize)
    try:
        return PeftModel.from_pretrained(base, path).requires_grad_(False).eval()
    except Exception as error:  # as above
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
