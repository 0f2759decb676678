"""A trainer that takes the model as it is: its gradients are summed by us, not by a wrapper around the model."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from paretune.errors import InputError
from paretune.policy.sharding import is_sharded
from paretune.training.checkpoints import WholeTrainer
from paretune.training.config import RACOConfig

_KINDS = {"tp_size": "tensor", "pp_size": "pipeline", "ep_size": "expert", "dp_replicate_size": "replicated"}


class UnwrappedTrainer(WholeTrainer):
    """Without DDP; and where the weights lie in shards (FSDP2), without the reductions that transformers adds to it."""

    def create_accelerator_and_postprocess(self) -> None:
        """As always, but accelerate prepares the model as it does for evaluation: it wraps nothing around it."""
        super().create_accelerator_and_postprocess()
        prepare: Any = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """A micro-batch's m gradients go into m sums: FSDP2 cannot keep them back for the last one."""
        return nullcontext()

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """`share_weights` did this; hooks that average `.grad` would count replicated gradients twice."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As always.

        Raises:
            InputError: a sharded model is asked to go on from a checkpoint.
        """
        model: Any = self.model
        if resume_from_checkpoint and is_sharded(model):
            fix = "Start from the checkpoint's model in a new run."
            raise InputError("a sharded model's optimizer is not in checkpoints, so no run goes on from one", fix=fix)
        return super().train(resume_from_checkpoint, *args, **kwargs)


def check_sharded(args: RACOConfig, model: nn.Module, *, adapted: bool, copied: bool) -> None:
    """Raises InputError where a sharded model cannot be trained as asked; says nothing of other models.

    Args:
        args: of the run.
        model: as it was given.
        adapted: whether adapters will be added to it.
        copied: whether the run would need a copy of it as its reference, had it no adapters to switch off.
    """
    if not is_sharded(model):
        return
    adapted = adapted or isinstance(model, PeftModel)
    half = [p for p in model.parameters() if p.requires_grad and p.dtype not in (torch.float32, torch.float64)]
    distributed: Any = getattr(model.config, "distributed_config", None)
    for name, kind in _KINDS.items():
        if (getattr(distributed, name, None) or 1) > 1:
            raise InputError(f"{kind} parallelism is not supported", where=name, fix="Shard with fsdp_size alone.")
    wrong: list[tuple[bool, str, str]] = [
        (not args.save_only_model, "save_only_model", "Set it to true: the optimizer of shards is not saved."),
        (args.precompute_ref_log_probs, "precompute_ref_log_probs", "Leave it out."),
        (args.gram == "averaged", "gram: averaged", "Leave it out."),
        (bool(half) and not adapted, "trained weights in half precision", 'Load it with dtype="float32".'),
        (getattr(distributed, "fsdp_cpu_offload", False), "fsdp_cpu_offload", "Leave it out."),
        (getattr(distributed, "fsdp_mixed_precision", False), "fsdp_mixed_precision", "Set bf16: true instead."),
    ]
    for is_wrong, name, fix in wrong:
        if is_wrong:
            raise InputError("this does not go with a sharded model", where=name, fix=fix)
    if copied and not adapted:
        fix = "Give ref_model: the same model, loaded once more with its distributed_config."
        raise InputError("a sharded model whose weights all train cannot be copied as its own reference", fix=fix)
