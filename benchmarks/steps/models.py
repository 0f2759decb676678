"""Models, tokenizer and rows of the step benchmark, all made here: nothing is downloaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SHAPES = {"tldr": (384, 48), "chat": (128, 256), "long": (1536, 128)}  # tokens of the prompt, of each response
SCALES = {
    "tiny": 8
}  # a size at which shapes shrink by this factor: it shows that everything runs, and measures nothing
FAMILIES = {"qwen3": Qwen3Config, "llama": LlamaConfig, "gemma3": Gemma3TextConfig}
RANK = 16
WORDS = 8192  # of the tokenizer at most: a larger vocabulary would only make setting up slower


@dataclass(frozen=True)
class Size:
    """A decoder's measures, in the words of transformers' configs."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = True


# The last three are Qwen3's, from the config.json of Qwen/Qwen3-0.6B, -4B and -8B.
SIZES = {
    "tiny": Size(128, 2, 2, 1, 64, 384, 512),
    "quick": Size(256, 6, 4, 2, 64, 768, 8192),
    "full": Size(512, 8, 8, 4, 64, 1536, 8192),
    "0.6b": Size(1024, 28, 16, 8, 128, 3072, 151936),
    "4b": Size(2560, 36, 32, 8, 128, 9728, 151936),
    "8b": Size(4096, 36, 32, 8, 128, 12288, 151936, tie_word_embeddings=False),
}


@dataclass(frozen=True)
class Case:
    """One model, one way to train it, one kind of batch."""

    family: str
    size: str
    shape: str
    comparisons: int
    full: bool
    device: str = "cpu"

    @property
    def key(self) -> str:
        return f"{'full' if self.full else 'lora'}/{self.shape}/{self.comparisons}"

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the prompt and of each response."""
        prompt, response = SHAPES[self.shape]
        scale = SCALES.get(self.size, 1)
        return prompt // scale, response // scale

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights: a frozen base may be bfloat16, trained weights are float32 everywhere."""
        return torch.bfloat16 if self.device == "cuda" and not self.full else torch.float32


def make_model(case: Case) -> PreTrainedModel:
    """A randomly drawn model on its device; the same numbers every time."""
    size = SIZES[case.size]
    options: dict[str, Any] = {"sliding_window": 512} if case.family == "gemma3" else {}
    config = FAMILIES[case.family](
        **vars(size), **options, max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    torch.manual_seed(0)
    with torch.device(case.device):
        return AutoModelForCausalLM.from_config(config, dtype=case.dtype, attn_implementation="sdpa")


def copy_of(model: PreTrainedModel, *, share: bool) -> PreTrainedModel:
    """A model of its own with equal weights, or, where they stay frozen, on the very same ones: that saves memory."""
    kept = [*model.parameters(), *model.buffers()] if share else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


def make_tokenizer(case: Case) -> PreTrainedTokenizerFast:
    """One token per word w0, w1, …: lengths in words are lengths in tokens."""
    vocabulary = min(WORDS, SIZES[case.size].vocab_size)
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(vocabulary - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=4096
    )


def make_texts(case: Case, batches: int) -> list[tuple[str, str, str]]:
    """Prompts and two responses of exactly the case's lengths (a response's last token is the EOS added to it)."""
    generator = torch.Generator().manual_seed(1)
    prompt, response = case.lengths

    def words(count: int) -> str:
        ids = torch.randint(0, min(WORDS, SIZES[case.size].vocab_size) - 3, (count,), generator=generator)
        return " ".join(f"w{i}" for i in ids.tolist())

    rows = range(case.comparisons * batches)
    return [(words(prompt), " " + words(response - 1), " " + words(response - 1)) for _ in rows]
