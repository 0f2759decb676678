"""Models that mean harm: nothing of them runs. Weights come from safetensors alone, code never unless asked for."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, LlamaConfig

from paretune.errors import InputError
from paretune.policy.loading import load_policy, load_scored, load_tokenizer
from paretune.policy.mixed import mixed_policy
from paretune.policy.soups import check_parts, soup
from paretune.preferences.judges.local import model_identity
from paretune.preferences.reward_models.models import load_reward_model, new_reward_model, read_config
from tests.cli.made import paretune, records, save_model, write_jsonl
from tests.tokenizers_made import byte_bpe


class Harm:
    """What a pickle runs as it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path, name: str, mark: Path) -> Path:
    """The folder with a pickle in place of its weights."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / name).write_bytes(pickle.dumps(Harm(mark)))
    return folder


def adapter_on(base: str, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base, **changes}))
    return folder


def test_pickled_weights_are_refused_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "harm"
    pickle.loads(pickle.dumps(Harm(mark)))
    assert mark.is_dir(), "it does harm where it is read"
    mark.rmdir()
    whole = save_model(tmp_path / "whole")
    bad = str(pickled(save_model(tmp_path / "bad"), "pytorch_model.bin", mark))
    adapter = str(pickled(adapter_on(str(whole), tmp_path / "adapter"), "adapter_model.bin", mark))
    on_bad = adapter_on(bad, tmp_path / "on-bad")
    (on_bad / "adapter_model.safetensors").write_bytes(b"")
    scores = tmp_path / "scores"
    AutoModelForSequenceClassification.from_config(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=400)
    ).save_pretrained(scores)
    byte_bpe().save_pretrained(scores)
    pickled(scores, "pytorch_model.bin", mark)
    attempts: list[Callable[[], Any]] = [
        *(lambda name=name, load=load: load(name) for name in (bad, adapter, str(on_bad)) for load in (
            lambda name: load_policy(name, full=True), load_scored, lambda name: model_identity(name, "judge"),
            lambda name: soup([name, name], [0.5, 0.5]), lambda name: mixed_policy([name, name], [0.5, 0.5]),
            lambda name: check_parts([name], [1.0]), lambda name: new_reward_model(name, ["x"], None),
        )),
        lambda: load_reward_model(str(scores)),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(InputError, match="no weights in safetensors.*can run code"):
            attempt()
    data = write_jsonl(tmp_path / "rows.jsonl", records("native"))
    words = ["--data", data, "--objectives", "{helpful: 1}", "--output_dir", tmp_path / "run", "--use_cpu", "true"]
    assert paretune("train", "--model", bad, *words) == 2
    assert paretune("train", "--model", whole, "--ref_model", bad, *words) == 2
    assert capsys.readouterr().err.count("no weights in safetensors") == 2
    assert not mark.exists()


def test_code_of_a_model_is_not_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    mark = tmp_path / "harm"
    folder = save_model(tmp_path / "model")
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Other: pass\n")
    autos = {
        name: "code.Other" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": autos}))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "Other", "auto_map": {"AutoTokenizer": ["code.Other", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    name = str(folder)
    for attempt in (
        lambda: load_policy(name, full=True),
        lambda: load_scored(name),
        lambda: load_tokenizer(name),
        lambda: read_config(name),
        lambda: load_reward_model(name),
        lambda: new_reward_model(name, ["x"], None),
    ):
        with pytest.raises(InputError):
            attempt()
    assert not mark.exists() and not asked


def test_adapters_and_indexes_that_point_elsewhere(tmp_path: Path) -> None:
    whole = save_model(tmp_path / "whole")
    for i, (changes, said) in enumerate((
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "Megatron"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": ["x"]}, "names no base"),
        ({"base_model_name_or_path": str(tmp_path / "3")}, "adapters on each other"),
        ({"peft_type": "NONE"}, "unreadable adapter_config.json"),
        ({"r": "many"}, "cannot load"),
    )):  # fmt: skip
        folder = adapter_on(str(whole), tmp_path / str(i), **changes)
        (folder / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(InputError, match=said):
            load_scored(str(folder))
    (whole / "model.safetensors").rename(tmp_path / "x.safetensors")
    for part, said in (("../x.safetensors", "weights elsewhere"), ("x.bin", "weights elsewhere")):
        (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
        with pytest.raises(InputError, match=said):
            load_policy(str(whole), full=True)
    for index in ("[" * 100_000, '{"weight_map": []}', "[]"):
        (whole / "model.safetensors.index.json").write_text(index)
        with pytest.raises(InputError, match="unreadable index"):
            load_policy(str(whole), full=True)
