"""Files and command lines for the tests of the command line: a saved small model, data in several layouts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from paretune.cli.main import main
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "blue", "moon", "dog", "ball", "happy", "story"]
OBJECTIVES = "{helpful: 0.6, short: 0.4}"
QUICK = [
    *["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "3"],
    *["--learning_rate", "1e-2", "--logging_steps", "1", "--save_strategy", "no", "--use_cpu", "true"],
]


def save_model(path: Path, family: str = "qwen3", tokenizer: Any = None, **changes: Any) -> Path:
    """A model directory with its tokenizer, as `save_pretrained` leaves them."""
    tokenizer = tokenizer or byte_bpe()
    sizes = {"n_embd": 16, "n_head": 2} if family == "gpt2" else {"hidden_size": 16, "intermediate_size": 24}
    model = make_model(family, std=0.15, **{"vocab_size": len(tokenizer), **sizes, **changes})
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def text(rng: random.Random, low: int = 2, high: int = 8) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def records(layout: str, n: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """n records in a public layout, each with a prompt of its own."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        prompt, a, b = f"{i} {text(rng)}?", f" {text(rng)}.", f" {text(rng)}!"
        helpful, short = rng.choice([-1, 0, 1]) if i else 1, 1 if len(a) < len(b) else -1
        half = {1: 1.0, 0: 0.5, -1: 0.0}
        found.append(
            {
                "native": {
                    **{"prompt": prompt, "response_a": a, "response_b": b},
                    "preferences": {"helpful": half[helpful], "short": half[short] if i % 5 else None},
                },
                "trl": {"prompt": prompt, "chosen": a, "rejected": b},
                "chat": {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": a}],
                    "rejected": [{"role": "assistant", "content": b}],
                },
                "raco": {
                    **{"prompt": prompt, "chosen": a, "rejected": b},
                    **{"raco_s_helpful": helpful, "raco_s_short": short},
                },
                "scores": {
                    "prompt": prompt,
                    "responses": [a, b],
                    "scores": {"helpful": [helpful, 0], "short": [-len(a), -len(b)]},
                },
            }[layout]
        )
    return found


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def paretune(*words: Any) -> int:
    """The command line in this process: its exit status."""
    return main([str(word) for word in words])


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """run.json and the lines of history.jsonl."""
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    return json.loads((path / "run.json").read_text()), history


def saved_weights(path: Path) -> dict[str, Any]:
    """The tensors of a run's model or adapter."""
    adapter = path / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else path / "model.safetensors")
