"""Models beyond the plain ones: what one backward pass cannot serve goes one pass each, said once, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from paretune.errors import InputError
from paretune.gradients import GradientStack, trainable_parameters
from paretune.training.trainer import RACOTrainer
from tests.models_made import make_model
from tests.runs_made import OBJECTIVES, made_text_rows, small_config, small_model, small_trainer
from tests.tokenizers_made import byte_bpe


def experts() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=400, num_experts=4, num_experts_per_tok=2, max_position_embeddings=128, **sizes, **heads
        )
    )


def state_space() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4))


def notices(trainer: RACOTrainer) -> str:
    return "\n".join(trainer.record.content["notices"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("model", "adapter", "one_pass", "layout", "said"),
    [
        (experts, None, False, "shared", "experts"),
        (experts, {"target_modules": ["q_proj", "v_proj"]}, True, "shared", ""),
        (state_space, None, False, "flat", "linear_attention"),
        (small_model, {"target_modules": ["embed_tokens", "q_proj"]}, False, "shared", "lora_embedding_A"),
        (
            small_model,
            {"target_modules": ["q_proj"], "use_dora": True},
            False,
            "shared",
            "one backward pass per objective",
        ),
        (lambda: make_model("gemma2", vocab_size=400, std=0.1), None, True, "flat", "soft-capped"),
    ],
    ids=["experts", "experts-lora", "state-space", "lora-on-embeddings", "dora", "soft-capped-attention"],
)
def test_what_a_model_allows_is_found_out_and_said(
    tmp_path: Path, model: Any, adapter: dict[str, Any] | None, one_pass: bool, layout: str, said: str
) -> None:
    torch.manual_seed(0)
    own = {} if adapter is None else {"peft_config": LoraConfig(r=2, **adapter)}
    trainer = small_trainer(tmp_path, model=model(), max_steps=2, **own)
    assert trainer.one_pass is one_pass and trainer.scorer.layout == layout
    assert said in notices(trainer) and ("per objective" in notices(trainer)) is not one_pass
    trainer.train()
    norms = [entry["grad/norm/helpful"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(norms) == 2 and all(norm > 0 for norm in norms)


def saved(path: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(path)
    byte_bpe().save_pretrained(path)
    return str(path)


@pytest.mark.filterwarnings("ignore")
def test_a_four_bit_base(tmp_path: Path) -> None:
    """QLoRA: the adapters' gradients are those of a float base that holds the dequantized weights."""
    pytest.importorskip("bitsandbytes", reason="4-bit bases need bitsandbytes: pip install 'paretune[quant]'")
    # sizes that bitsandbytes can pack on a CPU: multiples of 32
    path = saved(tmp_path / "base", small_model(hidden_size=64, intermediate_size=128, head_dim=32))
    options: dict[str, Any] = {"quantize": True, "dtype": "float32"}
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = RACOTrainer(
        path, small_config(tmp_path, max_steps=2), OBJECTIVES, made_text_rows(16), eval_dataset=made_text_rows(4),
        peft_config=adapter, model_options=options,
    )  # fmt: skip
    assert type(trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert trainer.one_pass
    trainer.evaluate()  # an evaluation before training must not cost the gradient
    ids = torch.randint(2, 400, (2, 9))

    def gradients(model: Any) -> torch.Tensor:
        stack = GradientStack(trainable_parameters(model), 1)
        loss = model(input_ids=ids, labels=ids).loss
        for name, grad in zip(
            stack.parameters, torch.autograd.grad(loss, list(stack.parameters.values())), strict=True
        ):
            stack.add(name, 0, grad)
        return torch.cat([stack.buffer(name)[0] for name in stack.parameters])

    trainer.model.train()
    quantized = gradients(trainer.model)
    from bitsandbytes.functional import dequantize_4bit

    for module in trainer.model.modules():
        base = getattr(module, "base_layer", None)
        if type(base).__name__ == "Linear4bit":
            weight = dequantize_4bit(base.weight.data, base.weight.quant_state)
            plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            plain.weight = torch.nn.Parameter(weight, requires_grad=False)
            module.base_layer = plain
    exact = gradients(trainer.model)
    assert float((quantized - exact).norm() / exact.norm()) < 1e-3


def test_four_bits_and_full_fine_tuning_exclude_each_other(tmp_path: Path) -> None:
    path = saved(tmp_path / "base", small_model())
    with pytest.raises(InputError, match="4-bit weights cannot train.*lora"):
        RACOTrainer(path, small_config(tmp_path), OBJECTIVES, made_text_rows(8), model_options={"quantize": True})
