"""Combiners called with whatever they ask for, made."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.combine import Combination, find_combiner
from paretune.combine.contract import needs


def facts_for(name: str, m: int, **given: Any) -> dict[str, Any]:
    """What the combiner `name` takes beside the Gram and the weights of m objectives, with `given` in its place."""
    losses = torch.from_numpy(np.random.default_rng(m).uniform(0.2, 2.0, m))
    made = {"losses": losses, "seed": 0, "state": {}, "present": torch.ones(m, dtype=torch.bool), **given}
    facts = {key: made[key] for key in needs(find_combiner(name))}
    return facts | ({"coefficients": [[float(i + 1) for i in range(m)]]} if name == "replay" else {})


def called(name: str, gram: Tensor, weights: Tensor, **given: Any) -> Combination:
    return find_combiner(name)(gram, weights, **facts_for(name, len(weights), **given))
