"""Reward models as ordinary models of transformers: a head per objective on a sequence's end, or on every token.

`AutoModelForSequenceClassification.from_pretrained` loads what is saved here (`AutoModelForTokenClassification` what
scores tokens), `id2label` names the objectives, and logits are rewards. What a plain model does not say (the form it
reads, how tokens are summed up, the unit of its scores) stands in its configuration under `paretune_reward`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from paretune.comparisons.tokens import pad_id
from paretune.errors import InputError
from paretune.files import whole_files
from paretune.policy.loading import SAFE, check_model_path, check_weight_files, is_adapter, load_policy, load_tokenizer
from paretune.preferences.reward_models.losses import aggregate
from paretune.preferences.reward_models.texts import Encoded, collate, form_for, longest

TOKEN_LEVELS = ("sum", "mean")
_KEY = "paretune_reward"


@dataclass(frozen=True)
class Reading:
    """How a model's logits are to be read.

    Args:
        form: what it reads (`texts`); "" where its tokenizer is to decide.
        token_level: None for a head on the sequence's end; "sum" or "mean" over the response's tokens.
        center, scale: per head, reward = center + scale · logit; empty: the logits themselves.
        max_length: most tokens that it was trained on.
    """

    form: str = ""
    token_level: str | None = None
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    max_length: int | None = None


@dataclass
class RewardModel:
    """A model ready to score: in eval mode, without gradients, on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    limit: int | None


def read_config(name: str, *, token_level: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Reading]:
    """A reward model's configuration, and how it is read; nothing large is loaded.

    Args:
        token_level: for a model that scores tokens and does not say how they are summed up.

    Raises:
        InputError: no such model, or not one that scores; a token_level that is missing, or does not fit.
    """
    check_model_path(name, "reward_model")
    path = os.path.expanduser(name)
    where = f"reward_model {name}"
    if is_adapter(path):
        fix = "Merge it into its base and save that; `paretune reward --lora true` does."
        raise InputError("an adapter, not a reward model", where=where, fix=fix)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a file of another shape surfaces as whatever reading it raises
        raise InputError(f"cannot read the configuration: {_first_line(error)}", where=where) from error
    given = getattr(config, _KEY, None)
    kinds = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel", "RewardModel")
    architectures = list(getattr(config, "architectures", None) or [])
    if given is None and not trust_remote_code and not any(name.endswith(kinds) for name in architectures):
        fix = "A policy is an implicit reward: {implicit: POLICY, reference: MODEL}; `paretune reward` trains a model."
        expected = "a model for sequence classification"
        raise InputError("not a reward model", where=where, expected=expected, found=architectures, fix=fix)
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in (given or {}).items()}
    try:
        reading = Reading(**{"token_level": token_level, **values})
    except TypeError as error:
        raise InputError(f"unknown settings of a reward model: {error}", where=f"{where}, {_KEY}") from error
    of_tokens = any(name.endswith("ForTokenClassification") for name in architectures)
    if reading.token_level not in ((None,) if not of_tokens else TOKEN_LEVELS) or (
        token_level is not None and token_level != reading.token_level
    ):
        expected = "sum or mean, as it was trained" if of_tokens else "none: this model scores whole sequences"
        raise InputError("bad token_level", where=where, expected=expected, found=token_level or reading.token_level)
    return config, reading


def heads_of(config: Any) -> list[str]:
    """The names of its heads, in order."""
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def weights_fingerprint(name: str, config: Any) -> str:
    """A digest of every file of a directory that can change its answers; of a hub id, the id and its commit."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    ends = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".py")
    skipped = ("run.json", "trainer_state.json")
    for path in sorted(p for p in folder.iterdir() if p.suffix in ends and p.name not in skipped):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def new_reward_model(base: str, heads: Sequence[str], token_level: str | None) -> PreTrainedModel:
    """A model with fresh heads on a base's weights, float32; an adapter's directory gives its base with it merged in.

    Args:
        base: directory or hub id of a causal language model, an encoder, or a reward model whose heads are replaced.

    Raises:
        InputError: no such model, an architecture without such a head, weights that are missing.
    """
    check_weight_files(base)
    path = os.path.expanduser(base)
    auto: Any = AutoModelForTokenClassification if token_level else AutoModelForSequenceClassification
    named: dict[str, Any] = {
        "id2label": dict(enumerate(heads)),
        "label2id": {head: i for i, head in enumerate(heads)},
        "num_labels": len(heads),
    }
    try:
        if is_adapter(path):
            policy = load_policy(base, full=True)
            config = AutoConfig.for_model(**{**policy.config.to_dict(), **named})
            model = auto.from_config(_prepared(config), dtype=torch.float32)
            _trunk(model).load_state_dict(_trunk(policy).state_dict())
            return model
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **named)
        with _quietly():  # that heads are new is what was asked for
            model, found = auto.from_pretrained(
                path,
                config=_prepared(config),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a reward model with other heads
                output_loading_info=True,
                **SAFE,
            )
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"cannot put heads on the model: {_first_line(error)}", where=f"model {base}") from error
    missing = [key for key in found["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
    missing = [key for key in missing if ".pooler." not in key]  # part of the head, in all but name
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} weights", where=f"model {base}", found=f"no {missing[0]}"
        )
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """No report of transformers about weights that were not in a checkpoint."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _prepared(config: Any) -> Any:
    """Without dropout before the head: the two sides of a pair would differ by chance."""
    config.classifier_dropout = 0.0
    if hasattr(config, _KEY):
        delattr(config, _KEY)
    return config


