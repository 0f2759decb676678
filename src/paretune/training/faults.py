"""Steps that go wrong: gradients that are not finite are not followed, steps far longer than usual are counted.

All of it follows from the Gram and the losses of the step, which are the same on every rank, so ranks skip and stop
together. docs/training.md says what happens in each case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from paretune.gradients.shards import local
from paretune.training.diagnostics import sum_over_ranks

# A step counts as a spike where its weighted gradient is so many times as long as the median of the steps before it.
SPIKE = 10.0
_BEFORE, _FEWEST = 64, 16  # of which median, and how many steps it takes


class StepFaults:
    """Counts of a run: steps `skipped`, `in_a_row` up to now, and `spiked`.

    Args:
        names: of the m objectives. say: takes what has to be said once.
    """

    def __init__(self, names: Sequence[str], say: Callable[[str], None]):
        self.names, self.say = list(names), say
        self.skipped = self.in_a_row = self.spiked = 0
        self._lengths: deque[float] = deque(maxlen=_BEFORE)

    def unfit(self, gram: Tensor, present: Tensor, losses: Tensor | None) -> bool:
        """Whether the step has to be skipped; counts and says so.

        Args:
            gram: (m, m) of the step's gradients.
            present: (m,) bool, which objectives have a label.
            losses: (m,) of the step, where the combiner takes them.
        """
        broken = ~gram.isfinite().all(1)
        if losses is not None:
            broken = broken | (present & ~losses.isfinite())
        if not bool(broken.any()):
            return False
        own = ~gram.diagonal().isfinite()  # an objective's products with a broken one are broken too
        which = [name for name, bad in zip(self.names, (own if own.any() else broken).tolist(), strict=True) if bad]
        whose = "every objective" if len(which) == len(self.names) else ", ".join(which)
        self.say(f"a step with gradients that are not finite was skipped (of {whose}; counted in steps/skipped)")
        self.skipped += 1
        self.in_a_row += 1
        return True

    def followed(self, length: float) -> None:
        """Notes a step that was followed, by the norm of its weighted gradient."""
        self.in_a_row = 0
        if len(self._lengths) >= _FEWEST and length > SPIKE * median(self._lengths) > 0:
            self.spiked += 1
            self.say(
                f"a step's weighted gradient was over {SPIKE:g} times as long as usual (counted in steps/spiked); "
                "max_grad_norm bounds what such a step can do"
            )
        self._lengths.append(length)

    def metrics(self) -> dict[str, float]:
        """What is logged, where there is anything."""
        counts = {"steps/skipped": float(self.skipped), "steps/spiked": float(self.spiked)}
        return {name: count for name, count in counts.items() if count}


def weights_finite(model: nn.Module, device: torch.device) -> bool:
    """Whether every trained weight is finite, on all ranks."""
    trained = [local(p.detach()) for p in model.parameters() if p.requires_grad]
    broken = sum(float(not bool(p.isfinite().all())) for p in trained)
    return not bool(sum_over_ranks(torch.tensor([broken]), device))
