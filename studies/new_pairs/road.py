"""New pairs arriving, with the command line on a language world: one seed, a road and no evidence.

    python studies/new_pairs/road.py             # writes road.json beside this file; runs lie in work/road

File A holds comparisons labelled for coverage and faithfulness, file B comparisons on other prompts, labelled for
faithfulness and conciseness. `paretune train` aligns the base on A; then it goes on from that model with B alone, with
B and the rows of a tenth of A's prompts, and with both. The configurations are kept in road.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from paretune.evaluation.sample import sample  # noqa: E402
from paretune.sandbox import WORLDS  # noqa: E402
from paretune.sandbox.labels import Labelling  # noqa: E402
from paretune.sandbox.language import BASE_STEPS, make_items, sample_rows, train_base  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

WORLD = WORLDS["summaries"]
OF_A, OF_B = ("coverage", "faithfulness"), ("faithfulness", "conciseness")
# Way -> what --data is given: files, and the share of their prompts that is used.
WAYS: dict[str, dict[str, float]] = {
    "B only": {"b": 1.0},
    "B with replay": {"a": 0.1, "b": 1.0},
    "A and B": {"a": 1.0, "b": 1.0},
}
SETTINGS: dict[str, Any] = {
    "combiner": "raco",
    "c": 0.4,
    "beta": 0.1,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "precompute_ref_log_probs": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "seed": 0,
}


def write_files(base: str, place: Path, prompts: int) -> dict[str, Path]:
    """a.jsonl and b.jsonl; labels of objectives that a file does not know are left out."""
    files = {}
    for name, objectives, seed in (("a", OF_A, 0), ("b", OF_B, 1)):
        rows = sample_rows(WORLD, base, prompts, 3, Labelling(kappa=6.0), seed)
        for row in rows:
            row["preferences"] = {one: row["preferences"][one] for one in objectives}
        files[name] = place / f"{name}.jsonl"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def train(config: dict[str, Any], place: Path) -> Path:
    """`paretune train CONFIG`; the model lies in the folder that comes back."""
    path = place / f"{config['output_dir']}.json"  # JSON is YAML
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "paretune", "train", path.name]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"paretune train {path.name} failed:\n{done.stdout}\n{done.stderr}")
    return place / str(config["output_dir"])


def score(model: Path | str, base: str, prompts: int) -> dict[str, float]:
    """Mean exact rewards of four samples per held-out prompt at temperature 1."""
    items = make_items(WORLD, prompts, seed=0, held_out=True)
    drawn = sample(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(base),
        [item.prompt for item in items],
        4,
        max_new_tokens=WORLD.max_response + 1,
        seed=0,
    )
    scores = [WORLD.score(item, text) for item, texts in zip(items, drawn.texts, strict=True) for text in texts]
    return {name: round(sum(one[name] for one in scores) / len(scores), 4) for name in WORLD.objectives}


def road(place: Path, *, base_steps: int, prompts: int, steps: int, eval_prompts: int) -> dict[str, Any]:
    base = str(train_base(WORLD, seed=0, steps=base_steps))
    files = write_files(base, place, prompts)
    shared = {**SETTINGS, "max_steps": steps}
    first_config = {"model": base, "data": "a.jsonl", "objectives": dict.fromkeys(OF_A, 0.5), "output_dir": "first"}
    first = train({**first_config, **shared}, place)
    found = {"base": score(base, base, eval_prompts), "after A": score(first, base, eval_prompts)}
    configs: dict[str, Any] = {"after A": {**first_config, "model": "BASE"}}
    for way, sources in WAYS.items():
        known = OF_B if way == "B only" else tuple(WORLD.objectives)
        data = [{"path": files[name].name, "fraction": share} for name, share in sources.items()]
        config = {
            "model": "first",
            "data": data,
            "objectives": dict.fromkeys(known, round(1 / len(known), 6)),
            "output_dir": way.replace(" ", "-").lower(),
        }
        found[way] = score(train({**config, **shared}, place), base, eval_prompts)
        configs[way] = config
        print(way, found[way], flush=True)
    rows = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    return {"rewards": found, "rows": rows, "configurations": configs, "settings": shared}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE / "work" / "road", help="where files and runs lie")
    parser.add_argument("--out", type=Path, default=HERE / "road.json", help="where the results go")
    options = parser.parse_args(arguments)
    results = road(options.work, base_steps=BASE_STEPS, prompts=250, steps=40, eval_prompts=64)
    results |= {"command": "python studies/new_pairs/road.py", "commit": commit(), "versions": versions()}
    write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
