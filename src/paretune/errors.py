"""The exception for what a person can put right, and the one for a run that lost its way."""

from __future__ import annotations


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


class DivergedError(RuntimeError):
    """Too many steps in a row had margins or gradients that are not finite; a checkpoint was written."""
