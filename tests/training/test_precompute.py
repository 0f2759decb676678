"""The reference scored beforehand: a run killed on the way goes on where it was, alone or with a second rank."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.comparisons.lengths import PARTS, computed_tokens
from paretune.errors import InputError
from paretune.policy.reference_cache import WHOLE
from paretune.training import precompute
from paretune.training.trainer import RACOTrainer
from tests.ranks_made import NEXT_RANK, run_ranks
from tests.runs_made import made_text_rows, small_model, small_trainer

ROWS, BATCH, DONE = 42, 4, 4  # 11 batches, the kill comes while the fifth is written

# A rank that writes after each batch, and dies between writing a part and renaming it when it has so many.
WORKER = """
import os, signal, sys, torch
from pathlib import Path
from paretune.training import precompute
from tests.runs_made import made_text_rows, small_trainer
out, parts, rows, batch = Path(sys.argv[1]), *map(int, sys.argv[2:])
precompute.FLUSH_SECONDS = 0.0
replace, renamed, scored, score = Path.replace, [], [], precompute.reference_logprobs
def rename(self, target):
    if self.suffix == ".unfinished":
        renamed.append(self)
        if len(renamed) > parts:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
def counted(reference, batch):
    scored.extend(batch["index"].tolist())
    return score(reference, batch)
Path.replace, precompute.reference_logprobs = rename, counted
trainer = small_trainer(
    out, rows=made_text_rows(rows), precompute_ref_log_probs=True, per_device_eval_batch_size=batch,
    ddp_backend="gloo" if "RANK" in os.environ else None, disable_tqdm=False,
)
columns = [list(trainer.train_data.rows[c]) for c in ("ref_a", "ref_b")]
torch.save({"columns": columns, "scored": scored}, out / f"rank{trainer.args.process_index}.pt")
"""


def made(folder: Path, **changes: Any) -> RACOTrainer:
    options = {"rows": made_text_rows(ROWS), "precompute_ref_log_probs": True, "per_device_eval_batch_size": BATCH}
    return small_trainer(folder, **{**options, **changes})


def columns(trainer: RACOTrainer) -> np.ndarray:
    assert not isinstance(trainer.train_data, dict)
    return np.array([trainer.train_data.rows[column] for column in ("ref_a", "ref_b")])


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that the reference is asked for from now on."""
    rows: list[int] = []
    score = precompute.reference_logprobs

    def counted(reference: Any, batch: Any) -> Any:
        rows.extend(batch["index"].tolist())
        return score(reference, batch)

    monkeypatch.setattr(precompute, "reference_logprobs", counted)
    return rows


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETUNE_CACHE", str(folder / "cache"))
        return columns(made(folder))