def _trunk(model: Any) -> nn.Module:
    trunk: nn.Module = getattr(model, model.base_model_prefix)
    return trunk


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills padding, told to the model too: it finds a sequence's end by it.

    Raises:
        InputError: the tokenizer has none.
    """
    pad = pad_id(tokenizer)
    model.config.get_text_config().pad_token_id = pad
    model.config.pad_token_id = pad
    return pad


def response_rewards(model: nn.Module, batch: dict[str, Tensor], token_level: str | None) -> Tensor:
    """(R, M) rewards of a batch of `collate`, at least float32; differentiable."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    output = model(**{name: batch[name] for name in names if name in batch})
    logits = getattr(output, "rewards", None)  # ArmoRM's code gives its objectives there, and one sum as logits
    logits = output.logits if logits is None else logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if token_level is None else aggregate(logits, batch["response"], token_level)


def load_reward_model(
    name: str,
    *,
    token_level: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """A reward model of ours or of others, to score with.

    Args:
        name: directory or hub id.
        token_level: of a model that scores tokens and does not say how they are summed up.
        dtype: "auto" is the checkpoint's on a GPU and float32 on a CPU.
        device: None takes a GPU where there is one.
        trust_remote_code: run the model's own code, which some reward models need.

    Raises:
        InputError: no such model, or one that does not score.
    """
    config, reading = read_config(name, token_level=token_level, trust_remote_code=trust_remote_code)
    check_weight_files(name, "reward_model")
    tokenizer = load_tokenizer(name)
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind: Any = dtype if dtype != "auto" else ("auto" if on.type == "cuda" else "float32")
    auto: Any = AutoModelForTokenClassification if reading.token_level else AutoModelForSequenceClassification
    where = f"reward_model {name}"
    try:
        model, found = auto.from_pretrained(
            os.path.expanduser(name),
            config=config,
            dtype=kind,
            output_loading_info=True,
            **SAFE | {"trust_remote_code": trust_remote_code},
        )
    except Exception as error:  # as above
        raise InputError(f"cannot load the reward model: {_first_line(error)}", where=where) from error
    if found["missing_keys"]:
        lacking = sorted(found["missing_keys"])[0]
        raise InputError("the checkpoint lacks weights of the model", where=where, found=f"no {lacking}")
    if model.config.get_text_config().pad_token_id is None:
        set_padding(model, tokenizer)
    form = reading.form or form_for(tokenizer, None)
    limit = longest(config, tokenizer, reading.max_length)
    model = model.to(on).requires_grad_(False).eval()
    return RewardModel(model, tokenizer, replace(reading, form=form), limit)


@torch.no_grad()
def score_encoded(reward: RewardModel, rows: Sequence[Encoded]) -> Tensor:
    """(R, M) float64 rewards in the unit of the labels, on the CPU."""
    pad = int(reward.model.config.get_text_config().pad_token_id or 0)
    batch = {key: value.to(reward.model.device) for key, value in collate(rows, pad).items()}
    rewards = response_rewards(reward.model, batch, reward.reading.token_level).double().cpu()
    if reward.reading.scale:
        rewards = rewards.new_tensor(reward.reading.center) + rewards.new_tensor(reward.reading.scale) * rewards
    return rewards


def save_reward_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading, output_dir: str
) -> None:
    """Writes an ordinary model of transformers, tokenizer beside it."""
    content = {key: value for key, value in asdict(reading).items() if value not in (None, (), "")}
    setattr(model.config, _KEY, {key: list(v) if isinstance(v, tuple) else v for key, v in content.items()})
    with whole_files(output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def final_head(model: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """Where the last linear layer hangs: its parent, its name there, and itself.

    Raises:
        InputError: the model has no such layer.
    """
    for path in ("score", "classifier", "classifier.out_proj", "classifier.out_layer"):
        *above, name = path.split(".")
        parent: Any = model
        for step in above:
            parent = getattr(parent, step, None)
        layer = getattr(parent, name, None)
        if isinstance(layer, nn.Linear):
            return parent, name, layer
    expected = "a linear layer named score, classifier or classifier.out_proj"
    raise InputError("no head that is linear", where=type(model).__name__, expected=expected)


_RESIDENT: dict[Hashable, Any] = {}


def resident(key: Hashable, load: Callable[[], Any]) -> Any:
    """What `load` gives, kept until another key is asked for: sources are asked one after another, and a GPU that holds
    one reward model need not hold all of an ensemble."""
    if key not in _RESIDENT:
        _RESIDENT.clear()
        _RESIDENT[key] = load()
    return _RESIDENT[key]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
