"""Reference log-probabilities on disk: a folder per fingerprint, filled part by part, so that a killed run goes on.

A part is a file of rows and their values, written whole or not at all: to a neighbour, flushed to the disk, renamed.
Parts may overlap, come from several processes, or be missing; what a folder holds is what its readable parts hold
together. The last to finish puts one file in place of all of them.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from paretune.comparisons.cache import cache_root
from paretune.errors import InputError
from paretune.files import flush, said_if_full

WHOLE = "all.safetensors"
_BLOCK = 1 << 21  # words of eight bytes that are digested at a time
_LEFT_OVER = 3600.0  # seconds after which an unfinished neighbour is nobody's any more


def model_fingerprint(model: Any, *, adapters: bool = True) -> str:
    """A digest of every bit of a model's weights, of their names, shapes and dtypes, and of its configuration.

    The bytes are summed as integers of 64 bits under odd factors, exactly modulo 2^64: any changed entry and any
    exchange shows, and the sum is the same on every device and with any number of threads (a sum of floats is neither).

    Args:
        model: with or without a configuration.
        adapters: False leaves the weights that PEFT put in out, as names that PEFT changed; they are off, and freshly
            drawn for each run.
    """
    digest = hashlib.sha256(json.dumps(_configuration(model), sort_keys=True, default=str).encode())
    factors = torch.randint(-(2**62), 2**62, (_BLOCK,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    moved: dict[torch.device, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not adapters and any(part in name for part in ("lora_", "modules_to_save")):
            continue
        name = name if adapters else name.replace(".base_layer", "").replace(".original_module", "")
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        words, rest = _words(tensor.detach())
        if words.device not in moved:
            moved[words.device] = factors.to(words.device)
        sums = [(part * moved[words.device][: len(part)]).sum() for part in words.split(_BLOCK) if len(part)]
        if sums:
            digest.update(torch.stack(sums).cpu().numpy().tobytes())
        digest.update(rest.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's bytes as int64 words, and the up to seven bytes that are left over."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = raw[: len(raw) // 8 * 8]
    if whole.storage_offset() % 8:  # a part of a larger buffer that does not start at a word
        whole = whole.clone()
    return whole.view(torch.int64), raw[len(whole) :]


def _configuration(model: Any) -> dict[str, Any]:
    """What of a configuration can change what its model computes; where it was loaded from cannot."""
    config: Any = getattr(model, "config", None)
    content = config.to_dict() if hasattr(config, "to_dict") else {}
    return {k: v for k, v in content.items() if k not in ("_name_or_path", "transformers_version", "use_cache")}


def cache_folder(settings: dict[str, Any]) -> Path:
    """Where reference log-probabilities of these settings are kept: a folder named after their digest."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / "reference" / digest


def read_parts(folder: Path, rows: int) -> tuple[Tensor, list[Path]]:
    """(2, rows) float64, the values of both sides, NaN where no part has a row; and the damaged files, now removed.

    Raises:
        InputError: the folder cannot be read, or not be written where something has to go.
    """
    values, damaged = torch.full((2, rows), float("nan"), dtype=torch.float64), []
    with _usable(folder):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                position, stored = _read(path, rows)
            except FileNotFoundError:  # another process has just put one file in place of the parts
                return read_parts(folder, rows)
            except (SafetensorError, KeyError, ValueError):
                path.unlink(missing_ok=True)
                damaged.append(path)
                continue
            values[:, position] = stored
    return values, damaged


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """What the system refuses there is an InputError."""
    try:
        yield
    except OSError as error:
        fix = "Let the environment variable PARETUNE_CACHE name a folder that can be read and written."
        raise InputError(f"the reference cache cannot be used ({error})", where=str(folder), fix=fix) from error


def _read(path: Path, rows: int) -> tuple[Tensor, Tensor]:
    part = load(path.read_bytes())
    position, values, check = part["position"], part["values"], part["check"]
    if not torch.equal(check, _check(position, values)) or not 0 <= int(position.min()) <= int(position.max()) < rows:
        raise ValueError("not what was written")
    return position, values


def _check(position: Tensor, values: Tensor) -> Tensor:
    """(32,) uint8: safetensors notices a file that was cut, not one whose bytes have changed."""
    digest = hashlib.sha256(position.numpy().tobytes() + values.numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def write_part(folder: Path, position: Tensor, values: Tensor, name: str = "") -> None:
    """Writes the values of some rows, durably: a process killed at any moment leaves a whole file or none.

    Args:
        folder: of `cache_folder`; made where it is not there.
        position: (n,) int64 row numbers, at least one.
        values: (2, n) float64.
        name: of the file; a new one of its own where left out.

    Raises:
        InputError: the folder cannot be written.
    """
    values = values.contiguous()
    content = save({"position": position, "values": values, "check": _check(position, values)})
    name = name or f"{uuid.uuid4().hex}.safetensors"
    neighbour = folder / f"{name}.{uuid.uuid4().hex}.unfinished"
    with _usable(folder), said_if_full(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            neighbour.write_bytes(content)
            flush(neighbour)
            neighbour.replace(folder / name)
        finally:
            neighbour.unlink(missing_ok=True)
        flush(folder)


def write_whole(folder: Path, values: Tensor) -> None:
    """Puts one file with every row, (2, rows), in place of all parts."""
    write_part(folder, torch.arange(values.shape[1]), values, WHOLE)
    with _usable(folder):
        for path in folder.glob("*.safetensors"):
            if path.name != WHOLE:
                path.unlink(missing_ok=True)
        for path in folder.glob("*.unfinished"):  # of processes that were killed; others may be at work here
            try:
                if time.time() - path.stat().st_mtime > _LEFT_OVER:
                    path.unlink()
            except FileNotFoundError:
                continue
