"""Arrow columns as numpy: the same figures as one row after the other, however a column is stored and sliced."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from paretune.comparisons import columns
from paretune.comparisons.columns import absorb, characters, digests, labels, stretches
from paretune.comparisons.rows import text_of

TEXTS = ["", "plain", "ümlaut 日本", "plain", "a\nb", "x" * 300]
CHATS = [
    [{"role": "user", "content": "plain"}],
    [{"role": "user", "content": "pla"}, {"role": "assistant", "content": "in"}],
    [{"role": "assistant", "content": "plain"}],
    [],
    [{"role": "user", "content": "ü"}, {"role": "user", "content": ""}],
    [{"role": "user", "content": "plain"}],
    [{"role": "user", "content": ""}, {"role": "user", "content": "ü"}],
]
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
ARRAYS = [
    (TEXTS, pa.array(TEXTS)),
    (TEXTS, pa.array(TEXTS, pa.large_string())),
    (CHATS, pa.array(CHATS, pa.list_(MESSAGE))),
    (CHATS, pa.array(CHATS, pa.large_list(MESSAGE))),
]


@pytest.mark.parametrize(("values", "array"), ARRAYS, ids=lambda x: str(x.type) if isinstance(x, pa.Array) else "")
@pytest.mark.parametrize("start", [0, 2])
def test_each_text_counts_and_is_told_apart(values: list[Any], array: pa.Array, start: int) -> None:
    values, array = values[start:], array.slice(start)
    assert characters(array).tolist() == [len(text_of(value)) for value in values]
    found = digests(array, 16)
    equal = [[one == other for other in values] for one in values]
    assert [[one == other for other in found] for one in found] == equal
    alone = pa.concat_arrays([array])  # not a slice: offsets begin at 0
    assert digests(alone, 16) == found


def absorbed(*arrays: pa.Array) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        absorb(digest, array)
    return digest.hexdigest()


def test_absorbing_sees_every_border_and_no_storage() -> None:
    for values, array in ARRAYS:
        whole = absorbed(array.slice(1, 4))
        assert whole == absorbed(pa.array(values[1:5], array.type))
        assert whole != absorbed(array.slice(2, 4))
    assert absorbed(pa.array(["ab", "c"])) != absorbed(pa.array(["a", "bc"]))
    one, two = ([{"role": "u", "content": "x"}], [{"role": "u", "content": "y"}])
    kind = pa.list_(MESSAGE)
    assert absorbed(pa.array([one + two, []], kind)) != absorbed(pa.array([one, two], kind))
    assert absorbed(ARRAYS[0][1]) == absorbed(ARRAYS[1][1]) and absorbed(ARRAYS[2][1]) == absorbed(ARRAYS[3][1])


def test_labels_are_in_the_order_asked_for_with_nan_for_none() -> None:
    array = pa.array([{"x": 1, "y": None, "z": None}, {"x": None, "y": 0.5, "z": None}])
    found = labels(array, ["y", "x", "z"])
    np.testing.assert_array_equal(found, [[np.nan, 1.0, np.nan], [0.5, np.nan, np.nan]])
    assert labels(array, []).shape == (2, 0)


def test_stretches_follow_selected_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "STRETCH", 3)
    rows = Dataset.from_dict({"prompt": [f"p{i}" for i in range(10)]}).select([9, 1, 2, 3, 8, 0, 4])
    parts = [part["prompt"].to_pylist() for part in stretches(rows, ["prompt"])]
    assert parts == [["p9", "p1", "p2"], ["p3", "p8", "p0"], ["p4"]]
