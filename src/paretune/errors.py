"""What a person can put right, a run that lost its way, and a run that was asked to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad data, configuration or environment: says what was expected, what was found and what to do.

    The command line prints its message without a traceback and exits with status 2; everything else is a bug and
    keeps its traceback.
    """

    def __init__(self, problem: str, *, where: str = "", expected: str = "", found: object = None, fix: str = ""):
        parts = [f"{where}: {problem}" if where else problem]
        if expected:
            parts.append(f"expected {expected}")
        if found is not None:
            parts.append(f"found {found if isinstance(found, str) else repr(found)}")
        message = "; ".join(parts)
        super().__init__(f"{message}. {fix}" if fix else message)
        self.where = where


# What code raises that meets a value of another shape than it was written for.
SHAPES = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


@contextmanager
def as_written(where: Path | str, what: str) -> Iterator[None]:
    """For reading a file that a command of ours wrote, and that somebody may have changed since.

    Raises:
        InputError: it has another shape.
    """
    try:
        yield
    except InputError:
        raise
    except SHAPES as error:
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
        raise InputError(f"not {what} as it was written", where=str(where), found=found) from error


class DivergedError(RuntimeError):
    """Too many steps in a row had margins or gradients that are not finite; a checkpoint was written."""


class StoppedError(KeyboardInterrupt):
    """A run was asked to stop (a signal, its time limit), and did so with a checkpoint that it goes on from.

    Like the ctrl-C that it may have been, it is no `Exception`: nobody takes it for a failure to be tried again.
    """

    def __init__(self, reason: str, step: int, checkpoint: str):
        super().__init__(f"stopped by {reason} after step {step}, with a checkpoint ({checkpoint})")
        self.reason, self.step, self.checkpoint = reason, step, checkpoint
