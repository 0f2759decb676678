"""The m gradients of m objectives: torch in, torch out; any training loop can call this room."""

from paretune.gradients.per_objective import per_objective
from paretune.gradients.row_layers import RowAxisLost, RowLayers
from paretune.gradients.single_pass import common_signal, single_pass
from paretune.gradients.stack import GradientStack, trainable_parameters

__all__ = [
    "GradientStack",
    "RowAxisLost",
    "RowLayers",
    "common_signal",
    "per_objective",
    "single_pass",
    "trainable_parameters",
]
