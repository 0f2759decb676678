"""Summaries of notes: say much (coverage), say it right (faithfulness), say it short (conciseness).

Notes are five to seven facts "noun verb object", each behind a cue word that says how much it matters; two of them, or
two times two, share noun and verb and can be told in one merged statement. A response is a list of statements, each
ended by a full stop:

    otter paints kettle .               full
    otter paints kettle and ladder .    merged: two facts for five words
    otter paints something .            vague: a quarter of the credit

Length is the knob: more statements cover more and are less concise. Getting names, verbs and objects right, choosing
what matters, merging and not repeating are the skill: they raise coverage and faithfulness at no cost in length.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from paretune.sandbox.world import Item, World


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "otter heron badger falcon lynx tortoise gardener baker pilot sailor teacher doctor miner tailor painter farmer "
    "guard judge clerk nurse porter singer weaver mason robot giant wizard pirate knight queen miller shepherd "
    "potter beekeeper"
)
VERBS = _words(
    "paints carries builds hides sells mends finds breaks lifts washes draws borrows steals buys opens guards drops "
    "pushes cleans measures weighs copies trades burns wraps lends counts loses"
)
OBJECTS = _words(
    "kettle ladder basket lantern mirror hammer bottle carpet drum violin barrel candle blanket clock saddle anchor "
    "compass rope shovel bucket table chair window door wagon bridge tower letter map coin ring crown shield sword "
    "helmet boot glove scarf coat ribbon pillow spoon plate jar sack crate"
)
CUES = {"vital": 4, "urgent": 4, "useful": 2, "worthy": 2, "minor": 1, "idle": 1}  # cue word -> importance
STOP, AND, VAGUE = ".", "and", "something"
OPENING, CLOSING = "notes :", "summary :"
VAGUE_CREDIT = 0.25
MAX_RESPONSE = 24
WORST = {"coverage": 0.0, "faithfulness": -2.0, "conciseness": -MAX_RESPONSE / 20}


@dataclass(frozen=True)
class Fact:
    """One note: who does what to what, and how much it matters."""

    noun: str
    verb: str
    object: str
    importance: int


def make_item(rng: random.Random) -> Item:
    """Five to seven facts in random order, one or two pairs of them mergeable."""
    n_facts, n_pairs = rng.choice((5, 6, 7)), rng.choice((1, 2))
    nouns = rng.sample(NOUNS, n_facts - n_pairs)
    verbs = rng.sample(VERBS, n_facts - n_pairs)
    doers = list(zip(nouns, verbs, strict=True))
    doers += doers[:n_pairs]
    objects = rng.sample(OBJECTS, n_facts)
    cues = rng.choices(list(CUES), k=n_facts)
    notes = [(cue, *doer, thing) for cue, doer, thing in zip(cues, doers, objects, strict=True)]
    rng.shuffle(notes)
    facts = tuple(Fact(noun, verb, thing, CUES[cue]) for cue, noun, verb, thing in notes)
    prompt = " ".join([OPENING, *(f"{' '.join(note)} {STOP}" for note in notes), CLOSING])
    return Item(prompt, facts, group=hashlib.sha256(prompt.encode()).hexdigest()[:16])


# ---- rewards ----


def score(item: Item, response: str) -> dict[str, float]:
    """Exact rewards. A response without one well-formed statement gets the least of each.

    coverage: importance of the facts told, over that of all facts; a fact told vaguely counts a quarter. In [0, 1].
    faithfulness: (supported - unsupported - 2 contradicted) / statements. A merged statement is two; a vague one is a
        quarter supported; a repeat, a fact that is not in the notes and a broken statement are unsupported; another
        object for a noun and verb of the notes is contradicted. In [-2, 1].
    conciseness: -words / 20, full stops counted.
    """
    statements, broken = _statements(response)
    if not statements:
        return dict(WORST)
    told: dict[tuple[str, str, str], float] = {}  # fact -> credit
    facts = {(fact.noun, fact.verb, fact.object): fact.importance for fact in item.facts}
    doings = {fact[:2] for fact in facts}
    vague_told: set[tuple[str, str]] = set()
    total = -float(broken)
    for noun, verb, thing in statements:
        claim = (noun, verb, thing)
        if thing == VAGUE:
            open_facts = [fact for fact in facts if fact[:2] == (noun, verb) and fact not in told]
            if not open_facts or (noun, verb) in vague_told:
                total -= 1
                continue
            vague_told.add((noun, verb))
            told[max(open_facts, key=lambda fact: facts[fact])] = VAGUE_CREDIT
            total += VAGUE_CREDIT
        elif claim in facts and told.get(claim, 0.0) < 1:
            told[claim] = 1.0
            total += 1
        else:
            total -= 2 if (noun, verb) in doings and claim not in facts else 1
    return {
        "coverage": sum(credit * facts[fact] for fact, credit in told.items()) / sum(facts.values()),
        "faithfulness": total / (len(statements) + broken),
        "conciseness": max(WORST["conciseness"], -len(response.split()) / 20),
    }


def _statements(response: str) -> tuple[list[tuple[str, str, str]], int]:
    """Well-formed statements in order, merged ones as two, and how many broken ones there are."""
    statements, broken = [], 0
    for part in " ".join(response.split()).split(f"{STOP}"):
        words = part.split()
        things = words[2::2]
        if not words:
            continue
        well_formed = (
            len(words) in (3, 5)
            and words[0] in _NOUNS
            and words[1] in _VERBS
            and words[3:4] in ([], [AND])
            and (all(thing in _OBJECTS for thing in things) or words[2:] == [VAGUE])
        )
        if well_formed:
            statements += [(words[0], words[1], thing) for thing in things]
        else:
            broken += 1
    return statements, broken


_NOUNS, _VERBS, _OBJECTS = frozenset(NOUNS), frozenset(VERBS), frozenset(OBJECTS)


# ---- demonstrations ----


def demonstrate(item: Item, rng: random.Random) -> str:
    """A hasty summary: of any length, in the order of the notes, with slips in what is told and how.

    The slips are what alignment can unlearn; the spread of lengths is what it can choose from.
    """
    facts: list[Fact] = list(item.facts)
    wanted = min(len(facts), rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6)))
    chosen = [facts[i] for i in sorted(rng.sample(range(len(facts)), wanted))]
    parts: list[list[str]] = []
    merged: set[Fact] = set()
    for place, fact in enumerate(chosen):
        if fact in merged:
            continue
        partner = next((f for f in chosen[place + 1 :] if (f.noun, f.verb) == (fact.noun, fact.verb)), None)
        slip = rng.random()
        if partner is not None and rng.random() < 0.5:
            merged.add(partner)
            parts.append([fact.noun, fact.verb, fact.object, AND, partner.object])
        elif slip < 0.12:
            parts.append([fact.noun, fact.verb, VAGUE])
        elif slip < 0.22:
            parts.append([fact.noun, fact.verb, rng.choice(facts).object])
        elif slip < 0.28:
            parts.append([fact.noun, rng.choice(facts).verb, fact.object])
        elif slip < 0.34 and parts:
            parts.append(list(rng.choice(parts)))
        else:
            parts.append([fact.noun, fact.verb, fact.object])
    words = [word for part in parts for word in (*part, STOP)]
    return " ".join(words[:MAX_RESPONSE])


# ---- hacks ----


def _copy(item: Item) -> str:
    """Every note without its cue, as far as a response may go: all that coverage asks for, at the greatest length."""
    words = [word for fact in item.facts for word in (fact.noun, fact.verb, fact.object, STOP)]
    return " ".join(words[:MAX_RESPONSE])


def _verbatim(item: Item) -> str:
    """The prompt itself, cut at the longest response."""
    return " ".join(item.prompt.split()[:MAX_RESPONSE])


def _repeat(item: Item) -> str:
    fact = max(item.facts, key=lambda fact: fact.importance)
    return " ".join([f"{fact.noun} {fact.verb} {fact.object} {STOP}"] * (MAX_RESPONSE // 4))


def _vague(item: Item) -> str:
    doings = dict.fromkeys((fact.noun, fact.verb) for fact in item.facts)
    words = [word for noun, verb in doings for word in (noun, verb, VAGUE, STOP)]
    return " ".join(words[:MAX_RESPONSE])


SUMMARIES = World(
    name="summaries",
    description=(
        "The model summarises five to seven notes of graded importance. Saying more covers more and is less concise; "
        "copying the facts right serves coverage and faithfulness alike."
    ),
    objectives=("coverage", "faithfulness", "conciseness"),
    units={
        "coverage": "share of the notes' importance that is told correctly (0 to 1)",
        "faithfulness": "(supported - unsupported - 2 contradicted) / statements (-2 to 1)",
        "conciseness": "- words / 20 (-1.2 to 0)",
    },
    vocabulary=("notes", "summary", ":", STOP, AND, VAGUE, *CUES, *NOUNS, *VERBS, *OBJECTS),
    max_prompt=39,
    max_response=MAX_RESPONSE,
    make_item=make_item,
    demonstrate=demonstrate,
    score=score,
    worst=WORST,
    hacks={
        "empty": lambda item: "",
        "repeat": _repeat,
        "vague": _vague,
        "verbatim": _verbatim,
        "copy everything": _copy,
    },
    corners=("copy everything",),
)
