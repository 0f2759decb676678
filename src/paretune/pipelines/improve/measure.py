"""What a round's policy does on prompts that nobody trains on: draws, and what all sources say of them.

Suffixes: P watched prompts, n draws of each.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paretune.comparisons.rows import Text
from paretune.files import write_text
from paretune.pipelines.improve.plan import ImprovePlan
from paretune.pipelines.judge_bench import both_orders
from paretune.pipelines.labelling import announce
from paretune.pipelines.sampling_here import check_lengths, encode_prompt, ends_of
from paretune.preferences.answers import AnswerStore
from paretune.preferences.candidates import Candidates
from paretune.preferences.specs import Labeller
from paretune.preferences.verdicts import Heard, decide, hear, plan

logger = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]


# ---- draws ----


def draw(improve: ImprovePlan, model: str, first: str, out: Path) -> list[dict[str, Any]]:
    """n responses to each watched prompt, all of them, repeated ones too, with log-probabilities; written to `out`.

    Every round draws with the same numbers, so that where two rounds' policies agree they say the same.

    Args:
        model: the round's; first: the one that KL is to.

    Raises:
        InputError: a model that cannot be loaded, a prompt that does not fit it.
    """
    import torch

    from paretune.evaluation.sample import sample
    from paretune.policy.loading import load_scored, load_tokenizer

    rows, settings = improve.watched, dataclasses.replace(improve.sampling, model=model)
    tokenizer = load_tokenizer(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy: Any = load_scored(model).to(device)
    reference = None if model == first else load_scored(first).to(device)
    encoded = [encode_prompt(tokenizer, row.prompt, settings) for row in rows]
    check_lengths(policy, encoded, settings)
    drawn = sample(
        policy,
        tokenizer,
        encoded,
        settings.n,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_tokens,
        seed=[row.seed(round_seed(improve.seed, 0)) for row in rows],
        ends=ends_of(policy),
        batch_size=improve.batch_size,
        reference=reference,
    )
    ref_logps = drawn.logps if drawn.ref_logps is None else drawn.ref_logps
    found = [
        {
            "prompt": row.prompt,
            "responses": drawn.texts[i],
            "logps": drawn.logps[i].tolist(),
            "ref_logps": ref_logps[i].tolist(),
            "cut": drawn.cut[i].tolist(),
            "columns": dict(row.columns),
        }
        for i, row in enumerate(rows)
    ]
    write_text(out, "".join(json.dumps(row) + "\n" for row in found))
    return found


def read_draws(path: Path) -> list[dict[str, Any]]:
    """What `draw` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def round_seed(seed: int, number: int) -> int:
    """Of a round's draws; 0 is for the watched prompts, the same in every round."""
    return 1000 * seed + number


# ---- scores ----


@dataclass
class Scored:
    """What one labeller says of P prompts.

    Attributes:
        values: (P, n) scores; of one that compares (P, 1), P(the policy's first draw beats the start's).
        compares: which of the two.
        said: of one that compares, (P,) P(the first of the pair is better): `values`, but of the start, which has no
            opponent but itself, of two of its own draws; 0.5 of equal texts.
        asked: of one that compares, how many of them are different texts.
        first, second: of one that compares, (N,) P(the policy's is better) where it stood first, and second.
        longer: of one that compares, (P,) words that the first of the pair has more than the other.
        members: of ensembles, by name, (K, R) scores of their members, or what they say of the pairs.
    """

    values: Array
    compares: bool
    said: Array = field(default_factory=lambda: np.zeros(0))
    asked: int = 0
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    members: dict[str, Array] = field(default_factory=dict)


def compares(labeller: Labeller) -> bool:
    """Whether its verdicts are about pairs, so that a level needs an opponent."""
    return labeller.combination == "gate" or any(source.compare is not None for source in labeller.sources())


