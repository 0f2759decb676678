"""Fronts and labels on a real Ray cluster: two machines, each of one CPU; stopped, lost in mid-sweep, equal to local.

Its machines are processes of this one. What may differ between real ones, folders and versions, is asked of the
function that looks for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from paretune import __version__
from paretune.cli.main import STOPPED, main
from paretune.errors import InputError
from paretune.evaluation.report import front_figures
from paretune.pipelines.front import engine
from paretune.pipelines.front.engine import Job
from paretune.pipelines.front.engine_ray import Home, RayTasks, settle
from paretune.training.rundir import run_record
from tests.cli.made import records, save_model, write_jsonl
from tests.pipelines.front.made import Inline

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the package ray is not installed (the extra `ray`)"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    made.add_node(**size)
    yield made
    made.shutdown()


def training(out: Path, since: float) -> int:
    """Cells whose training has begun since then and goes on: a cell that was handed to Ray may not run anywhere yet."""
    records = [path.parent for path in out.glob("cells/*/run.json") if path.stat().st_mtime > since]
    return sum(run_record(cell).get("status") == "running" for cell in records)


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Does something, in another thread, as soon as something is so."""

    def watch() -> None:
        until = time.monotonic() + 300
        while not condition() and time.monotonic() < until:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@with_ray
def test_on_a_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, and one cluster: tests may run in several processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front_figures, "write_figures", lambda front, folder: [])
    labels_are_the_local_ones(cluster.address, tmp_path, capsys)
    tasks_end_with_their_engine(cluster.address, tmp_path)
    a_stopped_front_that_loses_a_machine_is_the_local_one(cluster, tmp_path, monkeypatch, capsys)


