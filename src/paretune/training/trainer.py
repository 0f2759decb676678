"""RACOTrainer: sequences comparisons, policy, losses, gradients and combine inside `transformers.Trainer`.

It computes nothing that a pure function of those rooms could. One optimizer step:

1. `get_batch_samples` draws the step's micro-batches and counts labels per objective over all of them and all ranks;
2. `training_step` runs one forward and one backward per micro-batch, which adds to m gradients;
3. at the last micro-batch the m gradients are summed over ranks, combined by their Gram matrix, and written to `.grad`;
4. transformers clips, steps, schedules, logs, evaluates and saves as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from paretune.comparisons.batches import to_device
from paretune.comparisons.tokens import pad_id
from paretune.errors import DivergedError, InputError
from paretune.gradients import GradientStack, RowBasis, RowLayers, trainable_parameters
from paretune.losses import batch_losses, check_losses, is_reference_free
from paretune.objectives import Objective, normalize_weights
from paretune.policy.adapters import adapter_layers, inputs_uncast
from paretune.policy.eligibility import made_batch
from paretune.policy.loading import load_policy, load_tokenizer, prepare_policy
from paretune.policy.logprobs import prepare_scorer
from paretune.policy.reference import Reference, choose_reference, frozen
from paretune.policy.sharding import is_sharded, several_passes
from paretune.training.checks import check_arguments, check_output, check_tokens, check_weights
from paretune.training.combining import StepCombiner
from paretune.training.config import RACOConfig
from paretune.training.data import TokenizedData, each, prepare_data, prepare_sets
from paretune.training.diagnostics import ComparisonSums, StepMeans, norm_warning, step_metrics, sum_over_ranks
from paretune.training.faults import StepFaults, weights_finite
from paretune.training.loaders import collate_rows, eval_loader, train_loader
from paretune.training.precompute import with_reference
from paretune.training.ranks import check_same_run, from_first, share_weights
from paretune.training.record import ConflictBar, HistoryCallback, RunRecord, StepClock
from paretune.training.sampler import StepDataset, count_labels
from paretune.training.step import (
    differentiate,
    differentiate_each,
    differentiate_twice,
    log_probs,
    loss_divisors,
    single_pass_reason,
)
from paretune.training.storage import decide_storage, step_basis
from paretune.training.unwrapped import UnwrappedTrainer, check_sharded


class RACOTrainer(UnwrappedTrainer):
    """Aligns a causal language model to several objectives (RACO, arXiv 2602.02495, Algorithm 1).

    Args:
        model: hub id, directory, or a loaded `PreTrainedModel` or `PeftModel`.
        args: the run's configuration.
        objectives: what to align to; weights are normalised, and the record says so when they were not 1.
        train_dataset: rows (docs/data.md): path, hub id, list of rows, or a `datasets.Dataset`.
        eval_dataset: the same, or a mapping of names to them; optional.
        processing_class: the tokenizer; the model's own where it is left out.
        peft_config: adapters to add and train; without one, all weights train.
        ref_model: the reference, where it is not the model that training starts from.
        callbacks, optimizers: as in `Trainer`.
        data_options: for reading the data (`format`, `ties`, `pairs`, `on_bad_row`, …).
        model_options: for loading a model by name: `dtype`, `quantize`, `merged_to` (of `load_policy`).

    Raises:
        InputError: anything a person can put right, before the expensive work starts.
    """

    args: RACOConfig
    model: PreTrainedModel | PeftModel

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RACOConfig,
        objectives: Sequence[Objective],
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        ref_model: str | PreTrainedModel | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        data_options: dict[str, Any] | None = None,
        model_options: dict[str, Any] | None = None,
    ):
        check_arguments(args)
        check_losses(list(objectives))
        check_output(args.output_dir)
        self.objectives = normalize_weights(list(objectives))
        self.combiner = StepCombiner(args, self.objectives)
        self.record = RunRecord(args, list(objectives), self.objectives)
        self.record.given(model, ref_model, peft_config, train_dataset, eval_dataset, data_options, model_options)
        name = model if isinstance(model, str) else str(model.config.name_or_path)
        tokenizer = processing_class or load_tokenizer(name)
        self.train_data, self.eval_data = prepare_sets(
            train_dataset, eval_dataset, self.objectives, tokenizer, args, self.record, **(data_options or {})
        )
        check_same_run(args, self.objectives, self.train_data, self.eval_data)
        if isinstance(model, str):
            model = load_policy(model, full=peft_config is None, **(model_options or {}))
        check_tokens(model, tokenizer)
        check_weights(model)
        needed = not all(is_reference_free(o) for o in self.objectives)
        check_sharded(args, model, adapted=peft_config is not None, copied=needed and ref_model is None)
        set_seed(args.seed)  # new adapters are drawn at random: the run's seed decides them, not what ran before
        policy, notices = prepare_policy(model, peft_config, disable_dropout=args.disable_dropout)
        self.record.say(*notices)
        self.pad, self.adapted = pad_id(tokenizer), adapter_layers(policy)
        self.sharded = is_sharded(policy)
        placed = self.sharded or getattr(policy, "is_quantized", False) or getattr(policy, "hf_device_map", None)
        if not placed:
            policy.to(args.device)  # the trials below run the model: not on the CPU where there is something better
        share_weights(policy, args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):  # as it will train
            self.scorer = prepare_scorer(policy, args.layout)
            self.reference, notices = choose_reference(policy, ref_model, self.scorer, needed=needed)
        if ref_model is not None and self.reference.model is not None:
            share_weights(self.reference.model, args.device)
        self.record.say(*self.scorer.notices, *notices)
        self.weights = torch.tensor([o.weight for o in self.objectives], dtype=torch.float64)
        self.stack: GradientStack | None = None
        self.layers: RowLayers | None = None
        self.basis = RowBasis(len(self.objectives), len(self.objectives))
        self.comparison_sums, self.step_means = ComparisonSums(self.objectives), StepMeans()
        self.label_counts = torch.zeros(len(self.objectives), dtype=torch.float64)
        self.clock, self.tokens = StepClock(), 0
        self.faults = StepFaults([o.name for o in self.objectives], self.record.say)
        self._said_norms = False
        super().__init__(
            model=policy,
            args=args,
            data_collator=self._collate,
            train_dataset=StepDataset(self.train_data.rows),
            eval_dataset=each(self.eval_data, lambda d, _: StepDataset(d.rows)),
            processing_class=tokenizer,
            callbacks=[self.clock, self.combiner, HistoryCallback(args.output_dir), *(callbacks or [])],
            optimizers=optimizers,
        )
        bar = any(isinstance(cb, ProgressCallback) for cb in self.callback_handler.callbacks)
        self.remove_callback(ProgressCallback if bar else PrinterCallback)
        if bar:
            self.add_callback(ConflictBar)
        self.one_pass = self._choose_gradient_mode()
        self.storage = decide_storage(args, self.model, self.objectives, self.scorer.layout, one_pass=self.one_pass)
        self.record.say(*self.storage.notices)
        if args.precompute_ref_log_probs and self.reference.kind != "none":
            self._precompute()

    # ---- set-up ----

    def _choose_gradient_mode(self) -> bool:
        """Whether one backward pass serves all objectives; says once why not."""
        if self.args.gradient_mode == "per_objective":
            return False
        batch = made_batch(self.model, self.scorer.layout)

        def score() -> Any:
            with self.accelerator.autocast():
                return log_probs(self.model, self.scorer, Reference("none"), batch)[0]

        self.model.train()
        reason = single_pass_reason(self.model, score, half=self.args.bf16)
        if reason is None:
            return True
        if self.args.gradient_mode == "single_pass":
            raise InputError(f"single_pass cannot serve this model: {reason}", fix="Set gradient_mode to auto.")
        self.record.say(f"one backward pass per objective, because {reason}")
        return False

    def _precompute(self) -> None:
        def score(data: TokenizedData, name: str) -> None:
            autocast, say = self.accelerator.autocast, self.record.say
            data.rows = with_reference(data, self.reference, self._collate, self.args, autocast, say, name)

        score(self.train_data, "train")
        each(self.eval_data, score)
        self.train_dataset = StepDataset(self.train_data.rows)
        self.eval_dataset = each(self.eval_data, lambda d, _: StepDataset(d.rows))
        self.reference = Reference("precomputed")

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate_rows(rows, layout=self.scorer.layout, pad_id=self.pad)

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches; the step, not the rank, decides which rows it sees."""
        dataset: Any = self.train_dataset
        return train_loader(dataset, self.train_data, self.scorer.layout, self.data_collator, self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """This rank's share of the rows, each once, those of one length together."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset if eval_dataset is None else self.eval_dataset[eval_dataset]  # type: ignore[index]
        if eval_dataset is None:
            raise InputError("nothing to evaluate on", fix="Give eval_data.")
        if not isinstance(eval_dataset, StepDataset):  # rows as a user has them
            tokenizer: Any = self.processing_class
            read = prepare_data(eval_dataset, self.objectives, tokenizer, self.args, self.record, "evaluate()")
            if self.reference.kind == "precomputed":
                raise InputError("the reference was scored beforehand, and not on these rows", fix="Give eval_data.")
            eval_dataset = StepDataset(read.rows)
        return eval_loader(eval_dataset, self.scorer.layout, self.data_collator, self.args, filled=self.sharded)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The step's micro-batches; counts, on the host, the labels that each objective's mean is over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.label_counts = sum_over_ranks(count_labels(batches), device)
            rows = sum(len(batch["preferences"]) for batch in batches)
            self.basis = step_basis(self.args, self.objectives, self.scorer.layout, rows, one_pass=self.one_pass)
        return batches, None

    # ---- the step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Adds one micro-batch to the m gradients; at the step's last, combines them into `.grad`."""
        self.model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()  # type: ignore[union-attr]
        kept = 1 if self.storage.two_pass else self.basis.kept
        if self.stack is None or self.stack.objectives != kept:
            self.stack = self.storage.stack(trainable_parameters(self.model), kept)
        if self.layers is None and self.one_pass:
            self.layers = RowLayers(self.model)
        self.tokens += inputs["real_tokens"]
        loss = torch.zeros((), device=self.args.device)
        if self.sharded or not inputs["preferences"].isnan().all():  # padding alone needs no pass but for its gathering
            with inputs_uncast(self.adapted, active=self.args.bf16), several_passes(self.model):
                loss = self._differentiate(to_device(inputs, self.args.device), self.stack)
        if self.accelerator.sync_gradients and not self.storage.two_pass:
            self._combine(self.stack)
        return loss.float()

    def _differentiate(self, batch: dict[str, Any], stack: GradientStack) -> Tensor:
        """Adds the micro-batch's gradients to the stack; returns the weighted loss, this rank's part of the mean."""
        with self.accelerator.autocast():
            scores, logps = log_probs(self.model, self.scorer, self.reference, batch)
        losses = batch_losses(self.objectives, self.args.beta, logps, batch["preferences"])
        self.comparison_sums.add(logps, losses, batch["preferences"])
        losses = losses.times(batch["weights"].T) if "weights" in batch else losses  # a row's own weights
        self.combiner.add(losses)
        divisors = loss_divisors(self.args, self.label_counts, self.train_data.labelled)
        losses = losses.over(divisors.to(self.args.device, non_blocking=True))
        if self.layers is None:
            differentiate_each(scores, losses, stack)
        elif self.storage.two_pass:
            if differentiate_twice(scores, losses, stack, self.layers, self._decide):
                stack.write_grad(torch.ones(1))
                stack.zero_()
        else:
            differentiate(scores, losses, stack, self.layers, self.basis)
        weights = self.weights.to(self.args.device, non_blocking=True)
        return weights @ losses.values.sum(1) * self.args.world_size  # transformers averages over ranks what it logs

    def _combine(self, stack: GradientStack) -> None:
        """Writes the step's combined gradient into `.grad`."""
        stack.reduce()
        coefficients = self._decide(self.basis.gram(stack.gram()), stack)
        if coefficients is not None:
            stack.write_grad(self.basis.coefficients(coefficients))
        stack.zero_()

    def _decide(self, gram: Tensor, stack: GradientStack | None = None) -> Tensor | None:
        """The coefficients of the m gradients, given their Gram; None where the step has to be skipped."""
        present, losses = self.label_counts > 0, self.combiner.step_losses(self.label_counts)
        gram = from_first(gram, self.args.device)
        if self.faults.unfit(gram, present, losses):
            self._skip_step()
            return None
        combination = self.combiner(gram, present, losses, self.state.global_step, stack)
        plain, angles = step_metrics(self.objectives, gram, present, combination)
        length = float((self.weights @ gram @ self.weights).clamp_min(0).sqrt())
        self.step_means.add(plain)
        self.step_means.add(angles, weight=length)
        self.faults.followed(length)
        return from_first(combination.coefficients, self.args.device)

    def _skip_step(self) -> None:
        """Leaves `.grad` empty, so that the optimizer changes nothing, and stops the run when this goes on."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self.comparison_sums = ComparisonSums(self.objectives)
        if self.faults.in_a_row <= self.args.max_skipped_steps:
            return
        written = "no checkpoint is written: the weights themselves are not finite, go on from an earlier one"
        if weights_finite(self.model, self.args.device):
            self._save_checkpoint(self.model, trial=None)
            written = f"a checkpoint is in {self.args.output_dir}"
        raise DivergedError(
            f"{self.faults.in_a_row} steps in a row had gradients that are not finite (step {self.state.global_step}); "
            f"{written}. Lower the learning rate, or look for weights that are not finite in the model."
        )

    # ---- running ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, with `run.json` written at its start and its end, whatever the end."""
        self.stack = self.layers = None
        self.record.begin(self.args, self._decided())
        try:
            output = super().train(*args, **kwargs)
        except BaseException as error:
            self.record.failed(self.args, error)
            raise
        finally:
            if self.layers is not None:
                self.layers.restore()
            self.stack = self.layers = None
        last = {key: value for entry in self.state.log_history for key, value in entry.items()}
        self.record.end(self.args, "finished", {**output.metrics, **last, "steps/skipped": self.faults.skipped})
        return output

    def _decided(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        return {
            "layout": self.scorer.layout,
            "own_head": self.scorer.own_head,
            "one_backward_pass": self.one_pass,
            "gradient_storage": "two_pass" if self.storage.two_pass else "stack",
            "reference": self.reference.kind,
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "parameters": sum(p.numel() for p in parameters),
            "ranks": self.args.world_size,
            "steps_hold": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
        }

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds what the comparisons and the combination of the steps since the last line say."""
        if self.is_in_train and "loss" in logs:
            logs.update(self._drain())
        super().log(logs, start_time)

    def _drain(self) -> dict[str, float]:
        means = self.step_means.read()
        metrics = {**self.comparison_sums.read(self.args.device), **means}
        if self.clock.seconds:
            metrics["time/step"] = self.clock.seconds / self.clock.steps
            metrics["tokens/second"] = self.tokens / self.clock.seconds * self.args.world_size
        metrics |= self.faults.metrics()
        warning = norm_warning(means)
        if warning and not self._said_norms and not self.args.normalize_gradients:
            self._said_norms = True
            self.record.say(warning)
        self.comparison_sums, self.step_means = ComparisonSums(self.objectives), StepMeans()
        self.clock.seconds, self.clock.steps, self.tokens = 0.0, 0, 0
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses, implicit rewards and accuracies per objective over a whole data set, on all ranks together."""
        sums = ComparisonSums(self.objectives)
        if not self.sharded:
            self.model.to(self.args.device)  # type: ignore[arg-type]
        with frozen(self.model):
            for inputs in dataloader:
                batch = to_device(inputs, self.args.device)
                with self.accelerator.autocast():
                    _, logps = log_probs(self.model, self.scorer, self.reference, batch)
                losses = batch_losses(self.objectives, self.args.beta, logps, batch["preferences"])
                sums.add(logps, losses, batch["preferences"])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in sums.evaluation(self.args.device).items()}
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))  # type: ignore[arg-type]
