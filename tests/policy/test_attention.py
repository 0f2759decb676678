"""Prompt-shared attention against its definition, pair by pair; flat rows and `generate` against sdpa."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from paretune.policy.attention import (
    ATTENTION_NAME,
    Blocks,
    base_model,
    paretune_attention,
    shared_attention,
    use_paretune_attention,
)
from tests.models_made import VOCABULARY, make_model


def blocks(widths: tuple[int, int, int], lengths: list[int]) -> Blocks:
    return Blocks(widths, torch.tensor(lengths), min(lengths))


def states(rows: int, heads: tuple[int, int], total: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """query, key, value as models make them: (R, T, H, D) seen as (R, H, T, D)."""
    generator = torch.Generator().manual_seed(total)
    shapes = [(rows, total, count, 8) for count in (heads[0], heads[1], heads[1])]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    ]


def real_columns(given: Blocks) -> list[Tensor]:
    """Per row, the columns that hold tokens (responses are taken as full: their padding is nobody's key)."""
    width, total = given.widths[0], sum(given.widths)
    return [torch.tensor([*range(length), *range(width, total)]) for length in (int(n) for n in given.prefix_lengths)]


def by_definition(query: Tensor, key: Tensor, value: Tensor, given: Blocks, window: int | None, scale: float) -> Tensor:
    """Each query's own softmax over the keys it may see: prefix and own block, not later, nearer than the window."""
    width_p, width_a, _ = given.widths
    groups = query.shape[1] // key.shape[1]
    output = torch.zeros_like(query)
    for row, columns in enumerate(real_columns(given)):
        length = int(given.prefix_lengths[row])
        block = [0 if c < width_p else 1 if c < width_p + width_a else 2 for c in columns.tolist()]
        starts = (0, width_p - length, width_p + width_a - length)
        position = [c - starts[part] for c, part in zip(columns.tolist(), block, strict=True)]
        for i, c in enumerate(columns.tolist()):
            keys = [
                int(columns[j])
                for j in range(len(columns))
                if block[j] in (0, block[i])
                and position[j] <= position[i]
                and (window is None or position[i] - position[j] < window)
            ]
            for head in range(query.shape[1]):
                scores = key[row, head // groups, keys] @ query[row, head, c] * scale
                output[row, head, c] = scores.softmax(0) @ value[row, head // groups, keys]
    return output


def on_real_columns(output: Tensor, given: Blocks) -> Tensor:
    return torch.cat([output[row][:, columns].flatten() for row, columns in enumerate(real_columns(given))])


@pytest.mark.parametrize(
    ("widths", "lengths"),
    [
        ((12, 3, 4), [12, 12]),  # short sides, no padding
        ((12, 3, 4), [12, 5]),
        ((5, 7, 6), [5, 2]),  # long sides: a call each
        ((1, 2, 1), [1, 1]),
    ],
)
@pytest.mark.parametrize("window", [None, 1, 3, 6, 13, 100])
def test_equals_its_definition(widths: tuple[int, int, int], lengths: list[int], window: int | None) -> None:
    given = blocks(widths, lengths)
    inputs = states(2, (4, 2), sum(widths))
    ours = on_real_columns(shared_attention(*inputs, given, window=window, scaling=0.37), given)
    truth = on_real_columns(by_definition(*inputs, given, window, 0.37), given)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-13)
    seed = torch.linspace(-1, 2, len(truth), dtype=truth.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(truth, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("widths", "lengths"), [((12, 3, 4), [12, 5]), ((5, 7, 6), [5, 5]), ((5, 7, 6), [1, 4])])
def test_long_responses_without_a_mask_equal_those_with_one(
    widths: tuple[int, int, int], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, inputs = blocks(widths, lengths), states(2, (4, 2), sum(widths))
    usual = on_real_columns(shared_attention(*inputs, given, scaling=0.37), given)
    monkeypatch.setattr("paretune.policy.attention._MOST_MASKED", 0)
    monkeypatch.setattr("paretune.policy.attention._response_mask", None)
    ours = on_real_columns(shared_attention(*inputs, given, scaling=0.37), given)
    torch.testing.assert_close(ours, usual, rtol=0, atol=1e-13)
    seed = torch.linspace(-1, 2, len(usual), dtype=usual.dtype)
    pairs = zip(torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(usual, inputs, seed), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def dense(given: Blocks, window: int | None) -> Tensor:
    """(R, 1, T, T) boolean mask of the definition, for sizes where the loop above would take minutes."""
    width_p, width_a, width_b = given.widths
    column = torch.arange(sum(given.widths))
    block = (column >= width_p).long() + (column >= width_p + width_a).long()
    masks = []
    for length in given.prefix_lengths.tolist():
        position = column - torch.tensor([0, width_p - length, width_p + width_a - length])[block]
        distance = position[:, None] - position[None, :]
        seen = ((block[None, :] == 0) | (block[None, :] == block[:, None])) & (distance >= 0)
        seen &= (distance < window) if window is not None else True
        seen &= (block > 0)[None, :] | (column < length)[None, :] | (column[:, None] == column[None, :])
        masks.append(seen)
    return torch.stack(masks)[:, None]


@pytest.mark.parametrize("window", [None, 5, 70, 600])
def test_long_prefixes_taken_in_pieces(window: int | None) -> None:
    given = blocks((1300, 40, 30), [1300, 1180])
    inputs = states(2, (2, 1), 1370)
    truth = torch.nn.functional.scaled_dot_product_attention(
        inputs[0], *(part.expand(-1, 2, -1, -1) for part in inputs[1:]), attn_mask=dense(given, window)
    )
    ours = shared_attention(*inputs, given, window=window)
    torch.testing.assert_close(on_real_columns(ours, given), on_real_columns(truth, given), rtol=0, atol=1e-12)


def test_masks_are_small_and_built_once() -> None:
    given = blocks((300, 20, 30), [300, 280])
    inputs = states(2, (4, 2), 350, torch.float32)
    for _ in range(3):
        for window in (None, 32):
            shared_attention(*inputs, given, window=window)
    # One for full layers; for windowed ones a band of the prefix and one of the responses.
    assert len(given.masks) == 3
    assert max(mask.shape[-1] * mask.shape[-2] for mask in given.masks.values()) <= 350 * (20 + 30)
    assert given.masks[("band", 64, 32, torch.float32, torch.device("cpu"))].shape == (1, 1, 64, 95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    given = blocks((12, 5, 4), [12, 9])
    inputs = states(2, (4, 2), 21, dtype)
    ours = shared_attention(*inputs, given, window=7)
    truth = shared_attention(*(part.double() for part in inputs), blocks((12, 5, 4), [12, 9]), window=7)
    assert ours.dtype == dtype
    error = on_real_columns(ours.double() - truth, given).abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_dropout_reaches_every_part() -> None:
    given = blocks((12, 3, 4), [12, 12])
    inputs = states(2, (4, 2), 19)
    plain = shared_attention(*inputs, given)
    torch.manual_seed(0)
    draws = torch.stack([shared_attention(*inputs, given, dropout=0.3).detach() for _ in range(600)])
    changed = (draws[0] - plain).abs().amax(dim=(0, 1, 3))
    assert bool((changed > 0).all())
    # Dropout leaves the expectation: the mean of 600 draws is near it, within six of its standard errors.
    assert bool(((draws.mean(0) - plain).abs() <= 6 * draws.std(0) / 600**0.5 + 1e-12).all())


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_sdpa_cannot_express_is_refused(name: str) -> None:
    inputs = states(1, (2, 2), 4)
    with pytest.raises(ValueError, match=name):
        paretune_attention(
            torch.nn.Module(), *inputs, None, paretune_blocks=blocks((2, 1, 1), [2]), **{name: torch.ones(2)}
        )


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_flat_rows_and_generation_are_sdpa_bit_for_bit(family: str) -> None:
    model = make_model(family)
    ids = torch.randint(3, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(17) >= torch.tensor([[0], [4], [9]])).long()  # padded on the left, as for generation

    def run() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
            text = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return logits, text

    model.set_attn_implementation("sdpa")
    truth = run()
    use_paretune_attention(model)
    assert model.config._attn_implementation == ATTENTION_NAME
    for ours, theirs in zip(run(), truth, strict=True):
        assert torch.equal(ours, theirs)


def test_the_implementation_is_set_through_adapters_and_put_back() -> None:
    model = get_peft_model(make_model("qwen3"), LoraConfig(r=2, target_modules=["q_proj"]))
    base = base_model(model)
    assert use_paretune_attention(model) == "sdpa"
    assert {layer.self_attn.config._attn_implementation for layer in base.model.layers} == {ATTENTION_NAME}
    assert use_paretune_attention(model) == ATTENTION_NAME
    base.set_attn_implementation("sdpa")
    assert base.config._attn_implementation == "sdpa"


def test_a_saved_model_does_not_ask_for_our_attention(tmp_path: Path) -> None:
    model = make_model("llama")
    use_paretune_attention(model)
    model.save_pretrained(tmp_path)
    assert ATTENTION_NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_only_transformers_models() -> None:
    with pytest.raises(TypeError, match="transformers model"):
        base_model(torch.nn.Linear(2, 2))
