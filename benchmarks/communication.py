"""What ranks tell one another in an optimizer step: counted in real runs on gloo, and on paper for a model of 8B.

    python benchmarks/communication.py            # writes benchmarks/results/communication.json; minutes
    python benchmarks/communication.py --paper    # the second half only, printed

Counted are the calls and the bytes handed to them (of an all-gather: what comes out; of a reduce-scatter: what goes in)
from the end of one step to the end of the next, on rank 0. A ring sends (N - 1)/N of that per rank, twice of an
all-reduce. No time is measured: gloo on one machine says nothing about a network. Seconds on paper are bytes over what
one GPU can send: 25 GB/s is 200 Gb/s between machines, 300 GB/s is within one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from paretune.training.record import commit, versions, write_json  # noqa: E402
from tests.ranks_made import run_ranks  # noqa: E402

# What each rank runs: two steps of two micro-batches for every case, whose second one is counted.
RANK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.distributed import DistributedConfig
from paretune.objectives import Objective
from tests.runs_made import made_text_rows, small_trainer
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
seen = {}
def count(name, place):
    call = getattr(dist, name, None)
    if call is None:
        return
    def counted(*given, **named):
        tensor = given[place] if len(given) > place else list(named.values())[place]
        calls, size = seen.get(name, (0, 0))
        seen[name] = calls + 1, size + tensor.numel() * tensor.element_size()
        return call(*given, **named)
    setattr(dist, name, counted)
for name, place in {"all_reduce": 0, "broadcast": 0, "all_gather_into_tensor": 0, "all_gather_single": 0,
                    "reduce_scatter_tensor": 1, "reduce_scatter_single": 1}.items():
    count(name, place)
class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.last = dict(seen)
        seen.clear()
def model():
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype="float32", distributed_config=DistributedConfig(fsdp_size=dist.get_world_size()))
found = []
for number, case in enumerate(cases):
    names = [f"o{i}" for i in range(case["objectives"])]
    rows = made_text_rows(64)
    for i, row in enumerate(rows):
        row["preferences"] = {name: float((i >> j) % 2) for j, name in enumerate(names)}
    steps = Steps()
    more = {"model": model(), "save_only_model": True} if case["shards"] else {}
    if case["shards"] and not case["lora"]:
        more["ref_model"] = model()
    trainer = small_trainer(
        folder / str(number), rows=rows, objectives=[Objective(name, 1.0) for name in names], lora=case["lora"],
        gradient_mode=case["mode"], callbacks=[steps], max_steps=2, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, ddp_backend="gloo", logging_steps=100, **more)
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in trainer.model.parameters())
    counted = {name: {"calls": calls, "bytes": size} for name, (calls, size) in sorted(steps.last.items())}
    found.append({**case, "trained": trained, "weights": weights, "per_step": counted})
    dist.barrier()
if dist.get_rank() == 0:
    (folder / "found.json").write_text(json.dumps(found))
"""

# Llama 3 8B: width, width of the feed-forward, of keys and values, layers, vocabulary.
WIDTH, INNER, KEYS, LAYERS, VOCABULARY, RANK_OF_LORA = 4096, 14336, 1024, 32, 128256, 16
MATRICES = [(WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, KEYS), (WIDTH, WIDTH), *[(WIDTH, INNER)] * 3]


def sizes() -> dict[str, int]:
    """Trained parameters of the 8B model: all, and LoRA's of rank 16 on all its layers' matrices."""
    inside = LAYERS * (sum(a * b for a, b in MATRICES) + 2 * WIDTH)
    return {
        "lora": LAYERS * RANK_OF_LORA * sum(a + b for a, b in MATRICES),
        "full": inside + 2 * VOCABULARY * WIDTH + WIDTH,
    }


def on_paper() -> list[dict[str, Any]]:
    """Gigabytes that each rank sends per step of one micro-batch, with float32 gradients; weights in shards in float32
    where they train, in bfloat16 where they are frozen."""
    lines = []
    for kind, trained in sizes().items():
        for objectives in (2, 8):
            for ranks in (8, 64):
                share = (ranks - 1) / ranks
                stack = 4 * objectives * trained
                whole = (4 if kind == "full" else 2) * sizes()["full"]
                # the policy is gathered forward and backward, the reference (adapters off, or a copy) forward
                shards = {"single_pass": 3 * whole + (stack if kind == "full" else 2 * stack)}
                shards["per_objective"] = (2 + objectives) * whole + (stack if kind == "full" else 2 * stack)
                sent = {"plain": 2 * share * stack} | {f"shards, {k}": share * v for k, v in shards.items()}
                lines.append(
                    {
                        **{"kind": kind, "objectives": objectives, "ranks": ranks, "trained": trained},
                        "gigabytes": {name: round(size / 1e9, 2) for name, size in sent.items()},
                        "seconds at 25 GB/s": {name: round(size / 25e9, 3) for name, size in sent.items()},
                        "seconds at 300 GB/s": {name: round(size / 300e9, 4) for name, size in sent.items()},
                    }
                )
    return lines


def counted(world: int) -> list[dict[str, Any]]:
    """What real runs of a small model say, on so many ranks."""

    def case(kind: str, objectives: int, mode: str = "single_pass", *, shards: bool = False) -> dict[str, Any]:
        return {"lora": kind == "lora", "objectives": objectives, "mode": mode, "shards": shards, "ranks": world}

    from tests.runs_made import small_model

    cases = [case(kind, m) for kind in ("lora", "full") for m in (2, 8)]
    cases += [case("lora", 2, shards=True), case("full", 2, shards=True), case("full", 2, "per_objective", shards=True)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_model().save_pretrained(folder / "model")
        statuses, said = run_ranks(RANK, [name, json.dumps(cases)], world, timeout=3000, PARETUNE_CACHE=f"{name}/cache")
        if statuses != [0] * world:
            raise SystemExit(said)
        return json.loads((folder / "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="only the figures on paper, printed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "communication.json")
    options = parser.parse_args()
    if options.paper:
        print(json.dumps(on_paper(), indent=1))
        return
    found = [line for world in (2, 4) for line in counted(world)]
    content = {"command": "python benchmarks/communication.py", "commit": commit(), "versions": versions()}
    write_json(options.out, {**content, "counted": found, "on paper": on_paper()})
    for line in found:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
