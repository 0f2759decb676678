"""`paretune improve`: rounds of sample, label, align."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.cli.keys import ModelKeys, key, lora_config, objectives_of
from paretune.cli.rundir import line_callback, no_new_folder
from paretune.cli.server_keys import ServerKeys
from paretune.cli.settings import hints_of, make_config, nearest, read_config, resolve
from paretune.cli.summary import table
from paretune.cli.train import method_settings, with_defaults
from paretune.errors import InputError
from paretune.training.given import full_path

if TYPE_CHECKING:
    from paretune.pipelines.improve.plan import ImprovePlan
    from paretune.pipelines.improve.serving import Serving

INTRO = """
paretune improve CONFIG.yaml [--key value ...]

From prompts alone to an aligned model, in rounds: the model answers, sources label the answers, RACO aligns the model
with the labels, and the next round begins from there. Sources that are never trained on watch every round; where they
fall while the trained ones rise, it stops and says so. The best round by the held-out sources is kept.

  paretune improve improve.yaml
  paretune improve improve.yaml --rounds 5           # goes on after the rounds that are there
  paretune improve improve.yaml --server http://localhost:8001/v1 --serve 'vllm serve {model} --port 8001'
  paretune sample --model runs/improved/best --prompts more.jsonl --out answers.jsonl

  model: runs/start                                  # improve.yaml
  prompts: prompts.jsonl
  sources: {concise: {rule: shorter}, right: {rule: rouge}}
  objectives: {concise: 0.3, right: 0.7}
  held_out: {prompts: 0.2, sources: {fluent: {rule: repetition}}}
  rounds: 3
  output_dir: runs/improved

