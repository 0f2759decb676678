"""`implicit: POLICY` as a source: β log(π/π_ref) of a response, the reward that an aligned policy maximizes.

It follows from π ∝ π_ref exp(r/β), which leaves β log Z(x) open (DPO, arXiv 2305.18290, eq. 5): scores compare the
responses to one prompt, not those to different ones.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from paretune.comparisons.rows import Text
from paretune.comparisons.tokens import pad_id, tokenize_singles
from paretune.errors import InputError
from paretune.policy.loading import base_of, check_model_path, is_adapter, load_scored, load_tokenizer
from paretune.policy.logprobs import prepare_scorer, token_logprobs
from paretune.policy.reference import check_reference
from paretune.preferences.reward_models.models import resident, weights_fingerprint
from paretune.preferences.reward_models.sources import check_options
from paretune.preferences.source import Source

_OPTIONS: dict[str, tuple[type, ...]] = {
    "reference": (str,),
    "beta": (int, float),
    "batch_size": (int,),
    "max_length": (int,),
    "dtype": (str,),
}
_CALL = 32


def implicit_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """A policy and its reference as a source of scores.

    Options: `reference` (the model that its training began with; an adapter's directory needs none: its base is),
    `beta` (0.1), `batch_size`, `max_length`, `dtype`.

    Raises:
        InputError: no such model, no reference, an unknown option.
    """
    where = f"source {name!r}"
    if not isinstance(value, str) or not value:
        raise InputError("bad implicit", where=where, expected="a policy's directory or hub id", found=value)
    check_options(where, options, _OPTIONS)
    beta = float(options.get("beta", 0.1))
    if not 0 < beta < math.inf:
        raise InputError("bad beta", where=where, expected="a number > 0", found=beta)
    check_model_path(value, where)
    reference = options.get("reference")
    adapter = os.path.exists(os.path.join(os.path.expanduser(value), "adapter_config.json"))
    if reference is None and not adapter:
        fix = "Name the model that the policy's training began with: {implicit: POLICY, reference: MODEL}."
        raise InputError("an implicit reward needs a reference", where=where, fix=fix)
    if reference is not None:
        check_model_path(reference, where)
    dtype = options.get("dtype", "auto")
    settings = {
        "policy": _fingerprint(value),
        "reference": None if reference is None else _fingerprint(reference),
        "max_length": options.get("max_length"),
        "dtype": dtype,
    }
    key = json.dumps(settings, sort_keys=True)
    batch = int(options.get("batch_size", 16))
    score = functools.partial(
        _scores, value, reference, dtype, key=key, beta=beta, batch=batch, max_length=options.get("max_length")
    )
    return Source(name, f"implicit 1 {key} beta {beta!r}", score=score, batch_size=_CALL * batch)


def _fingerprint(name: str) -> str:
    """Of a directory its content; an adapter's file names its base, whose content then counts too."""
    path = os.path.expanduser(name)
    if is_adapter(name):
        return f"{weights_fingerprint(name, None)} on {_fingerprint(base_of(name))}"
    if os.path.isdir(path):
        return weights_fingerprint(name, None)
    try:
        return weights_fingerprint(name, AutoConfig.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise InputError(f"cannot read the configuration: {text}", where=f"model {name}") from error


@dataclass
class _Pair:
    """Policy and reference in memory; without a reference, the policy with its adapter off is."""

    policy: nn.Module
    reference: nn.Module | None
    tokenizer: PreTrainedTokenizerBase
    own_heads: tuple[bool, bool]
    limit: int | None


def _load(policy: str, reference: str | None, dtype: str) -> _Pair:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = load_scored(policy, dtype=dtype).to(device)
    second = None if reference is None else load_scored(reference, dtype=dtype).to(device)
    if second is not None:
        check_reference(first, second)
    elif not isinstance(first, PeftModel):
        raise InputError("an implicit reward needs a reference", where=f"policy {policy}")
    own = prepare_scorer(first, "flat").own_head
    heads = own, own if second is None else prepare_scorer(second, "flat").own_head
    config: Any = first.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return _Pair(first, second, load_tokenizer(policy), heads, limit)


def _scores(
    policy: str,
    reference: str | None,
    dtype: str,
    prompts: Sequence[Text],
    responses: Sequence[Text],
    references: Any = None,
    *,
    key: str,
    beta: float,
    batch: int,
    max_length: int | None,
) -> Iterator[tuple[int, float]]:
    pair: _Pair = resident(("implicit", key), lambda: _load(policy, reference, dtype))
    limits = [limit for limit in (pair.limit, max_length) if limit is not None]
    rows = tokenize_singles(prompts, responses, pair.tokenizer, max_length=min(limits, default=None))
    yield from ((i, math.nan) for i, row in enumerate(rows) if row is None)
    ready = [(i, row) for i, row in enumerate(rows) if row is not None]
    ready.sort(key=lambda one: -len(one[1][0]))
    pad = pad_id(pair.tokenizer)
    for start in range(0, len(ready), batch):
        part = ready[start : start + batch]
        ratio = log_ratios(pair, response_batch([row for _, row in part], pad))
        yield from ((i, beta * value) for (i, _), value in zip(part, ratio.tolist(), strict=True))


def response_batch(rows: Sequence[tuple[list[int], int]], pad: int) -> dict[str, Tensor]:
    """What `token_logprobs` reads of sequences and the places of their first response tokens, padded on the right.

    Scored entry k of a row is its k-th response token; `scored`, (R, K) bool, says which entries there are.
    """
    width, entries = max(len(ids) for ids, _ in rows), max(len(ids) - start for ids, start in rows)
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), entries, dtype=torch.long)
    targets, scored = torch.zeros_like(positions), torch.zeros_like(positions, dtype=torch.bool)
    for i, (row, start) in enumerate(rows):
        count = len(row) - start
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        positions[i, :count] = torch.arange(start - 1, len(row) - 1)
        targets[i, :count] = ids[i, start : len(row)]
        scored[i, :count] = True
    places = torch.arange(width).expand(len(rows), width) * mask
    return {
        "input_ids": ids, "attention_mask": mask, "position_ids": places,
        "score_positions": positions, "score_targets": targets, "scored": scored,
    }  # fmt: skip


@torch.no_grad()
def log_ratios(pair: _Pair, batch: Mapping[str, Tensor]) -> Tensor:
    """(R,) log π - log π_ref of whole responses, in nats; float64, on the CPU."""
    there = {key: value.to(next(pair.policy.parameters()).device) for key, value in batch.items()}

    def summed(model: nn.Module, own_head: bool) -> Tensor:
        logps = token_logprobs(model, there, own_head=own_head).double()
        return logps.masked_fill(~there["scored"], 0.0).sum(1)

    logp = summed(pair.policy, pair.own_heads[0])
    if pair.reference is not None:
        return (logp - summed(pair.reference, pair.own_heads[1])).cpu()
    off: Any = pair.policy.disable_adapter() if isinstance(pair.policy, PeftModel) else nullcontext()
    with off:
        return (logp - summed(pair.policy, pair.own_heads[0])).cpu()
