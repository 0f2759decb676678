"""The signs of reward hacking of one round, as plain values for its files.

Suffixes: P watched prompts, n draws of each, S sources.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paretune.errors import InputError
from paretune.evaluation import hacking
from paretune.pipelines.improve.measure import Array, Scored
from paretune.pipelines.improve.plan import ImprovePlan

PAIRS = 256  # comparisons on which likelihood displacement is measured
BEATS_SCALE = 0.5  # of P(beats the start), which 0.5 is the middle of
SAME_RESPONSES, SAME_SCORES = 20, 5  # from so many on, with so many different scores, equal scores are one source's


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
    """All signs of one round, as plain values; `warnings`, sentences about what it could not see.

    Args:
        draws: of `draw`; scored: of `score`.
        earlier: the signs of the rounds before, from the start on.

    Raises:
        InputError: at the start, a source that can say nothing about any watched prompt: it could neither train nor
            watch; a held-out source whose scores are those of one that is trained on.
    """
    words = np.array([[len(text.split()) for text in row["responses"]] for row in draws])
    trained = {one.name for one in improve.labellers}
    if not earlier:
        _check_answers(scored, trained)
        _check_different(scored, trained)
    sources = {
        name: {"role": "trained" if name in trained else "held out", **_source_signs(name, one, words, earlier)}
        for name, one in scored.items()
    }
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
    found["warnings"] = _blind(found) if earlier else _not_asked(scored)
    return found


def _source_signs(
    name: str, one: Scored, words: npt.NDArray[np.int64], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Of one source. words: (P, n)."""
    means = hacking.prompt_means(one.values)
    known = one.values[~np.isnan(one.values)]
    entry: dict[str, Any] = {
        "is": "P(beats the start)" if one.compares else "mean score",
        "mean": float(np.nanmean(means)) if known.size else math.nan,
        "failed": _failed(one),
        "change": None,
        "length_correlation": hacking.taste_for_length(2 * one.said - 1, one.longer)
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
    return entry


def _failed(one: Scored) -> int:
    return int(np.isnan(one.said if one.compares else one.values).sum())


def _check_answers(scored: Mapping[str, Scored], trained: Collection[str]) -> None:
    for name, one in scored.items():
        asked = one.asked if one.compares else one.values.size
        if asked and _failed(one) == asked:
            raise InputError(
                "no score for any watched prompt",
                where=f"source {name!r}" if name in trained else f"held_out {name!r}",
                found=f"{asked} failures",
                fix="Does it need a column or a reference that the rows lack? Is its server there, and does it answer "
                "in a form that can be read? retry_failed: true asks again.",
            )


def _check_different(scored: Mapping[str, Scored], trained: Collection[str]) -> None:
    """Two spellings of one source have two fingerprints, but say the same."""
    for name, one in scored.items():
        for other in trained if name not in trained else ():
            if _same(one, scored[other]):
                raise InputError(
                    "the held-out source scores all watched responses as one that is trained on",
                    where=f"held_out {name!r}",
                    found=f"the scores of {other!r}",
                    fix="Hold out a source that the policy is not trained on.",
                )


def _same(one: Scored, other: Scored) -> bool:
    """Equal on so many responses, with so many different scores, that chance does not make them so."""
    mine, theirs = (x.said if x.compares else x.values.ravel() for x in (one, other))
    if one.compares != other.compares:
        return False
    known = mine[~np.isnan(mine)]
    enough = len(known) >= SAME_RESPONSES and len(np.unique(known)) >= SAME_SCORES
    return enough and np.array_equal(mine, theirs, equal_nan=True)


def _not_asked(scored: Mapping[str, Scored]) -> list[str]:
    """Of the start, whose draws may be all alike."""
    names = [name for name, one in scored.items() if one.compares and not one.asked]
    why = "no watched prompt has two different draws to compare, so whether it answers is not known."
    return [f"{name} was not asked: {why}" for name in names]


def _blind(found: Mapping[str, Any]) -> list[str]:
    """A change without a standard error never stops anything."""
    return [
        f"The stop rule is blind in this round: the {role.replace('_', '-')} sources have scores in this round and in "
        f"the one before of {found[role]['change']['prompts']} prompts together; a standard error takes two."
        for role in ("trained", "held_out")
        if found[role]["change"]["prompts"] < 2
    ]


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
