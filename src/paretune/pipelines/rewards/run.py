"""One reward model: data checked before weights are read, training, held-out figures, what is left on disk."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback

from paretune.errors import InputError
from paretune.evaluation.calibration import pair_figures
from paretune.objectives import Objective
from paretune.pipelines.rewards.data import Examples, read_pairs, read_scored, split_places
from paretune.pipelines.rewards.training import (
    RIDGE,
    RewardConfig,
    RewardRows,
    RewardTrainer,
    all_outputs,
    collate_examples,
    set_ridge_heads,
    weights_of,
)
from paretune.policy.loading import load_tokenizer, prepare_policy
from paretune.preferences.reward_models.models import (
    Reading,
    final_head,
    new_reward_model,
    save_reward_model,
    set_padding,
)
from paretune.preferences.reward_models.texts import form_for, longest
from paretune.training.checks import check_optimizer, check_output, check_tokens, check_trackers, check_weights
from paretune.training.record import HistoryCallback, RunRecord

logger = logging.getLogger(__name__)


@dataclass
class RewardRun:
    """A reward model ready to train.

    Args:
        trainer: of the run; of ridge heads it trains nothing and holds the model.
        record: of the run.
        reading: how the model is to be read.
        examples, rows: what it is trained on; held, held_rows: what is held out, or None.
    """

    trainer: RewardTrainer
    record: RunRecord
    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    examples: Examples
    rows: RewardRows
    held: Examples | None
    held_rows: RewardRows | None
    pad: int


def prepare_reward(
    model: str,
    args: RewardConfig,
    data: Any,
    eval_data: Any = None,
    *,
    objectives: Sequence[Objective] | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[Any] = (),
    data_options: Mapping[str, Any] | None = None,
) -> RewardRun:
    """A run whose data is read, checked and tokenized, with its model loaded.

    Args:
        model: hub id or directory of the base: a causal language model, an encoder, or a reward model.
        data, eval_data: as `read_pairs` (pairwise) or `read_scored` take them.
        objectives: a head each; None takes all that the rows label.
        peft_config: adapters to train, which are merged in the end; without one, all weights train.
        data_options: of `read_comparisons`.

    Raises:
        InputError: anything a person can put right.
    """
    check_trackers(args)
    check_optimizer(args)
    check_output(str(args.output_dir))
    if args.kind == RIDGE and peft_config is not None:
        raise InputError("ridge heads are fitted on a frozen model", where="lora", fix="Leave lora out.")
    train, held, found = _read(args, data, eval_data, objectives, data_options or {})
    record = RunRecord(args, [], [Objective(name) for name in train.names])
    tokenizer = load_tokenizer(model)
    form = form_for(tokenizer, train.conversational())
    standard = _standard(args, train)
    reading = Reading(form=form, token_level=args.token_level, max_length=args.max_length)
    if standard is not None:
        reading = replace(reading, center=tuple(standard[0].tolist()), scale=tuple(standard[1].tolist()))
    set_seed(args.seed)
    loaded = new_reward_model(model, train.names, args.token_level)
    pad = set_padding(loaded, tokenizer)
    check_tokens(loaded, tokenizer)
    check_weights(loaded)
    limit = longest(loaded.config, tokenizer, args.max_length)
    options: dict[str, Any] = {"margin_scale": args.margin_scale, "standard": standard}
    rows = RewardRows(train, tokenizer, form, limit, **options)
    held_rows = None if held is None else RewardRows(held, tokenizer, form, limit, **options)
    _say_about(record, found, {"train": rows, "eval": held_rows}, limit)
    weights = weights_of(rows, args.kind if args.kind != RIDGE else "pointwise")
    if not (weights > 0).all():
        lacking = [name for name, weight in zip(train.names, weights.tolist(), strict=True) if not weight]
        raise InputError("nothing to learn", where="data", expected="a label of every objective", found=lacking)
    trained, notices = prepare_policy(loaded, peft_config, disable_dropout=True)
    record.say(*notices)
    trainer = RewardTrainer(
        weights=weights,
        model=trained,
        args=args,
        data_collator=lambda batch: collate_examples(batch, pad),
        train_dataset=rows,
        eval_dataset=held_rows,
        processing_class=tokenizer,
        callbacks=[HistoryCallback(str(args.output_dir)), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # it prints; HistoryCallback writes what it would
    return RewardRun(trainer, record, tokenizer, reading, train, rows, held, held_rows, pad)


def _read(
    args: RewardConfig,
    data: Any,
    eval_data: Any,
    objectives: Sequence[Objective] | None,
    options: Mapping[str, Any],
) -> tuple[Examples, Examples | None, dict[str, dict[str, Any]]]:
    if eval_data is not None and args.eval_fraction is not None:
        raise InputError("both eval_data and eval_fraction are given", fix="Keep one of them.")
    if args.calibrate and eval_data is None and args.eval_fraction is None:
        raise InputError("nothing to calibrate on", where="calibrate", fix="Give eval_data or eval_fraction.")

    def read(source: Any, wanted: Sequence[Objective] | None) -> tuple[Examples, dict[str, Any]]:
        if args.kind == "pairwise" and not args.all_pairs:
            return read_pairs(source, wanted, options, ratings=args.margin_scale > 0)
        return read_scored(source, wanted, options)

    train, found = read(data, objectives)
    reports = {"train": found}
    held = None
    if eval_data is not None:
        held, reports["eval"] = read(eval_data, objectives or [Objective(name) for name in train.names])
    elif args.eval_fraction is not None:
        for_training, held_out = split_places(train.groups, args.eval_fraction, args.data_seed or 0)
        held, train = train.select(held_out), train.select(for_training)
        reports["eval"] = {"kept": len(held), "warnings": [], "fingerprint": held.fingerprint()}
        reports["train"] = {**found, "kept": len(train), "fingerprint": train.fingerprint()}
    if len(train) == 0 or (held is not None and len(held) == 0):
        raise InputError("no example is left", where="data", expected="some to train on, and some held out")
    return train, held, reports


def _standard(args: RewardConfig, train: Examples) -> tuple[np.ndarray, np.ndarray] | None:
    """Per objective mean and standard deviation of the scores, of pointwise models: heads start near 0 and their losses
    are of one size, whatever the scores' units. Ridge heads take scores as they are, in closed form."""
    if args.kind != "pointwise":
        return None
    center, scale = np.nanmean(train.scores, (0, 1)), np.nanstd(train.scores, (0, 1))
    for name, spread in zip(train.names, scale, strict=True):
        if not spread > 0:
            raise InputError("all scores are equal", where=f"objective {name!r}", expected="something to learn")
    return center, scale


