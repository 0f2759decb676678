"""`paretune COMMAND`: finds the command, and turns errors for people into one line and an exit status.

Status 0: done. 2: something that a person can put right (`InputError`), a full disk among it. 3: a run that diverged,
or cells of a front that failed. 75: stopped (a signal, the time limit), and it goes on where it was, by --resume or by
the same command. 130: stopped at once, with nothing to go on from but earlier checkpoints. Everything else is a bug and
keeps its traceback. docs/interruptions.md has the table.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from paretune import __version__
from paretune.cli.settings import nearest
from paretune.errors import DivergedError, InputError, StoppedError
from paretune.files import disk_full, is_full

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same again goes on
_RESUMED = ("train", "sft", "reward")  # by --resume
_GO_ON = ("front", "sample", "label", "improve", "judge-bench")  # by the same command: what is finished is kept

COMMANDS = {
    "demo": "a real trade-off, made and measured on this machine, offline, in minutes",
    "train": "aligns a model with several objectives at once",
    "evaluate": "held-out losses, margins and accuracies of one or several models",
    "front": "trains a grid of methods, weightings and seeds, compares the fronts, picks a checkpoint",
    "data": "what a data set holds: labels, agreement, conflicts, lengths",
    "sample": "several responses per prompt, from a model or an OpenAI-compatible server",
    "label": "gives rows their preferences: rules, functions of yours, reward models, judges",
    "improve": "rounds of sample, label, align from prompts alone, watched by sources that are never trained on",
    "judge-bench": "how good judges are: accuracy, order, calibration, agreement, injected responses",
    "reward": "trains a reward model, one head per objective, which can then label rows",
    "report": "an HTML page from run directories or from a demo's folder",
    "sft": "supervised start: teaches a model to answer, before it is aligned",
}

HELP = """\
paretune aligns a language model with several objectives at once, by the weights you give them.

usage: paretune COMMAND [CONFIG.yaml] [--key value ...]

{commands}

A first run, from comparisons that carry one label per objective:

  paretune data train.jsonl
  paretune train --model Qwen/Qwen3-0.6B --data train.jsonl --eval_fraction 0.1 \\
      --objectives '{{helpful: 0.6, harmless: 0.4}}' --lora true --output_dir runs/first
  paretune evaluate --model runs/first

Settings come from the YAML file first and from the flags over it; an unknown key is an error that names the nearest.
`paretune COMMAND --help` explains a command and its keys; `paretune --version` names the version.
"""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors of ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, fix=f"See {self.prog} --help.")


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    said = logging.StreamHandler(sys.stderr)
    said.setFormatter(logging.Formatter("paretune: %(message)s"))
    logger = logging.getLogger("paretune")
    level = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(), _terminated_like_interrupted():
            _quiet()
            return _dispatch(words)
    except InputError as error:
        return _fail(str(error), 2)
    except DivergedError as error:
        return _fail(str(error), 3)
    except StoppedError as stop:
        return _fail(f"{stop}.{_hint(words)}", STOPPED)
    except KeyboardInterrupt:
        return _fail(f"stopped.{_hint(words)}", STOPPED if words[:1] and words[0] in _GO_ON else 130)
    except BrokenPipeError:  # `paretune data … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not is_full(error):
            raise
        return _fail(str(disk_full(error, getattr(error, "filename", None) or ".")), 2)
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)


def _hint(words: list[str]) -> str:
    if words[:1] and words[0] in _RESUMED:
        return " To go on from the last checkpoint, give the same command with --resume."
    return " The same command goes on." if words[:1] and words[0] in _GO_ON else ""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as ctrl-C does: in good order, with files whole and words said."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"paretune {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        fix = f"{nearest(name, COMMANDS)} See paretune --help."
        raise InputError(f"unknown command {name!r}", expected=f"one of {', '.join(COMMANDS)}", fix=fix)
    module = import_module(f"paretune.cli.{name.replace('-', '_')}")
    if not hasattr(module, "add_arguments"):
        return int(module.main(rest))
    parser = Parser(
        prog=f"paretune {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    try:
        return int(module.run(parser.parse_args(rest)))
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _quiet() -> None:
    """No progress bars of other packages in a log file, and no remarks of theirs about each other."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it whether or not it is used
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _fail(message: str, status: int) -> int:
    print(f"paretune: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
