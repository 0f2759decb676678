"""What a judge is shown: prompts as data files, with slots, and texts that cannot leave their place.

A prompt file has the sections [system], [rubric] (used where no other is given), [user] and [answers]: two lines, the
replies that mean "the first is better" and "the second is better". Slots are {instruction}, {output_1}, {output_2},
{reference}, {rubric} and {fence}. What stands before the first section is a remark. The protocols and what they tell a
judge follow arXiv 2602.16802 (reference-free, reference-guided evaluation, reference matching); the words are ours.

Responses are data. Each text is put between two lines that hold a tag found in none of the texts, so no text can
close its own fence; and the control tokens of chat templates are broken inside the texts, so no text can end the turn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from paretune.comparisons.rows import Text
from paretune.errors import InputError

PROTOCOLS = ("free", "guided", "matching")
_SECTIONS = ("system", "rubric", "user", "answers")
_DATA = ("instruction", "reference", "output_1", "output_2")
_SLOTS = (*_DATA, "rubric", "fence")
_HEADING = re.compile(r"^\[(\w+)\][ \t]*\n", re.MULTILINE)
_SLOT = re.compile(r"\{(\w+)\}")
# What chat templates end or begin turns with: <|...|>, <s>, </s>, [INST], <start_of_turn>, <think>, <<SYS>>, ...
_CONTROL = re.compile(
    r"<(?=\|)|<(?=/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|think|tool_call|tool_response|begin_of_text)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])|<(?=｜)"
)


@dataclass(frozen=True)
class Protocol:
    """A prompt file, read.

    Args:
        name: ours, or the file's.
        text: the whole file: part of a judge's fingerprint.
        system, user: with their slots.
        rubric: used where no other is given.
        answers: the two replies.
    """

    name: str
    text: str
    system: str
    user: str
    rubric: str
    answers: tuple[str, str]

    @property
    def needs_reference(self) -> bool:
        return "{reference}" in self.system + self.user

    @property
    def prefix(self) -> str:
        """What both replies begin with; the labels follow."""
        return self.answers[0][: self._shared()]

    @property
    def labels(self) -> tuple[str, str]:
        """In what the two replies differ: the letters of "Output (a)" and "Output (b)"."""
        one, two = (answer[self._shared() :] for answer in self.answers)
        tail = 0
        while tail < min(len(one), len(two)) - 1 and one[-1 - tail] == two[-1 - tail]:
            tail += 1
        return one[: len(one) - tail], two[: len(two) - tail]

    def _shared(self) -> int:
        one, two = self.answers
        same = 0
        while same < min(len(one), len(two)) and one[same] == two[same]:
            same += 1
        return same


@dataclass(frozen=True)
class Question:
    """One ordered pair as it is put to a judge, without any chat template."""

    system: str
    user: str


def load_protocol(name: str, where: str) -> Protocol:
    """One of `PROTOCOLS`, or a file of the user's.

    Raises:
        InputError: no such file; a section or slot missing or unknown; answers that do not differ.
    """
    if name in PROTOCOLS:
        text = resources.files("paretune.preferences.judges").joinpath(f"prompts/{name}.txt").read_text("utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            expected = f"{', '.join(PROTOCOLS)}, or the file of a prompt"
            raise InputError("no such protocol", where=where, expected=expected, found=name) from error
    parts = _HEADING.split(text)
    sections = {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    where = f"{where}, protocol {name}"
    if set(sections) - {"rubric"} != set(_SECTIONS) - {"rubric"}:
        raise InputError("bad sections", where=where, expected=", ".join(_SECTIONS), found=", ".join(sections))
    used = set(_SLOT.findall(sections["system"] + sections["user"]))
    if unknown := used - set(_SLOTS):
        raise InputError("unknown slot", where=where, expected=", ".join(_SLOTS), found=", ".join(sorted(unknown)))
    if lacking := {"instruction", "output_1", "output_2"} - used:
        raise InputError("a slot is missing", where=where, expected=", ".join(sorted(lacking)))
    answers = tuple(line.strip() for line in sections["answers"].splitlines() if line.strip())
    if len(answers) != 2 or answers[0] == answers[1] or any(a.startswith(b) for a, b in (answers, answers[::-1])):
        raise InputError("bad answers", where=where, expected="two lines, neither the other's beginning", found=answers)
    rubric = sections.get("rubric", "")
    if "rubric" in used and not rubric:
        raise InputError("the slot {rubric} without a section [rubric]", where=where)
    return Protocol(name, text, sections["system"], sections["user"], rubric, (answers[0], answers[1]))


def question(
    protocol: Protocol,
    prompt: Text,
    first: Text,
    second: Text,
    *,
    reference: str | None = None,
    rubric: str | None = None,
    max_words: int | None = None,
) -> Question:
    """What the judge is asked about one ordered pair.

    The tag of the fences is a function of the texts, whichever of the two comes first.

    Args:
        reference: needed where the protocol has a slot for it.
        rubric: instead of the protocol's own.
        max_words: of each text no more than its first words are shown, and that it was cut.
    """
    texts = {"instruction": prompt, "output_1": first, "output_2": second, "reference": reference or ""}
    shown = {slot: broken(_cut(spoken(text), max_words)) for slot, text in texts.items()}
    tag = fence(list(shown.values()))
    values = {slot: f"--- begin {tag} ---\n{text}\n--- end {tag} ---" for slot, text in shown.items()}
    values |= {"rubric": rubric or protocol.rubric, "fence": tag}
    system, user = (
        _SLOT.sub(lambda slot: values[slot[1]], part) for part in (protocol.system, protocol.user)
    )  # in one pass: a slot's name inside a text stays as it is
    return Question(system, user)


def fence(texts: Sequence[str]) -> str:
    """A tag that is in none of the texts, whatever their order; the same for the same texts."""
    content = "\0".join(sorted(texts)).encode("utf-8", "surrogatepass")
    for attempt in range(1 << 16):
        tag = hashlib.blake2b(content, digest_size=4, person=attempt.to_bytes(4)).hexdigest()
        if not any(tag in text.lower() for text in texts):
            return tag
    raise AssertionError("no tag is free")  # texts of gigabytes that list them all


def broken(text: str) -> str:
    """The text with a space put into whatever looks like a control token of a chat template."""
    return _CONTROL.sub(lambda found: f"{found[0]} ", text)


def spoken(text: Text) -> str:
    """Text as it is; one message's content; of several messages who says what."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def _cut(text: str, max_words: int | None) -> str:
    if max_words is None or len(text.split()) <= max_words:
        return text
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[max_words - 1]] + " [the rest is not shown]"
