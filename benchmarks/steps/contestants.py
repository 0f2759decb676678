"""Who runs against whom: real trainers on the same rows, whose optimizer steps are taken one at a time.

Names: `trl` is TRL's DPOTrainer with one objective; `ours-M` is RACO with M objectives; `twopass-M` the same in the
memory-saving mode; `scalar-shared` and `scalar-flat` are one weighted loss and one plain backward pass by our own code
(the floor of either layout); `naive-M` is M plain backward passes over flat rows, as the authors' release does.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.steps.models import RANK, Case, make_texts, make_tokenizer
from paretune import Objective, RACOConfig, RACOTrainer
from paretune.comparisons.batches import to_device
from paretune.losses import batch_losses
from paretune.policy.adapters import inputs_uncast
from paretune.training.step import log_probs

BETA = 0.2


class Turnstile(TrainerCallback):
    """Lets a training loop in another thread run one step at a time."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.done.release()
        self.go.acquire()
        control.should_training_stop = self.stop
        return control


class Contestant:
    """A trainer whose steps are taken one by one; a step runs from one optimizer update to the next, data included."""

    def __init__(self, name: str, trainer: Trainer, turn: Turnstile):
        self.name, self.trainer, self.turn = name, trainer, turn
        self.turns: list[tuple[int, float, float]] = []  # round, wall seconds, CPU seconds
        self.losses: list[float] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        _note_losses(trainer, self.losses)

    def _run(self) -> None:
        self.turn.go.acquire()
        try:
            if not self.turn.stop:
                self.trainer.train()
        except BaseException as error:
            self.error = error.with_traceback(None)  # its frames would keep a failed step's tensors
        self.turn.done.release()

    def step(self, round_: int | None = None) -> None:
        """One optimizer step, noted under its round."""
        if not self.thread.is_alive():
            self.thread.start()
        wait_for_device()
        wall, cpu = time.perf_counter(), time.process_time()
        self.turn.go.release()
        self.turn.done.acquire()
        wait_for_device()
        if self.error is not None:
            raise self.error
        if round_ is not None:
            self.turns.append((round_, time.perf_counter() - wall, time.process_time() - cpu))

    def finish(self) -> None:
        """Ends its training loop."""
        self.turn.stop = True
        self.turn.go.release()
        if self.thread.is_alive():
            self.thread.join(timeout=60)


def wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _note_losses(trainer: Trainer, losses: list[float]) -> None:
    """Keeps every step's loss; not on a GPU, where reading it would make the host wait."""
    step = trainer.training_step

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        loss = step(*args, **kwargs)
        if loss.device.type == "cpu":
            losses.append(float(loss))
        return loss

    trainer.training_step = noting  # type: ignore[method-assign]


