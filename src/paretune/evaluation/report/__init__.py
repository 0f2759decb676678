"""`paretune report`: one HTML file that shows what runs bought, and needs no network to be read."""

from __future__ import annotations

from paretune.evaluation.report.page import write_report

__all__ = ["write_report"]
