"""Sampling: the same draws whatever the batch, probabilities that a plain forward gives, KL that is right."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from paretune.errors import InputError
from paretune.evaluation.sample import _choose, sample
from paretune.policy.attention import use_paretune_attention
from paretune.sandbox import WORLDS
from paretune.sandbox.language import made_tokenizer, make_items

WORLD = WORLDS["summaries"]
TOKENIZER = made_tokenizer(WORLD)
# of lengths 31 to 39, and a very short one
PROMPTS = [item.prompt for item in make_items(WORLD, 7, seed=0, held_out=True)] + ["summary :"]


def _model(kind: str = "llama", seed: int = 0, scale: float = 0.3) -> PreTrainedModel:
    """Weights wide enough that attention and the draws depend on the prompt."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": scale,
        "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)).eval()


def _plain_logp(model: PreTrainedModel, prompt: str, response: list[int]) -> Tensor:
    """Log-probability of a response by one forward of one row: no padding, no cache, no batch."""
    ids = TOKENIZER(prompt)["input_ids"]
    row = torch.tensor([ids + response])
    with torch.no_grad():
        logps = model(input_ids=row).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
    return logps.gather(1, torch.tensor(response)[:, None]).sum()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "llama as it was trained"])
def test_padding_batching_and_cache_change_nothing(kind: str) -> None:
    model = _model(kind.split()[0])
    if "trained" in kind:  # the attention of prompt-shared rows stays on after training
        use_paretune_attention(model)
    reference = _model(kind.split()[0], seed=1)
    batched = sample(model, TOKENIZER, PROMPTS, 3, max_new_tokens=12, seed=5, batch_size=512, reference=reference)
    single = sample(model, TOKENIZER, PROMPTS, 3, max_new_tokens=12, seed=5, batch_size=1, reference=reference)
    assert batched.tokens == single.tokens
    assert len({tuple(ids) for some in batched.tokens for ids in some}) > len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for k in range(3):
            plain = _plain_logp(model, prompt, batched.tokens[i][k])
            plain_ref = _plain_logp(reference, prompt, batched.tokens[i][k])
            torch.testing.assert_close(batched.logps[i, k], plain, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(batched.ref_logps[i, k], plain_ref, rtol=1e-4, atol=1e-4)


def test_draws_follow_the_distribution_and_the_seed() -> None:
    model = _model(scale=0.15)
    drawn = sample(model, TOKENIZER, PROMPTS[:1], 4000, max_new_tokens=1, seed=0, batch_size=4000)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn.tokens[0]]), minlength=len(TOKENIZER))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([TOKENIZER(PROMPTS[0])["input_ids"]])).logits[0, -1].softmax(-1) * 4000
    # Pearson's statistic over ~120 cells: mean ~120, standard deviation ~16
    assert ((counts - expected) ** 2 / expected).sum() < 220
    assert sample(model, TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=1).tokens == (
        sample(model, TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=1).tokens
    )
    assert sample(model, TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=1).tokens != (
        sample(model, TOKENIZER, PROMPTS, 2, max_new_tokens=6, seed=2).tokens
    )


def test_common_random_numbers_tie_like_policies_together() -> None:
    """A policy that hardly differs says nearly everything the same; draws of another seed agree far less."""
    model = _model()
    near = copy.deepcopy(model)
    with torch.no_grad():
        near.lm_head.weight += 2e-4 * torch.randn_like(near.lm_head.weight)
    here, there, elsewhere = (
        sample(m, TOKENIZER, PROMPTS, 8, max_new_tokens=8, seed=s).tokens
        for m, s in ((model, 3), (near, 3), (model, 4))
    )

    def agree(a: list, b: list) -> float:
        pairs = [(x, y) for some, others in zip(a, b, strict=True) for x, y in zip(some, others, strict=True)]
        return sum(x == y for x, y in pairs) / len(pairs)

    assert agree(here, there) > 0.8
    assert agree(here, elsewhere) < 0.3


