"""`paretune sample`: several responses per prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.cli.keys import key
from paretune.cli.server_keys import ServerKeys
from paretune.cli.settings import resolve
from paretune.errors import InputError

INTRO = """
paretune sample [CONFIG.yaml] [--key value ...]

Draws several responses to each prompt of a file, with a model here or from an OpenAI-compatible server (vLLM, …).
Equal responses are kept once. The same command goes on where it was stopped; no finished prompt is asked again.

  paretune sample --model runs/start --prompts prompts.jsonl --n 4 --out responses.jsonl
  paretune sample --model NAME --server http://localhost:8000/v1 --prompts prompts.jsonl --n 4 --out responses.jsonl
  paretune label responses.jsonl --sources '{concise: {rule: shorter}, right: {rule: rouge}}' --out train.jsonl

Rows of the prompts' file are {prompt, ...}: text, or messages for a chat model. Other columns (reference, group) stay.
LLMBar's rows, {input, output_1, output_2, ...}, do as they are: references for `paretune judge-bench`.
"""

GROUPS = {
    "Who answers": ["model", "server", "api_key_env", "concurrency", "timeout", "retries", "batch_size"],
    "What": ["prompts", "out", "overwrite", "take", "on_bad_row", "conversational", "template_options"],
    "How": ["n", "temperature", "top_p", "max_tokens", "seed", "drop_cut"],
}


@dataclass
class SampleKeys(ServerKeys):
    """Keys of `paretune sample`."""

    model: str | None = key("Directory or hub id, an adapter's directory too; with server, its name for the model.")
    prompts: str | list | dict | None = key("File (.jsonl, .json, .parquet, .csv) or hub id of rows with a prompt.")
    out: str | None = key("The .jsonl file that is written: {prompt, responses, ...}.")
    n: int = key("Responses drawn per prompt.", 4)
    temperature: float = key("Of the draws.", 1.0)
    top_p: float = key("Draw from the most probable tokens whose probabilities sum to this.", 1.0)
    max_tokens: int = key("Most tokens of a response, its end counted.", 512)
    seed: int = key("Of the draws; a prompt's depend on it and on the prompt's text.", 0)
    conversational: bool = key("Turn plain prompts into a user message, so that the chat template applies.", False)
    template_options: dict | None = key("More arguments of the chat template, as {enable_thinking: false}.")
    drop_cut: bool = key("Leave out responses that max_tokens cut off.", False)
    take: int | None = key("Only the first so many prompts.")
    on_bad_row: str = key("'error' stops at a bad row; 'skip' leaves it out and counts it.", "error")
    batch_size: int = key("Responses that a model here draws at once.", 64)
    overwrite: bool = key("Begin anew: the file is removed first.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (SampleKeys,)))
        return 0
    keys: SampleKeys = resolve(argv, SampleKeys, None, required=("model", "prompts", "out")).own
    out = Path(str(keys.out)).expanduser()
    _check(keys, out)
    access = keys.access()

    from paretune.pipelines.sampling import SamplingSettings, open_responses, read_prompts
    from paretune.pipelines.sampling_here import sample_here
    from paretune.pipelines.sampling_server import sample_from_server
    from paretune.training.given import full_path

    settings = SamplingSettings(
        model=full_path(str(keys.model)) if keys.server is None else str(keys.model),
        **{name: getattr(keys, name) for name in ("server", "n", "temperature", "top_p", "max_tokens", "seed")},
        **{name: getattr(keys, name) for name in ("conversational", "template_options", "drop_cut")},
    )
    settings.check()
    if keys.server is None:
        from paretune.policy.loading import check_weight_files  # torch and transformers: a server needs neither here

        check_weight_files(settings.model)
    rows, counts = read_prompts(
        keys.prompts, conversational=keys.conversational, take=keys.take, on_bad_row=keys.on_bad_row
    )
    with open_responses(out, settings, overwrite=keys.overwrite) as file:
        before = sum(row.key in file.finished for row in rows)
        if before < len(rows):
            if keys.server is None:
                left_out = sample_here(rows, settings, file, batch_size=keys.batch_size)
            else:
                left_out = sample_from_server(rows, settings, file, access)
            counts = {**counts, **left_out}
        done = file.finish(rows)
    print(_summary(len(rows), before, done, counts, settings.n, str(out)))
    return 0 if done == len(rows) else 2


def _check(keys: SampleKeys, out: Path) -> None:
    if out.suffix != ".jsonl":
        raise InputError("bad out", expected="a .jsonl file", found=str(out))
    if isinstance(keys.prompts, str) and out.resolve() == Path(keys.prompts).expanduser().resolve():
        raise InputError("out is the file that is read", where=str(out), fix="Name another file.")
    if not out.parent.is_dir():
        raise InputError("no such folder", where=str(out.parent), fix="Make it, or name another file.")
    if keys.batch_size < 1:
        raise InputError("bad batch_size", expected="at least 1", found=keys.batch_size)


def _summary(total: int, before: int, done: int, counts: Mapping[str, Any], n: int, out: str) -> str:
    words = {
        "repeated": "repeated responses left out",
        "empty": "empty responses left out",
        "cut": "responses cut off by max_tokens",
        "retries": "requests repeated",
        "refused": "prompts refused by the server, such as too long ones; the same command asks for them again",
        "failed": "prompts failed; the same command asks for them again",
    }
    lines = [f"{done:,} of {total:,} prompts have their {n} draws" + (f", {before:,} from before" if before else "")]
    lines += [f"{count:,} {words.get(what, what)}" for what, count in counts.items() if count]
    lines += ["", f"In {out}. Label them: paretune label {out} --sources '{{...}}' --out train.jsonl"]
    return "\n".join(lines)
