"""A run's directory as commands meet it, and a run's lines where there is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def no_new_folder(output_dir: str) -> Iterator[None]:
    """Removes the folders that were made for output_dir in between and are empty at the end."""
    path = Path(os.path.abspath(os.path.expanduser(output_dir)))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in new:  # the innermost first
            try:
                folder.rmdir()
            except OSError:
                break


def line_callback() -> Any:
    """Where there is no terminal to draw a bar on: one line per logged step, on stderr."""
    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            shown = [f"{key} {logs[key]:.4g}" for key in ("loss", "eval_loss", "learning_rate") if key in logs]
            cosines = [value for key, value in logs.items() if key.startswith("grad/cosine/")]
            shown += [f"least cosine {min(cosines):+.2f}"] if cosines else []
            if shown:
                print(f"step {state.global_step}/{state.max_steps}: {', '.join(shown)}", file=sys.stderr, flush=True)

    return Lines()