The same command goes on where it was stopped: no finished part is repeated, no answered call made again, and the
result is the same. Every key of `paretune train` is one here too, for the align step. The rest: docs/improve.md.
"""

GROUPS = {
    "What is improved": ["model", "lora", "dtype", "quantization", "rounds", "reference"],
    "From which prompts": ["prompts", "take", "on_bad_row", "sft_on_references", "sft"],
    "Answers": [
        *["n", "temperature", "top_p", "max_tokens", "drop_cut", "conversational", "template_options"],
        "sample_batch_size",
    ],
    "Answers from a server": [
        *["server", "serve", "server_model", "serve_seconds", "api_key_env", "concurrency", "timeout", "retries"],
    ],
    "Labels": ["sources", "pairs", "max_pairs", "max_words", "cache", "retry_failed"],
    "Watching": ["held_out", "patience"],
    "Aligning": [
        *["objectives", "beta", "method", "method_options", "combiner", "combiner_options", "c", "clip"],
        *["learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"],
        *["gradient_accumulation_steps", "max_length", "save_steps", "logging_steps", "report_to"],
    ],
    "The run": ["output_dir", "seed"],
}

# What the supervised start takes over from the align step's settings unless `sft` says otherwise.
SHARED = (
    *("use_cpu", "bf16", "seed", "report_to", "disable_tqdm", "dataloader_pin_memory", "max_length"),
    *("gradient_checkpointing", "save_strategy", "save_steps", "logging_steps", "dataset_num_proc"),
)


@dataclass
class ImproveKeys(ModelKeys, ServerKeys):
    """Keys of `paretune improve` beside the fields of `RACOConfig`."""

    prompts: str | list | dict | None = key("File (.jsonl, .json, .parquet, .csv) or hub id of rows with a prompt.")
    take: int | None = key("Only the first so many prompts.")
    on_bad_row: str = key("'error' stops at a bad row; 'skip' leaves it out and counts it.", "error")
    rounds: int = key("Rounds of sample, label, align.", 2)
    n: int = key("Responses drawn per prompt and round.", 4)
    temperature: float = key("Of the draws.", 1.0)
    top_p: float = key("Draw from the most probable tokens whose probabilities sum to this.", 1.0)
    max_tokens: int = key("Most tokens of a response, its end counted.", 512)
    drop_cut: bool = key("Leave out responses that max_tokens cut off.", False)
    conversational: bool = key("Turn plain prompts into a user message, so that the chat template applies.", False)
    template_options: dict | None = key("More arguments of the chat template, as {enable_thinking: false}.")
    sample_batch_size: int = key("Responses drawn at once.", 64)
    serve: str | None = key("Command that serves {model}, a round's model, at server, or tells that server to.")
    server_model: str = key("The model's name at the server; {model} is the directory.", "{model}")
    serve_seconds: float = key("How long that may take.", 600.0)
    sources: str | dict | None = key("{objective: {rule: NAME, ...}}, written here or in a YAML file that is named.")
    pairs: str = key("Pairs of n responses: all, best-worst, overall-best-worst, pareto or conflict.", "all")
    max_pairs: int | None = key("Most pairs that are made of one prompt's responses.")
    max_words: int | None = key("Responses of more words are not labelled.")
    objectives: str | list | dict | None = key("Mapping source -> weight or {weight, loss, beta, …}, one per source.")
    held_out: dict | None = key("{sources: {NAME: {rule: …}}, prompts: 0.2}: never trained on; they watch.")
    patience: int = key("Stop after so many rounds in a row in which held-out sources fall and trained ones rise.", 1)
    reference: str = key(
        "Of the align step: 'previous', the model that the round starts from; 'start', that of round 1.", "previous"
    )
    sft_on_references: bool = key("Teach the prompts' references before the first round.", False)
    sft: dict | None = key("Settings of that supervised start (keys of `paretune sft`), as {learning_rate: 1e-5}.")
    method: str | None = key("A method of docs/methods.md that leaves one plain model; null: combiner.")
    method_options: dict | None = key("The method's own options, by name.")
    cache: str | None = key("File in which answers are kept [answers.sqlite in paretune's cache folder].")
    retry_failed: bool = key("Ask again what failed before.", False)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    from paretune.training.config import RACOConfig

    if "--help" in argv or "-h" in argv:
        from transformers import TrainingArguments

        from paretune.cli.help import command_help

        print(command_help(INTRO, GROUPS, (RACOConfig, ImproveKeys), inherited=TrainingArguments))
        return 0
    from paretune.pipelines.improve.plan import check_plan
    from paretune.pipelines.improve.run import run_improve
    from paretune.policy.loading import check_weight_files
    from paretune.training.checks import check_output

    settings = resolve(
        argv, ImproveKeys, RACOConfig, required=("model", "prompts", "sources", "objectives", "held_out")
    )
    plan = make_plan(settings)
    with no_new_folder(str(plan.folder)):
        check_plan(plan)
        check_output(str(plan.folder))
        check_weight_files(plan.align.model)
        content = run_improve(plan, lambda one: print(round_table(one), flush=True))
    print(_summary(content, plan.folder))
    return 0


def make_plan(settings: Any) -> ImprovePlan:
    """The plan of a command's settings; reads the prompts, no weights.

    Raises:
        InputError: a bad value, unreadable prompts, an unknown source.
    """
    from paretune.pipelines.improve.plan import ImprovePlan, fingerprints, split_prompts
    from paretune.pipelines.methods import Request
    from paretune.pipelines.sampling import SamplingSettings, read_prompts
    from paretune.preferences.answers import default_path
    from paretune.preferences.specs import parse_sources
    from paretune.training.config import RACOConfig

    keys: ImproveKeys = settings.own
    keys.check()
    adapter, objectives = lora_config(keys.lora), objectives_of(keys.objectives) or []
    given = (
        settings.config if keys.method is None else {**settings.config, **method_settings(keys.method, settings.config)}
    )
    config = with_defaults(given, keys.dtype)
    args = make_config(RACOConfig, config)
    spec = read_config(keys.sources) if isinstance(keys.sources, str) else keys.sources
    watch = _held_out(keys.held_out)
    labellers, held_out = parse_sources(spec), parse_sources(watch["sources"])
    sft = _sft(keys, config)
    model = full_path(str(keys.model))
    rows, counts = read_prompts(
        keys.prompts, conversational=keys.conversational, take=keys.take, on_bad_row=keys.on_bad_row
    )
    prompts, watched = split_prompts(rows, watch["prompts"])
    request = Request(
        method=keys.method or args.combiner,
        model=model,
        args=args,
        objectives=objectives,
        train_dataset=None,
        peft_config=adapter,
        model_options={"dtype": keys.dtype, "quantize": keys.quantization == "4bit"},
        method_options=keys.method_options or {},
        callbacks=lambda: [] if sys.stderr.isatty() else [line_callback()],
        resume=True,
    )
    told = {
        name: value for name, value in dataclasses.asdict(keys).items() if name not in ("model", "sources", "held_out")
    }
    return ImprovePlan(
        folder=Path(str(args.output_dir)).expanduser().absolute(),
        align=request,
        sampling=SamplingSettings(
            model=model,
            **{name: getattr(keys, name) for name in ("n", "temperature", "top_p", "max_tokens", "drop_cut")},
            **{name: getattr(keys, name) for name in ("conversational", "template_options")},
        ),
        serving=_serving(keys),
        labellers=labellers,
        held_out=held_out,
        prompts=prompts,
        watched=watched,
        sft=sft,
        seed=args.seed,
        batch_size=keys.sample_batch_size,
        cache=Path(keys.cache or default_path()),
        **{name: getattr(keys, name) for name in ("rounds", "patience", "reference", "retry_failed")},
        **{name: getattr(keys, name) for name in ("pairs", "max_pairs", "max_words")},
        settings={
            **told,
            "model": model,
            "sources": spec,
            "held_out": watch,
            "fingerprints": fingerprints([*labellers, *held_out]),
            "rows": [row.key for row in rows],
            "train": dict(given),
        },
        notices=[f"{count} {what}" for what, count in counts.items()],
    )


def _held_out(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """{sources, prompts} with its default.

    Raises:
        InputError: an unknown key, no source, a bad fraction.
    """
    found = {"prompts": 0.1, **(given or {})}
    for name in found:
        if name not in ("sources", "prompts"):
            raise InputError(f"unknown key {name!r}", where="held_out", fix=nearest(str(name), ("sources", "prompts")))
    if not found.get("sources"):
        fix = "Name one that is never trained on: held_out: {sources: {fluent: {rule: repetition}}}."
        raise InputError("no held-out source", where="held_out", fix=fix)
    if isinstance(found["sources"], str):
        found["sources"] = read_config(found["sources"])
    if isinstance(found["prompts"], bool) or not isinstance(found["prompts"], int | float):
        expected = "a fraction between 0 and 1"
        raise InputError("bad prompts", where="held_out", expected=expected, found=found["prompts"])
    return found


def _serving(keys: ImproveKeys) -> Serving | None:
    """Where draws come from.

    Raises:
        InputError: a bad value, or settings of a server without one.
    """
    from paretune.pipelines.improve.serving import Serving

    access = keys.access()
    if keys.server is None:
        if keys.serve is not None or keys.server_model != "{model}":
            where = "serve" if keys.serve is not None else "server_model"
            raise InputError("no server", where=where, fix="Give --server URL, where the model is then to be found.")
        return None
    if keys.serve_seconds <= 0:
        raise InputError("bad serve_seconds", expected="a positive number", found=keys.serve_seconds)
    return Serving(keys.server, keys.serve, keys.server_model, keys.serve_seconds, access)


def _sft(keys: ImproveKeys, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields of `SFTConfig`, tried; None where there is no supervised start."""
    if not keys.sft_on_references:
        if keys.sft is not None:
            fix = "Set sft_on_references: true, or leave sft out."
            raise InputError("settings of a supervised start that is not asked for", where="sft", fix=fix)
        return None
    from paretune.cli.settings import convert
    from paretune.training.sft import SFTConfig

    hints, own = hints_of(SFTConfig), {}
    for name, value in (keys.sft or {}).items():
        if name not in hints or name == "output_dir":
            raise InputError(f"unknown key {name!r}", where="sft", fix=nearest(str(name), hints))
        own[name] = convert(name, value, hints[name], "sft")
    shared = {name: config[name] for name in SHARED if name in config and name in hints}
    make_config(SFTConfig, {**shared, **own})
    return {**shared, **own}


