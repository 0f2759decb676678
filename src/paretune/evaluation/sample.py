"""Samples responses from a causal language model, and says how probable each was under it and under a reference.

Shape suffixes: P prompts, n responses per prompt, R = P·n rows of a batch, T tokens of the longest response.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paretune.comparisons.control import prompt_ids
from paretune.comparisons.tokens import pad_id
from paretune.errors import InputError
from paretune.policy.reference import frozen

_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class Samples:
    """n responses to each of P prompts.

    Args:
        texts: [P][n] decoded responses, special tokens left out.
        tokens: [P][n] token ids, the end-of-sequence token included where it was drawn.
        logps: (P, n) float64, log-probability in nats of those tokens under the policy at temperature 1, whatever
            temperature they were drawn at.
        ref_logps: the same under the reference; None where none was given.
        cut: (P, n) bool, True where max_new_tokens came before the end of the response.
    """

    texts: list[list[str]]
    tokens: list[list[list[int]]]
    logps: Tensor
    ref_logps: Tensor | None
    cut: Tensor

    def kl(self) -> Tensor:
        """(P,) KL(policy || reference) of the responses to each prompt, in nats: the mean over its n samples of
        log policy - log reference. Unbiased for samples at temperature 1, so a single estimate can be negative."""
        if self.ref_logps is None:
            raise InputError("no KL without a reference", fix="Give sample() a reference.")
        return (self.logps - self.ref_logps).mean(1)


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    n: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    seed: int | Sequence[int],
    ends: Sequence[int] = (),
    batch_size: int = 512,
    reference: nn.Module | str | None = None,
) -> Samples:
    """Draws n responses per prompt, from the whole distribution unless `top_p` says otherwise.

    Every draw inverts the cumulative distribution at a uniform number that only seed, prompt number, sample number and
    position decide. So neither batch size nor other prompts' lengths change a response, and two policies sampled with
    one seed meet common random numbers: where they agree they say the same, and their difference has less noise.

    Args:
        model: causal language model of transformers, or a PEFT wrapper of one; left in the mode it was in.
        prompts: plain strings, to which the tokenizer adds what it adds to a plain string (usually BOS or nothing), or
            token ids, taken as they are.
        temperature: of the draws; 0 takes the most probable token.
        top_p: draws from the fewest most probable tokens whose probabilities sum to this (Holtzman et al. 2020).
        max_new_tokens: most tokens of a response, its EOS counted.
        seed: one for all, or one per prompt: a prompt's draws then do not depend on its number either.
        ends: tokens that end a response beside the tokenizer's EOS (a chat template's end of turn).
        batch_size: responses drawn at once (at least the n of one prompt).
        reference: a model for `ref_logps`, or "adapters off": the policy without its PEFT adapters.

    Raises:
        InputError: nothing to sample, a temperature below 0, a top_p outside (0, 1], a prompt without tokens, a
            tokenizer without EOS, adapters to switch off where there are none.
    """
    _check(model, tokenizer, prompts, n, temperature, max_new_tokens, reference)
    if not 0.0 < top_p <= 1.0:
        raise InputError("bad top_p", expected="a number in (0, 1]", found=top_p)
    encoded = [prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if (empty := next((i for i, ids in enumerate(encoded) if not ids), None)) is not None:
        raise InputError("a prompt without tokens", where=f"prompt {empty}")
    uniform = _uniform(len(prompts), n, max_new_tokens, seed)
    final = sorted({int(tokenizer.eos_token_id), *ends})
    # The reference's logits of whole responses exist at once; a large vocabulary needs smaller batches.
    rows = min(batch_size, _LOGITS_BYTES // (4 * max_new_tokens * len(tokenizer)))
    per_batch = max(1, rows // n)
    # Prompts of like length share a batch: less padding. Order is restored, and the draws do not depend on it.
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    tokens: list[list[list[int]]] = [[] for _ in prompts]
    logps = torch.empty(len(prompts), n, dtype=torch.float64)
    ref_logps = torch.empty_like(logps) if reference is not None else None
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        inputs, mask = _left_padded([encoded[i] for i in chosen], pad_id(tokenizer), _device(model))
        drawn, logps[chosen] = _draw(model, tokenizer, inputs, mask, uniform[chosen], temperature, top_p, final)
        for row, i in enumerate(chosen):
            tokens[i] = drawn[row * n : (row + 1) * n]
        if ref_logps is not None:
            with _referring(model, reference) as ref_model:
                ref_logps[chosen] = _score(ref_model, inputs, mask, drawn, n, pad_id(tokenizer))
    return Samples(
        texts=[[str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in some] for some in tokens],
        tokens=tokens,
        logps=logps,
        ref_logps=ref_logps,
        cut=torch.tensor([[ids[-1] not in final for ids in some] for some in tokens]),
    )


def _check(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[list[int]],
    n: int,
    temperature: float,
    max_new_tokens: int,
    reference: nn.Module | str | None,
) -> None:
    if not prompts or n < 1 or max_new_tokens < 1:
        raise InputError(
            "nothing to sample",
            expected="at least one prompt, one response each and one token each",
            found=f"{len(prompts)} prompts, n={n}, max_new_tokens={max_new_tokens}",
        )
    if isinstance(prompts, str):
        raise InputError("one string for the prompts", expected="a list of strings")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError("bad temperature", expected="a number >= 0", found=temperature)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token, so no response would end", fix="Set tokenizer.eos_token.")
    if isinstance(reference, str) and (reference != "adapters off" or not isinstance(model, PeftModel)):
        raise InputError(
            "bad reference", expected='a model, or "adapters off" for a PEFT model', found=f"{reference!r}"
        )


def _uniform(count: int, n: int, longest: int, seed: int | Sequence[int]) -> Tensor:
    """(P, n, T) numbers that decide the draws."""
    if isinstance(seed, int):
        return torch.rand(count, n, longest, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    generators = [torch.Generator().manual_seed(one) for one in seed]
    return torch.stack([torch.rand(n, longest, dtype=torch.float64, generator=one) for one in generators])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _left_padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (P, longest prompt) each: the last token of every prompt stands in the last column."""
    longest = max(len(ids) for ids in prompts)
    rows = [[pad] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def _positions(mask: Tensor) -> Tensor:
    """Position of every token among the real ones of its row; padding gets 0, which nothing attends to."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def _draw(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Tensor,
    mask: Tensor,
    uniform: Tensor,
    temperature: float,
    top_p: float,
    final: list[int],
) -> tuple[list[list[int]], Tensor]:
    """Responses to left-padded prompts, P·n lists of token ids, and their (P, n) log-probabilities at temperature 1."""
    n, longest = uniform.shape[1:]
    eos = int(tokenizer.eos_token_id)
    uniform = uniform.flatten(0, 1).to(prompts.device)
    ends = torch.tensor(final, device=prompts.device)
    with frozen(model):
        logits, cache, mask = _read(model, prompts, mask, n)
        position = mask.sum(1, keepdim=True)
        drawn = prompts.new_full((len(mask), longest), eos)
        logps = torch.zeros(len(mask), dtype=torch.float64, device=prompts.device)
        unfinished = torch.ones(len(mask), dtype=torch.bool, device=prompts.device)
        for t in range(longest):
            token = torch.where(unfinished, _choose(logits, uniform[:, t], temperature, top_p), eos)
            logp = logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
            logps += logp.double() * unfinished
            drawn[:, t] = token
            unfinished = unfinished & ~torch.isin(token, ends)
            if t + 1 == longest or not bool(unfinished.any()):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            out: Any = model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position + t,
                past_key_values=cache,
                use_cache=True,
            )
            logits = out.logits[:, -1].float()
    return [_to_its_end(row, final) for row in drawn.tolist()], logps.view(-1, n).cpu()


def _read(model: nn.Module, prompts: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Any, Tensor]:
    """Reads every prompt once and repeats what was read n times: last logits (R, V) float32, cache, mask (R, .)."""
    out: Any = model(
        input_ids=prompts, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
    )
    cache = out.past_key_values
    cache.batch_repeat_interleave(n)
    return out.logits[:, -1].float().repeat_interleave(n, 0), cache, mask.repeat_interleave(n, 0)


def _to_its_end(row: list[int], final: list[int]) -> list[int]:
    """Tokens up to the first that ends a response."""
    return row[: next((i for i, token in enumerate(row) if token in final), len(row)) + 1]


def _choose(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """(R,) tokens: the first whose cumulative probability exceeds the row's uniform number."""
    if temperature == 0:
        return logits.argmax(-1)
    # float64: in float32 the cumulative sum of a large vocabulary ends visibly short of 1
    probability = (logits.double() / temperature).softmax(-1)
    if top_p < 1.0:
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the most probable token always stays
        probability = probability.masked_fill(
            torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p), 0.0
        )
    cumulative = probability.cumsum(-1)
    bound = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, bound, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)


def _score(model: nn.Module, prompts: Tensor, mask: Tensor, responses: list[list[int]], n: int, pad: int) -> Tensor:
    """(P, n) float64 log-probabilities of responses to left-padded prompts."""
    longest = max(len(ids) for ids in responses)
    rows = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in responses], device=prompts.device)
    real = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in responses], device=prompts.device)
    with frozen(model):
        first, cache, mask = _read(model, prompts, mask, n)
        logits = first[:, None]
        if longest > 1:
            seen = torch.cat([mask, real[:, :-1]], 1)
            out: Any = model(
                input_ids=rows[:, :-1],
                attention_mask=seen,
                position_ids=_positions(seen)[:, mask.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, out.logits.float()], 1)
    logps = logits.log_softmax(-1).gather(2, rows[:, :, None]).squeeze(2)
    return (logps.double() * real).sum(1).view(-1, n).cpu()


@contextmanager
def _referring(model: nn.Module, reference: nn.Module | str | None) -> Iterator[nn.Module]:
    """The reference as a model."""
    adapters_off: Any = model.disable_adapter() if reference == "adapters off" else nullcontext()  # type: ignore[operator]
    with adapters_off:
        yield model if isinstance(reference, str) or reference is None else reference
