"""Rules with a ground truth: a number that must be right, a program that must pass tests."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction

from paretune.errors import InputError
from paretune.preferences.similarity import references_of
from paretune.preferences.text_rules import Question, Rule

# ---- mathematics ----

_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_FRACTION = re.compile(rf"(?<![\w.])(?P<top>{_NUMBER})(?:\s*/\s*(?P<bottom>\d+(?:\.\d+)?))?(?P<percent>\s*%)?")
_LATEX = re.compile(r"([-−]?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
# What marks a final answer, from the surest to the vaguest; without any the last number counts.
_MARKS = (
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"####\s*([^\n]+)"),
    re.compile(r"(?i)\b(?:final answer|answer)\b\s*(?:is\b)?\s*[:=]?\s*([^\n]+)"),
)


def final_number(text: str) -> Fraction | None:
    """The number that a text ends on: boxed, after ####, after "answer", else its last; None where it has none.

    Thousands' commas, fractions (also LaTeX's), exponents and percent (as hundredths) are read.
    """
    for mark in _MARKS:
        for found in reversed(mark.findall(text)):
            # a sentence after "answer" states the number first; what follows explains
            number = _numbers(found)
            if number:
                return number[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _FRACTION.finditer(_LATEX.sub(r"\1\2/\3", text)):
        top = match["top"].replace(",", "").replace("−", "-")
        if not any(c.isdigit() for c in top) or len(top) > 60:
            continue
        number = _exact(top)
        bottom = _exact(match["bottom"]) if match["bottom"] else Fraction(1)
        if number is not None and bottom:
            found.append(number / bottom / (100 if match["percent"] else 1))
    return found


def _exact(text: str) -> Fraction | None:
    mantissa, _, exponent = text.lower().partition("e")
    return None if exponent and abs(int(exponent)) > 400 else Fraction(text)  # 1e999999999 would fill the memory


def numeric_answer(*, column: str = "reference", tolerance: float = 1e-6) -> Rule:
    """1 where the response's final number is that of the column, to a relative tolerance, else 0.

    A response without a number is wrong; a row whose truth has none gets NaN. 50% and 0.5 are one number, and so are
    50% and 50: people write either.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise InputError("bad tolerance", expected="a number in [0, 1)", found=tolerance)

    def score(q: Question) -> float:
        truths = [truth for text in references_of(q, column) if (truth := final_number(text)) is not None]
        if not truths:
            return math.nan
        own = final_number(q.response)
        if own is None:
            return 0.0
        factors = (1, 100, Fraction(1, 100)) if "%" in q.response or "%" in str(q.columns.get(column)) else (1,)
        near = (abs(own * f - truth) <= Fraction(tolerance) * abs(truth) for truth in truths for f in factors)
        return float(any(near))

    return score


# ---- code ----

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
# Runs the program and each test in one namespace and reports which passed, after a word that the program is not told.
_HARNESS = """
import json, resource, sys
for limit, most in zip(("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE"), json.loads(sys.argv[1])):
    resource.setrlimit(getattr(resource, limit), (most, most))
told = json.loads(sys.stdin.read())
sys.stdin = open("/dev/null")
names, passed = {"__name__": "answer"}, []
out = sys.stdout
sys.stdout = sys.stderr
try:
    exec(compile(told["program"], "answer.py", "exec"), names)
except BaseException:
    passed = [False] * len(told["tests"])
else:
    for test in told["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), names)
        except BaseException:
            passed.append(False)
        else:
            passed.append(True)
print(told["word"] + json.dumps(passed), file=out, flush=True)
"""


def code(*, run: bool = False, column: str = "tests", seconds: float = 5.0, megabytes: int = 512) -> Rule:
    """Share of a row's tests that the response's Python program passes.

    The program is the response's last fenced block, or all of it. It runs in a process of its own: in an empty folder,
    without the environment's variables, with limits on time, memory and the size of files. **That is no sandbox**: it
    can read files, use the network and do whatever the user may do, so it must be asked for with `run: true`, and a
    model's programs belong into a container. A program made to cheat can also find ways to.

    Args:
        column: holds the tests: statements that raise when they fail (`assert add(1, 2) == 3`), a string or a list of
            them; NaN for a row without.
        seconds: of time for the program and its tests together; one that takes longer has passed none.
        megabytes: of memory.
    """
    if run is not True:
        fix = "It executes what a model wrote, with your rights. Say run: true where that is safe, as in a container."
        raise InputError("rule code is off", expected="run: true", fix=fix)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
        raise InputError("bad seconds", expected="a number in (0, 3600]", found=seconds)
    if isinstance(megabytes, bool) or not isinstance(megabytes, int) or megabytes < 64:
        raise InputError("bad megabytes", expected="a whole number of at least 64", found=megabytes)

    def score(q: Question) -> float:
        tests = references_of(q, column)
        if not tests:
            return math.nan
        blocks = _BLOCK.findall(q.response)
        passed = run_tests(blocks[-1] if blocks else q.response, tests, seconds=seconds, megabytes=megabytes)
        return sum(passed) / len(tests)

    return score


def run_tests(program: str, tests: list[str], *, seconds: float, megabytes: int) -> list[bool]:
    """Which tests a program passes; none where it took too long or ended the process."""
    word = secrets.token_hex(16)
    told = json.dumps({"program": program, "tests": tests, "word": word})
    limits = json.dumps([math.ceil(seconds) + 1, megabytes << 20, 16 << 20])
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as output,  # a pipe would let a program write without end into our memory
        subprocess.Popen(
            [sys.executable, "-I", "-c", _HARNESS, limits],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,  # so that its children end with it
        ) as process,
    ):
        try:
            process.communicate(told.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return [False] * len(tests)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        said = output.read()
    for line in reversed(said.decode("utf-8", "replace").splitlines()):
        if line.startswith(word):
            return [bool(one) for one in json.loads(line.removeprefix(word))]
    return [False] * len(tests)
