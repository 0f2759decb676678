"""A mixture of policies decodes from the normalised product of their distributions, and runs only those that weigh."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from paretune.comparisons.batches import collate
from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.policy.loading import load_policy, load_scored
from paretune.policy.logprobs import prepare_scorer, response_logprobs
from paretune.policy.mixed import MixedPolicy, mixed_policy
from paretune.sandbox import WORLDS
from paretune.sandbox.language import made_tokenizer, make_items
from tests.comparisons_made import made_comparisons
from tests.models_made import make_model

TOKENIZER = made_tokenizer(WORLDS["safety"])
PROMPTS = [item.prompt for item in make_items(WORLDS["safety"], 4, seed=0, held_out=True)] + ["task :"]
WEIGHTS = [0.2, 0.5, 0.3]


def _model(seed: int, family: str = "llama") -> PreTrainedModel:
    ends = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    return make_model(family, seed=seed, std=0.2, vocab_size=len(TOKENIZER), **ends)


def _distribution(models: list[Any], weights: list[float], ids: list[int]) -> Tensor:
    """(V,) float64: the next token's, by the definition: a product of powers of probabilities, divided by its sum."""
    with torch.no_grad():
        given = [m(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1) for m in models]
    product = torch.stack([p**w for p, w in zip(given, weights, strict=True)]).prod(0)
    return product / product.sum()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_padded_cached_and_batched_it_is_the_product_of_distributions(family: str) -> None:
    models = [_model(seed, family) for seed in range(3)]
    policy = MixedPolicy(models, WEIGHTS)
    drawn = sample(policy, TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=1, reference=policy)
    for i, prompt in enumerate(PROMPTS):
        ids = TOKENIZER(prompt)["input_ids"]
        for k, response in enumerate(drawn.tokens[i]):
            logp = 0.0
            for t, token in enumerate(response):
                logp += float(_distribution(models, WEIGHTS, ids + response[:t])[token].log())
            assert float(drawn.logps[i, k]) == pytest.approx(logp, rel=1e-4)
            assert float(drawn.ref_logps[i, k]) == pytest.approx(logp, rel=1e-4)
    singles = sample(models[1], TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=1)
    assert drawn.tokens != singles.tokens


def test_samples_have_the_exact_frequencies_of_whole_responses() -> None:
    """A vocabulary of five words and two positions: all 25 responses are enumerated."""
    models = [make_model("llama", seed=seed, std=0.4, vocab_size=len(TOKENIZER)) for seed in (1, 2)]
    words = [TOKENIZER.eos_token_id, 5, 6, 7, 8]
    for model in models:  # nothing else is ever said
        bias = torch.full((len(TOKENIZER),), -1e9)
        bias[words] = 0.0
        model.lm_head.register_forward_hook(lambda _, __, logits, bias=bias: logits + bias)
    weights, n = [0.7, 0.3], 6000
    ids = TOKENIZER(PROMPTS[0])["input_ids"]
    exact: dict[tuple[int, ...], float] = {}
    first = _distribution(models, weights, ids)
    for token in words:
        if token == TOKENIZER.eos_token_id:
            exact[(token,)] = float(first[token])
            continue
        second = _distribution(models, weights, [*ids, token])
        exact |= {(token, later): float(first[token] * second[later]) for later in words}
    assert sum(exact.values()) == pytest.approx(1.0)
    policy = MixedPolicy(models, weights)
    drawn = sample(policy, TOKENIZER, PROMPTS[:1], n, max_new_tokens=2, seed=3, batch_size=n)
    counts = dict.fromkeys(exact, 0)
    for response in drawn.tokens[0]:
        counts[tuple(response)] += 1
    cells = [key for key in exact if exact[key] * n > 5]
    statistic = sum((counts[key] - n * exact[key]) ** 2 / (n * exact[key]) for key in cells)
    assert len(cells) > 8 and statistic < len(cells) + 5 * (2 * len(cells)) ** 0.5


def test_a_policy_of_weight_zero_never_runs() -> None:
    models = [_model(seed) for seed in range(3)]

    def refuse(*_: Any) -> None:
        raise AssertionError("it ran")

    models[1].register_forward_pre_hook(refuse)
    policy = MixedPolicy(models, [0.4, 0.0, 0.6])
    drawn = sample(policy, TOKENIZER, PROMPTS, 1, max_new_tokens=4, seed=0)
    two = MixedPolicy([models[0], models[2]], [0.4, 0.6])
    assert drawn.tokens == sample(two, TOKENIZER, PROMPTS, 1, max_new_tokens=4, seed=0).tokens
    alone = sample(MixedPolicy(models, [0.0, 0.0, 1.0]), TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0)
    own = sample(models[2], TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0)
    assert alone.tokens == own.tokens
    torch.testing.assert_close(alone.logps, own.logps)


def test_adapters_on_one_base_share_it_and_answer_as_apart(tmp_path: Path) -> None:
    _model(0).save_pretrained(tmp_path / "base")
    parts = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        model = get_peft_model(
            load_policy(str(tmp_path / "base"), full=False), LoraConfig(r=2, target_modules=["q_proj"])
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(tmp_path / str(seed))
        parts.append(str(tmp_path / str(seed)))
    shared = mixed_policy(parts, WEIGHTS)
    assert len(shared.policies) == 1
    apart = MixedPolicy([load_scored(part) for part in parts], WEIGHTS)
    inputs = {"input_ids": torch.arange(3, 20)[None]}
    with torch.no_grad():
        torch.testing.assert_close(shared(**inputs).logits, apart(**inputs).logits)
    drawn = [sample(policy, TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0).tokens for policy in (shared, apart)]
    assert drawn[0] == drawn[1]
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    whole = mixed_policy([parts[0], str(tmp_path / "base")], [0.5, 0.5])  # an adapter and a whole model
    assert len(whole.policies) == 2


def test_pairs_are_scored_as_by_any_model() -> None:
    models = [make_model("qwen3", seed=seed) for seed in (1, 2)]
    policy = MixedPolicy(models, [0.3, 0.7])
    scorer = prepare_scorer(policy)
    rows = made_comparisons(4, 2)
    with torch.no_grad():
        found = response_logprobs(policy, collate(rows, layout=scorer.layout, pad_id=0), scorer)
    for i, (row, side) in enumerate(itertools.product(rows, "ab")):
        ids = [*row["prefix_ids"], *row[f"{side}_ids"]]
        start = row[f"{side}_start"]
        exact = sum(float(_distribution(models, [0.3, 0.7], ids[:t])[ids[t]].log()) for t in range(start, len(ids)))
        got = found.logp_a if side == "a" else found.logp_b
        assert float(got[i // 2]) == pytest.approx(exact, rel=1e-4)


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match="different vocabularies"):
        MixedPolicy([make_model("llama"), make_model("llama", vocab_size=50)], [0.5, 0.5])
    with pytest.raises(InputError, match="bad weights"):
        MixedPolicy([make_model("llama")] * 2, [0.5, 0.4])
