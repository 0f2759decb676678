"""Files that are whole or not there, whatever ends the process: every result of ours is written by these functions.

A file is written to a neighbour, flushed to the disk and renamed; then the folder is flushed, so that the name survives
a power cut too. A full disk is said by name, with what is free, and leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paretune.errors import InputError

# File too large (a limit of the file system or of the shell) means the same to whoever writes.
_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What compiled writers (safetensors, torch, SQLite) say of it, who raise no OSError.
_WORDS = (
    *("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed"),
    *("file write failed", "unexpected pos", "database or disk is full"),
)


class DiskFullError(InputError):
    """A file could not be written for want of room; nothing that was whole before was touched."""


def is_full(error: BaseException) -> bool:
    """Whether the error says that there is no room on the disk."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return not isinstance(error, InputError) and any(word in str(error) for word in _WORDS)


def disk_full(error: BaseException, path: Path | str) -> DiskFullError:
    """The error for people: what was being written, and how much room there is."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free, said = shutil.disk_usage(there).free, getattr(error, "strerror", None) or "the writer gave up half-way"
    return DiskFullError(
        f"no room on the disk to write it ({said})",
        where=str(path),
        found=f"{free / 1e6:,.1f} MB free in {there}",
        fix="Make room, or write to another disk; what was there before is whole, and the work goes on from it.",
    )


@contextmanager
def said_if_full(path: Path | str) -> Iterator[None]:
    """Turns a full disk's errors, whoever raises them, into one that names what was being written.

    Raises:
        DiskFullError: there is no room.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise disk_full(error, path) from error
        raise


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # file systems on which a folder cannot be flushed
            raise
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A neighbour to write to, which takes the path's place, durably, where the block ends without an error.

    Raises:
        DiskFullError: there is no room.
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.name}{_own()}")
    with said_if_full(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(path.parent)
            yield neighbour
            flush(neighbour)
            neighbour.replace(path)
        except BaseException:
            with suppress(OSError):
                neighbour.unlink()
            raise
        flush(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file (UTF-8), whole or not at all.

    Raises:
        DiskFullError: there is no room.
    """
    with whole_file(path) as neighbour:
        neighbour.write_text(text, encoding="utf-8")


@contextmanager
def whole_files(folder: Path | str) -> Iterator[Path]:
    """An empty folder to write several files to, which then go to `folder`, each whole.

    For writers that name their files themselves (`save_pretrained`). Other files of the folder stay.

    Raises:
        DiskFullError: there is no room.
    """
    folder = Path(folder)
    beside = folder / _own()
    with said_if_full(folder):
        try:
            shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed and had the same number
            beside.mkdir(parents=True)
            _remove_left_over(folder)
            yield beside
            flush_tree(beside)
            for path in sorted(beside.rglob("*")):
                if path.is_file():
                    place = folder / path.relative_to(beside)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        flush(folder)


def _own() -> str:
    """What the names of this process's neighbours end in: machine and number, since several may share a disk."""
    return f".{platform.node().replace('.', '-')}.{os.getpid()}.part"


def _remove_left_over(folder: Path) -> None:
    """Neighbours of this machine's processes that were killed: a model's may be large."""
    ours = _own().split(".")[1]
    for path in folder.glob(".*.part"):
        *_, machine, number, _ = path.name.split(".")
        if machine == ours and number.isdigit() and not _alive(int(number)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def flush_tree(folder: Path) -> None:
    """Flushes a folder with all that is in it."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
