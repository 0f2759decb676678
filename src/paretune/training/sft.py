"""A supervised start: teaches a model to give the responses of a data set, before it is aligned.

A plain `transformers.Trainer` on prompt and response, with the loss on the response's tokens only. Tokenization is that
of comparisons, so what a model learns to answer here is token for token what it is aligned on later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback

from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.rows import BadRow, clean_row, split_groups
from paretune.comparisons.sources import list_sources, open_source
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.policy.loading import load_policy, load_tokenizer, prepare_policy
from paretune.training.checkpoints import WholeTrainer
from paretune.training.checks import check_optimizer, check_output, check_tokens, check_trackers, check_weights
from paretune.training.interruption import RunArguments
from paretune.training.record import HistoryCallback, RunRecord

TARGETS = ("reference", "a", "b", "preferred")
_RESPONSES = ("response", "completion", "reference")


@dataclass
class SFTConfig(RunArguments):
    """Every field of `TrainingArguments` works, and these."""

    output_dir: str = field(default="paretune-sft", metadata={"help": "Where the run writes all it leaves."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate; LoRA usually wants 10x more."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Responses per device and micro-batch."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: a share of the run below 1, else steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged lines."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Tokens of prompt and response; prompts are cut from the left to fit."}
    )
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Share of the data held out for evaluation; no group or prompt is cut."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize; null: as many as rows and cores are worth."}
    )

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise InputError("bad max_length", expected="at least 2 tokens, or null", found=self.max_length)
        self.remove_unused_columns = False  # the rows are tokenized already
        super().__post_init__()


def read_responses(
    data: Any, *, target: str | None = None, objectives: Sequence[Objective] | None = None, **options: Any
) -> tuple[Dataset, dict[str, Any]]:
    """Rows {prompt, response} to imitate, and what reading them found.

    Args:
        data: what `read_comparisons` takes.
        target: None for rows with `prompt` and `response` (or `completion`, `reference`), or with `messages` whose last
            one is the response; of comparisons: "reference", "a", "b", or "preferred", the side that the objectives'
            weighted labels prefer (rows without a winner are left out and counted).
        objectives: of "preferred"; None takes every label with equal weight.
        options: of `read_comparisons`; without a target only `on_bad_row`, `take`, `split`, `streaming` and
            `format: auto` mean something.

    Raises:
        InputError: bad data, an unknown target, or no row left.
    """
    if target is None:
        return _plain_rows(data, **{k: v for k, v in options.items() if k in _PLAIN})
    if target not in TARGETS:
        raise InputError("bad target", expected=f"one of {', '.join(TARGETS)}", found=target)
    rows, report = read_comparisons(data, objectives=objectives, **options)
    names = report.objectives
    weights = {o.name: o.weight for o in objectives} if objectives is not None else dict.fromkeys(names, 1.0)
    kept = []
    for row in rows:
        response = _target(row, target, weights)
        if response is not None:
            kept.append({"prompt": row["prompt"], "response": response, "group": row.get("group")})
    if not kept:
        raise InputError(f"no row has a response for target {target!r}", fix="Choose another target.")
    found = report.to_dict() | {"target": target, "without_target": len(rows) - len(kept), "kept": len(kept)}
    if found["without_target"]:
        found["warnings"] = [*found["warnings"], f"{found['without_target']} rows have no {target} response."]
    return Dataset.from_list(kept), found


def _target(row: dict[str, Any], target: str, weights: dict[str, float]) -> Any:
    if target == "reference":
        reference = row.get("reference")
        chat = isinstance(row["prompt"], list)
        return [{"role": "assistant", "content": reference}] if reference and chat else reference
    if target == "preferred":
        labels = {name: row["preferences"].get(name) for name in weights}
        lead = sum(weights[name] * (label - 0.5) for name, label in labels.items() if label is not None)
        if lead == 0:
            return None
        target = "a" if lead > 0 else "b"
    return row[f"response_{target}"]


_PLAIN = ("on_bad_row", "take", "split", "streaming")  # options that mean something without comparisons


def _plain_rows(
    data: Any, on_bad_row: str = "error", take: int | None = None, split: str = "train", streaming: bool = False
) -> tuple[Dataset, dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    skips: dict[str, int] = {}
    for source in list_sources(data, "auto"):
        for where, record in open_source(source, split=split, streaming=streaming):
            try:
                if isinstance(record, BadRow):
                    raise record
                kept.append(_plain_row(record))
            except BadRow as bad:
                if on_bad_row != "skip":
                    raise bad.to_input_error(where) from bad
                skips[bad.problem] = skips.get(bad.problem, 0) + 1
            if take is not None and len(kept) >= take:
                break
    if not kept:
        raise InputError("no usable row", expected="at least one", found=skips or "no row at all")
    if len({type(row["prompt"]) for row in kept}) > 1:
        for row in kept:
            row |= {k: row[k] if isinstance(row[k], list) else _message(row[k], k) for k in ("prompt", "response")}
    warnings = [f"{count} rows left out: {reason}." for reason, count in skips.items()]
    found = {"kept": len(kept), "skips": skips, "warnings": warnings, "fingerprint": _fingerprint(kept)}
    return Dataset.from_list(kept), found


def _message(text: str, field: str) -> list[dict[str, str]]:
    return [{"role": "user" if field == "prompt" else "assistant", "content": text}]


def _plain_row(record: dict[str, Any]) -> dict[str, Any]:
    messages = record.get("messages")
    if isinstance(messages, list) and len(messages) > 1:
        record = {**record, "prompt": messages[:-1], "response": messages[-1:]}
    name = next((name for name in _RESPONSES if record.get(name) is not None), None)
    if name is None:
        compared = {"chosen", "response_a", "responses", "preferences"} & record.keys()
        fix = "These look like comparisons: say which side to imitate, target: preferred." if compared else ""
        expected = f"one of {', '.join(_RESPONSES)}, or messages"
        raise BadRow("missing field", field="response", expected=expected, found=sorted(record), fix=fix)
    # the checks of a comparison whose sides are the same
    row = clean_row({**record, "response_a": record[name], "response_b": record[name], "preferences": {}})
    return {"prompt": row["prompt"], "response": row["response_a"], "group": row["group"]}


def tokenize_responses(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, num_proc: int | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Columns input_ids and start (the first response token) per kept row, and the report.

    A response is tokenized as a comparison with itself: one set of rules for templates, EOS, BOS and truncation.

    Raises:
        InputError: as `tokenize_comparisons`.
    """
    blank = {"none": None}
    pairs = rows.map(
        lambda row: {"response_a": row["response"], "response_b": row["response"], "preferences": blank},
        remove_columns=[name for name in rows.column_names if name != "prompt"],
    )
    tokenized, report = tokenize_comparisons(pairs, tokenizer, [], max_length=max_length, num_proc=num_proc)
    joined = tokenized.map(
        lambda row: {"input_ids": row["prefix_ids"] + row["a_ids"], "start": row["a_start"]},
        remove_columns=tokenized.column_names,
    )
    return joined, asdict(report)


