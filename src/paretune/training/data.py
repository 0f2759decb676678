"""Data sets made ready for a run: read, validated, tokenized, and told about in the run's record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from paretune.comparisons.columns import named, numbers_of_lists, stretches
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.report import DataReport, part_report
from paretune.comparisons.rows import split_groups
from paretune.comparisons.tokens import tokenize_comparisons
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.training.checks import check_best_metric
from paretune.training.config import RACOConfig
from paretune.training.record import RunRecord

# Changes the rows of the data set of that name before they are tokenized: filters, offsets of margins.
RowChange = Callable[[Dataset, str], Dataset]


@dataclass
class TokenizedData:
    """Tokenized comparisons (`comparisons/tokens.py` says which columns) and where they carry labels.

    `labelled` is (rows, m) bool; `fingerprint` identifies the tokens and their order, not their labels.
    """

    rows: Dataset
    labelled: np.ndarray
    fingerprint: str


def prepare_data(
    data: Any,
    objectives: Sequence[Objective],
    tokenizer: PreTrainedTokenizerBase,
    args: RACOConfig,
    record: RunRecord,
    name: str,
    change_rows: RowChange | None = None,
    **options: Any,
) -> TokenizedData:
    """Reads, validates and tokenizes one data set; its reports go into the record.

    Args:
        data: what `read_comparisons` takes.
        objectives: of the run.
        tokenizer: the model's.
        args: of the run (`max_length`, `dataset_num_proc`).
        record: receives the reports and their warnings.
        name: "train", "eval", …
        change_rows: what becomes of the rows; a column `offsets` of m numbers per row, in nats, is subtracted from the
            objectives' margins of a over b.
        options: of `read_comparisons`.

    Raises:
        InputError: bad data, or an objective without a single label in the training data.
    """
    rows, report = read_comparisons(data, objectives=list(objectives), **options)
    record.say(*[f"{name} data: {warning}" for warning in report.warnings])
    return _tokenized(rows, report, objectives, tokenizer, args, record, name, change_rows)


def prepare_sets(
    train: Any,
    evaluation: Any,
    objectives: Sequence[Objective],
    tokenizer: PreTrainedTokenizerBase,
    args: RACOConfig,
    record: RunRecord,
    change_rows: RowChange | None = None,
    **options: Any,
) -> tuple[TokenizedData, TokenizedData | dict[str, TokenizedData] | None]:
    """Training and evaluation data of a run; with `eval_fraction`, the latter is split off the former by groups.

    The split does not depend on the run's seed, so runs of several seeds hold out the same rows.

    Raises:
        InputError: as `prepare_data`; evaluation data and a fraction, or neither where evaluation is asked for; a
            fraction that cannot be held out.
    """
    if evaluation is None and args.eval_fraction is None and args.eval_strategy != "no":
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        fix = "Give eval_data or eval_fraction, or leave eval_strategy out."
        raise InputError("there is nothing to evaluate on", where=f"eval_strategy {strategy}", fix=fix)
    sets = [str(name) for name in evaluation] if isinstance(evaluation, dict) and "path" not in evaluation else []
    if args.eval_strategy != "no":
        check_best_metric(args, [o.name for o in objectives], sets)
    if args.eval_fraction is None:
        options = {**options, "change_rows": change_rows}
        prepared = prepare_data(train, objectives, tokenizer, args, record, "train", **options)
        held_out = each(evaluation, lambda d, n: prepare_data(d, objectives, tokenizer, args, record, n, **options))
        return prepared, held_out
    if evaluation is not None:
        raise InputError("both eval_data and eval_fraction are given", fix="Keep one of them.")
    rows, report = read_comparisons(train, objectives=list(objectives), **options)
    record.say(*[f"data: {warning}" for warning in report.warnings])
    parts = zip(split_groups(rows, args.eval_fraction), ("train", "eval"), strict=True)
    first, second = (
        _tokenized(part, part_report(report, part), objectives, tokenizer, args, record, name, change_rows)
        for part, name in parts
    )
    return first, second


def each(data: Any, function: Callable[[Any, str], Any]) -> Any:
    """The function of a data set, of each of a mapping of them, or None of None."""
    if data is None:
        return None
    if isinstance(data, dict) and "path" not in data:
        return {name: function(part, f"eval {name}") for name, part in data.items()}
    return function(data, "eval")


def _tokenized(
    rows: Dataset,
    report: DataReport,
    objectives: Sequence[Objective],
    tokenizer: PreTrainedTokenizerBase,
    args: RACOConfig,
    record: RunRecord,
    name: str,
    change_rows: RowChange | None,
) -> TokenizedData:
    names = [o.name for o in objectives]
    if change_rows is not None:
        changed = change_rows(rows, name)
        if len(changed) != len(rows):
            record.say(f"{name} data: the method makes {len(changed)} rows of {len(rows)}")
        rows, report = changed, report if changed is rows else part_report(report, changed)
    with args.main_process_first(local=True, desc="tokens"):  # the machine's other ranks find them on disk
        tokenized, tokens = tokenize_comparisons(
            rows, tokenizer, names, max_length=args.max_length, num_proc=args.dataset_num_proc
        )
    given = [numbers_of_lists(part["preferences"], len(names)) for part in stretches(tokenized, ["preferences"])]
    labelled = ~np.isnan(np.concatenate(given))
    for objective, count in zip(objectives, labelled.sum(0).tolist(), strict=True):
        if count == 0 and name == "train" and objective.weight > 0:
            raise InputError(
                f"no row that can be trained on carries a label of {objective.name!r}",
                where=f"{name} data",
                expected="at least one",
                fix="Check the objective's name, or leave it out.",
            )
    if "count_only" in rows.column_names:
        counted = np.concatenate([named(part["count_only"], names) for part in stretches(rows, ["count_only"])])
        tokenized = tokenized.add_column("count_only", _lists(counted[_kept(tokenized)]))
    for column in [name for name in ("offsets", "weights") if name in rows.column_names]:
        values = np.asarray(rows[column][:], dtype=np.float64).reshape(len(rows), len(names))
        tokenized = tokenized.add_column(column, _lists(values[_kept(tokenized)]))
    record.data(name, report.to_dict(), asdict(tokens))
    record.say(*[f"{name} data: {warning}" for warning in tokens.warnings])
    return TokenizedData(tokenized, labelled, tokens.fingerprint)


def _kept(tokenized: Dataset) -> np.ndarray:
    """Row numbers, in the data that was tokenized, of the rows that were kept."""
    return np.concatenate([np.asarray(part["index"]) for part in stretches(tokenized, ["index"])])


def _lists(values: np.ndarray) -> Any:
    """(rows, m) as a column of lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))