def _say_about(
    record: RunRecord, found: Mapping[str, Any], sets: Mapping[str, RewardRows | None], limit: int | None
) -> None:
    for name, report in found.items():
        rows = sets[name]
        assert rows is not None
        record.data(name, report, {"dropped": rows.dropped, "max_length": limit, "examples": len(rows)})
        record.say(*[f"{name} data: {warning}" for warning in report["warnings"]])
        if rows.dropped:
            record.say(f"{name} data: {rows.dropped} responses are longer than {limit} tokens and were left out")
        if not len(rows):
            raise InputError(
                "no example is left", where=f"{name} data", expected=f"responses of at most {limit} tokens"
            )


def run_reward(run: RewardRun, checkpoint: str | None = None) -> dict[str, Any]:
    """Trains, looks at what is held out, and leaves an ordinary model of transformers, its record and its history.

    Returns:
        Final figures: the trainer's, and `heads`: per objective those of `pair_figures` and of scores.
    """
    trainer, args = run.trainer, run.trainer.args
    assert isinstance(args, RewardConfig)
    parameters = list(trainer.model.parameters())  # type: ignore[union-attr]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    run.record.begin(args, {"trained_parameters": trained, "parameters": sum(p.numel() for p in parameters)})
    final: dict[str, Any] = {}
    with run.record.watched(args):
        model: Any = trainer.model
        if args.kind == RIDGE:
            ridge = set_ridge_heads(model, run.rows, run.examples, run.pad, batch_size=args.per_device_eval_batch_size)
            strengths = zip(run.examples.names, ridge.strengths.tolist(), strict=True)
            final["ridge_strength"] = dict(strengths)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_state()
            if isinstance(model, PeftModel):
                model = model.merge_and_unload()
        if run.held is not None and run.held_rows is not None:
            final["heads"] = _held_out(run, model, args)
        if args.process_index == 0:
            save_reward_model(model, run.tokenizer, run.reading, str(args.output_dir))
    for line in trainer.state.log_history:
        final.update(line)
    run.record.end(args, "finished", final)
    return final


