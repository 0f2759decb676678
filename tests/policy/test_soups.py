"""Soups: the mean of weights, adapters by the matrices that they add, and what cannot be averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.policy.loading import load_policy, load_scored
from paretune.policy.soups import soup, write_soup
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe

IDS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    make_model("llama").save_pretrained(folder)
    return str(folder)


def _adapter(base: str, folder: Path, seed: int, **options: Any) -> str:
    """A LoRA adapter with random factors on the base, saved."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], **options})
    model = get_peft_model(load_policy(base, full=False), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    path = folder / f"adapter-{seed}"
    model.save_pretrained(path)
    return str(path)


def _deltas(path: str) -> dict[str, Tensor]:
    """What an adapter adds to each weight, by merging it with peft and subtracting the base: float64."""
    scored = load_scored(path)
    plain = {k: v.double() for k, v in scored.get_base_model().state_dict().items() if "lora" not in k}
    plain = {k.replace(".base_layer", ""): v.clone() for k, v in plain.items()}
    merged = {k: v.double() for k, v in scored.merge_and_unload().state_dict().items()}
    return {k: merged[k] - plain[k] for k in plain}


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_whole_models_give_the_mean_of_their_weights(tmp_path: Path) -> None:
    parts, weights = [], [0.2, 0.5, 0.3]
    for seed in range(3):
        make_model("qwen3", seed=seed).save_pretrained(tmp_path / str(seed))
        parts.append(str(tmp_path / str(seed)))
    byte_bpe().save_pretrained(parts[0])
    states = [make_model("qwen3", seed=seed).state_dict() for seed in range(3)]
    found = load_policy(str(write_soup(parts, weights, str(tmp_path / "soup"))), full=True).state_dict()
    for name, tensor in found.items():
        expected = sum(w * s[name].double() for w, s in zip(weights, states, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(_logits(soup(parts, [0.0, 1.0, 0.0])), _logits(make_model("qwen3", seed=1)))
    assert (tmp_path / "soup" / "tokenizer.json").exists()


@pytest.mark.parametrize("weights", [[0.25, 0.75], [1.0, 0.0]])
def test_adapters_are_interpolated_by_what_they_add(base: str, tmp_path: Path, weights: list[float]) -> None:
    """Of different ranks, scalings and a rank of its own for one layer, the delta is the mean of deltas."""
    first = _adapter(base, tmp_path, 1)
    second = _adapter(base, tmp_path, 2, r=4, lora_alpha=9, use_rslora=True, rank_pattern={"layers.1.mlp.down_proj": 2},
                      alpha_pattern={"layers.0.self_attn.q_proj": 7})  # fmt: skip
    byte_bpe().save_pretrained(first)
    write_soup([first, second], weights, str(tmp_path / "soup"))
    found, of_first, of_second = _deltas(str(tmp_path / "soup")), _deltas(first), _deltas(second)
    assert max(float(d.abs().max()) for d in of_second.values()) > 0.1
    for name, delta in found.items():
        torch.testing.assert_close(delta, weights[0] * of_first[name] + weights[1] * of_second[name], rtol=0, atol=1e-6)


def test_exact_adapters_agree_with_pefts_concatenation(base: str, tmp_path: Path) -> None:
    parts = [_adapter(base, tmp_path, seed, lora_alpha=3) for seed in (1, 2)]
    model = PeftModel.from_pretrained(load_policy(base, full=False), parts[0], adapter_name="a")
    model.load_adapter(parts[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.3, 0.7], "cat", combination_type="cat")
    model.set_adapter("cat")
    torch.testing.assert_close(_logits(soup(parts, [0.3, 0.7])), _logits(model.eval()), rtol=1e-4, atol=1e-5)


def test_linear_means_the_factors_and_is_another_model(base: str, tmp_path: Path) -> None:
    parts = [_adapter(base, tmp_path, seed) for seed in (1, 2)]
    byte_bpe().save_pretrained(parts[0])
    write_soup(parts, [0.3, 0.7], str(tmp_path / "linear"), lora="linear")
    states = [load_scored(part).state_dict() for part in [*parts, str(tmp_path / "linear")]]
    for name in states[0]:
        if "lora_" in name:
            torch.testing.assert_close(states[2][name], 0.3 * states[0][name] + 0.7 * states[1][name])
    exact, linear = soup(parts, [0.3, 0.7]), soup(parts, [0.3, 0.7], lora="linear")
    assert (_logits(exact) - _logits(linear)).abs().max() > 0.01
    same = soup([parts[0], parts[0]], [0.3, 0.7], lora="linear")
    torch.testing.assert_close(_logits(same), _logits(load_scored(parts[0])), rtol=1e-4, atol=1e-5)


def test_weights_that_adapters_carry_whole_are_meant(base: str, tmp_path: Path) -> None:
    parts = [_adapter(base, tmp_path, seed, modules_to_save=["lm_head"]) for seed in (1, 2)]
    heads = [load_scored(part).get_output_embeddings().modules_to_save["default"].weight for part in parts]
    found: Any = soup(parts, [0.4, 0.6])
    head = found.get_output_embeddings().modules_to_save["default"].weight
    torch.testing.assert_close(head, 0.4 * heads[0] + 0.6 * heads[1])


def test_what_cannot_be_averaged_is_said_before_weights_are_read(base: str, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path, 1)
    with pytest.raises(InputError, match="adapters and whole models"):
        soup([adapter, base], [0.5, 0.5])
    for bad in ([0.5, 0.6], [1.5, -0.5], [1.0], [float("nan"), 1.0]):
        with pytest.raises(InputError, match="bad weights"):
            soup([base, base], bad)
    other = tmp_path / "other"
    make_model("llama", seed=5).save_pretrained(other)
    with pytest.raises(InputError, match="did not start from one model"):
        soup([adapter, _adapter(str(other), tmp_path, 2)], [0.5, 0.5])
    with pytest.raises(InputError, match="started by changing its base"):
        soup([adapter, _adapter(base, tmp_path, 3, init_lora_weights="pissa")], [0.5, 0.5])
    with pytest.raises(InputError, match="more than a product"):
        soup([adapter, _adapter(base, tmp_path, 4, use_dora=True)], [0.5, 0.5])
    with pytest.raises(InputError, match="bad interpolation"):
        soup([adapter, adapter], [0.5, 0.5], lora="slerp")
    with pytest.raises(InputError, match="different layers"):
        soup([adapter, _adapter(base, tmp_path, 6, target_modules=["v_proj"])], [0.5, 0.5])
    with pytest.raises(InputError, match="no linear mean"):
        soup([adapter, _adapter(base, tmp_path, 7, r=4)], [0.5, 0.5], lora="linear")


def test_models_of_different_sizes_are_no_soup(tmp_path: Path) -> None:
    for number, sizes in enumerate(({}, {"intermediate_size": 40}, {"num_hidden_layers": 1})):
        make_model("llama", **sizes).save_pretrained(tmp_path / str(number))
    with pytest.raises(InputError, match="differ in shape"):
        soup([str(tmp_path / "0"), str(tmp_path / "1")], [0.5, 0.5])
    with pytest.raises(InputError, match="different weights"):
        soup([str(tmp_path / "0"), str(tmp_path / "2")], [0.5, 0.5])
