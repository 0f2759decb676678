"""The command under `accelerate launch`: two ranks of one machine give the run of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from paretune.cli.main import main
from tests.cli.made import records, save_model, write_jsonl
from tests.ranks_made import free_ports


def test_accelerate_launch_is_one_process(tmp_path: Path) -> None:
    words = ["train", "--model", str(save_model(tmp_path / "model")), "--objectives", "helpful,short"]
    words += ["--data", write_jsonl(tmp_path / "rows.jsonl", records("native")), "--use_cpu", "true"]
    words += ["--max_steps", "3", "--optim", "sgd", "--learning_rate", "0.1", "--gradient_accumulation_steps", "1"]
    (port,) = free_ports(1)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    # without a GPU accelerate would start one process; this makes it start several, which find that they have none
    launch += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
    of_two = ["--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")]
    done = subprocess.run(
        [*launch, "-m", "paretune", *words, *of_two],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert main([*words, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "one")]) == 0
    decided = [json.loads((tmp_path / name / "run.json").read_text())["decided"] for name in ("one", "two")]
    assert [found["ranks"] for found in decided] == [1, 2]
    assert [found["steps_hold"] for found in decided] == [4, 4]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[key] - two[key]).norm() / one[key].norm()) for key in one) < 1e-6
