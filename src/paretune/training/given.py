"""What a run was given, by name where it has one: the part of `run.json` that `paretune evaluate` goes on from."""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import Any


def full_path(name: str) -> str:
    """A local file or directory as an absolute path, so that its name works from any folder; a hub id as it is."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def full_paths(data: Any) -> Any:
    """The same for data in any of its forms: a path, a list, or {path, …}."""
    if isinstance(data, str | os.PathLike):
        return full_path(os.fspath(data))
    if isinstance(data, list | tuple):
        return [full_paths(entry) for entry in data]
    if isinstance(data, dict):
        named = "path" in data  # else sets by name
        return {k: full_paths(v) if k == "path" or not named else v for k, v in data.items()}
    return data


def given_settings(
    model: Any,
    ref_model: Any,
    peft_config: Any,
    train: Any,
    evaluation: Any,
    data_options: dict[str, Any] | None,
    model_options: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of a trainer as plain values, and in words what has no name.

    Returns:
        settings: under the keys of the command line, so that they make a configuration; null for what has no name (rows
            in memory). A model in memory goes by the name that it was loaded by.
        in_memory: by key, what was an object.
    """
    options = model_options or {}
    in_memory: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for key, value in (("model", model), ("ref_model", ref_model)):
        settings[key] = value
        if value is not None and not isinstance(value, str):
            settings[key] = getattr(getattr(value, "config", None), "name_or_path", "") or None
            in_memory[key] = type(value).__name__
        if settings[key] is not None:
            settings[key] = full_path(str(settings[key]))
    four_bits = options.get("quantize") or getattr(model, "is_loaded_in_4bit", False)
    settings |= {"dtype": str(options.get("dtype", "auto")), "quantization": "4bit" if four_bits else None}
    settings["lora"] = None if peft_config is None else _lora(peft_config)
    if peft_config is not None and settings["lora"] is None:
        in_memory["lora"] = repr(peft_config)
    for key, value in (("data", train), ("eval_data", evaluation)):
        settings[key] = full_paths(value) if _named(value) else None
        if not _named(value):
            in_memory[key] = _described(value)
    given = {key: value for key, value in (data_options or {}).items() if key not in ("seed", "change_rows")}
    return {**settings, **_reading(), **given}, in_memory


def _lora(config: Any) -> dict[str, Any] | None:
    """LoRA's options that differ from peft's defaults, and those whose defaults are others here; None for another kind
    of adapter, which the command line does not have."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        return None
    plain, ours = LoraConfig(), ("r", "lora_alpha", "target_modules")
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(LoraConfig) if f.init}
    told = {k: v for k, v in options.items() if k in ours or v != getattr(plain, k)}
    return {k: _in_order(v) for k, v in told.items() if k not in ("task_type", "peft_type", "base_model_name_or_path")}


def _reading() -> dict[str, Any]:
    """The options of reading and their defaults."""
    from paretune.comparisons.formats import read_comparisons  # here: the command line's help needs only the paths

    parameters = inspect.signature(read_comparisons).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("objectives", "seed")}


def _named(data: Any) -> bool:
    """Whether data is told by paths and hub ids alone, so that another program can read it."""
    if data is None or isinstance(data, str | os.PathLike):
        return True
    if isinstance(data, list | tuple):
        return all(isinstance(entry, str | os.PathLike) or "path" in entry for entry in data)
    if isinstance(data, dict):
        return "path" in data or all(_named(part) for part in data.values())
    return False


def _described(data: Any) -> str:
    if isinstance(data, dict):
        return ", ".join(f"{name}: {'by name' if _named(part) else _described(part)}" for name, part in data.items())
    kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}".removeprefix("builtins.")
    return f"{kind} of {len(data)} rows" if hasattr(data, "__len__") else kind


def _in_order(value: Any) -> Any:
    """Sets in one order, whatever the process: a run that goes on is compared with the record."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else value
