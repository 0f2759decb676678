"""What every rank of `tests/training/test_ranks.py` runs: one launch, many checks, because importing costs the most.

torchrun starts two processes as two machines of one rank each. Each forks a second one before anything has computed:
the two of torchrun train as a world of two, their children as another one with a sharded model, then all four as a
world of four. What they saw lies in files, one per run and rank, which the tests compare.

    torchrun --nnodes 2 --nproc-per-node 1 … tests/ranks_script.py FOLDER PORT PORT
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from paretune.errors import DivergedError, InputError
from paretune.gradients import GradientStack
from paretune.gradients.shards import is_shard
from paretune.objectives import Objective
from paretune.training import trainer as trainer_module
from paretune.training.combining import StepCombiner
from tests.runs_made import made_text_rows, small_model, small_trainer, weights

THREE = ("helpful", "concise", "catty")
OBJECTIVES = [Objective(name, weight) for name, weight in zip(THREE, (0.5, 0.3, 0.2), strict=True)]
ROWS = made_text_rows(25, THREE)
SEEN: list[dict[str, Any]] = []  # of the run under way: m gradients, Gram, coefficients of every step


class Watched(StepCombiner):
    """The run's combiner, which notes what it was given and what it answered."""

    def __call__(self, gram: Any, present: Any, losses: Any, step: int, stack: Any = None) -> Any:
        made = super().__call__(gram, present, losses, step, stack)
        whole = torch.cat([stack.buffer(name) for name in stack.parameters], dim=1)
        SEEN.append({"gradients": whole.clone(), "gram": gram, "coefficients": made.coefficients, "present": present})
        return made


def small_trained_model(seed: int) -> Any:
    return small_model(seed=seed, intermediate_size=47)  # two ranks have shards of different sizes


def made(folder: Path, *, seed: int = 0, micro: int, accumulation: int, **changes: Any) -> Any:
    """A trainer on 18 rows, in steps of 8, 8 and 2, which evaluates on 7; `seed` draws the model's weights."""
    SEEN.clear()
    options: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "lora": True}
    options["ddp_backend"] = "gloo" if "RANK" in os.environ else None  # the tests make the run of one process
    options |= {"rows": ROWS[:18], "model": None if "model" in changes else small_trained_model(seed)}
    return small_trainer(
        folder, eval_dataset=ROWS[18:], objectives=OBJECTIVES,
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, per_device_eval_batch_size=2,
        **{**options, **changes},
    )  # fmt: skip


def trained(trainer: Any) -> dict[str, Any]:
    """What a whole run saw and left."""
    trainer.train()
    found = {"steps": list(SEEN), "weights": of_all(weights(trainer)), "metrics": trainer.evaluate()}
    return {**found, "wrapped": trainer.model_wrapped is not trainer.model, "state": trainer.combiner.state}


def of_all(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Whole tensors, of those that lie in shards too."""
    return {key: value.full_tensor() if is_shard(value) else value for key, value in tensors.items()}


def keep(folder: Path, name: str, found: Any) -> None:
    torch.save(found, folder / f"{name}-{os.environ['RANK']}.pt")


def join(rank: int, world: int, port: str) -> None:
    """Makes this process that rank of a world of its own, which the next trainer starts."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)


def leave() -> None:
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def two_machines(folder: Path) -> None:
    """As torchrun started them. Ranks draw different weights: those of the first count."""
    rank = int(os.environ["RANK"])
    trainer = made(folder / "two", seed=rank, micro=2, accumulation=2)
    keep(folder, "two", trained(trainer))
    keep(folder, "fault", faulty(trainer, rank))
    keep(folder, "other", refused(folder, small_trained_model(0), rows=ROWS[rank:]))


def faulty(trainer: Any, rank: int) -> dict[str, Any]:
    """Margins of the second rank's rows are NaN in the second step, then in all steps of another training."""
    from_model, spoilt = trainer_module.log_probs, [1]

    def log_probs(*given: Any) -> Any:
        scores, logps = from_model(*given)
        factor = float("nan") if rank == 1 and trainer.state.global_step in spoilt else 1.0
        return replace(scores, logp_a=scores.logp_a * factor), replace(logps, a=logps.a * factor)

    trainer_module.log_probs = log_probs  # type: ignore[assignment]
    trainer.train()
    found = {"weights": weights(trainer), "skipped": trainer.faults.skipped, "stopped": ""}
    trainer.args.max_skipped_steps, spoilt[:] = 1, range(9)
    try:
        trainer.train()
    except DivergedError as error:
        found["stopped"] = str(error)
    trainer_module.log_probs = from_model
    return {**found, "after": weights(trainer)}


def four(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    rows = Dataset.from_list(ROWS[:18]).to_iterable_dataset()  # a stream is read to its end, on every rank
    trainer = made(folder / "four", rows=rows, micro=1, accumulation=2, precompute_ref_log_probs=True)
    keep(folder, "four", trained(trainer))
    reduce = GradientStack.reduce
    GradientStack.reduce = lambda stack: None  # type: ignore[method-assign]
    keep(folder, "unreduced", trained(trainer)["weights"])
    GradientStack.reduce = reduce  # type: ignore[method-assign]
    options = {"combiner": "famo", "lora": False, "gradient_mode": "per_objective", "max_steps": 2}
    keep(folder, "full", trained(made(folder / "full", seed=rank, micro=2, accumulation=1, **options)))


def refused(folder: Path, model: Any, **changes: Any) -> str:
    try:
        made(
            folder / "refused", micro=2, accumulation=2, model=model, lora=False, **{"save_only_model": True, **changes}
        )
    except InputError as error:
        return str(error)
    return "nothing"


def sharded(folder: Path) -> None:
    """The model of the folder, whose weights lie in shards: under adapters, then trained itself in both ways."""

    def model() -> Any:
        shards = DistributedConfig(fsdp_size=2)
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32", distributed_config=shards)

    split = {"micro": 2, "accumulation": 2, "save_only_model": True}
    keep(folder, "lora in shards", trained(made(folder / "shards", model=model(), **split)))
    full = {"combiner": "famo", "lora": False, "max_steps": 2, **split}
    reference = model()
    keep(folder, "refused", [refused(folder, reference, save_only_model=False), refused(folder, reference)])
    for mode in ("single_pass", "per_objective"):
        trainer = made(folder / mode, model=model(), ref_model=reference, gradient_mode=mode, **full)
        keep(folder, f"{mode} in shards", trained(trainer))
    trainer.save_model()


if __name__ == "__main__":
    out, ports, node = Path(sys.argv[1]), sys.argv[2:], int(os.environ["RANK"])
    torch.set_num_threads(1)
    trainer_module.StepCombiner = Watched  # type: ignore[misc]
    child = os.fork()
    if child:
        two_machines(out)
    else:
        join(node, 2, ports[0])
        sharded(out)
    leave()
    join(2 * node + (child == 0), 4, ports[1])
    four(out)
    leave()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
