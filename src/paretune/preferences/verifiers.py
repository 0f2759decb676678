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
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from paretune.errors import InputError
from paretune.preferences.similarity import references_of
from paretune.preferences.text_rules import Question, Rule

# ---- mathematics ----

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+−]?)(?:(?P<whole>\d+)[ \t]+(?P<part>\d+[ \t]*/[ \t]*\d+)(?![\d./])"
    rf"|(?P<top>(?:{_DIGITS})(?:[eE][-+]?\d+)?)(?:\s*/\s*(?P<bottom>\d+(?:\.\d+)?))?)"
    r"(?P<percent>\s*(?:%|per ?cent\b))?"
)
# What makes a number a part of an expression: an operator between it and another operand, a root, an argument. Of
# letters those count that stand alone and are no word ("12 - a dozen").
_OPERAND = r"(?:[\d\])}]|\\[A-Za-z]+|π|(?<![A-Za-z])[b-hj-zB-HJ-Z])"
_BEFORE = re.compile(rf"(?:{_OPERAND}[ \t]*(?:\*\*?|[-+−/^×·÷])|[{{^_√]|\\sqrt)[ \t]*$")
_AFTER = re.compile(
    r"[ \t]*(?:(?:\*\*?|[-+−/^×·÷])[ \t]*(?:\d|[b-hj-z]\b|\\|π|√)|\\?pi\b|\\?sqrt|π|√|\^|\\[dt]?frac)|[nxyz]\b"
)
# LaTeX and Markdown around a number, and what stays of it
_WRITTEN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"\\(?:left|right)\b|\\[!,;]|\\(?=[%$])|\^\\circ|\^\{\\circ\}|°", ""),
        (r"\\[()\[\]]|\\(?=\s)", " "),
        (r"\{,\}", ","),
        (r"\*\*(?=\S)([^*\n]+)(?<=\S)\*\*(?!\d)", r"\1"),
        (r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}", r" \1 "),
        (r"(?<=\d)[ \t]*(?=\\[cdt]?frac)", " "),
        (r"\\[cdt]?frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))", r"\1\2/\3\4"),
        (r"\\(?:times|cdot)\b", "*"),
        (r"(?<=\d)[ \t]*[*×·][ \t]*10[ \t]*\^[ \t]*(?:\{([-+]?\d+)\}|([-+]?\d+))", r"e\1\2"),
    )
)
_AROUND = " \t\r\n$€£*"  # of a truth's number
# What marks a final answer, from the surest to the vaguest; without any the last number counts.
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_HASHES = re.compile(r"####([^\w\n.#]*[\d.][^\n]*)")
_ANSWER = re.compile(r"(?i)\banswer\b[*_\"'`]*(?:\s+is\b\s*[:=]?|\s*[:=])|<answer>")


class _Number(NamedTuple):
    """A number as it is written: of 50% the value is 50."""

    value: Fraction
    percent: bool

    def share(self) -> Fraction:
        """50% is 1/2."""
        return self.value / 100 if self.percent else self.value


def final_number(text: str) -> Fraction | None:
    """The number that a text ends on: boxed, after ####, after "answer is" or "answer:", else its last.

    None where it has none, or states an expression instead. Thousands' commas, fractions and mixed numbers (also
    LaTeX's), exponents and percent (as hundredths) are read.
    """
    found = _final(text)
    return None if found is None else found.share()


def _final(text: str) -> _Number | None:
    text = _plainly(text)
    for phrase, alone in _marked(text):
        numbers = _numbers(phrase)
        free = [number for number in numbers if number is not None]
        if alone and len({number.share() for number in free}) > 1:
            return None  # a box holds one answer; (3, 4) is none of its parts
        if numbers:
            # a sentence after "answer" states the number first; what follows explains
            return free[0] if free else None
    return next((number for number in reversed(_numbers(text)) if number is not None), None)


def _true_number(text: str) -> _Number | None:
    """Of a truth, which must be a number and nothing else; None where it is not: x + 2, 5 or 6, Paris."""
    text = _plainly(text)
    stated = next((phrase for phrase, _ in _marked(text)), text)
    whole = _NUMBER.fullmatch(stated.lstrip(_AROUND).rstrip(_AROUND + "."))
    return _read(whole) if whole else None