def a_stopped_front_that_loses_a_machine_is_the_local_one(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["front", "--model", str(save_model(tmp_path / "model")), "--objectives", "helpful,short"]
    words += ["--data", write_jsonl(tmp_path / "rows.jsonl", records("native")), "--eval_fraction", "0.4"]
    # so many steps that a stop and a loss come in their midst, and not when they are done
    words += ["--methods", "linear", "--weightings", "1", "--seeds", "[0]", "--max_steps", "80", "--use_cpu", "true"]
    words += ["--retries", "3"]  # Ray may hand a task to a lost machine before it knows
    words += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2"]
    on_ray, far = [*words, "--output_dir", "far", "--engine", "ray", "--ray_address", cluster.address], tmp_path / "far"

    began = time.time()
    stop = when(lambda: training(far, began) >= 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main(on_ray) == STOPPED and "The same command goes on" in capsys.readouterr().err
    stop.join()
    assert len(list(far.rglob("cell.json"))) < 4 and not (far / "ray.token").exists()

    (lost,) = cluster.worker_nodes
    again = time.time()
    # two at once are one on each machine
    loss = when(lambda: training(far, again) == 2, lambda: cluster.remove_node(lost, allow_graceful=False))
    assert main(on_ray) == 0
    loss.join()
    front = json.loads((far / "front.json").read_text())
    crashes = {crash.partition(":")[0] for cell in front["cells"] for crash in cell["crashes"]}
    assert crashes == {"the command ended while the cell ran", "its machine was lost"}
    assert "crashed and is started again (1 of 3): its machine was lost: " in capsys.readouterr().err

    monkeypatch.setattr(engine, "Processes", lambda workers: Inline())
    assert main([*words, "--output_dir", "near"]) == 0
    near = tmp_path / "near"
    cells = [path.relative_to(near) for path in near.glob("cells/*/cell.json")]
    for name in cells:
        one, other = (json.loads((side / name).read_text()) for side in (near, far))
        assert all(one[key] == other[key] for key in ("digest", "temperatures", "kl", "run", "code"))
    weights = [path.relative_to(near) for path in near.rglob("*.safetensors")]
    assert len(cells) == 4 and len(weights) == 3
    assert all((near / path).read_bytes() == (far / path).read_bytes() for path in weights)


CRASHES_ONCE = """
import os, pathlib

def long(prompts, completions, **columns):
    if not pathlib.Path("crashed").exists():
        pathlib.Path("crashed").touch()
        os._exit(7)
    return [float(len(completion)) for completion in completions]
"""


def labels_are_the_local_ones(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Although a process dies, at its first shard."""
    Path("far_rewards.py").write_text(CRASHES_ONCE)
    rows = [{"prompt": f"{i}?", "responses": ["x" * (i + j) + "y" for j in range(3)]} for i in range(12)]
    words = ["label", write_jsonl(tmp_path / "r.jsonl", rows)]
    words += ["--sources", '{long: {function: "far_rewards:long", batch_size: 8}, concise: {rule: shorter}}']
    on_ray = ["--engine", "ray", "--ray_address", address]
    assert main([*words, "--out", "far.jsonl", "--cache", "far.sqlite", *on_ray]) == 0
    said = capsys.readouterr().err
    assert "long: a shard is asked again (1 of 2): its process died: " in said and "36 calls to make" in said
    assert main([*words, "--out", "near.jsonl", "--cache", "near.sqlite"]) == 0
    assert Path("far.jsonl").read_bytes() == Path("near.jsonl").read_bytes()
    assert main([*words, "--out", "far.jsonl", "--cache", "far.sqlite"]) == 0
    assert json.loads(Path("far.labels.json").read_text())["sources"]["long"]["found"] == 36, "answers were kept"


def tasks_end_with_their_engine(address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a machine with 2 CPUs; found 1 CPUs and 0 GPUs"):
        RayTasks(address=address, cpus=2)
    before = signal.getsignal(signal.SIGTERM)
    tasks = RayTasks(address=address, folder=tmp_path, limit=1)
    assert signal.getsignal(signal.SIGTERM) is before
    # Python's own function, which loads nothing of ours
    write_pid = "import os, time; open('part', 'w').write(str(os.getpid())); os.rename('part', 'pid')"
    tasks.submit(Job("pid", exec, (f"{write_pid}; time.sleep(600)",)))
    tasks.submit(Job("later", os.getpid))
    while not (tmp_path / "pid").exists():
        assert tasks.running() == ["pid"] and tasks.wait(0.1) == []
    pid = int((tmp_path / "pid").read_text())
    tasks.close()
    assert tasks.running() == [] and not (tmp_path / "ray.token").exists()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


def test_a_machine_that_sees_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ray.token").write_text("word")
    Path("far").mkdir()
    home = Home(str(tmp_path / "far"), ("a folder",), "a cache", __version__, (str(tmp_path / "ray.token"), "word"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    settle(home)
    assert Path.cwd() == tmp_path / "far" and sys.path[-1] == "a folder" and os.environ["PARETUNE_CACHE"] == "a cache"
    for other, said in [
        (replace(home, token=(str(tmp_path / "ray.token"), "another")), "the folder is not shared.*found word"),
        (replace(home, token=(str(tmp_path / "elsewhere"), "word")), "the folder is not shared.*found no such file"),
        (replace(home, working=str(tmp_path / "nowhere")), "no folder .*nowhere"),
        (replace(home, version="0"), f"another paretune; expected 0; found {__version__}. Install the same"),
    ]:
        with pytest.raises(InputError, match=said):
            settle(other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--engine", "spark"], "bad engine; expected local or ray; found spark"),
        (["--ray_address", "auto"], "ray_address without Ray"),
        (["--engine", "ray", "--task_cpus", "0"], "bad task_cpus"),
        (["--engine", "ray", "--task_gpus", "-1"], "bad task_gpus"),
        (["--engine", "ray"], "nothing for Ray to do"),
    ],
)
def test_engines_that_make_no_sense(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", [{"prompt": "p", "responses": ["a", "b b"]}])
    words = ["label", data, "--sources", "{concise: {rule: shorter}}", "--out", str(tmp_path / "out.jsonl")]
    assert main([*words, *more]) == 2 and said in capsys.readouterr().err


def test_without_ray_or_a_cluster_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ray") is not None:
        for address, said in [("far:x", "expected auto or HOST:PORT"), ("ray://far:1", "bad ray_address")]:
            with pytest.raises(InputError, match=said):
                RayTasks(address=address)
        with pytest.raises(InputError, match="cannot connect to Ray; found .*refused"):
            RayTasks(address="127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install 'paretune\\[ray\\]'"):
        RayTasks()
