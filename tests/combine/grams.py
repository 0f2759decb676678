"""Gradients of every awkward kind, made: the zoo that the combiners are tested and timed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray


def _normal(rng: np.random.Generator, m: int) -> Array:
    return rng.normal(size=(m, m + 2))


def _conflicting(rng: np.random.Generator, m: int) -> Array:
    g = _normal(rng, m)
    return g - rng.uniform(0.5, 1.0) * g.mean(0)


def _rank_deficient(rng: np.random.Generator, m: int) -> Array:
    return rng.normal(size=(m, int(rng.integers(1, m))))


def _nearly_colinear(rng: np.random.Generator, m: int) -> Array:
    signs, lengths = rng.choice([-1.0, 1.0], size=(m, 1)), rng.uniform(0.3, 3.0, size=(m, 1))
    return signs * lengths * rng.normal(size=(1, m + 2)) + 10.0 ** rng.uniform(-9, -2) * _normal(rng, m)


def _scales(rng: np.random.Generator, m: int) -> Array:
    return _normal(rng, m) * 10.0 ** rng.uniform(-6, 2, size=(m, 1))


def _duplicated(rng: np.random.Generator, m: int) -> Array:
    g = _normal(rng, m)
    i, j = rng.choice(m, 2, replace=False)
    g[i] = g[j] + 10.0 ** rng.uniform(-16, -7) * rng.normal(size=m + 2)
    return g


def _opposed(rng: np.random.Generator, m: int) -> Array:
    g = _normal(rng, m)
    i, j = rng.choice(m, 2, replace=False)
    g[i] = -g[j] * rng.uniform(0.5, 2.0) + rng.integers(0, 2) * 10.0 ** rng.uniform(-16, -2) * rng.normal(size=m + 2)
    return g


def _one_zero(rng: np.random.Generator, m: int) -> Array:
    g = _normal(rng, m)
    g[rng.integers(m)] = 0.0
    return g


def _integers(rng: np.random.Generator, m: int) -> Array:
    return rng.integers(-2, 3, size=(m, int(rng.integers(1, m + 1)))).astype(float)


def _mixing_to_zero(rng: np.random.Generator, m: int) -> Array:
    g = _normal(rng, m)
    k = int(rng.integers(2, m + 1))
    g[:k] -= g[:k].mean(0)
    return g


MAKERS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": _normal,
    "conflicting": _conflicting,
    "rank-deficient": _rank_deficient,
    "nearly colinear": _nearly_colinear,
    "nearly stationary": _normal,  # made so below, where the weights are known
    "scales": _scales,
    "duplicated": _duplicated,
    "opposed": _opposed,
    "one zero": _one_zero,
    "integers": _integers,
    "mixing to zero": _mixing_to_zero,
}


def made(kind: str, count: int, *, sizes: range = range(2, 13), seed: int = 0) -> Iterator[tuple[Array, Array]]:
    """`count` pairs of gradients (m, d) and weights (m,) of one kind."""
    rng = np.random.default_rng([seed, *kind.encode()])
    for _ in range(count):
        m = int(rng.choice(sizes))
        weights = rng.dirichlet(np.full(m, rng.choice([0.3, 1.0, 5.0])))
        gradients = MAKERS[kind](rng, m)
        if kind == "nearly stationary":
            gradients -= (1.0 - 10.0 ** rng.uniform(-12, -2)) * (weights @ gradients)
        yield gradients, weights
