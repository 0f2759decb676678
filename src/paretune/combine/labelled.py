"""One step's combination: what the combiner takes is supplied, and objectives without a label are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paretune.combine.combination import Combination
from paretune.combine.contract import needs
from paretune.errors import InputError


def combine_labelled(
    combiner: Callable[..., Combination],
    gram: Tensor,
    weights: Tensor,
    present: Tensor,
    *,
    normalize: bool = False,
    losses: Tensor | None = None,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    **options: Any,
) -> Combination:
    """Combines the gradients of the objectives that are present, the others getting coefficient 0.

    An objective without a label has gradient 0. Left in the dual it would be the minimiser's vertex, and the correction
    would silently vanish for everyone. So the rest is solved with weights renormalised, and the coefficients are then
    multiplied by the rest's share of the weight. State of absent objectives stays as it was.

    Args:
        combiner: of `COMBINERS`, or `find_combiner`'s.
        gram: (m, m) float64.
        weights: (m,) on the simplex.
        present: (m,) bool, which objectives have a label.
        normalize: solve for gradients scaled to their weighted mean norm, and return coefficients of the unscaled ones.
        losses: (m,), where the combiner takes them; anything where an objective is absent.
        seed: the step's number.
        state: the combiner's memory, changed in place; None where the combiner has none.
        options: of the combiner.

    Returns:
        A Combination of all m; where nothing is present, or all present weights are 0, its coefficients are 0.

    Raises:
        InputError: losses or state that are missing; `normalize` for a combiner that uses no gradients; what the
            combiner refuses.
    """
    wanted = needs(combiner)
    given: dict[str, Any] = {"losses": losses, "seed": seed, "state": state, "present": present}
    for fact in ("losses", "state"):
        if fact in wanted and given[fact] is None:
            raise InputError(f"this combiner takes {fact}", fix=f"Give combine_labelled its {fact}.")
    if "present" in wanted:
        if normalize:
            raise InputError("normalize_gradients has no meaning for this combiner: it does not weigh gradients")
        return combiner(gram, weights, **{key: given[key] for key in wanted}, **options)
    if not normalize and bool(present.all()):
        return combiner(gram, weights, **{key: given[key] for key in wanted}, **options)
    chosen = present.nonzero().flatten()
    share = float(weights[chosen].sum())
    zeros = torch.zeros(len(weights), dtype=torch.float64)
    if share == 0:
        return Combination(zeros, zeros, zeros, clip_active=False, info={})
    part, w = gram[chosen][:, chosen], weights[chosen].double() / share
    scale = torch.ones_like(w)
    if normalize:
        norms = part.diagonal().sqrt()
        scale = torch.where(norms > 0, (w * norms).sum() / norms, 1.0)
    rows: list[int] = chosen.tolist()
    if losses is not None:
        given["losses"] = losses[chosen]
    if state is not None:
        given["state"] = {key: _taken(value, rows) for key, value in state.items()}
    facts = {key: given[key] for key in wanted}
    solved = combiner(part * scale[:, None] * scale[None, :], w, **facts, **options)
    if state is not None and "state" in wanted:
        state.update({key: _put(state.get(key), value, rows, len(weights)) for key, value in given["state"].items()})

    def spread(values: Tensor) -> Tensor:
        return zeros.index_copy(0, chosen, values)

    coefficients = spread(solved.coefficients * scale * share)
    return replace(solved, coefficients=coefficients, p=spread(solved.p), clipped=spread(solved.clipped))


def _taken(value: Any, rows: Sequence[int]) -> Any:
    """The entries of the objectives `rows`, along each axis."""
    return [_taken(value[row], rows) for row in rows] if isinstance(value, list) else value


def _put(old: Any, new: Any, rows: Sequence[int], m: int) -> Any:
    """`new` written over the entries `rows` of `old`, the inverse of `_taken`; None where there was nothing."""
    if not isinstance(new, list):
        return new
    whole = list(old) if isinstance(old, list) else [None] * m
    for row, value in zip(rows, new, strict=True):
        whole[row] = _put(whole[row], value, rows, m)
    return whole
