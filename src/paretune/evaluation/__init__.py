"""What training bought: margins on held-out rows, samples and their scores, fronts, the report."""

from __future__ import annotations

from paretune.evaluation.front import dominated_share, hypervolume, pareto_front

__all__ = ["dominated_share", "hypervolume", "pareto_front"]
