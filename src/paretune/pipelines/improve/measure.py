"""What a round's policy does on prompts that nobody trains on: draws, scores of all sources, signs of hacking.

Suffixes: P watched prompts, n draws of each, S sources.
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
from paretune.errors import InputError
from paretune.evaluation import hacking
from paretune.files import write_text
from paretune.pipelines.improve.plan import ImprovePlan
from paretune.pipelines.labelling import announce
from paretune.pipelines.sampling_here import check_lengths, encode_prompt, ends_of
from paretune.preferences.answers import AnswerStore
from paretune.preferences.candidates import Candidates
from paretune.preferences.specs import Labeller
from paretune.preferences.verdicts import Heard, decide, hear, plan

logger = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]

PAIRS = 256  # comparisons on which likelihood displacement is measured
BEATS_SCALE = 0.5  # of P(beats the start), which 0.5 is the middle of


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
        first, second: of one that compares, (N,) P(the policy's is better) where it stood first, and second.
        longer: of one that compares, (P,) words that the policy's has more than the start's.
        members: of ensembles, by name, (K, R) scores of their members, or what they say of the pairs.
    """

    values: Array
    compares: bool
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
    start: Sequence[Mapping[str, Any]],
    store: AnswerStore,
    *,
    seed: int,
    retry_failed: bool,
) -> dict[str, Scored]:
    """Asks all sources about a policy's draws; of those that compare, about its first draw against the start's."""
    singles = [one for one in labellers if not compares(one)]
    pairs = [one for one in labellers if compares(one)]
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
    texts = [(row["responses"][0], before["responses"][0]) for row, before in zip(draws, start, strict=True)]
    different = [i for i, (mine, other) in enumerate(texts) if mine.strip() != other.strip()]
    candidates = [_candidates(i, draws[i], texts[i]) for i in different]
    heard = _heard(pairs, candidates, store, seed, retry_failed)
    longer = [len(mine.split()) - len(other.split()) for mine, other in texts]
    for labeller in pairs:
        beats = np.full((len(texts), 1), 0.5)  # against itself
        beats[different, 0] = [_beats(labeller, place, one, heard) for place, one in enumerate(candidates)]
        both = [heard[s.name].answers.get(i, {}) for s in labeller.sources() for i in range(len(candidates))]
        both = [answers for answers in both if (0, 1) in answers and (1, 0) in answers]
        first, second = [a[0, 1] for a in both], [1 - a[1, 0] for a in both]
        members = {
            part.name: np.array(
                [[_beats(member, place, one, heard) for place, one in enumerate(candidates)] for member in part.parts]
            )
            for part in _ensembles(labeller)
        }
        found[labeller.name] = Scored(beats, True, first, second, longer, members)
    return found


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


# ---- signs ----


