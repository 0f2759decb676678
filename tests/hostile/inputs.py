"""Hostile values: texts, JSON of any shape, broken bytes, and good files with a few bytes or values changed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from hypothesis import strategies as st

WORDS = [
    *("", " ", "\0", "\n", "\x1b[31m", "\u2028", "\ufeff", "\ud800", "\udfff", "\U0001f600", "e\u0301", "\u202e"),
    *("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "javascript:alert(1)", "{{ 7 * 7 }}"),
    *("../../x", "/etc/passwd", "..", "CON", "a" * 5000, "<|im_end|>", "</s>", "<s>", "[INST]", "$x_1$", "%s%n", "*"),
    *("NaN", "Infinity", "-Infinity", "null", "true", "1e999", "__class__", "!!python/object/apply:os.system [id]"),
]
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=30), st.text(st.characters(categories=["Cs", "Cc", "Lu"])))
numbers = st.one_of(
    st.integers(-2, 2), st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0])
)
BYTES = [b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"\n"]
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


deep = st.sampled_from([200, 900, 5000, 200_000])


@st.composite
def spoilt(draw: st.DrawFn, goods: list[Any]) -> Any:
    """A good value of JSON in which up to three places hold something else, are gone, or have moved."""
    value = copy.deepcopy(draw(st.sampled_from(goods)))
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    places = list(_places(value, ()))
    place = draw(st.sampled_from(places))
    if not place:
        return draw(anything)
    inside = value
    for step in place[:-1]:
        inside = inside[step]
    how = draw(st.sampled_from(["other", "other", "gone", "nested", "key"]))
    if how == "gone":
        del inside[place[-1]]
    elif how == "nested":
        inside[place[-1]] = nested(draw(st.sampled_from([3, 200])))
    elif how == "key" and isinstance(inside, dict):
        inside[draw(texts)] = inside.pop(place[-1])
    else:
        inside[place[-1]] = draw(anything)
    return value


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _places(inner, (*path, i))


@st.composite
def bytes_like(draw: st.DrawFn, goods: list[bytes]) -> bytes:
    """A good file cut, with bytes changed, stretches doubled, moved or from another file; or plain noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(goods)))
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    for _ in range(draw(st.integers(1, 6))):
        how, place = draw(st.integers(0, 4)), rng.randrange(len(content) + 1)
        length = min(rng.choice([1, 2, 8, 100]), len(content) - place)
        if how == 0:
            del content[place:]
        elif how == 1 and length:
            content[place : place + length] = rng.randbytes(length)
        elif how == 2:
            content[place:place] = content[place : place + length] * rng.choice([1, 3])
        elif how == 3:
            content[place:place] = draw(st.sampled_from(BYTES))
        else:
            other = draw(st.sampled_from(goods))
            content[place : place + length] = other[place : place + length]
    return bytes(content)


def encoded(value: Any) -> bytes:
    """As JSON, with lone surrogates and NaN as Python writes them."""
    return json.dumps(value).encode()
