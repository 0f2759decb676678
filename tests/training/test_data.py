"""Data made ready for a run: where labels are, what is only counted, and what its fingerprint stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.data import TokenizedData, prepare_data, prepare_sets
from paretune.training.record import RunRecord
from tests.runs_made import OBJECTIVES, small_config
from tests.tokenizers_made import byte_bpe

NAMES = [o.name for o in OBJECTIVES]


def prepared(tmp_path: Path, rows: list[dict[str, Any]], objectives: Any = OBJECTIVES, **options: Any) -> TokenizedData:
    args = small_config(tmp_path, max_length=20)
    record = RunRecord(args, objectives, objectives)
    return prepare_data(rows, objectives, byte_bpe(), args, record, "train", **options)


def signed(signs: list[tuple[int, int]], long: int) -> list[dict[str, Any]]:
    """Rows of the raco layout, one of them too long to be kept."""
    return [
        {
            "prompt": f"Say {i}:",
            "chosen": " a dog" + " and a cat" * (9 if i == long else 1),
            "rejected": " a moon",
            "raco_s_helpful": helpful,
            "raco_s_concise": concise,
        }
        for i, (helpful, concise) in enumerate(signs)
    ]


def test_labels_and_counted_ties_stay_with_their_rows_when_others_are_dropped(tmp_path: Path) -> None:
    signs = [(1, -1), (0, 1), (1, 1), (-1, 0), (0, 0), (1, 0)]
    data = prepared(tmp_path, signed(signs, long=2), ties="release")
    kept = [0, 1, 3, 4, 5]
    assert data.rows["index"][:] == kept
    assert data.labelled.tolist() == [[sign != 0 for sign in signs[i]] for i in kept]
    assert data.rows["count_only"][:] == [[sign == 0 for sign in signs[i]] for i in kept]
    preferences = np.asarray(data.rows["preferences"][:])
    np.testing.assert_array_equal(np.isnan(preferences), ~data.labelled)
    assert preferences[0].tolist() == [1.0, 0.0]
    turned = prepared(tmp_path, signed(signs, long=2), OBJECTIVES[::-1], ties="release")
    assert turned.rows["count_only"][:] == [row[::-1] for row in data.rows["count_only"]]


def test_the_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    rows = signed([(1, -1), (1, 1), (-1, 1)], long=9)
    first = prepared(tmp_path, rows)
    assert prepared(tmp_path, signed([(-1, 1), (1, -1), (1, 1)], long=9)).fingerprint == first.fingerprint
    assert prepared(tmp_path, rows[:2]).fingerprint != first.fingerprint
    assert prepared(tmp_path, rows[::-1]).fingerprint != first.fingerprint


def test_an_objective_whose_labels_were_all_dropped_is_refused(tmp_path: Path) -> None:
    rows = signed([(1, 0), (-1, 1), (1, 0)], long=1)
    with pytest.raises(InputError, match="no row that can be trained on carries a label of 'concise'"):
        prepared(tmp_path, rows)
    free = [Objective("helpful", weight=1.0), Objective("concise", weight=0.0)]
    assert prepared(tmp_path, rows, free).labelled.sum(0).tolist() == [2, 0]


def test_each_part_of_a_split_has_a_report_of_its_own(tmp_path: Path) -> None:
    signs = [(1, -1), (0, 1), (1, 1), (-1, 0), (0, 0), (1, 0), (-1, -1), (1, 1)]
    rows = [{**row, "group": str(i // 2)} for i, row in enumerate(signed(signs, long=9))]

    def reports(rows: list[dict[str, Any]], fraction: float | None) -> dict[str, Any]:
        args = small_config(tmp_path, eval_fraction=fraction)
        record = RunRecord(args, OBJECTIVES, OBJECTIVES)
        prepare_sets(rows, None, OBJECTIVES, byte_bpe(), args, record, ties="release")
        return {name: found["rows"] for name, found in record.content["data"].items()}

    whole, parts = reports(rows, None)["train"], reports(rows, 0.25)
    train, held_out = parts["train"], parts["eval"]
    assert (train["kept"], held_out["kept"]) == (6, 2) and (train["groups"], held_out["groups"]) == (3, 1)
    for key in ("labels", "ties", "count_only"):
        sums = {name: train[key][name] + held_out[key][name] for name in NAMES}
        assert sums == whole[key], key
    assert sum(whole["count_only"].values()) > 0
    prints = {found["fingerprint"] for found in (whole, train, held_out)}
    assert len(prints) == 3 and train["part_of"] == held_out["part_of"] == whole["fingerprint"]
    assert whole["part_of"] == "" and reports(rows, 0.25) == parts
    # another label, or another text, of a row that is held out
    groups = {row["group"] for row in rows}
    for changes in ({"raco_s_helpful": 1, "raco_s_concise": 1}, {"rejected": " another moon"}):
        changed = [reports([{**r, **changes} if r["group"] == g else r for r in rows], 0.25) for g in sorted(groups)]
        assert {found["eval"]["fingerprint"] == held_out["fingerprint"] for found in changed} == {True, False}
        assert all(
            (found["eval"]["fingerprint"] == held_out["fingerprint"])
            != (found["train"]["fingerprint"] == train["fingerprint"])
            for found in changed
        )
