"""How a worker process is set up. Light to import, so that it runs before anything heavy is."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_worker() -> None:
    """One thread, and no progress bars or remarks of other packages among several processes' lines.

    Threads of several processes on few cores wait for each other; notices of ours are kept in each run's `run.json`.
    """
    quiet_environment()

    import torch
    from transformers.utils import logging as remarks

    torch.set_num_threads(1)
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()


def quiet_environment() -> None:
    """Of that, what is read when packages are loaded."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it whether or not it is used
    logging.getLogger("paretune").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