def _alone(folder: Path) -> None:
    os.environ["PARETUNE_CACHE"] = str(folder / "cache")
    sys.argv[1:] = [str(folder), str(DONE), str(ROWS), str(BATCH)]
    exec(WORKER, {"__name__": "__main__"})


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that a process left behind which `kill -9` hit in the middle of the work."""
    folder = tmp_path_factory.mktemp("killed")
    worker = multiprocessing.get_context("fork").Process(target=_alone, args=(folder,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL and not (folder / "rank0.pt").exists()
    assert len(parts(folder / "cache")) == DONE
    return folder / "cache"


def parts(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def resumed(tmp_path: Path, killed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    shutil.copytree(killed, cache)
    monkeypatch.setenv("PARETUNE_CACHE", str(cache))
    return cache


def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, killed: Path, uninterrupted: np.ndarray, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = resumed(tmp_path, killed, monkeypatch)
    trainer = made(tmp_path / "run")
    assert 0 < len(scored) == len(set(scored)) <= ROWS - DONE * (BATCH - 1), "finished parts are not scored again"
    assert np.array_equal(columns(trainer), uninterrupted), "bit for bit"
    assert [path.name for path in parts(cache)] == [WHOLE]
    scored.clear()
    assert np.array_equal(columns(made(tmp_path / "again")), uninterrupted) and scored == []


def test_two_ranks_share_what_is_left_and_get_the_same(
    tmp_path: Path, killed: Path, uninterrupted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = resumed(tmp_path, killed, monkeypatch)
    statuses, said = run_ranks(WORKER, [str(tmp_path), "99", str(ROWS), str(BATCH)], 2, PARETUNE_CACHE=str(cache))
    assert statuses == [0, 0], said
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    shares = [rank["scored"] for rank in ranks]
    both = [row for share in shares for row in share]
    assert len(both) == len(set(both)) <= ROWS - DONE * (BATCH - 1), "no row is scored twice, none again"
    assert abs(len(shares[0]) - len(shares[1])) <= BATCH
    for rank in ranks:
        assert np.array_equal(np.array(rank["columns"]), uninterrupted), "bit for bit, on every rank"
    assert [path.name for path in parts(cache)] == [WHOLE]
    # a bar may show its end twice, when it gets there and when it closes
    assert ["reference of train data: 100%" in output for output in said.split(NEXT_RANK)] == [True, False], "one bar"
    assert " rows/s" in said


def test_damaged_parts_are_scored_again_and_said_once(
    tmp_path: Path,
    killed: Path,
    uninterrupted: np.ndarray,
    scored: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = resumed(tmp_path, killed, monkeypatch)
    made(tmp_path / "reference")
    untouched = len(scored)
    scored.clear()
    shutil.rmtree(cache)
    shutil.copytree(killed, cache)
    cut, flipped, *_ = parts(cache)
    cut.write_bytes(cut.read_bytes()[:-5])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x01")
    trainer = made(tmp_path / "run")
    notices = [notice for notice in trainer.record.content["notices"] if "damaged" in notice]
    assert len(notices) == 1 and notices[0].startswith("train data:")
    assert untouched < len(scored) == len(set(scored)) <= untouched + 2 * BATCH, "only what was damaged"
    assert np.array_equal(columns(trainer), uninterrupted)
    again = made(tmp_path / "again")
    assert not [notice for notice in again.record.content["notices"] if "damaged" in notice]
    assert "reference of" not in capsys.readouterr().err, "disable_tqdm shows no bar"


def test_the_columns_are_what_the_reference_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By row, whatever the batches: the margins of a model that has not moved are zero in training and evaluation."""
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    rows = made_text_rows(60)
    trainer = made(tmp_path, rows=rows[:40], eval_dataset={"near": rows[40:], "far": rows[:13]}, lora=True)
    assert trainer.reference.kind == "precomputed"
    before = trainer.evaluate()
    margins = [value for key, value in before.items() if "/margins/" in key]
    assert len(margins) == 4 and all(abs(value) < 1e-5 for value in margins)


def test_batches_go_by_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    computed: list[int] = []
    score = precompute.reference_logprobs

    def counted(reference: Any, batch: Any) -> Any:
        computed.append(batch["input_ids"].numel())
        return score(reference, batch)

    monkeypatch.setattr(precompute, "reference_logprobs", counted)
    rows = made(tmp_path).train_data.rows
    drawn = [
        np.array([[len(row[part]) for part in PARTS] for row in rows.select(range(i, i + 3))])
        for i in range(0, ROWS, 3)
    ]
    assert computed == sorted(computed, reverse=True)
    assert sum(computed) < 0.9 * sum(computed_tokens(batch) for batch in drawn), "less than threes as they come"


@pytest.mark.parametrize(
    "change",
    [
        {"rows": made_text_rows(ROWS)[::-1]},
        {"layout": "flat"},
        {"bf16": True},
        {"ref_model": small_model(seed=5)},
    ],
    ids=["tokens", "layout", "precision", "weights"],
)
def test_the_cache_knows_when_it_is_stale(
    tmp_path: Path, scored: list[int], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    for changes, expected in (({}, ROWS), (change, ROWS), ({"beta": 0.7, "per_device_eval_batch_size": 16}, 0)):
        scored.clear()
        made(tmp_path / "run", **changes)
        assert len(scored) == expected, "what does not change a log-probability does not cost a pass"


def test_a_reference_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    score = precompute.reference_logprobs

    def broken(reference: Any, batch: Any) -> Any:
        a, b = score(reference, batch)  # type: ignore[misc]
        return torch.where(batch["index"] == 17, torch.nan, a), b

    monkeypatch.setattr(precompute, "reference_logprobs", broken)
    with pytest.raises(InputError, match="not finite"):
        made(tmp_path)


def test_a_cache_that_cannot_be_written_shows_at_the_first_batch(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="PARETUNE_CACHE"):
        made(tmp_path)
    assert len(scored) <= BATCH