def displacement(improve: ImprovePlan, model: str, start: str, data: Path) -> dict[str, Any]:
    """Per objective, how the log-probabilities of preferred responses changed from `start` to `model`, on the first
    rows that were trained on."""
    import torch

    from paretune.comparisons.formats import read_comparisons
    from paretune.comparisons.tokens import pad_id, tokenize_comparisons
    from paretune.evaluation.margins import evaluate_margins, figures
    from paretune.objectives import Objective
    from paretune.policy.loading import load_scored, load_tokenizer
    from paretune.policy.logprobs import prepare_scorer
    from paretune.policy.reference import Reference

    # a plain DPO reward with beta 1 is the change of the log-probability itself
    objectives = [Objective(one.name, beta=1.0) for one in improve.align.objectives]
    tokenizer = load_tokenizer(model)
    rows, _ = read_comparisons(str(data), objectives=objectives, take=PAIRS)
    tokens, _ = tokenize_comparisons(
        rows, tokenizer, [one.name for one in objectives], max_length=improve.align.args.max_length
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, before = load_scored(model).to(device), load_scored(start).to(device)
    scorer = prepare_scorer(policy)
    reference = Reference("copy", before, prepare_scorer(before, scorer.layout))
    margins = evaluate_margins(policy, scorer, reference, tokens, objectives, 1.0, pad_id=pad_id(tokenizer))
    change, decided = figures(margins)["chosen"]
    return {
        one.name: hacking.likelihood_displacement(np.zeros(int(decided[i].sum())), change[i][decided[i]])
        for i, one in enumerate(objectives)
    }


def signs(
    improve: ImprovePlan,
    draws: Sequence[Mapping[str, Any]],
    scored: Mapping[str, Scored],
    earlier: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All signs of one round, as plain values.

    Args:
        draws: of `draw`; scored: of `score`.
        earlier: the signs of the rounds before, from the start on.

    Raises:
        InputError: at the start, a source that has no score for any watched prompt: it could neither train nor watch.
    """
    words = np.array([[len(text.split()) for text in row["responses"]] for row in draws])
    trained = {one.name for one in improve.labellers}
    sources: dict[str, dict[str, Any]] = {}
    for name, one in scored.items():
        means = hacking.prompt_means(one.values)
        if not earlier and np.isnan(means).all():
            where = f"source {name!r}" if name in trained else f"held_out {name!r}"
            fix = "Does it need a column or a reference that the rows lack? Is its server there?"
            raise InputError("no score for any watched prompt", where=where, found="failures only", fix=fix)
        known = one.values[~np.isnan(one.values)]
        entry: dict[str, Any] = {
            "role": "trained" if name in trained else "held out",
            "is": "P(beats the start)" if one.compares else "mean score",
            "mean": float(np.nanmean(means)) if known.size else math.nan,
            "failed": int(np.isnan(one.values).sum()),
            "change": None,
            "length_correlation": hacking.taste_for_length(2 * one.values[:, 0] - 1, one.longer)
            if one.compares
            else hacking.length_correlation(one.values, words),
            "scale": BEATS_SCALE if one.compares else (float(known.std()) or 1.0) if not earlier else None,
            "per_prompt": means.tolist(),
        }
        if earlier:
            entry["scale"] = earlier[0]["sources"][name]["scale"]
            entry["change"] = hacking.paired_change(_means(earlier[-1], name), means)._asdict()
        if one.compares:
            entry["orders"] = hacking.order_effects(one.first, one.second)
        if one.members:
            entry["disagreement"] = {part: hacking.disagreement(scores) for part, scores in one.members.items()}
        sources[name] = entry
    logps = np.array([row["logps"] for row in draws]) - np.array([row["ref_logps"] for row in draws])
    texts = [text for row in draws for text in row["responses"]]
    kl = hacking.paired_change(np.zeros(len(logps)), logps.mean(1))
    found: dict[str, Any] = {
        "prompts": len(draws),
        "sources": sources,
        "kl": kl.mean,
        "kl_standard_error": kl.standard_error,
        "words": float(words.mean()),
        "cut": float(np.mean([row["cut"] for row in draws])),
        "repetition": hacking.repetition(texts),
        "distinct_2": hacking.distinct_n(texts),
    }
    weights = {"trained": improve.align.weights, "held_out": dict.fromkeys((o.name for o in improve.held_out), 1.0)}
    for role, of in weights.items():
        found[role] = _together(found, earlier, of)
    history = [*earlier, found]
    found["gain_with_kl"] = hacking.gain_with_kl(
        [one["kl"] for one in history], *[[one[role]["gain"] for one in history] for role in weights]
    )[-1]
    found["hacked"] = bool(earlier) and hacking.is_hacked(
        *(hacking.Change(**found[role]["change"]) for role in weights)
    )
    return found


def _means(signs: Mapping[str, Any], name: str) -> Array:
    return np.array([math.nan if v is None else v for v in signs["sources"][name]["per_prompt"]], dtype=np.float64)


def _together(
    now: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], weights: Mapping[str, float]
) -> dict[str, Any]:
    """Several sources as one: the gain since the start and the change since the round before, each in units of the
    source's spread at the start, by these weights."""
    if not earlier:
        return {"gain": 0.0, "gain_standard_error": 0.0, "change": None}
    names = list(weights)
    scales = [now["sources"][name]["scale"] for name in names]
    after = np.array([_means(now, name) for name in names])

    def since(before: Mapping[str, Any]) -> hacking.Change:
        means = np.array([_means(before, name) for name in names])
        gains = hacking.standardized_gain(means, after, scales, list(weights.values()))
        return hacking.paired_change(np.zeros(len(gains)), gains)

    gain = since(earlier[0])
    return {
        "gain": gain.mean,
        "gain_standard_error": gain.standard_error,
        "change": since(earlier[-1])._asdict(),
    }
