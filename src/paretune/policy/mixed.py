"""Multi-objective decoding (MOD): one policy that answers from a weighted mixture of several, token by token.

pi(y_t | y_<t) is proportional to prod_i pi_i(y_t | y_<t)^w_i: Shi et al., arXiv 2406.18853, the case of the reverse KL
divergence, where the reference cancels for weights of sum 1. For whole responses this product maximises
sum_i w_i r_i - beta KL when pi_i maximises r_i - beta KL; token by token it leaves out what the rest of the response
will add to the normalisation, which is the method's approximation.

Suffixes: R rows, T positions, V vocabulary, m policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.policy.loading import base_of, is_adapter, load_policy, load_scored
from paretune.policy.soups import check_mixture


@dataclass
class MixedOutput:
    """What a forward gives: logits (R, T, V), log-probabilities but for a constant per position, and the caches."""

    logits: Tensor
    past_key_values: MixedCache | None


class MixedCache:
    """The caches of the policies that take part, handled as one."""

    def __init__(self, caches: list[Any]):
        self.caches = caches

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, as `transformers.Cache`."""
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)


class MixedPolicy(nn.Module):
    """m causal language models of one vocabulary as one: a forward gives sum_i w_i log pi_i.

    What it is given goes to every policy of positive weight, each with its own cache; one of weight 0 is never run.
    `evaluation.sample.sample` takes it as it takes any model.

    Args:
        policies: (m,) models; with `adapters`, one PEFT model for all.
        weights: (m,) non-negative, of sum 1.
        adapters: names of adapters on that one PEFT model, which is then held once and switched.

    Raises:
        InputError: bad weights, policies of different vocabularies.
    """

    def __init__(self, policies: Sequence[nn.Module], weights: Sequence[float], adapters: Sequence[str] | None = None):
        super().__init__()
        names: list[str | None] = [None] * len(policies) if adapters is None else list(adapters)
        models = list(policies) if adapters is None else list(policies) * len(names)
        check_mixture(len(names), weights)
        sizes = {int(model.get_input_embeddings().weight.shape[0]) for model in policies}  # type: ignore[operator]
        if len(sizes) > 1:
            expected = "policies that were trained from one model"
            raise InputError("policies of different vocabularies", where="mod", expected=expected, found=sorted(sizes))
        self.policies = nn.ModuleList(policies)
        self.used = [(m, n, float(w)) for m, n, w in zip(models, names, weights, strict=True) if w > 0]

    @property
    def config(self) -> Any:
        """The first policy's."""
        return self.policies[0].config

    def get_input_embeddings(self) -> nn.Module:
        """The first policy's."""
        return self.policies[0].get_input_embeddings()  # type: ignore[operator]

    def forward(self, past_key_values: MixedCache | None = None, **inputs: Any) -> MixedOutput:
        total, caches = None, []
        for number, (model, adapter, weight) in enumerate(self.used):
            if adapter is not None:
                model.set_adapter(adapter, inference_mode=True)  # type: ignore[operator]
            own = None if past_key_values is None else past_key_values.caches[number]
            out = model(past_key_values=own, **inputs)
            # float32 at least: the policies differ by small amounts of large log-probabilities
            logits = out.logits if out.logits.dtype == torch.float64 else out.logits.float()
            part = weight * logits.log_softmax(-1)
            total = part if total is None else total + part
            caches.append(out.past_key_values)
        assert total is not None  # the weights sum to 1
        return MixedOutput(total, None if any(cache is None for cache in caches) else MixedCache(caches))


def mixed_policy(parts: Sequence[str], weights: Sequence[float]) -> MixedPolicy:
    """The mixture of the models in these directories, in eval mode; adapters on one base share it.

    Raises:
        InputError: bad weights, or as `load_scored`. A part of weight 0 is not read.
    """
    check_mixture(len(parts), weights)
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    names, shares = [part for part, _ in used], [weight for _, weight in used]
    bases = _bases(names)
    if len(used) == 1 or len(set(bases.values())) != 1 or len(bases) < len(names):
        models = [load_scored(part) for part in names]
        return MixedPolicy(models, shares).eval()
    base = load_policy(next(iter(bases.values())), full=False)
    model = PeftModel.from_pretrained(base, Path(names[0]).expanduser(), adapter_name="part-0")
    for number, part in enumerate(names[1:], start=1):
        model.load_adapter(str(Path(part).expanduser()), adapter_name=f"part-{number}")
    model.requires_grad_(False)
    return MixedPolicy([model], shares, [f"part-{number}" for number in range(len(names))]).eval()


def _bases(parts: Sequence[str]) -> Mapping[str, str]:
    """Adapter's directory -> its base."""
    return {part: base_of(part) for part in parts if is_adapter(part)}