def _plainly(text: str) -> str:
    for pattern, put in _WRITTEN:
        text = pattern.sub(put, text)
    return text


def _marked(text: str) -> Iterator[tuple[str, bool]]:
    """What is marked as the answer, the surest and latest first; and whether it is nothing but the answer."""
    yield from ((phrase, True) for phrase in reversed(_BOX.findall(text)))
    yield from ((phrase, False) for phrase in reversed(_HASHES.findall(text)))
    # each up to the next mark: of a line that says it many times over, not the rest of the line as often
    said = _ANSWER.split(text)[1:]
    yield from ((phrase.lstrip().split("\n", 1)[0], False) for phrase in reversed(said))


def _numbers(text: str) -> list[_Number | None]:
    """Those of a text in their order; None for one that is part of an expression."""
    found = []
    for match in _NUMBER.finditer(text):
        # what stands before is near: a search from the start of a long text would be square in its length
        part = _BEFORE.search(text, max(0, match.start() - 20), match.start()) or _AFTER.match(text, match.end())
        found.append(None if part else _read(match))
    return found


def _read(match: re.Match[str]) -> _Number | None:
    try:
        if match["part"]:
            top, bottom = map(Fraction, match["part"].split("/"))
            if top >= bottom:  # "5 10/2" is no mixed number, and who knows what else
                return None
            value = Fraction(match["whole"]) + top / bottom
        else:
            value = _exact(match["top"].replace(",", "")) / Fraction(match["bottom"] or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return _Number(-value if match["sign"] in ("-", "−") else value, match["percent"] is not None)


def _exact(text: str) -> Fraction:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > 60 or len(exponent) > 4 or abs(int(exponent or 0)) > 400:
        raise ValueError("1e999999999 would fill the memory")
    return Fraction(text)


def numeric_answer(*, column: str = "reference", tolerance: float = 1e-6) -> Rule:
    """1 where the response's final number is that of the column, to a relative tolerance, else 0.

    A response without a number is wrong; a row whose truth is not a number (or marks none as `final_number` reads it)
    gets NaN. 50% and 0.5 are one number, and so are 50% and 50: people write either.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise InputError("bad tolerance", expected="a number in [0, 1)", found=tolerance)

    def score(q: Question) -> float:
        truths = [truth for text in references_of(q, column) if (truth := _true_number(text)) is not None]
        if not truths:
            return math.nan
        own = _final(q.response)
        return float(own is not None and any(_agree(own, truth, Fraction(tolerance)) for truth in truths))

    return score


def _agree(own: _Number, truth: _Number, tolerance: Fraction) -> bool:
    # the sign of one of them says a share or a count of hundredths; between two signs there is no such doubt
    factors = [Fraction(1)]
    if own.percent != truth.percent:
        factors.append(Fraction(1, 100) if own.percent else Fraction(100))
    return any(abs(own.value * f - truth.value) <= tolerance * abs(truth.value) for f in factors)


# ---- code ----

_PATIENCE = 4  # by the clock, times the processor's: of a machine with so many programs per core all get their time
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
# Runs the program and each test in one namespace and reports which passed, after a word that the program is not told.
_HARNESS = """
import json, resource, signal, sys
seconds, *limits = json.loads(sys.argv[1])
for limit, most in zip(("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_FSIZE"), limits):
    resource.setrlimit(getattr(resource, limit), (most, most))
told = json.loads(sys.stdin.read())
sys.stdin = open("/dev/null")
signal.setitimer(signal.ITIMER_PROF, seconds)  # RLIMIT_CPU knows whole seconds only
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
        seconds: of processor time for the program and its tests together, so that a busy machine does not decide; one
            that takes more, or four times as long by the clock (it sleeps, or waits for itself), has passed none.
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
    limits = json.dumps([seconds, math.ceil(seconds) + 1, megabytes << 20, 16 << 20])
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
            process.communicate(told.encode(), timeout=_PATIENCE * seconds)
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
