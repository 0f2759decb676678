"""The cache of reference log-probabilities: parts are whole or not there, and a fingerprint sees what changes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from paretune.errors import InputError
from paretune.policy.reference_cache import (
    WHOLE,
    cache_folder,
    model_fingerprint,
    read_parts,
    write_part,
    write_whole,
)
from tests.models_made import make_model

VALUES = torch.arange(20, dtype=torch.float64).reshape(2, 10) * -1.1


def write(folder: Path, *rows: int) -> Path:
    before = set(folder.glob("*"))
    write_part(folder, torch.tensor(rows), VALUES[:, list(rows)])
    (new,) = set(folder.glob("*")) - before
    return new


def known(values: Tensor) -> list[int]:
    rows = (~values.isnan().any(0)).nonzero().flatten()
    assert torch.equal(values[:, rows], VALUES[:, rows])
    return list(rows.tolist())


def test_parts_add_up_and_become_one_file(tmp_path: Path) -> None:
    assert known(read_parts(tmp_path / "new", 10)[0]) == []
    write(tmp_path, 9, 0, 4)
    write(tmp_path, 4, 5)
    values, damaged = read_parts(tmp_path, 10)
    assert known(values) == [0, 4, 5, 9] and damaged == []
    left, young = tmp_path / "x.safetensors.1.unfinished", tmp_path / "x.safetensors.2.unfinished"
    left.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(left, (0, 0))
    write_whole(tmp_path, VALUES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [WHOLE, young.name]
    assert known(read_parts(tmp_path, 10)[0]) == list(range(10))


def test_a_part_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()  # as one of another user's would, it refuses to be read
    with pytest.raises(InputError, match="cannot be used.*PARETUNE_CACHE"):
        read_parts(tmp_path, 10)
    with pytest.raises(InputError, match="cannot be used.*PARETUNE_CACHE"):
        write_whole(tmp_path, VALUES)


def _flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-8],
    "one bit": _flip,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named_and_removed(tmp_path: Path, damage: str) -> None:
    bad = write(tmp_path, 1, 2)
    write(tmp_path, 7)
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    values, damaged = read_parts(tmp_path, 10)
    assert known(values) == [7] and damaged == [bad] and not bad.exists()
    assert read_parts(tmp_path, 10)[1] == [], "said once"


def test_a_part_of_other_rows_is_not_believed(tmp_path: Path) -> None:
    part = write(tmp_path, 3, 9)
    assert read_parts(tmp_path, 9)[1] == [part]


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used.*PARETUNE_CACHE"):
        write_part(tmp_path / "file" / "folder", torch.tensor([0]), VALUES[:, :1])


def test_settings_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path))
    folder = cache_folder({"model": "x", "data": "y"})
    assert folder == cache_folder({"data": "y", "model": "x"}) and folder.is_relative_to(tmp_path)
    assert folder != cache_folder({"model": "x", "data": "z"})


def test_a_fingerprint_sees_any_weight_and_any_exchange() -> None:
    model = make_model("llama")
    first = model_fingerprint(model)
    assert first == model_fingerprint(make_model("llama"))
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        was = weight[17, 5].clone()
        weight[17, 5] = torch.nextafter(was, was + 1)
        assert model_fingerprint(model) != first, "the last bit of one entry"
        weight[17, 5] = was
        assert model_fingerprint(model) == first
        weight[[3, 4]] = weight[[4, 3]]
        assert model_fingerprint(model) != first, "sums alone do not see this"
    assert model_fingerprint(make_model("llama").bfloat16()) != first


def test_a_fingerprint_does_not_depend_on_threads() -> None:
    model = torch.nn.Linear(1000, 5000)  # more than one block of the digest
    first = model_fingerprint(model)
    torch.set_num_threads(2)
    try:
        assert model_fingerprint(model) == first
    finally:
        torch.set_num_threads(1)
    with torch.no_grad():
        model.weight[-1, -1] += 1
    assert model_fingerprint(model) != first


def test_a_fingerprint_sees_the_configuration() -> None:
    model = make_model("llama")
    first = model_fingerprint(model)
    model.config._name_or_path = "elsewhere"
    assert model_fingerprint(model) == first
    model.config.rms_norm_eps *= 10
    assert model_fingerprint(model) != first


def test_adapters_that_are_off_do_not_count() -> None:
    first = model_fingerprint(make_model("llama"))
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        policy = get_peft_model(make_model("llama"), config)
        assert model_fingerprint(policy.get_base_model(), adapters=False) == first
        assert model_fingerprint(policy.get_base_model()) != first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("entries", [1, 3, 8, 21])
def test_a_fingerprint_sees_every_entry_of_odd_tensors(dtype: torch.dtype, entries: int) -> None:
    module = torch.nn.Module()
    stored = torch.zeros(entries + 1, dtype=dtype)
    module.register_buffer("x", stored[1:])  # starts where no word does
    module.register_buffer("none", torch.zeros(0))
    seen = {model_fingerprint(module)}
    for i in range(entries):
        stored.zero_()[i + 1] = 1
        seen.add(model_fingerprint(module))
    assert len(seen) == entries + 1
