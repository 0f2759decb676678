"""Every combiner in the exact world: losses, seeds and memories reach it, and runs do not share them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paretune.combine import COMBINERS
from paretune.errors import InputError
from paretune.sandbox.bandit import make_bandit, tabular
from paretune.sandbox.bandit_runs import Paths, Run, sampled, train
from paretune.sandbox.labels import Labelling

WEIGHTS = ((0.5, 0.3, 0.2), (0.2, 0.2, 0.6))
OPTIONS: dict[str, dict[str, Any]] = {"replay": {"coefficients": [[0.3, 0.3, 0.4]] * 5}}


def paths(runs: list[Run]) -> Paths:
    bandit = make_bandit(objectives=3, prompts=4, held_out=2, responses=5)
    data = {0: sampled(bandit, Labelling(missing=0.3), 60, seed=0)}
    return train(bandit, tabular(), data, runs, steps=4, betas=[0.2] * 3, batch_size=8)


@pytest.mark.parametrize("name", [*COMBINERS, "torchjd:GradVac"])
def test_every_combiner_trains_beside_others_as_alone(name: str) -> None:
    runs = [Run(name, w, 1.0, options=OPTIONS.get(name, {})) for w in WEIGHTS]
    together, alone = paths([*runs, Run("famo", WEIGHTS[0], 3.0)]), paths(runs[1:])
    assert together.theta.isfinite().all() and not torch.equal(together.theta[-1, 1], together.theta[0, 1])
    torch.testing.assert_close(together.theta[:, 1], alone.theta[:, 0], rtol=1e-9, atol=1e-12)


def test_unknown_names_and_options_are_refused() -> None:
    for run, message in (
        (Run("racoo", WEIGHTS[0], 1.0), "Did you mean 'raco'"),
        (Run("famo", WEIGHTS[0], 1.0, options={"rat": 1}), "Did you mean 'rate'"),
    ):
        with pytest.raises(InputError, match=message):
            paths([run])