# ---- what is said ----


def round_table(content: Mapping[str, Any]) -> str:
    """A round's figures: one line per source, and what goes for all of them."""
    number = content["round"]
    if "signs" not in content:
        return f"\nRound {number}: {content['stopped']}"
    signs = content["signs"]
    head = ["source", "role", "mean", "change", "± s.e.", "~ length"]
    head += ["failed", "first slot", "orders agree", "members differ"]  # these where there are any
    rows = []
    for name, one in signs["sources"].items():
        change, orders = one["change"] or {}, one.get("orders", {})
        differ = [part["relative"] for part in one.get("disagreement", {}).values()]
        rows.append(
            [
                name,
                one["role"],
                _number(one["mean"]),
                _number(change.get("mean"), "+.3f"),
                _number(change.get("standard_error")),
                _number(one["length_correlation"], "+.2f"),
                str(one["failed"] or "-"),
                _number(orders.get("first_slot_excess"), "+.2f"),
                _number(orders.get("swap_consistency"), ".2f"),
                _number(differ[0] if differ else None, ".2f"),
            ]
        )
    kept = [i for i in range(len(head)) if i < 6 or any(row[i] != "-" for row in rows)]
    lines = [
        f"\nRound {number}" + (": the model that is given" if number == 0 else ""),
        table([head[i] for i in kept], [[row[i] for i in kept] for row in rows]),
        f"KL to the first model {_number(signs['kl'], '.2f')} nats, {signs['words']:.1f} words per response, "
        f"{100 * signs['cut']:.0f} % cut off, repetition {_number(signs['repetition'])}, "
        f"distinct-2 {_number(signs['distinct_2'])}",
    ]
    fallen = [
        f"{name} {_number(one['change'], '+.2f')} nats ({_number(one['fallen'], '.0%')} fell)"
        for name, one in signs.get("displacement", {}).items()
    ]
    if fallen:
        lines.append("Log-probability of preferred responses: " + ", ".join(fallen))
    return "\n".join([*lines, *signs.get("warnings", [])])


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None or value != value else format(value, form)


