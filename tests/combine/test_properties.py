"""What every combiner must be, over the zoo: equivariant, deaf to scale, at ease with zeros, one objective, sixteen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paretune.combine import COMBINERS
from tests.combine.calls import called, facts_for
from tests.combine.grams import MAKERS, made

Array = np.ndarray
DRAWING = ("pcgrad", "cagrad_fast", "random_correction")  # by place, so that another order draws another thing
# What they return opposes no objective, to the tolerance that their docstrings name.
PROMISE = {"mgda": 1e-7, "gapo": 1e-7, "upgrad": 1e-4, "dualproj": 1e-4}


def coefficients(name: str, g: Array, w: Array, **given: object) -> Array:
    return called(name, torch.tensor(g @ g.T), torch.tensor(w), **given).coefficients.numpy()


def apart(a: Array, b: Array, g: Array, unit: float = 1.0) -> float:
    """Distance of two updates, relative to the lengths of what was mixed (a Gram resolves 1e-8 of these)."""
    mixed = np.abs(np.stack((a, b))) @ np.linalg.norm(g, axis=1)
    return float(np.linalg.norm((a - b) @ g) / max(mixed.max(), np.linalg.norm(g, axis=1).max() * unit))


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_scale_of_the_gradients_is_the_scale_of_the_update(name: str, kind: str) -> None:
    for g, w in made(kind, 4, sizes=range(2, 7), seed=1):
        plain = coefficients(name, g, w)
        for scale in (1e-10, 3e-3, 1e10):
            assert apart(coefficients(name, scale * g, w), plain, g) < 1e-6


@pytest.mark.parametrize("name", [name for name in COMBINERS if name not in (*DRAWING, "replay")])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_order_of_the_objectives_does_not_matter(name: str, kind: str) -> None:
    for g, w in made(kind, 4, sizes=range(2, 7), seed=2):
        order = np.random.default_rng(len(w)).permutation(len(w))
        losses = facts_for("famo", len(w))["losses"]
        plain = coefficients(name, g, w, losses=losses)
        other = coefficients(name, g[order], w[order], losses=losses[torch.tensor(order)])
        assert apart(other[np.argsort(order)], plain, g) < 1e-6


@pytest.mark.parametrize("name", PROMISE)
@pytest.mark.parametrize("kind", MAKERS)
def test_no_objective_is_opposed(name: str, kind: str) -> None:
    for g, w in made(kind, 6, sizes=range(2, 9), seed=3):
        d = coefficients(name, g, w) @ g
        lengths = np.linalg.norm(g, axis=1)
        largest = max(np.linalg.norm(d), w @ lengths)
        assert (g @ d / np.maximum(lengths, 1e-300)).min() >= -PROMISE[name] * largest


@pytest.mark.parametrize("name", COMBINERS)
def test_one_objective_is_followed(name: str) -> None:
    g = np.array([[3.0, 4.0]])
    direction = coefficients(name, g, np.ones(1)) @ g
    np.testing.assert_allclose(direction / np.linalg.norm(direction), [0.6, 0.8], rtol=1e-9)


@pytest.mark.parametrize("name", COMBINERS)
def test_nothing_but_zeros(name: str) -> None:
    assert np.isfinite(coefficients(name, np.zeros((3, 4)), np.full(3, 1 / 3))).all()


@pytest.mark.parametrize("name", COMBINERS)
def test_sixteen_objectives(name: str) -> None:
    for g, w in made("conflicting", 2, sizes=range(16, 17)):
        found = coefficients(name, g, w)
        assert np.isfinite(found).all() and np.abs(found @ g).max() > 0


GRADIENTS = np.array([[1.0, -4.0, 0.0, 2.0], [-1.0, 1.0, 1.0, 0.0], [0.5, 0.0, -2.0, 1.0]])
WEIGHTS, LOSSES = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.8, 0.4])
FROZEN = {
    "raco": [0.2, 0.680739222823, 0.3],
    "cagrad": [0.2, 0.680739222823, 0.3],
    "cagrad_uniform": [0.333333333333, 0.671081870079, 0.333333333333],
    "cagrad_fast": [0.2, 0.680739222823, 0.3],
    "linear": [0.2, 0.5, 0.3],
    "mgda": [0.122557726465, 0.582593250444, 0.294849023091],
    "mgda_decoupled": [0.115365893234, 0.721726431933, 0.162907674834],
    "gapo": [0.152575675146, 0.618658373767, 0.305151350291],
    "p_gapo": [0.107796447301, 0.713006479436, 0.323389341903],
    "pcgrad": [0.314512471655, 1.08333333333, 0.601587301587],
    "imtl_g": [0.141748183558, 0.574755449326, 0.283496367116],
    "nash_mtl": [0.514601154932, 2.25497969959, 1.13570070937],
    "aligned_mtl": [0.120615788188, 0.530622330072, 0.26664144378],
    "upgrad": [0.335627530338, 1.23684210512, 0.597570850136],
    "dualproj": [0.2, 0.583333333325, 0.3],
    "famo": [0.307692307692, 0.230769230769, 0.461538461538],
    "tchebycheff": [0.0, 0.5, 0.0],
    "smooth_tchebycheff": [0.0108432545487, 0.445783727256, 0.0162648818231],
    "random_correction": [0.287905657511, 0.631819602929, 0.302560723637],
    "replay": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("name", COMBINERS)
def test_frozen_values(name: str) -> None:
    found = coefficients(name, GRADIENTS, WEIGHTS, losses=torch.tensor(LOSSES))
    np.testing.assert_allclose(found, FROZEN[name], rtol=1e-7)
