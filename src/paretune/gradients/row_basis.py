"""Never more gradients than rows: where a step has fewer outputs than objectives, each output's gradient is kept.

Suffixes: M objectives, K kept gradients, R outputs of one pass.

g_i = sum_r slopes[i, r] d outputs[r] / d theta: with fewer outputs r in a step than objectives i, the m gradients are
mixtures of the outputs' own, and all that follows is linear. So sixteen objectives on four comparisons cost four.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RowBasis:
    """Which K = min(m, outputs) gradients a step keeps, and how the m objectives are mixed from them.

    Args:
        objectives: m.
        outputs: numbers that the step's backward passes will differentiate, all together.
    """

    def __init__(self, objectives: int, outputs: int):
        self.kept = min(objectives, outputs)
        self._mixes = outputs < objectives
        self._columns: list[Tensor] = []  # the objectives' slopes of the outputs so far

    def slopes(self, slopes_MR: Tensor) -> Tensor:
        """(K, R) for `single_pass`, given the objectives' slopes of the next R outputs."""
        if not self._mixes:
            return slopes_MR
        used, rows = sum(part.shape[1] for part in self._columns), slopes_MR.shape[1]
        self._columns.append(slopes_MR)
        return torch.eye(self.kept, dtype=slopes_MR.dtype, device=slopes_MR.device)[:, used : used + rows]

    def gram(self, gram_KK: Tensor) -> Tensor:
        """(m, m) of the objectives, given that of the kept gradients, float64 on the CPU."""
        return self._mixture() @ gram_KK @ self._mixture().T if self._mixes else gram_KK

    def coefficients(self, coefficients_M: Tensor) -> Tensor:
        """(K,) of the kept gradients, given those of the objectives."""
        return self._mixture().T @ coefficients_M if self._mixes else coefficients_M

    def _mixture(self) -> Tensor:
        """(m, K) float64: the objectives as mixtures of the kept gradients; outputs that never came count nothing."""
        columns = torch.cat(self._columns, dim=1).double().cpu()
        return torch.nn.functional.pad(columns, (0, self.kept - columns.shape[1]))
