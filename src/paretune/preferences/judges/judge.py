"""`judge: MODEL` as a source: pairs compared by a language model, here or on an OpenAI-compatible server.

    helpful: {judge: Qwen/Qwen3-4B, rubric: "The answer that helps more with what was asked.", protocol: guided}
    honest:  {judge: gpt-4.1-mini, server: "https://api.openai.com/v1", api_key_env: OPENAI_API_KEY,
              rubric: "The answer that admits what it does not know.",
              limits: {usd: 5}, prices: {input: 0.4, output: 1.6}}

Judges of several objectives that name the same back-end with the same settings share it: one model in memory, one pace
and one budget for one server.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.preferences.judges.protocols import PROTOCOLS, Protocol, Question, load_protocol, question
from paretune.preferences.judges.requests import ServerSettings, check_request
from paretune.preferences.judges.schedules import SCHEDULES, make_schedule
from paretune.preferences.judges.server import Server, ask_server
from paretune.preferences.judges.spending import LIMITS
from paretune.preferences.similarity import references_of
from paretune.preferences.source import Source
from paretune.preferences.text_rules import Question as RuleQuestion

_VERSION = 2  # of everything here that changes answers and is in no setting
_OWN = ("rubric", "protocol", "references", "schedule", "anchor", "max_words", "version")
_LOCAL = ("dtype", "batch_size", "context", "template_options")
_SERVER = (
    *("server", "api", "api_key_env", "prefill", "system_role", "concurrency", "timeout", "retries"),
    *("requests_per_minute", "limits", "prices", "template_options", "request"),
)
REFERENCES = ("join", "average", "first")
Ask = Callable[[Protocol, Sequence[Question], dict[str, float]], Iterator[tuple[int, float]]]

# back-ends in use by settings; they go when the last judge does
_IN_USE: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


def judge_source(name: str, value: Any, options: dict[str, Any]) -> Source:
    """A judge as a source of comparisons.

    Args:
        value: the model: directory or hub id; with `server`, its name there.
        options: `_OWN` and those of the back-end.

    Raises:
        InputError: no such model, protocol or option; a bad value; no key in the named variable.
    """
    where = f"source {name!r}, judge {value}"
    if not isinstance(value, str) or not value:
        raise InputError("bad judge", where=f"source {name!r}", expected="a model's name", found=value)
    on_server = options.get("server") is not None
    known = (*_OWN, *(_SERVER if on_server else (*_LOCAL, "server")))
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
            if not on_server and key in _SERVER:
                fix = "It is an option of a server: give `server` too."
            raise InputError(f"unknown option {key!r}", where=where, fix=fix)
    protocol = load_protocol(_word(options, "protocol", PROTOCOLS[0], where), where)
    rubric = options.get("rubric")
    if rubric is not None and (not isinstance(rubric, str) or not rubric.strip()):
        raise InputError("bad rubric", where=where, expected="some words", found=rubric)
    if rubric is not None and "{rubric}" not in protocol.system + protocol.user:
        raise InputError("a rubric for a protocol without the slot {rubric}", where=where)
    several = _word(options, "references", "join", where)
    if several not in REFERENCES or (several != "join" and not protocol.needs_reference):
        expected = f"{', '.join(REFERENCES)}, with a protocol that shows a reference"
        raise InputError("bad references", where=where, expected=expected, found=several)
    max_words = _count(options, "max_words", None, where)
    schedule = make_schedule(_word(options, "schedule", SCHEDULES[0], where), options.get("anchor"), where)
    if on_server:
        identity, backend, ask, batch_size = _on_server(value, options, where)
    else:
        identity, backend, ask, batch_size = _here(value, options, where)
    asked = [identity, protocol.text, rubric, several if protocol.needs_reference else None, max_words]
    usage: dict[str, float] = {}
    compare = functools.partial(_compare, backend, ask, usage, protocol, rubric, several, max_words)
    return Source(
        name,
        f"judge {_VERSION} {json.dumps([*asked, str(options.get('version', ''))])}",
        compare=compare,
        schedule=schedule,
        reads=("reference",) if protocol.needs_reference else (),
        batch_size=batch_size,
        usage=lambda: usage,
        requests=functools.partial(_requests, several) if protocol.needs_reference else None,
    )


def _here(value: str, options: Mapping[str, Any], where: str) -> tuple[Any, Any, Ask, int]:
    # torch is loaded where it is used, not for labels by rules
    from paretune.preferences.judges.local import LocalModel, LocalSettings, label_probabilities, model_identity

    settings = LocalSettings(
        value,
        dtype=_word(options, "dtype", "auto", where),
        batch_size=_count(options, "batch_size", 16, where) or 16,
        context=_count(options, "context", None, where),
        template_options=_json(options, "template_options", where),
    )
    if settings.dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError("bad dtype", where=where, expected="auto, float32, bfloat16 or float16", found=settings.dtype)
    identity = [model_identity(value, where), settings.dtype, settings.context, settings.template_options]
    backend = _shared(LocalModel, settings)
    # several forward passes in one call, so that prompts of like length meet
    return identity, backend, functools.partial(label_probabilities, backend), 16 * settings.batch_size


def _on_server(value: str, options: Mapping[str, Any], where: str) -> tuple[Any, Any, Ask, int]:
    url = options["server"]
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InputError("bad server", where=where, expected="a URL, as http://localhost:8000/v1", found=url)
    if "@" in url or "?" in url:  # not shown: what stands there is the secret
        fix = "Give api_key_env, the name of an environment variable that holds the key."
        raise InputError("a server's address with a key in it", where=where, fix=fix)
    key_name = options.get("api_key_env")
    if key_name is not None and (not isinstance(key_name, str) or not key_name.isidentifier()):
        fix = "The key itself must stand nowhere else."
        raise InputError("bad api_key_env", where=where, expected="the name of an environment variable", fix=fix)
    limits, prices = (_amounts(options, key, names, where) for key, names in _AMOUNTS.items())
    if "usd" in dict(limits) and len(prices) < 2:
        raise InputError("a limit in usd without prices", where=where, fix="Give prices: {input: …, output: …}.")
    settings = ServerSettings(
        url.rstrip("/"),
        value,
        api=_word(options, "api", "chat", where),
        api_key_env=key_name,
        **{key: _flag(options, key, default, where) for key, default in (("prefill", False), ("system_role", True))},
        concurrency=_count(options, "concurrency", 16, where) or 16,
        timeout=_positive(options, "timeout", 120.0, where) or 120.0,
        retries=_count(options, "retries", 5, where, least=0) or 0,
        requests_per_minute=_positive(options, "requests_per_minute", None, where),
        limits=limits,
        prices=prices,
        template_options=_json(options, "template_options", where),
        request=_json(options, "request", where),
    )
    if settings.api not in ("chat", "completions"):
        raise InputError("bad api", where=where, expected="chat or completions", found=settings.api)
    if settings.api == "completions" and (settings.prefill or settings.template_options != "{}"):
        raise InputError("prefill and template_options are of api: chat", where=where)
    check_request(settings, where)
    backend = _shared(Server, settings)
    backend.secret()  # a missing key is said before anything is asked
    keys = ("url", "model", "api", "prefill", "system_role", "template_options", "request")
    identity = [getattr(settings, key) for key in keys]
    return identity, backend, functools.partial(ask_server, backend), max(64, 16 * settings.concurrency)


_AMOUNTS = {"limits": LIMITS, "prices": ("input", "output")}


def _shared(kind: Any, settings: Any) -> Any:
    found = _IN_USE.get(settings)
    if found is None:
        found = _IN_USE[settings] = kind(settings)
    return found


def _compare(
    backend: Any,  # held by every judge that uses it, so that `_IN_USE` keeps it
    ask: Ask,
    usage: dict[str, float],
    protocol: Protocol,
    rubric: str | None,
    several: str,
    max_words: int | None,
    prompts: Sequence[Text],
    pairs: Sequence[tuple[Text, Text]],
    references: Sequence[Any] | None = None,
) -> Iterator[tuple[int, float]]:
    """P(first is better) of each pair as it is known; the mean over its references where each is asked about."""
    questions: list[Question] = []
    owner: list[int] = []
    for i, (prompt, (first, second)) in enumerate(zip(prompts, pairs, strict=True)):
        shown = _references(references[i] if references is not None else None, several)
        if protocol.needs_reference and not shown:
            usage["without reference"] = usage.get("without reference", 0) + 1
            yield i, math.nan
            continue
        for reference in shown if protocol.needs_reference else [None]:
            made = question(protocol, prompt, first, second, reference=reference, rubric=rubric, max_words=max_words)
            questions.append(made)
            owner.append(i)
    if not questions:
        return
    wanted = Counter(owner)
    heard: dict[int, list[float]] = {i: [] for i in wanted}
    for place, p in ask(protocol, questions, usage):
        own = heard[owner[place]]
        own.append(p)
        if len(own) == wanted[owner[place]]:
            yield owner[place], sum(own) / len(own)  # NaN where one failed


def _requests(several: str, columns: Mapping[str, Any]) -> int:
    return len(_references(columns.get("reference"), several))


def _references(given: Any, several: str) -> list[str]:
    """The references that a judge is shown, one question each: the texts that rules hold responses against."""
    given = [one for one in given if one is not None] if isinstance(given, list) else given  # null is no text
    texts = references_of(RuleQuestion("", "", {"reference": given}), "reference")
    if several == "first" or len(texts) < 2:
        return texts[:1]
    if several == "average":
        return texts
    return ["\n\n".join(f"Reference {i}:\n{text}" for i, text in enumerate(texts, start=1))]


# ---- options ----


def _word(options: Mapping[str, Any], key: str, default: str, where: str) -> str:
    value = options.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"bad {key}", where=where, expected="a name", found=value)
    return value


def _flag(options: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = options.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"bad {key}", where=where, expected="true or false", found=value)
    return value


def _count(options: Mapping[str, Any], key: str, default: int | None, where: str, least: int = 1) -> int | None:
    value = options.get(key, default)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"bad {key}", where=where, expected=f"a whole number of at least {least}", found=value)
    return value


def _positive(options: Mapping[str, Any], key: str, default: float | None, where: str) -> float | None:
    value = options.get(key, default)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"bad {key}", where=where, expected="a number > 0", found=value)
    return float(value)


def _amounts(options: Mapping[str, Any], key: str, names: Sequence[str], where: str) -> tuple[tuple[str, float], ...]:
    value = options.get(key) or {}
    if not isinstance(value, Mapping) or not set(value) <= set(names):
        raise InputError(f"bad {key}", where=where, expected=f"a mapping of {', '.join(names)}", found=value)
    least = 0.0 if key == "prices" else math.ulp(0.0)
    for amount in value.values():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not least <= amount < math.inf:
            raise InputError(f"bad {key}", where=where, expected="numbers that are not negative", found=dict(value))
    return tuple(sorted((name, float(amount)) for name, amount in value.items()))


def _json(options: Mapping[str, Any], key: str, where: str) -> str:
    value = options.get(key) or {}
    if not isinstance(value, Mapping):
        raise InputError(f"bad {key}", where=where, expected="a mapping", found=value)
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        raise InputError(f"bad {key}", where=where, expected="plain values", found=value) from None
