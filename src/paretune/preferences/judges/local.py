"""A causal language model on this machine as a judge: the two labels' logits, read in one forward pass.

The prompt ends with the beginning that both answers share, "Output (", and what comes next is not generated but read:
P(first is better) is the softmax of the logits of the two tokens in which the answers part (GRAM, arXiv 2506.14175, and
arXiv 2602.16802 read the same). So nothing is sampled, and nothing can fail to parse.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paretune.errors import InputError
from paretune.preferences.judges.protocols import Protocol, Question

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalSettings:
    """What a local judge is loaded by; judges with equal settings share one model.

    Args:
        model: directory (an adapter's too) or hub id.
        dtype: "auto" is the checkpoint's.
        batch_size: prompts in one forward pass.
        context: longest prompt in tokens; None: the model's own limit.
        template_options: more arguments of the chat template, as JSON.
    """

    model: str
    dtype: str = "auto"
    batch_size: int = 16
    context: int | None = None
    template_options: str = "{}"


@dataclass
class LocalModel:
    """The model and its tokenizer, loaded when they are first needed.

    Attributes:
        has_system: whether the chat template takes a system message; None: there is no template.
    """

    settings: LocalSettings
    _loaded: tuple[Any, Any, str] | None = field(default=None, repr=False)
    has_system: bool | None = None

    def load(self) -> tuple[Any, Any, str]:
        """(model, tokenizer, device).

        Raises:
            InputError: it cannot be loaded, or its chat template cannot be used.
        """
        if self._loaded is None:
            from paretune.policy.loading import load_scored, load_tokenizer

            tokenizer = load_tokenizer(self.settings.model)
            self.has_system = _takes_system(tokenizer, self.settings)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model: Any = load_scored(self.settings.model, dtype=self.settings.dtype)
            self._loaded = model.to(device), tokenizer, device
        return self._loaded

    def limit(self) -> int | None:
        """Longest prompt in tokens."""
        if self.settings.context is not None:
            return self.settings.context
        most = getattr(self.load()[0].config, "max_position_embeddings", None)
        return most if isinstance(most, int) else None


def label_probabilities(
    backend: LocalModel, protocol: Protocol, questions: Sequence[Question], usage: dict[str, float]
) -> Iterator[tuple[int, float]]:
    """(position, P(first is better)) of each question as it is known; NaN for a prompt that is too long.

    Questions of like length share a batch.

    Args:
        usage: `input_tokens` and `too_long` are added to.

    Raises:
        InputError: a model that cannot be loaded, or whose tokenizer cannot tell the labels apart.
    """
    model, tokenizer, device = backend.load()
    limit = backend.limit()
    encoded = [_encode(tokenizer, backend, protocol, question) for question in questions]
    todo = []
    for i, (ids, _) in enumerate(encoded):
        if limit is not None and len(ids) > limit:
            usage["too_long"] = usage.get("too_long", 0) + 1
            yield i, math.nan
        else:
            todo.append(i)
    todo.sort(key=lambda i: len(encoded[i][0]))
    for start in range(0, len(todo), backend.settings.batch_size):
        chosen = todo[start : start + backend.settings.batch_size]
        logits = _last_logits(model, [encoded[i][0] for i in chosen], device)
        for row, i in enumerate(chosen):
            usage["input_tokens"] = usage.get("input_tokens", 0) + len(encoded[i][0])
            # float64: of two logits in their own dtype, so that P and 1 - P of swapped labels add up to 1
            yield i, float(torch.softmax(logits[row, list(encoded[i][1])].double(), 0)[0])


@torch.no_grad()
def _last_logits(model: Any, prompts: Sequence[Sequence[int]], device: str) -> torch.Tensor:
    """(B, V) logits after each prompt.

    Padded on the right and without a mask: what comes after a prompt's end cannot reach back to it in a causal model,
    and attention without a mask never builds one of (B, T, T).
    """
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
    ids = torch.zeros(len(prompts), int(ends.max()) + 1, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    kept, own = torch.unique(ends, return_inverse=True)
    out = model(input_ids=ids.to(device), logits_to_keep=kept.to(device), use_cache=False)
    return out.logits[torch.arange(len(prompts), device=device), own.to(device)].float().cpu()


def render(tokenizer: Any, backend: LocalModel, protocol: Protocol, question: Question) -> str:
    """The prompt as text, up to where the answer begins; tokens that the tokenizer reads as special are broken."""
    system, user = question.system, question.user
    for token in _special(tokenizer):
        if len(token) > 1 and (token in system or token in user):
            system, user = (part.replace(token, f"{token[0]} {token[1:]}") for part in (system, user))
    if backend.has_system is None:
        return f"{system}\n\n{user}\n\n"
    messages = conversation(system, user, has_system=backend.has_system)
    options = json.loads(backend.settings.template_options)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return text


def conversation(system: str, user: str, *, has_system: bool) -> list[dict[str, str]]:
    """The messages; without a system role its text stands before the user's."""
    if has_system:
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return [{"role": "user", "content": f"{system}\n\n{user}"}]


def _special(tokenizer: Any) -> list[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({str(token.content) for token in added.values() if str(token.content).strip()}, key=len, reverse=True)


def _takes_system(tokenizer: Any, settings: LocalSettings) -> bool | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    first = ""
    for has_system in (True, False):
        try:
            text = tokenizer.apply_chat_template(
                conversation("probe of the system", "probe of the user", has_system=has_system),
                tokenize=False,
                add_generation_prompt=True,
                **json.loads(settings.template_options),
            )
        except Exception as error:  # templates raise what Jinja raises
            first = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        if "probe of the system" in text and "probe of the user" in text:
            if text.rstrip().endswith(("<think>", "<thinking>")):
                fix = "Give template_options: {enable_thinking: false}, or a template without it."
                raise InputError("the chat template opens a thought before the answer", where=settings.model, fix=fix)
            return has_system
    fix = "A judge is asked by a system and a user message, or by one user message."
    raise InputError("the chat template does not apply", where=settings.model, found=first or "lost texts", fix=fix)


def _encode(
    tokenizer: Any, backend: LocalModel, protocol: Protocol, question: Question
) -> tuple[list[int], tuple[int, int]]:
    """The tokens up to where the two answers part, and the token of each there."""
    text = render(tokenizer, backend, protocol, question)
    # a chat template writes the leading BOS itself where the model wants one
    plain = backend.has_system is None
    both = [
        list(tokenizer(text + answer, add_special_tokens=plain, truncation=False, verbose=False)["input_ids"])
        for answer in protocol.answers
    ]
    same = 0
    while same < min(map(len, both)) and both[0][same] == both[1][same]:
        same += 1
    if same == 0 or same >= min(map(len, both)):
        expected = "a tokenizer that tells them apart, or other [answers] in the protocol"
        found = " | ".join(protocol.answers)
        raise InputError(
            "both answers have the same tokens", where=backend.settings.model, expected=expected, found=found
        )
    return both[0][:same], (both[0][same], both[1][same])


def model_identity(name: str, where: str) -> str:
    """What tells a model from others by content: a digest of its files, or a hub id's commit.

    Raises:
        InputError: no model there.
    """
    from paretune.policy.loading import base_of, check_weight_files, is_adapter

    check_weight_files(name, where)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name} {_commit(name, where)}"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt") and path.is_file():
            if path.name in ("run.json", "trainer_state.json"):
                continue
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as stream:
                while piece := stream.read(1 << 22):
                    digest.update(piece)
    base = ""
    if is_adapter(name):
        base = " on " + model_identity(base_of(name, where), where)
    return digest.hexdigest() + base


def _commit(name: str, where: str) -> str:
    from transformers import AutoConfig

    try:
        return str(getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None))
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError("no such model", where=where, found=f"{name}: {first}") from error
