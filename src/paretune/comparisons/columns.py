"""Arrow columns of rows as numpy arrays and digests, a stretch of rows at a time: no Python object per row, no copy of
a whole column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

STRETCH = 10_000  # rows at a time


def stretches(rows: Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Arrow arrays of these columns, `STRETCH` rows after the other."""
    selected = rows.select_columns(list(columns)).with_format("arrow")
    for table in selected.iter(batch_size=STRETCH):
        yield {name: _one_chunk(table[name]) for name in columns}


def _one_chunk(column: Any) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def characters(texts: Any) -> np.ndarray:
    """Lengths of texts in characters; of messages, their contents joined by newlines (`rows.text_of`)."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if not _is_list(texts):
        return np.asarray(pc.utf8_length(texts), dtype=np.int64)
    lengths = np.asarray(pc.utf8_length(pc.struct_field(texts.values, "content")), dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    first, last = _bounds(texts)
    return ends[last] - ends[first] + np.maximum(last - first - 1, 0)


def digests(texts: Any, size: int) -> list[bytes]:
    """A digest of `size` bytes for each text or list of messages; null counts as empty."""
    if not _is_list(texts):
        data, offsets = _bytes(texts)
        ends = offsets.tolist()
        return [hashlib.blake2b(data[i:j], digest_size=size).digest() for i, j in zip(ends, ends[1:], strict=False)]
    import pyarrow.compute as pc

    first, last = (bounds.tolist() for bounds in _bounds(texts))
    parts = [_bytes(pc.struct_field(texts.values, name)) for name in ("role", "content")]
    found = []
    for i, j in zip(first, last, strict=True):
        digest = hashlib.blake2b(digest_size=size)
        for data, offsets in parts:  # the ends say where one message stops and the next begins
            digest.update((offsets[i : j + 1] - offsets[i]).tobytes())
            digest.update(data[offsets[i] : offsets[j]])
        found.append(digest.digest())
    return found


def numbers(found: list[bytes]) -> np.ndarray:
    """Digests of 8 bytes as uint64. Among ten million of them two different texts share one with probability 3e-6."""
    return np.frombuffer(b"".join(found), dtype="<u8")


def absorb(digest: Any, array: Any) -> None:
    """Updates a hash by all that an array of texts or lists of messages holds, however it is sliced."""
    import pyarrow.compute as pc

    if _is_list(array):
        first, last = _bounds(array)
        digest.update(np.asarray(last - first).tobytes())
        flat = array.flatten()
        for name in ("role", "content"):
            absorb(digest, pc.struct_field(flat, name))
        return
    data, offsets = _bytes(array)
    digest.update(np.diff(offsets).tobytes())
    digest.update(data[offsets[0] : offsets[-1]])


def labels(preferences: Any, names: Sequence[str]) -> np.ndarray:
    """(rows, m) float64 from a column of preferences; NaN where there is none."""
    import pyarrow.compute as pc

    fields = [pc.struct_field(preferences, name).cast("float64") for name in names]
    columns = [np.asarray(field.to_numpy(zero_copy_only=False), dtype=np.float64) for field in fields]
    return np.stack(columns, axis=1) if columns else np.empty((len(preferences), 0))


def numbers_of_lists(lists: Any, width: int) -> np.ndarray:
    """(rows, width) from a column whose lists all have that length."""
    return np.asarray(lists.flatten()).reshape(len(lists), width)


def named(lists: Any, names: Sequence[str]) -> np.ndarray:
    """(rows, m) bool: whether each row's list of names has each of these; null is an empty list."""
    import pyarrow.compute as pc

    first, last = _bounds(lists)
    row = np.repeat(np.arange(len(lists)), np.where(lists.is_valid(), last - first, 0))
    values = lists.flatten()
    found = np.zeros((len(lists), len(names)), dtype=bool)
    for j, name in enumerate(names):
        found[row[np.asarray(pc.fill_null(pc.equal(values, name), False))], j] = True
    return found


def _is_list(array: Any) -> bool:
    import pyarrow.types as kinds  # type: ignore[import-untyped]

    return bool(kinds.is_list(array.type) or kinds.is_large_list(array.type))


def _bounds(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where each list begins and ends in `lists.values`."""
    offsets = np.asarray(lists.offsets, dtype=np.int64)
    return offsets[:-1], offsets[1:]


def _bytes(texts: Any) -> tuple[memoryview, np.ndarray]:
    """The bytes of all texts, and the rows + 1 offsets that part them."""
    import pyarrow as pa

    texts = texts.cast(pa.large_string())  # int64 offsets whatever they were; the bytes are not copied
    _, ends, data = texts.buffers()
    offsets = np.frombuffer(ends, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1] if ends else np.zeros(1)
    return memoryview(data if data is not None else b""), offsets.astype(np.int64)
