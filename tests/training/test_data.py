"""Data made ready for a run: where labels are, what is only counted, and what its fingerprint stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.data import TokenizedData, prepare_data
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
