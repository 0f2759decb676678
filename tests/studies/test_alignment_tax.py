"""The study of the alignment tax: the loss of demonstrations against a plain pass, cells, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from studies.alignment_tax import figure, run
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe

STUDY = Path(run.__file__).parent


def test_the_loss_of_demonstrations_is_that_of_plain_passes() -> None:
    tokenizer = byte_bpe()
    model = make_model("llama", vocab_size=len(tokenizer))
    texts = [("The cat sat", " on the mat."), ("Is it?", " No."), ("One two three", " four, five and the moon.")]
    total, count = 0.0, 0
    for prompt, response in texts:
        before = tokenizer(prompt)["input_ids"]
        whole = [*before, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        total -= sum(float(logps[i - 1, whole[i]]) for i in range(len(before), len(whole)))
        count += len(whole) - len(before)
    assert run.demonstration_loss(model, tokenizer, texts, batch=2) == pytest.approx(total / count, rel=1e-5)


def made_cells(size: run.Size) -> dict[tuple[int, str], dict[str, object]]:
    done: dict[tuple[int, str], dict[str, object]] = {}
    for seed, arm in run.cells(size):
        steps = (0,) if arm == "base" else size.checkpoints
        points = [
            {"step": s, "kl": 0.1 * s, "demonstrations": 1 + 0.01 * s * (seed + 1), "scores": [s, 0.5 * s, -s]}
            for s in steps
        ]
        done[seed, arm] = {"seed": seed, "arm": arm, "points": points}
    return done


def test_changes_are_from_the_seeds_own_base() -> None:
    size = run.Size()
    found = run.summarize(size, made_cells(size))
    last = found["changes"]["raco"][-1]
    assert last["loss"]["seeds"] == pytest.approx([0.6, 1.2, 1.8]) and last["loss"]["mean"] == pytest.approx(1.2)
    assert last["coverage"]["mean"] == 60 and set(found["changes"]) == set(run.ARMS)
    assert figure.draw(found).axes


def test_finished_cells_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, path, ran = run.Size(seeds=(0,)), tmp_path / "cells.jsonl", []
    cells = made_cells(size)
    kept = [json.dumps(cells[0, "base"]), json.dumps(cells[0, "linear"])]
    path.write_text("\n".join(kept) + '\n{"seed": 0, "arm": "ra\n')  # a kill cut the last line short

    def arm(size: run.Size, seed: int, name: str, folder: Path) -> object:
        ran.append(name)
        return cells[seed, name]["points"]

    monkeypatch.setattr(run, "run_arm", arm)
    done = run.fill(size, path, tmp_path)
    assert ran == ["raco", "coverage alone", "conciseness alone"] and set(done) == set(run.cells(size))
    assert set(run.finished(path)) == set(run.cells(size))


def test_the_kept_results_are_those_of_the_cells() -> None:
    results = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    found = run.summarize(run.Size(), run.finished(STUDY / "cells.jsonl"))
    assert {key: results[key] for key in found} == found
