"""Keys that several commands share, and what their values become."""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paretune.cli.settings import convert, nearest
from paretune.errors import InputError
from paretune.objectives import Objective, parse_objectives
from paretune.training.given import full_paths

if TYPE_CHECKING:
    from peft import LoraConfig


def key(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


# Options of `read_comparisons` that are keys.
READING = ("format", "ties", "pairs", "on_bad_row", "take", "split", "streaming", "conversational", "max_pairs")


@dataclass
class DataKeys:
    """Which data, and how it is read: what `read_comparisons` takes."""

    data: str | list | dict | None = key(
        "File (.jsonl, .json, .parquet, .csv), hub id, or a list of {path, format, …}."
    )
    format: str = key("Layout of its rows: recognised by their fields, or named.", "auto")
    ties: str = key("What a tie of the raco layout means: missing, equal or release.", "missing")
    pairs: str = key(
        "Pairs made of K scored responses: all, best-worst, overall-best-worst, pareto or conflict.", "all"
    )
    on_bad_row: str = key("'error' stops at a bad row; 'skip' leaves it out and counts it.", "error")
    take: int | None = key("Only the first so many rows of each source.")
    split: str = key("Split of a hub data set or folder.", "train")
    streaming: bool = key("Read a hub data set without downloading it whole.", False)
    conversational: bool = key("Turn plain text into messages, so that a chat template applies.", False)
    max_pairs: int | None = key("Most pairs that are made of one prompt's K responses.")

    def read_options(self) -> dict[str, Any]:
        """For `read_comparisons`."""
        return {key: getattr(self, key) for key in READING}


@dataclass
class ModelKeys:
    """Which model, and how it is loaded and trained."""

    model: str | None = key("The model to start from: directory or hub id; an adapter's directory works too.")
    lora: bool | dict | None = key(
        "Train adapters: true, or a mapping of LoraConfig's options (r 16, lora_alpha 2r, target_modules all-linear). "
        "Without it all weights train."
    )
    dtype: str = key(
        "'auto': trained weights float32, a frozen base in its checkpoint's dtype, bf16 autocast on GPUs that have "
        "it; or float32, bfloat16, float16 for a frozen base.",
        "auto",
    )
    quantization: str | None = key("'4bit' loads a frozen base in 4 bits (QLoRA; needs lora and bitsandbytes).")

    def check(self) -> None:
        """Raises InputError for values that do not go together."""
        if self.quantization not in (None, "4bit"):
            raise InputError("bad quantization", expected="4bit or null", found=self.quantization)
        if self.quantization and not self.lora:
            raise InputError("4-bit weights cannot train", fix="Add --lora true to train adapters on a 4-bit base.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            expected = "auto, float32, bfloat16 or float16"
            raise InputError("bad dtype", expected=expected, found=self.dtype)
        if not self.lora and self.dtype in ("bfloat16", "float16"):
            fix = "Leave dtype out; bf16: true computes in bfloat16, and with lora a frozen base may be stored in it."
            raise InputError("all weights train, and these are kept in float32", where=f"dtype {self.dtype}", fix=fix)

    def load_options(self, output_dir: str) -> dict[str, Any]:
        """For `load_policy`."""
        base = os.path.abspath(os.path.join(os.path.expanduser(output_dir), "base"))
        return {"dtype": self.dtype, "quantize": self.quantization == "4bit", "merged_to": base}


def resolved(keys: Any) -> dict[str, Any]:
    """A command's own keys as they go into the run's record: with absolute paths of what is local."""
    values = dataclasses.asdict(keys)
    return {k: full_paths(v) if k in ("model", "ref_model", "data", "eval_data") else v for k, v in values.items()}


def objectives_of(value: Any) -> list[Objective] | None:
    """Objectives from a mapping, a list, or names separated by commas; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return parse_objectives(value)


def lora_config(value: bool | dict[str, Any] | None) -> LoraConfig | None:
    """`lora:` as a configuration of peft; ours differ from its defaults in r 16, lora_alpha 2r and all-linear targets.

    Raises:
        InputError: an option that LoraConfig does not have (the nearest one is named), or a bad value.
    """
    if value is None or value is False:
        return None
    from peft import LoraConfig

    given = {} if value is True else dict(value)
    hints = typing.get_type_hints(LoraConfig)
    known = [f.name for f in dataclasses.fields(LoraConfig) if f.init]
    for key in given:
        if key not in known:
            raise InputError(f"unknown option {key!r}", where="lora", fix=nearest(str(key), known))
        if key not in ("lora_alpha", "task_type", "peft_type"):
            given[key] = convert(key, given[key], hints[key], "lora")
    rank = given.get("r", 16)
    if rank < 1:
        raise InputError("bad r", where="lora", expected="a whole number of at least 1", found=rank)
    options = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **given}
    try:
        return LoraConfig(**options)
    except (ValueError, TypeError) as error:
        raise InputError(str(error).splitlines()[0], where="lora") from error
