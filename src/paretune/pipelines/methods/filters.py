"""Methods that choose rows: those on which the objectives agree, and those between a prompt's front and the rest.

Labels by suffix: R rows, M objectives; NaN is no opinion. Held-out rows stay as they are, so that methods are compared
on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from paretune.comparisons.columns import digests, labels, stretches
from paretune.errors import InputError
from paretune.pipelines.methods.contract import Method, Request
from paretune.training.data import RowChange


def agreeing(label_RM: np.ndarray) -> np.ndarray:
    """(R,) bool: the objectives that have an opinion all prefer the same side; a tie prefers none.

    Reward Consistency, arXiv 2504.11337: a pair is kept where every objective ranks it alike.
    """
    known = ~np.isnan(label_RM)
    for_a, for_b = label_RM > 0.5, label_RM < 0.5  # NaN is neither
    return known.any(1) & ((for_a == known).all(1) | (for_b == known).all(1))


def dominance(label_RM: np.ndarray) -> np.ndarray:
    """(R,) int: 1 where a is at least as good for every objective with an opinion and better for one, -1 where b is."""
    for_a, for_b = label_RM > 0.5, label_RM < 0.5
    return (for_a.any(1) & ~for_b.any(1)).astype(int) - (for_b.any(1) & ~for_a.any(1)).astype(int)


def front_pairs(label_RM: np.ndarray, a_R: Sequence[object], b_R: Sequence[object]) -> np.ndarray:
    """(R,) int: 1 where a is on its prompt's front and b is dominated, -1 the other way round, 0 for all other pairs.

    A response is dominated where another of the rows says so (`dominance`); what no row shows to be dominated is on the
    front. The rule of DG-PRM (arXiv 2507.17849): the front is chosen, the dominated are rejected, whether or not the
    one dominates the other.

    Args:
        label_RM: labels.
        a_R, b_R: what tells the responses apart, the prompt included.
    """
    side_R = dominance(label_RM)
    dominated = {a for a, side in zip(a_R, side_R, strict=True) if side < 0}
    dominated |= {b for b, side in zip(b_R, side_R, strict=True) if side > 0}
    return np.array([int(b in dominated) - int(a in dominated) for a, b in zip(a_R, b_R, strict=True)])


def _labels(rows: Dataset, request: Request) -> np.ndarray:
    """(R, M) of the objectives that have a weight."""
    names = [o.name for o in request.objectives if o.weight > 0]
    return np.concatenate([labels(part["preferences"], names) for part in stretches(rows, ["preferences"])])


def _none_left(method: str, rows: int, why: str) -> InputError:
    fix = "Such a method needs data on which the objectives do not conflict everywhere."
    return InputError(f"{method} leaves no row of {rows}: {why}", where="train data", expected="at least one", fix=fix)


def keep_agreeing(request: Request) -> RowChange:
    """Keeps training rows on which the objectives agree.

    Raises:
        InputError: there is none.
    """

    def change(rows: Dataset, name: str) -> Dataset:
        if name != "train":
            return rows
        keep = np.flatnonzero(agreeing(_labels(rows, request)))
        if not len(keep):
            raise _none_left("agree-only", len(rows), "there is none on which the objectives agree")
        return rows.select(keep)

    return change


def keep_front_pairs(request: Request) -> RowChange:
    """Keeps training rows of a front member against a dominated response; every objective's label prefers the former.

    Raises:
        InputError: there is none.
    """

    def change(rows: Dataset, name: str) -> Dataset:
        if name != "train":
            return rows
        keys: dict[str, list[bytes]] = {"a": [], "b": []}
        for part in stretches(rows, ["prompt", "response_a", "response_b"]):
            prompts = digests(part["prompt"], 8)
            for side, found in keys.items():
                found += [p + r for p, r in zip(prompts, digests(part[f"response_{side}"], 8), strict=True)]
        side_R = front_pairs(_labels(rows, request), keys["a"], keys["b"])
        keep = np.flatnonzero(side_R)
        if not len(keep):
            raise _none_left("pareto-pairs", len(rows), "no response dominates another")
        wins = (side_R[keep] > 0).astype(float).tolist()
        names = list(rows.features["preferences"])
        labels_new = [dict.fromkeys(names, win) for win in wins]
        features = rows.features["preferences"]
        return rows.select(keep).remove_columns("preferences").add_column("preferences", labels_new, feature=features)

    return change


def check_all_pairs(request: Request) -> list[str]:
    """Raises InputError where reading would already choose pairs: a front needs all of them."""
    for name in ("pairs", "max_pairs"):
        value = request.data_options.get(name)
        if value not in (None, "all"):
            fix = f"Leave {name} out."
            raise InputError("the front of a prompt is found from all its pairs", where=name, found=value, fix=fix)
    return ["one training, on pairs of a front member (chosen) and a dominated response (rejected)"]


FILTERS: dict[str, Method] = {
    "agree-only": Method(
        title="weighted-loss DPO on the rows on which all objectives agree",
        source="Reward Consistency, arXiv 2504.11337",
        settings={"combiner": "linear"},
        check=lambda request: ["one training, on the rows on which all objectives with an opinion agree"],
        change_rows=keep_agreeing,
    ),
    "pareto-pairs": Method(
        title="DPO on pairs of a front member against a dominated response",
        source="DG-PRM's pair selection, arXiv 2507.17849",
        settings={"combiner": "linear"},
        check=check_all_pairs,
        change_rows=keep_front_pairs,
    ),
}