def test_temperature_zero_is_greedy_and_log_probabilities_stay_at_one() -> None:
    model = _model()
    drawn = sample(model, TOKENIZER, PROMPTS, 2, temperature=0, max_new_tokens=5, seed=0)
    assert all(a == b for a, b in drawn.tokens)
    ids = TOKENIZER(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        assert drawn.tokens[0][0][0] == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    torch.testing.assert_close(
        drawn.logps[0, 0], _plain_logp(model, PROMPTS[0], drawn.tokens[0][0]), rtol=1e-4, atol=1e-4
    )


def test_kl_of_one_token_is_the_exact_one() -> None:
    model, reference = _model(scale=0.15), _model(seed=1, scale=0.15)
    drawn = sample(model, TOKENIZER, PROMPTS[:1], 4000, max_new_tokens=1, seed=0, reference=reference, batch_size=4000)
    row = torch.tensor([TOKENIZER(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        p, q = (m(input_ids=row).logits[0, -1].double().log_softmax(-1) for m in (model, reference))
    exact = (p.exp() * (p - q)).sum()
    error = (drawn.logps - drawn.ref_logps).std() / 4000**0.5
    assert abs(drawn.kl()[0] - exact) < 4 * error
    assert sample(model, TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0, reference=model).kl().abs().max() < 1e-4


def test_adapters_off_is_the_reference() -> None:
    base = _model()
    policy = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    policy.train()
    by_name = sample(policy, TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0, reference="adapters off")
    by_model = sample(policy, TOKENIZER, PROMPTS, 2, max_new_tokens=8, seed=0, reference=base)
    torch.testing.assert_close(by_name.ref_logps, by_model.ref_logps)
    assert by_name.kl().mean() > 0.1
    assert policy.training


def test_texts_end_where_the_model_ends_them() -> None:
    model = _model()
    drawn = sample(model, TOKENIZER, PROMPTS, 16, max_new_tokens=6, seed=0)
    for some, texts, cuts in zip(drawn.tokens, drawn.texts, drawn.cut.tolist(), strict=True):
        for ids, text, cut in zip(some, texts, cuts, strict=True):
            assert TOKENIZER.eos_token_id not in ids[:-1]
            assert cut == (ids[-1] != TOKENIZER.eos_token_id)
            assert cut <= (len(ids) == 6)
            assert "<eos>" not in text and text == text.strip()
    assert 0 < drawn.cut.double().mean() <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": []}, "nothing to sample"),
        ({"prompts": "one string"}, "a list of strings"),
        ({"prompts": ["summary :", ""]}, "prompt 1"),
        ({"n": 0}, "nothing to sample"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"reference": "adapters off"}, "bad reference"),
    ],
)
def test_what_cannot_be_sampled_is_said(change: dict, words: str) -> None:
    asked = {"prompts": PROMPTS, "n": 1, "max_new_tokens": 2, "seed": 0} | change
    with pytest.raises(InputError, match=words):
        sample(_model(), TOKENIZER, asked.pop("prompts"), asked.pop("n"), **asked)


def test_no_kl_without_a_reference() -> None:
    with pytest.raises(InputError, match="reference"):
        sample(_model(), TOKENIZER, PROMPTS[:1], 1, max_new_tokens=2, seed=0).kl()


def test_top_p_leaves_out_the_tail_and_no_more() -> None:
    """The draws are those of the distribution cut to the fewest most probable tokens that reach top_p."""
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64).log()[None]
    for top_p, kept in [
        (0.1, [0]),
        (0.39, [0]),
        (0.41, [0, 2]),
        (0.69, [0, 2]),
        (0.75, [0, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ]:
        uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        drawn = _choose(logits.expand(1000, -1), uniform, 1.0, top_p)
        share = torch.bincount(drawn, minlength=4) / 1000
        expected = torch.zeros(4, dtype=torch.float64)
        expected[kept] = logits.exp()[0, kept]
        assert torch.allclose(share.double(), expected / expected.sum(), atol=2e-3), top_p


def test_seeds_of_prompts_token_ids_and_ends() -> None:
    model = _model()
    both = sample(model, TOKENIZER, PROMPTS[:3], 2, max_new_tokens=12, seed=[7, 8, 9])
    alone = sample(model, TOKENIZER, PROMPTS[1:2], 2, max_new_tokens=12, seed=[8])
    assert alone.tokens[0] == both.tokens[1] != both.tokens[0]
    ids = [list(TOKENIZER(prompt)["input_ids"]) for prompt in PROMPTS[:3]]
    assert sample(model, TOKENIZER, ids, 2, max_new_tokens=12, seed=[7, 8, 9]).tokens == both.tokens
    end = both.tokens[0][0][3]  # some token that is drawn on the way
    ended = sample(model, TOKENIZER, PROMPTS[:1], 1, max_new_tokens=12, seed=[7], ends=[end])
    first = both.tokens[0][0].index(end)
    assert ended.tokens[0][0] == both.tokens[0][0][: first + 1] and not ended.cut[0, 0]
    with pytest.raises(InputError, match="bad top_p"):
        sample(model, TOKENIZER, PROMPTS[:1], 1, max_new_tokens=2, seed=0, top_p=0.0)
