"""All targets of the fuzzing, by name."""

from __future__ import annotations

from tests.hostile import readers, records, replies
from tests.hostile.fuzz import Target

TARGETS: dict[str, Target] = {**readers.TARGETS, **records.TARGETS, **replies.TARGETS}
