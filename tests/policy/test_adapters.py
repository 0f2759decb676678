"""Adapters whose inputs are not widened under autocast: the same numbers, and only there."""

from __future__ import annotations

import pytest
import torch

from paretune.policy.adapters import adapter_layers, inputs_uncast
from tests.gradients.test_single_pass import with_lora
from tests.models_made import VOCABULARY, make_model


def test_the_same_numbers_without_widening() -> None:
    model = with_lora(make_model("qwen3", dtype=torch.bfloat16))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    layers = adapter_layers(model)
    assert len(layers) == 14  # two decoder layers of seven linear ones
    ids = torch.randint(3, VOCABULARY, (2, 9))
    trained = [p for p in model.parameters() if p.requires_grad]
    seen: list[torch.dtype] = []
    layers[0].lora_A["default"].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))  # type: ignore[union-attr, index]

    def run(*, active: bool) -> list[torch.Tensor]:
        with inputs_uncast(layers, active=active), torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids).logits
        return [logits.detach(), *torch.autograd.grad(logits.float().sin().sum(), trained)]

    for a, b in zip(run(active=True), run(active=False), strict=True):
        assert torch.equal(a, b)
    assert seen == [torch.bfloat16, torch.float32]
    with pytest.raises(RuntimeError, match="stop"), inputs_uncast(layers, active=True):
        raise RuntimeError("stop")
    assert all(layer.cast_input_dtype_enabled for layer in layers)
