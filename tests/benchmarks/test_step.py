"""The step benchmark: contestants compute the same thing, its table tells met from missed, and paper is arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.steps import paper, targets, timing
from benchmarks.steps.contestants import exists, make_contestant
from benchmarks.steps.models import SIZES, Case, copy_of, make_model
from benchmarks.steps.plot import draw

CASE = Case("qwen3", "tiny", "tldr", 2, full=True)
STEPS = 3


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Every contestant's losses over a few steps of full fine-tuning, all rows in every step."""
    pytest.importorskip("trl", reason="the step benchmark's yardstick: pip install 'paretune[bench]'")
    model, found = make_model(CASE), {}
    for name in ("trl", "ours-1", "scalar-flat", "scalar-shared", "ours-2", "naive-2", "twopass-2"):
        if not exists(name):
            continue
        mine = copy_of(model, share=False)
        contestant = make_contestant(name, CASE, tmp_path_factory.mktemp(name), mine, batches=1)
        for step in range(STEPS):
            contestant.step(step)
        contestant.finish()
        assert [round_ for round_, _, _ in contestant.turns] == list(range(STEPS))
        assert all(wall > 0 for _, wall, _ in contestant.turns)
        found[name] = contestant.losses[:STEPS]
    return found


def test_every_contestant_starts_where_policy_and_reference_agree(losses: dict[str, list[float]]) -> None:
    for name, values in losses.items():
        assert values[0] == pytest.approx(math.log(2), abs=1e-5), name
        assert values[1] < values[0] - 1e-4, name  # and each learns


PAIRS = [("ours-1", "trl"), ("naive-2", "ours-2"), ("scalar-flat", "scalar-shared")]


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_contestants_take_the_same_steps(losses: dict[str, list[float]], name: str, other: str) -> None:
    assert losses[name] == pytest.approx(losses[other], rel=1e-4)


def test_the_mode_without_m_gradients_takes_the_same_steps(losses: dict[str, list[float]]) -> None:
    assert losses["twopass-2"] == pytest.approx(losses["ours-2"], rel=1e-4)