def collate_responses(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Pads N rows on their right to (N, T); `labels` are -100 but on response tokens."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        length, start = len(row["input_ids"]), row["start"]
        ids[i, :length] = torch.tensor(row["input_ids"])
        labels[i, start:length] = ids[i, start:length]
        mask[i, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def supervised_trainer(
    model: str,
    args: SFTConfig,
    data: Any,
    eval_data: Any = None,
    *,
    target: str | None = None,
    objectives: Sequence[Objective] | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[Any] = (),
    data_options: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
) -> tuple[WholeTrainer, RunRecord]:
    """A trainer ready to train, and the record of its run; data is checked before the weights are read.

    Args:
        model: hub id or directory.
        args: of the run.
        data, eval_data, target, objectives, data_options: as `read_responses`.
        peft_config: adapters to train; without one, all weights train.
        callbacks: as in `Trainer`.
        model_options: of `load_policy`.

    Raises:
        InputError: anything a person can put right.
    """
    check_trackers(args)
    check_optimizer(args)
    check_output(str(args.output_dir))
    record = RunRecord(args, [], [])
    tokenizer = load_tokenizer(model)
    options = {"target": target, "objectives": objectives, **(data_options or {})}
    sets = _sets(data, eval_data, args, tokenizer, record, options)
    policy = load_policy(model, full=peft_config is None, **(model_options or {}))
    check_tokens(policy, tokenizer)
    check_weights(policy)
    set_seed(args.seed)
    trained, notices = prepare_policy(policy, peft_config, disable_dropout=False)
    record.say(*notices)
    pad = pad_id(tokenizer)
    trainer = WholeTrainer(
        model=trained,
        args=args,
        data_collator=lambda rows: collate_responses(rows, pad),
        train_dataset=sets["train"],
        eval_dataset=sets.get("eval"),
        processing_class=tokenizer,
        callbacks=[HistoryCallback(str(args.output_dir)), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # it prints; HistoryCallback writes what it would
    return trainer, record


def _sets(
    data: Any, eval_data: Any, args: SFTConfig, tokenizer: Any, record: RunRecord, options: dict[str, Any]
) -> dict[str, Dataset]:
    read = {"train": read_responses(data, **options)}
    if eval_data is None and args.eval_fraction is None and args.eval_strategy != "no":
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        fix = "Give eval_data or eval_fraction, or leave eval_strategy out."
        raise InputError("there is nothing to evaluate on", where=f"eval_strategy {strategy}", fix=fix)
    if eval_data is not None and args.eval_fraction is not None:
        raise InputError("both eval_data and eval_fraction are given", fix="Keep one of them.")
    if eval_data is not None:
        read["eval"] = read_responses(eval_data, **options)
    if args.eval_fraction is not None:
        rows, found = read["train"]
        train, held_out = split_groups(rows, args.eval_fraction)
        read = {name: (part, _part(found, part)) for name, part in (("train", train), ("eval", held_out))}
    sets = {}
    for name, (rows, found) in read.items():
        sets[name], tokens = tokenize_responses(
            rows, tokenizer, max_length=args.max_length, num_proc=args.dataset_num_proc
        )
        record.data(name, found, tokens)
        record.say(*[f"{name} data: {warning}" for warning in [*found["warnings"], *tokens["warnings"]]])
    return sets


def _fingerprint(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _part(found: dict[str, Any], rows: Dataset) -> dict[str, Any]:
    """What was found of all rows, for a part of them; counts of labels and groups stand for the whole and go."""
    told = {key: value for key, value in found.items() if key not in ("labels", "ties", "count_only", "groups")}
    own = {"kept": len(rows), "fingerprint": _fingerprint(rows.to_list()), "part_of": found["fingerprint"]}
    return told | own


def run_supervised(trainer: WholeTrainer, record: RunRecord, checkpoint: str | None = None) -> dict[str, Any]:
    """Trains, evaluates at the end where there is data for it, and leaves model, tokenizer, state and record.

    Returns:
        The final figures.
    """
    args = trainer.args
    parameters = list(trainer.model.parameters())  # type: ignore[union-attr]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    record.begin(args, {"trained_parameters": trained, "parameters": sum(p.numel() for p in parameters)})
    with record.watched(args):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.eval_dataset is not None:
            trainer.evaluate()
        trainer.save_state()
    final: dict[str, Any] = {}
    for line in trainer.state.log_history:
        final.update(line)
    record.end(args, "finished", final)
    return final