def _held_out(run: RewardRun, model: Any, args: RewardConfig) -> dict[str, Any]:
    assert run.held is not None and run.held_rows is not None
    size = args.per_device_eval_batch_size
    outputs = all_outputs(model, run.held_rows, run.pad, args.token_level, batch_size=size)
    held = run.held.select(run.held_rows.places)
    if run.reading.scale:
        outputs = [np.array(run.reading.center) + np.array(run.reading.scale) * one for one in outputs]
    figures = held_out_figures(held, run.held_rows, outputs, seed=args.seed)
    if args.calibrate:
        run.reading = _calibrated(run, model, figures)
    return figures


def _calibrated(run: RewardRun, model: Any, figures: dict[str, Any]) -> Reading:
    """Each head divided by its temperature: in its weights where rewards are logits, in `scale` where that is set."""
    factors = [1 / float(figures[name].get("temperature") or 1.0) for name in run.examples.names]
    for name in run.examples.names:
        figures[name]["calibrated"] = True
    if run.reading.scale:
        pairs = zip(run.reading.center, run.reading.scale, factors, strict=True)
        scaled = [(center * factor, scale * factor) for center, scale, factor in pairs]
        return replace(run.reading, center=tuple(c for c, _ in scaled), scale=tuple(s for _, s in scaled))
    _, _, layer = final_head(model)
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            shape = (-1, *[1] * (parameter.ndim - 1))
            parameter.data.mul_(parameter.new_tensor(factors).view(shape))
    return run.reading


def held_out_figures(
    held: Examples, rows: RewardRows, outputs: Sequence[np.ndarray], *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Per objective: `pair_figures` of all held-out pairs, and of scores the share of their variance that is explained.

    Args:
        held: the examples of `rows`, in its order.
        outputs: per example (K, M) rewards in the scores' unit.
    """
    numbers: dict[str, int] = {}
    group = [numbers.setdefault(name, len(numbers)) for name in held.groups]
    figures = {}
    for i, name in enumerate(held.names):
        pairs: list[tuple[float, float, int]] = []
        for n, (row, rewards) in enumerate(zip(rows.rows, outputs, strict=True)):
            if held.preferences is not None:
                pairs.append((rewards[0, i] - rewards[1, i], held.preferences[n, i], group[n]))
                continue
            scores = row["raw"][:, i]
            for a, b in itertools.combinations(range(len(scores)), 2):  # NaN where a score is missing
                label = 0.5 + 0.5 * np.sign(scores[a] - scores[b])
                pairs.append((rewards[a, i] - rewards[b, i], float(label), group[n]))
        own: dict[str, Any] = {}
        if pairs:
            table = np.array(pairs, dtype=np.float64)
            own = pair_figures(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), draws=draws, seed=seed)
        if held.preferences is None:
            raw = np.concatenate([row["raw"][:, i] for row in rows.rows])
            own |= explained(raw, np.concatenate([rewards[:, i] for rewards in outputs]))
        figures[name] = own
    return figures


def explained(scores: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
    """{explained, scored}: 1 - Σ(s - r)²/Σ(s - mean)² over the scores that are known (None where they do not vary)."""
    known = ~np.isnan(scores)
    s, r = scores[known], rewards[known]
    total = float(((s - s.mean()) ** 2).sum()) if len(s) else 0.0
    share = 1 - float(((s - r) ** 2).sum()) / total if total > 0 else None
    return {"explained": share, "scored": len(s)}
