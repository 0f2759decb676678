"""From a file of prompts to a model that is better in the exact rewards: three commands, or one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tests.cli.made import paretune, write_jsonl
from tests.sandbox.bases_made import base_of
from tests.sandbox.rewards_made import WORLD, exact_rewards, write_prompts

HERE = "tests.sandbox.rewards_made"
SOURCES = {name: {"function": f"{HERE}:{name}"} for name in WORLD.objectives}
WEIGHTS = dict.fromkeys(WORLD.objectives, round(1 / len(WORLD.objectives), 4))
TRAINING = {
    **{"max_steps": 40, "learning_rate": 1e-4, "per_device_train_batch_size": 16},
    **{"gradient_accumulation_steps": 1, "use_cpu": True},
}


@cache
def _before() -> dict[str, float]:
    return exact_rewards(base_of("summaries"))


def _is_aligned(model: Path) -> None:
    gains = {name: after - _before()[name] for name, after in exact_rewards(model).items()}
    assert sum(gains.values()) / len(gains) > 0.05, gains  # samples of one model differ by up to 0.02
    assert min(gains.values()) > -0.05, gains


def test_three_commands_align_a_sandbox_model(tmp_path: Path) -> None:
    base, prompts = base_of("summaries"), write_prompts(tmp_path / "prompts.jsonl")
    drawn, rows, out = tmp_path / "responses.jsonl", tmp_path / "train.jsonl", tmp_path / "run"
    words = ["--model", base, "--prompts", prompts, "--n", "6", "--max_tokens", "24", "--out", drawn]
    assert paretune("sample", *words) == 0
    words = ["--sources", json.dumps(SOURCES), "--pairs", "best-worst", "--out", rows]
    assert paretune("label", drawn, *words) == 0
    settings = [word for name, value in TRAINING.items() for word in (f"--{name}", json.dumps(value))]
    words = ["--model", base, "--data", rows, "--objectives", json.dumps(WEIGHTS), "--output_dir", out]
    assert paretune("train", *words, *settings, "--save_strategy", "no") == 0
    _is_aligned(out)


def test_one_command_aligns_a_sandbox_model(tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "improved"
    settings = {
        **{"model": str(base_of("summaries")), "prompts": str(prompts), "output_dir": str(out)},
        **{"rounds": 1, "n": 6, "max_tokens": 24, "pairs": "best-worst"},
        **{"sources": SOURCES, "objectives": WEIGHTS},
        "held_out": {"prompts": 0.2, "sources": {"worst": {"function": f"{HERE}:worst"}}},
        **TRAINING,
    }
    assert paretune("improve", write_jsonl(tmp_path / "improve.yaml", [settings])) == 0
    assert json.loads((out / "improve.json").read_text(encoding="utf-8"))["best"]["round"] == 1
    _is_aligned(out / "best")