def rounds_table(rounds: Sequence[Mapping[str, Any]], best: int) -> str:
    """One line per round: gains since the start in units of each source's spread there."""
    head = ["round", "trained gain", "± s.e.", "held-out gain", "± s.e.", "KL", "words", "distinct-2"]
    rows = []
    for one in rounds:
        signs = one["signs"]
        gains = [
            _number(signs[role][part], form)
            for role in ("trained", "held_out")
            for part, form in (("gain", "+.3f"), ("gain_standard_error", ".3f"))
        ]
        others = [_number(signs["kl"], ".2f"), f"{signs['words']:.1f}", _number(signs["distinct_2"])]
        rows.append([f"{one['round']}{' best' if one['round'] == best else ''}", *gains, *others])
    return table(head, rows)


def _summary(content: Mapping[str, Any], folder: Path) -> str:
    best, rounds = content["best"], content["rounds"]
    lines = ["", rounds_table(rounds, best["round"]), ""]
    if content["reason"]:
        lines += [f"Stopped after round {len(rounds) - 1}: {content['reason']}.", ""]
    if best["round"] == 0:
        lines.append("No round is better than the start by the held-out sources: the best model is the one you gave.")
    lines += [
        f"Best by the held-out sources: round {best['round']}, {best['model']}",
        f"In {folder}: improve.json, and best, which leads there.",
    ]
    return "\n".join(lines)
