"""Does RACO win in language worlds? Development, then confirmation, in one resumable command.

    python studies/language_worlds/run.py develop              # learning rates and lengths, development seeds
    python studies/language_worlds/run.py confirm              # frozen settings, confirmation seeds, both worlds
    python studies/language_worlds/run.py confirm --world safety --workers 2
    python studies/language_worlds/run.py results              # results.json from what is there

Every finished run is a line of `runs-develop.jsonl` or `runs-confirm.jsonl` and is never repeated. What is declared
stands in PROTOCOL.md beside this file; figures are drawn by figure.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import runs  # noqa: E402
from analysis import DEVELOPMENT_SEEDS, RATES, chosen, results  # noqa: E402
from runs import Arm, Plan  # noqa: E402

from paretune.pipelines.workers import quiet_worker  # noqa: E402
from paretune.sandbox import WORLDS  # noqa: E402
from paretune.training.record import commit, versions, write_json  # noqa: E402

HORIZON = 70  # steps of development runs; confirmation runs may take twice as many
DEVELOP = Plan("clean", checkpoints=(6, 12, 25, 50, HORIZON))
PRESET = "conflict-60"
SEEDS = tuple(range(1000, 1010))
SHARES = (0.06, 0.12, 0.25, 0.5, 1.0, 2.0)  # of the step at which linear's held-out loss is lowest
WEIGHTINGS = {
    2: ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2)),
    3: ((0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6)),
}
Key = tuple[Any, ...]
Task = tuple[Key, Callable[..., dict[str, Any]], tuple[Any, ...]]


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Finished runs by key; a line that a kill cut short is not one."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[tuple(content["key"])] = content
    return found


def sequence(path: Path, workers: int, tasks: Iterable[Task], then: Callable[[dict[str, Any]], Iterable[Task]]) -> None:
    """Runs what is not yet in the file, in order; what a finished task makes possible (`then`) goes before the rest."""
    done, machine = read(path), {"torch": versions()["torch"], "cores": os.cpu_count()}
    context = multiprocessing.get_context("spawn")
    queue, running = deque(tasks), dict[Future[dict[str, Any]], Key]()
    started, ended = time.perf_counter(), 0
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet_worker) as pool, path.open("a") as file:
        while queue or running:
            while queue and len(running) < workers:
                key, function, arguments = queue.popleft()
                if key in done:
                    queue.extendleft(then(done[key]))
                else:
                    running[pool.submit(function, *arguments)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                content = {"key": running.pop(future), **future.result(), **machine}
                file.write(json.dumps(content) + "\n")
                file.flush()
                ended += 1
                print(
                    f"{ended} ended, {len(queue)} wait, {time.perf_counter() - started:.0f} s: {content['key']}",
                    flush=True,
                )
                queue.extendleft(then(content))


def nothing(_: dict[str, Any]) -> Iterator[Task]:
    return iter(())


def development(worlds: list[str], folder: Path) -> Iterator[Task]:
    for world in worlds:
        m = len(WORLDS[world].objectives)
        for seed in DEVELOPMENT_SEEDS:
            for combiner in ("linear", "raco"):
                for rate in RATES:
                    arm = Arm(combiner, (1 / m,) * m, rate)
                    yield (world, seed, combiner, rate), _with_losses, (DEVELOP, world, seed, arm, folder)


def _with_losses(plan: Plan, world: str, seed: int, arm: Arm, folder: Path) -> dict[str, Any]:
    return runs.train(plan, world, seed, arm, folder, losses=True)


def confirmation(settings: dict[str, Any], worlds: list[str], seeds: Iterable[int], folder: Path) -> Iterator[Task]:
    """All but the matched arm, whose weights are those that RACO's run had."""
    for seed in seeds:
        for world in worlds:
            m, plan = len(WORLDS[world].objectives), frozen(settings, world)
            rate = {name: settings[world][name]["rate"] for name in ("linear", "raco")}
            yield (world, seed, "base"), runs.read_base, (plan, world, seed, folder)
            for weights in WEIGHTINGS[m]:
                for combiner in ("raco", "linear", "cagrad"):
                    arm = Arm(combiner, weights, rate["linear" if combiner == "linear" else "raco"])
                    yield (world, seed, combiner, *weights), runs.train, (plan, world, seed, arm, folder)
            for i in range(m):
                arm = Arm("linear", tuple(float(j == i) for j in range(m)), rate["linear"])
                yield (world, seed, "single", *arm.weights), runs.train, (plan, world, seed, arm, folder)


def matched(settings: dict[str, Any], folder: Path) -> Callable[[dict[str, Any]], Iterator[Task]]:
    def then(content: dict[str, Any]) -> Iterator[Task]:
        world, seed, kind, *weights = content["key"]
        if kind == "raco":
            total = sum(content["effective"])
            arm = Arm("linear", tuple(x / total for x in content["effective"]), settings[world]["raco"]["rate"])
            plan = frozen(settings, world)
            yield (world, seed, "linear-matched", *weights), runs.train, (plan, world, seed, arm, folder)

    return then


def frozen(settings: dict[str, Any], world: str) -> Plan:
    steps = settings[world]["linear"]["step"]
    return replace(DEVELOP, labelling=PRESET, checkpoints=tuple(sorted({max(1, round(steps * s)) for s in SHARES})))


def prepared(tasks: Iterable[Task], workers: int) -> None:
    """Every seed's base and data before any run needs them, so that no two processes train one base."""
    wanted = {(arguments[0], *arguments[1:3], arguments[-1]): None for _, _, arguments in tasks}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet_worker) as pool:
        bases = {key[1:3]: key for key in wanted}.values()  # one per world and seed first
        list(pool.map(runs.prepare, *zip(*bases, strict=True)))
        list(pool.map(runs.prepare, *zip(*wanted, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["develop", "confirm", "results"])
    parser.add_argument("--world", nargs="+", choices=sorted(WORLDS), default=["safety", "summaries"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=HERE / "work", help="bases' data, not kept")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    develop, confirm = args.out / "runs-develop.jsonl", args.out / "runs-confirm.jsonl"
    if "develop" in args.what:
        tasks = [task for task in development(args.world, args.folder) if task[0] not in read(develop)]
        if tasks:
            prepared(tasks, args.workers)
        sequence(develop, args.workers, tasks, nothing)
        found = {world: chosen(list(read(develop).values()), world) for world in args.world}
        kept = args.out / "settings.json"
        before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        write_json(kept, {**before, **found})
    if "confirm" in args.what:
        settings = json.loads((args.out / "settings.json").read_text(encoding="utf-8"))
        tasks = list(confirmation(settings, args.world, args.seeds, args.folder))
        prepared([task for task in tasks if task[0] not in read(confirm)], args.workers)
        sequence(confirm, args.workers, tasks, matched(settings, args.folder))
    if "results" in args.what:
        made = {
            "commit": commit(), "versions": versions(), "cores": os.cpu_count(), "machine": platform.machine(),
            "command": " ".join(["python", "studies/language_worlds/run.py", *sys.argv[1:]]),
        }  # fmt: skip
        write_json(HERE / "results.json", {**made, **results(list(read(confirm).values()))})


if __name__ == "__main__":
    main()