def test_frozen_weights_are_shared_and_trained_ones_are_not() -> None:
    model = make_model(CASE)
    own, shared = copy_of(model, share=False), copy_of(model, share=True)
    assert {p.data_ptr() for p in shared.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert not {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert own.get_output_embeddings().weight is own.get_input_embeddings().weight


def test_ratios_are_of_turns_of_one_round() -> None:
    ours = {"turns": [[0, 1.0, 3.0], [1, 2.0, 3.0], [2, 9.0, 9.0]]}
    theirs = {"turns": [[0, 4.0, 6.0], [1, 4.0, 6.0]]}
    found = timing.ratio(ours, theirs)
    assert found is not None and found["ratio"] == pytest.approx(0.375) and found["pairs"] == 2
    assert found["quartiles"] == pytest.approx([0.3125, 0.4375])
    assert timing.ratio(ours, {"missing": "out of memory"}) is None


def test_paper_counts_what_a_hand_counts() -> None:
    """tiny: h 128, a 128, k 64, f 384, V 512, 2 layers; prompt 48, responses 6; 2 comparisons, all weights trained."""
    weights = 2 * (128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 384)
    shared, flat = 2 * (48 + 12), 2 * (96 + 12)
    seen_shared = 2 * (48 * 49 // 2 + 2 * (6 * 48 + 21))
    seen_flat = 2 * 2 * (54 * 55 // 2)
    head = 2 * 2 * 6 * 2 * 512 * 128  # 24 scored positions
    attention = 2 * 4 * 128  # layers, two products of 2 operations, width
    # forward, to the inputs, to the weights; attention's backward is twice its forward
    scalar = 3 * 2 * shared * weights + 3 * attention * seen_shared + 3 * head
    assert paper.tokens("scalar-shared", CASE) == shared and paper.tokens("trl", CASE) == flat
    assert paper.work("scalar-shared", CASE).flops == scalar
    # TRL on a CPU: flat rows, logits at all 2 * 2 * 53 positions, computed once more in the backward pass
    trl = 3 * 2 * flat * weights + 3 * attention * seen_flat + 4 * 2 * 2 * 2 * 53 * 512 * 128
    assert paper.work("trl", CASE).flops == trl
    G = weights + 512 * 128
    assert paper.trained_weights(CASE) == G
    plain, ours = paper.work("scalar-shared", CASE), paper.work("ours-4", CASE)
    # four objectives on two comparisons: two gradients are kept, each written and read twice
    assert plain.gradient_bytes == 44 * G and ours.gradient_bytes == (44 + 2 * 12) * G
    assert ours.flops == plain.flops
    assert paper.seconds_on_paper("ours-4", CASE, paper.Rates(1e9, math.inf)) == pytest.approx(
        (scalar + ours.gradient_flops) / 1e9
    )


def test_the_table_tells_met_from_missed(tmp_path: Path) -> None:
    n = targets.BATCHES["tiny"]
    record = record_of(
        {"trl": 1.0, "scalar-flat": 0.6, "scalar-shared": 0.3, "ours-1": 0.2, "ours-8": 0.4, "ours-2": 0.3}
    )
    record["groups"]["lora/tldr/2"]["contestants"] |= {"ours-16": {"missing": "out of memory"}}
    record["groups"]["lora/tldr/2"]["contestants"]["trl"]["memory"] = 200 << 20
    record["groups"]["lora/tldr/2"]["contestants"]["ours-8"]["memory"] = 100 << 20
    judgements = [targets.judged(row, record) for row in targets.rows("tiny", "cpu", n)]
    verdicts = {(j["shape"], j["how"], j["who"], j["against"], j["what"]): j["verdict"] for j in judgements}
    assert verdicts["tldr", "lora", "ours-1", "trl", "time"] == "met"
    assert verdicts["tldr", "lora", "ours-8", "trl", "time"] == "MISSED"
    assert verdicts["tldr", "lora", "ours-16", "trl", "time"] == "ours-16 out of memory"
    assert verdicts["tldr", "lora", "ours-8", "trl", "memory"] == "met"
    assert verdicts["chat", "lora", "ours-8", "trl", "time"] == "not measured"
    lines = targets.table(judgements).splitlines()
    assert len(lines) == 1 + len(judgements) and lines[0].split()[:4] == ["what", "against", "in", "target"]
    assert any("<= 0.35  0.200" in line and line.endswith("met") for line in lines)
    assert any("100 / 200 MiB" in line for line in lines)
    (tmp_path / "step-tiny-qwen3.json").write_text(json.dumps(record))
    assert [p.name for p in draw(tmp_path, tmp_path / "docs")] == ["step.svg", "step.png"]


WHERE = [(size, "cuda" if size in ("0.6b", "4b", "8b") else "cpu") for size in SIZES]


@pytest.mark.parametrize(("size", "device"), WHERE)
def test_a_target_has_its_contestants_in_one_group(size: str, device: str) -> None:
    n = targets.BATCHES[size]
    groups = targets.groups(size, "qwen3", device, n)
    lacking = [
        row
        for row in targets.rows(size, device, n)
        if row.target is not None
        and not (device == "cpu" and row.what == "memory")  # in processes of their own
        and not any(g.case.key == row.case_key and {row.who, row.against} <= set(g.names) for g in groups)
    ]
    assert not lacking


def record_of(walls: dict[str, float]) -> dict[str, Any]:
    found = {name: {"turns": [[r, wall, wall] for r in range(7)]} for name, wall in walls.items()}
    case = vars(Case("qwen3", "tiny", "tldr", 2, full=False))
    return {
        "size": "tiny",
        "family": "qwen3",
        "device": "cpu",
        "model": vars(SIZES["tiny"]),
        "machine": {"processor": "made", "threads": 1},
        "commit": None,
        "rates": {"flops": 1e11, "bytes": 1e10},
        "groups": {"lora/tldr/2": {"case": case, "contestants": found}},
    }
