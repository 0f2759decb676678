"""The m gradients of m objectives: torch in, torch out; any training loop can call this room."""

from paretune.gradients.layer_grams import LayerGrams
from paretune.gradients.per_objective import per_objective
from paretune.gradients.row_basis import RowBasis
from paretune.gradients.row_layers import Receiver, RowAxisLost, RowLayers
from paretune.gradients.single_pass import single_pass
from paretune.gradients.stack import GradientStack, joined, trainable_parameters

__all__ = [
    "GradientStack",
    "LayerGrams",
    "Receiver",
    "RowAxisLost",
    "RowBasis",
    "RowLayers",
    "joined",
    "per_objective",
    "single_pass",
    "trainable_parameters",
]
