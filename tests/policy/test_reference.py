"""The reference: adapters off, a frozen copy, or columns that stand for it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from paretune.comparisons.batches import collate
from paretune.errors import InputError
from paretune.policy.logprobs import prepare_scorer, response_logprobs
from paretune.policy.reference import (
    Reference,
    check_reference,
    choose_reference,
    frozen,
    reference_logprobs,
)
from tests.comparisons_made import made_comparisons
from tests.models_made import make_model

ROWS = made_comparisons(7, 2)


def test_adapters_off_is_the_base_and_the_adapters_come_back() -> None:
    base = make_model("llama")
    scorer = prepare_scorer(base)
    batch = collate(ROWS, layout=scorer.layout, pad_id=0)
    with torch.no_grad():
        plain = response_logprobs(base, batch, scorer)
    policy = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    reference, said = choose_reference(policy, None, scorer, needed=True)
    assert reference.kind == "adapter" and said == []
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    policy.train()
    found = reference_logprobs(reference, batch)
    assert found is not None
    torch.testing.assert_close(found, (plain.logp_a, plain.logp_b))
    assert policy.training
    assert not torch.allclose(response_logprobs(policy, batch, scorer).logp_a, plain.logp_a)


def test_a_copy_stays_when_the_policy_moves() -> None:
    policy = make_model("qwen3")
    scorer = prepare_scorer(policy)
    batch = collate(ROWS, layout=scorer.layout, pad_id=0)
    reference, _ = choose_reference(policy, None, scorer, needed=True)
    before = reference_logprobs(reference, batch)
    for parameter in policy.parameters():
        parameter.data += 0.1
    after = reference_logprobs(reference, batch)
    assert before is not None and after is not None
    assert torch.equal(before[0], after[0]) and not before[0].requires_grad


def test_no_reference_where_none_is_needed() -> None:
    policy = make_model("llama")
    reference, _ = choose_reference(policy, None, prepare_scorer(policy), needed=False)
    assert reference.kind == "none"
    assert reference_logprobs(reference, {}) is None


def test_columns_stand_for_the_model() -> None:
    batch = {"ref_a": torch.ones(2), "ref_b": torch.zeros(2)}
    found = reference_logprobs(Reference("precomputed"), batch)
    assert found is not None and found[0] is batch["ref_a"]


def test_frozen_gives_the_mode_back() -> None:
    model = make_model("llama").train()
    with frozen(model):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training and torch.is_grad_enabled()


def test_a_mismatched_reference_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary of 97 tokens.*found one of 50"):
        check_reference(make_model("llama"), make_model("llama", vocab_size=50))