class ScalarTrainer(RACOTrainer):
    """The floor: the weighted losses as one scalar, one plain backward pass, everything else the same."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.model.train()
        batch = to_device(inputs, self.args.device)
        with inputs_uncast(self.adapted, active=self.args.bf16):
            return self._backward(batch)

    def _backward(self, batch: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():
            scores, logps = log_probs(self.model, self.scorer, self.reference, batch)
        losses = batch_losses(self.objectives, self.args.beta, logps, batch["preferences"])
        share = (self.weights / self.label_counts).to(losses.values, non_blocking=True)[:, None]
        slopes_a, slopes_b = (share * losses.slopes_a).sum(0), (share * losses.slopes_b).sum(0)
        (slopes_a * scores.logp_a + slopes_b * scores.logp_b).sum().backward()
        return (share * losses.values).sum().float()


def common_settings(case: Case, folder: Path) -> dict[str, Any]:
    """What the trainers of both libraries are told alike."""
    cuda = case.device == "cuda"
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": case.comparisons,
        "per_device_eval_batch_size": case.comparisons,
        "gradient_accumulation_steps": 1,
        "max_steps": 10_000,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "disable_dropout": True,
        "max_length": sum(case.lengths) + 8,
        "beta": BETA,
    }


def trl_settings(case: Case, folder: Path) -> dict[str, Any]:
    """TRL's fastest settings for these rows, all named; of TRL 1.16's trl/trainer/dpo_config.py and dpo_trainer.py:

    its head works in tiles by itself (`add_fused_lm_head`); `padding_free` warns and does nothing; Liger is deprecated
    and would replace layers only; rows of one length give sdpa no mask, so it may take its fastest kernel. Entropy and
    mean logits are computed at every step, for logging: there is no switch.
    """
    return common_settings(case, folder) | {
        "loss_type": ["sigmoid"],
        "padding_free": False,
        "use_liger_kernel": False,
        "activation_offloading": False,
        "torch_compile": False,  # nor does ours compile
        "pad_to_multiple_of": None,
        "precompute_ref_batch_size": case.comparisons,
        "remove_unused_columns": True,
        "dataset_num_proc": None,
    }


def two_pass_exists() -> bool:
    """Whether this paretune has the mode that keeps no m gradients."""
    return "gradient_storage" in {f.name for f in fields(RACOConfig)}


def exists(name: str) -> bool:
    """Whether the contestant can run with what is installed here."""
    return two_pass_exists() if name.startswith("twopass") else True


def our_settings(name: str, case: Case, folder: Path) -> dict[str, Any]:
    kind = name.partition("-")[0]
    settings = common_settings(case, folder) | {
        "layout": "flat" if kind == "naive" or name == "scalar-flat" else "shared",
        "gradient_mode": "per_objective" if kind == "naive" else "single_pass",
    }
    if two_pass_exists():
        settings["gradient_storage"] = "two_pass" if kind == "twopass" else "stack"
    return settings


def objectives_of(name: str) -> int:
    """M of `ours-M`; the others without a number carry one objective (TRL) or two (the floor)."""
    number = name.partition("-")[2]
    return int(number) if number.isdigit() else 1 if name == "trl" else 2


def make_contestant(name: str, case: Case, folder: Path, model: PreTrainedModel, batches: int = 4) -> Contestant:
    """A contestant by its name; it trains this very model, on rows that make this many batches."""
    texts, tokenizer = make_texts(case, batches), make_tokenizer(case)
    adapter = None if case.full else LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    turn = Turnstile()
    make: Callable[..., Trainer] = _trl if name == "trl" else _ours
    trainer = make(name, case, folder / name, model, texts, tokenizer, adapter, [turn])
    return Contestant(name, trainer, turn)


def _ours(
    name: str, case: Case, folder: Path, model: Any, texts: list, tokenizer: Any, adapter: Any, callbacks: list
) -> Trainer:
    m = objectives_of(name)
    names = [f"o{i}" for i in range(m)]
    # The first objective prefers side a throughout, as TRL's `chosen` does; the others disagree, but on the first row.
    labels = torch.rand(len(texts), m, generator=torch.Generator().manual_seed(2)).round()
    labels[:, 0] = labels[0] = 1.0
    rows = []
    for index, (prompt, a, b) in enumerate(texts):
        preferences = dict(zip(names, labels[index].tolist(), strict=True))
        rows.append({"prompt": prompt, "response_a": a, "response_b": b, "preferences": preferences})
    trainer = ScalarTrainer if name.startswith("scalar") else RACOTrainer
    args = RACOConfig(**our_settings(name, case, folder))
    objectives = [Objective(o, weight=1 / m) for o in names]
    return trainer(model, args, objectives, rows, None, tokenizer, adapter, callbacks=callbacks)


def _trl(
    name: str, case: Case, folder: Path, model: Any, texts: list, tokenizer: Any, adapter: Any, callbacks: list
) -> Trainer:
    import datasets
    from trl.trainer import dpo_trainer as of_trl
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    datasets.disable_progress_bars()
    if hasattr(of_trl, "hash_module"):
        # The name of its cache of reference log-probabilities: a digest of all weights, which takes a large model long.
        of_trl.hash_module = lambda _: uuid.uuid4().hex
    known = {f.name for f in fields(DPOConfig)}
    args = DPOConfig(**{key: value for key, value in trl_settings(case, folder).items() if key in known})
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts]),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
