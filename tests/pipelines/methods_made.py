"""Requests for small trainings by a method's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.objectives import Objective
from paretune.pipelines.methods import Request
from tests.runs_made import made_text_rows, small_config

OBJECTIVES = [Objective("helpful", weight=0.6), Objective("concise", weight=0.4)]


def asked(model: str, folder: Path, method: str, **changes: Any) -> Request:
    """Two steps on 24 made rows; `config` changes fields of the configuration, the rest those of the request."""
    args = small_config(folder, **{"max_steps": 2, **changes.pop("config", {})})
    return replace(Request(method, model, args, OBJECTIVES, made_text_rows(24)), **changes)