def score(
    labellers: Sequence[Labeller],
    draws: Sequence[Mapping[str, Any]],
    start: Sequence[Mapping[str, Any]] | None,
    store: AnswerStore,
    *,
    seed: int,
    retry_failed: bool,
) -> dict[str, Scored]:
    """Asks all sources about a policy's draws; of those that compare, in both orders whatever schedule they label by,
    about its first draw against the start's.

    Args:
        start: the start's draws. None: `draws` are these, and sources that compare are asked about two different ones
            of each prompt, so that they have answered before anything is trained, and their favours have a "before".
    """
    singles = [one for one in labellers if not compares(one)]
    found: dict[str, Scored] = {}
    candidates = [_candidates(i, row, row["responses"]) for i, row in enumerate(draws)]
    heard = _heard(singles, candidates, store, seed, retry_failed)
    for labeller in singles:
        values = np.array([decide(labeller, i, one, heard)[0].scores for i, one in enumerate(candidates)])
        members = {
            part.name: np.array(
                [
                    np.concatenate([decide(member, i, one, heard)[0].scores for i, one in enumerate(candidates)])
                    for member in part.parts
                ]
            )
            for part in _ensembles(labeller)
        }
        found[labeller.name] = Scored(values, False, members=members)
    pairs = [both_orders(one) for one in labellers if compares(one)]
    texts = _pairs(draws, start)
    different = [i for i, (mine, other) in enumerate(texts) if mine.strip() != other.strip()]
    candidates = [_candidates(i, draws[i], texts[i]) for i in different]
    heard = _heard(pairs, candidates, store, seed, retry_failed)
    longer = [len(mine.split()) - len(other.split()) for mine, other in texts]
    for labeller in pairs:
        said = np.full(len(texts), 0.5)  # against itself
        said[different] = [_beats(labeller, place, one, heard) for place, one in enumerate(candidates)]
        both = [heard[s.name].answers.get(i, {}) for s in labeller.sources() for i in range(len(candidates))]
        both = [answers for answers in both if (0, 1) in answers and (1, 0) in answers]
        first, second = [a[0, 1] for a in both], [1 - a[1, 0] for a in both]
        members = {
            part.name: np.array(
                [[_beats(member, place, one, heard) for place, one in enumerate(candidates)] for member in part.parts]
            )
            for part in _ensembles(labeller)
        }
        values = (np.full_like(said, 0.5) if start is None else said)[:, None]
        found[labeller.name] = Scored(values, True, said, len(different), first, second, longer, members)
    return found


def _pairs(draws: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    """(P,) the first draw, and the start's; of the start itself its next different one, or the same where all are."""
    if start is not None:
        return [(row["responses"][0], before["responses"][0]) for row, before in zip(draws, start, strict=True)]
    pairs = []
    for row in draws:
        mine = row["responses"][0]
        pairs.append((mine, next((text for text in row["responses"] if text.strip() != mine.strip()), mine)))
    return pairs


def _candidates(number: int, row: Mapping[str, Any], responses: Sequence[str]) -> Candidates:
    chat = isinstance(row["prompt"], list)
    texts: list[Text] = [[{"role": "assistant", "content": text}] if chat else text for text in responses]
    return Candidates(f"watched prompt {number + 1}", row["prompt"], tuple(texts), row["columns"])


def _heard(
    labellers: Sequence[Labeller], candidates: list[Candidates], store: AnswerStore, seed: int, retry_failed: bool
) -> dict[str, Heard]:
    planned = plan(labellers, candidates, store, seed=seed, retry_failed=retry_failed)
    for line in announce(planned, labellers):
        logger.info("watched prompts, %s", line)
    return hear(labellers, candidates, store, seed=seed, retry_failed=retry_failed, planned=planned)


def _beats(labeller: Labeller, number: int, one: Candidates, heard: Mapping[str, Heard]) -> float:
    verdict = decide(labeller, number, one, heard)[0]
    if verdict.pairs is not None:
        return float(verdict.pairs.get((0, 1), math.nan))
    difference = verdict.scores[0] - verdict.scores[1]
    return difference if math.isnan(difference) else 0.5 + 0.5 * float(np.sign(difference))


def _ensembles(labeller: Labeller) -> Iterator[Labeller]:
    if labeller.combination == "ensemble":
        yield labeller
    for part in labeller.parts:
        yield from _ensembles(part)
