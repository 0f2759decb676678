"""Small real models as judges: a chat model whose labels are tokens, and rows to judge."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe, chatml

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "blue", "moon", "dog", "ball", "happy", "story"]


def judge_model(path: Path, *, chat: bool = True, seed: int = 0) -> tuple[Any, Any]:
    """A saved model with room for our prompts, and its tokenizer."""
    tokenizer = chatml() if chat else byte_bpe()
    model = make_model("qwen3", seed=seed, vocab_size=len(tokenizer), hidden_size=16, max_position_embeddings=4096)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


def text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6)))


def responses(n: int, k: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"prompt": f"{i} {text(rng)}?", "responses": [f"{text(rng)} {j}" for j in range(k)], "reference": text(rng)}
        for i in range(n)
    ]
