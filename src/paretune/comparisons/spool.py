"""What reading keeps per row, small: texts leave for a file that is memory-mapped, digests stand for what was seen.

A row costs 40 to 60 bytes of memory and 8 more per objective: its pair's digest (16) with the table that finds it (8 to
32), a flag, its place in the file (12). Texts take none once they fill more than `IN_MEMORY`.
"""

from __future__ import annotations

import atexit
import os
import platform
import shutil
import struct
import tempfile
from array import array
from pathlib import Path
from typing import Any

from paretune.comparisons.cache import cache_root
from paretune.errors import InputError

IN_MEMORY = 32 << 20  # bytes of text that are held in memory before a file is opened
_TWO = struct.Struct("<QQ")


class Digests:
    """Numbers 16-byte digests in the order of their first coming: open addressing over flat arrays.

    A dict of bytes would take some 180 bytes for each, these take 24 to 48.
    """

    def __init__(self) -> None:
        self.low, self.high = array("Q"), array("Q")
        self.slots = array("I", [0]) * 1024  # number + 1 of the digest that is found there; 0: free
        self.mask = len(self.slots) - 1

    def __len__(self) -> int:
        return len(self.low)

    def find(self, digest: bytes) -> int:
        """The digest's number, or -1."""
        low, high = _TWO.unpack(digest)
        slots, mask = self.slots, self.mask
        slot = low & mask
        while number := slots[slot]:
            if self.low[number - 1] == low and self.high[number - 1] == high:
                return number - 1
            slot = slot + 1 & mask
        return -1

    def add(self, digest: bytes) -> int:
        """The digest's number, a new one where it has none."""
        number = self.find(digest)
        return number if number >= 0 else self.append(digest)

    def append(self, digest: bytes) -> int:
        """The number of a digest that is known to be new."""
        low, high = _TWO.unpack(digest)
        self.low.append(low)
        self.high.append(high)
        if 2 * len(self.low) > len(self.slots):
            self._grow()
        else:
            self._settle(low, len(self.low))
        return len(self.low) - 1

    def _settle(self, low: int, number: int) -> None:
        slots, mask = self.slots, self.mask
        slot = low & mask
        while slots[slot]:
            slot = slot + 1 & mask
        slots[slot] = number

    def _grow(self) -> None:
        self.slots = array("I", [0]) * (4 * len(self.slots))
        self.mask = len(self.slots) - 1
        for number, low in enumerate(self.low, start=1):
            self._settle(low, number)


class Places:
    """Where each row stood ("train.jsonl, line 7"): 12 bytes for the file and the number instead of the text."""

    def __init__(self) -> None:
        self.heads: dict[str, int] = {}
        self.head, self.number = array("I"), array("q")

    def append(self, where: str) -> None:
        head, _, last = where.rpartition(" ")
        plain = last.isascii() and last.isdigit() and len(last) < 19 and (last[0] != "0" or last == "0")
        name = head if plain else where
        self.head.append(self.heads.setdefault(name, len(self.heads)))
        self.number.append(int(last) if plain else -1)

    def __getitem__(self, index: int) -> str:
        name = next(name for name, head in self.heads.items() if head == self.head[index])
        return name if self.number[index] < 0 else f"{name} {self.number[index]}"


class Spool:
    """Record batches: held while they are few, else written to a file of this process, gone when it ends.

    The file lies under the cache's root rather than in the system's folder for temporary files, which on many machines
    is memory. It keeps its name while the process lives, so that `datasets` can hand it to worker processes.

    Attributes:
        kept_in_memory: why no file could be opened, where that is so.
    """

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.size = 0
        self.path: Path | None = None
        self.writer: Any = None
        self.kept_in_memory: str | None = None

    def write(self, batch: Any) -> None:
        """Takes a record batch of the one schema."""
        self.size += batch.nbytes
        if self.writer is None and self.size > IN_MEMORY and self.kept_in_memory is None:
            self._open(batch.schema)
        if self.writer is None:
            self.batches.append(batch)
        else:
            self._put(batch)

    def table(self) -> Any:
        """Everything as a table of `datasets`, in memory or mapped from the file."""
        import pyarrow as pa  # type: ignore[import-untyped]
        from datasets.table import InMemoryTable, MemoryMappedTable

        if self.writer is None:
            return InMemoryTable(pa.Table.from_batches(self.batches))
        self.writer.close()
        return MemoryMappedTable.from_file(str(self.path))

    def _open(self, schema: Any) -> None:
        import pyarrow as pa

        try:
            self.path = own_folder() / "rows.arrow"
            self.writer = pa.ipc.new_stream(str(self.path), schema)
        except OSError as error:
            self.kept_in_memory = f"{cache_root()} cannot be written ({error.strerror or error})"
            return
        for held in self.batches:
            self._put(held)
        self.batches = []
        pa.default_memory_pool().release_unused()

    def _put(self, batch: Any) -> None:
        try:
            self.writer.write_batch(batch)
        except OSError as error:
            fix = "Make room there, or set PARETUNE_CACHE to a folder on another disk."
            raise InputError("the rows cannot be kept", where=str(self.path), found=str(error), fix=fix) from error


def own_folder() -> Path:
    """A new folder under the cache's root that is removed when this process ends; those of dead ones go now."""
    root, node = cache_root() / "spool", platform.node() or "here"
    root.mkdir(parents=True, exist_ok=True)
    for other in root.glob(f"{node}=*"):  # a process that was killed could not tidy up
        if not _alive(other.name.removeprefix(f"{node}=").partition("=")[0]):
            shutil.rmtree(other, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{node}={os.getpid()}=", dir=root))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _alive(pid: str) -> bool:
    if os.name != "posix" or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child of it
        shutil.rmtree(folder, ignore_errors=True)
