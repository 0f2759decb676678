"""What combining costs and how exact it is, against the solvers that others use for the same dual.

    python benchmarks/combine.py                  # writes benchmarks/results/combine.json
    python benchmarks/combine.py --rounds 3       # a quick look

Part one, time per call on conflicting gradients for m = 1 .. 16: `raco` as the trainer calls it (torch in, torch out,
input checked, diagnostics included), beside line 3 alone solved by SLSQP (as CAGrad's code does: start at 1/m, 1e-8
inside the root) and by 1,000 steps of entropic mirror descent. The ways take turns in every round, so that a busy
moment of the machine falls on all of them; median and quartiles of one call, and the worst optimality gap relative to
tr H. Part two, time per call of every other combiner on the same Grams. Part three, the certificate over 10,010 Grams
of the test suite's zoo, m = 2 .. 12.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from scipy.optimize import minimize as scipy_minimize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from paretune.combine import COMBINERS, raco  # noqa: E402
from paretune.combine.combination import checked, norm, trace  # noqa: E402
from paretune.combine.raco import minimise  # noqa: E402
from tests.combine.calls import facts_for  # noqa: E402
from tests.combine.grams import MAKERS, made  # noqa: E402

Array = np.ndarray
SIZES, CASES, C = (1, 2, 3, 4, 8, 12, 16), 20, 0.4


def by_raco(gram: Array, weights: Array) -> Array:
    raco(torch.from_numpy(gram), torch.from_numpy(weights), C)
    H, w, _ = checked(torch.from_numpy(gram), torch.from_numpy(weights))  # its p before the pull, for the gap only
    return np.array(minimise(H, w, C * norm(H, w)).p)


def by_slsqp(gram: Array, weights: Array) -> Array:
    b = gram @ weights
    s = C * np.sqrt(weights @ b)
    m = len(weights)
    return scipy_minimize(
        lambda p: b @ p + s * np.sqrt(p @ gram @ p + 1e-8),
        np.full(m, 1.0 / m),
        bounds=[(0.0, 1.0)] * m,
        constraints={"type": "eq", "fun": lambda p: 1.0 - p.sum()},
        method="SLSQP",
    ).x


def by_mirror_descent(gram: Array, weights: Array) -> Array:
    b = gram @ weights
    s = C * np.sqrt(weights @ b)
    p = np.full(len(weights), 1.0 / len(weights))
    rate = 1.0 / np.abs(gram).max()
    for step in range(1000):
        slopes = b + s * (gram @ p) / np.sqrt(p @ gram @ p)
        p = p * np.exp(-rate / np.sqrt(1.0 + step / 10.0) * (slopes - slopes.min()))
        p /= p.sum()
    return p


WAYS: dict[str, Callable[[Array, Array], Array]] = {
    "raco": by_raco,
    "SLSQP": by_slsqp,
    "mirror descent": by_mirror_descent,
}


def gap(gram: Array, weights: Array, p: Array) -> float:
    """h(p) - min_i(b_i + s (Hp)_i / ||G_p||) over tr H: p's excess over the minimum is at most that."""
    p = np.maximum(p, 0.0) / np.maximum(p, 0.0).sum()
    b, hp = gram @ weights, gram @ p
    s, length = C * np.sqrt(weights @ b), np.sqrt(p @ hp)
    return float((b @ p + s * length - (b + s * hp / length).min()) / np.trace(gram))


def timed(call: Callable[..., Any], cases: list[tuple[Any, Any]]) -> list[float]:
    """Microseconds of each call, one after the other: a training step calls it once, colder than this."""
    times = []
    for case in cases:
        start = time.perf_counter()
        call(*case)
        times.append((time.perf_counter() - start) * 1e6)
    return times


def time_part(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for m in SIZES:
        kind = "conflicting" if m > 1 else "normal"
        cases = [(g @ g.T, w) for g, w in made(kind, CASES, sizes=range(m, m + 1), seed=20)]
        tensors = [(torch.from_numpy(gram), torch.from_numpy(w)) for gram, w in cases]
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            times["raco"] += timed(raco, tensors)  # c = 0.4 is its default
            times["SLSQP"] += timed(by_slsqp, cases)
            times["mirror descent"] += timed(by_mirror_descent, cases)
        row: dict[str, Any] = {"m": m}
        for name, way in WAYS.items():
            low, median, high = np.percentile(times[name], [25, 50, 75])
            worst = max(gap(gram, w, way(gram, w)) for gram, w in cases)
            row[name] = {"median_us": median, "quartiles_us": [low, high], "worst_gap": worst}
        rows.append(row)
        cells = ("{:8.0f} [{:.0f}, {:.0f}]".format(row[n]["median_us"], *row[n]["quartiles_us"]) for n in WAYS)
        gaps = ", ".join(f"{row[name]['worst_gap']:.0e}" for name in WAYS)
        print(f"{m:3d} " + " ".join(f"{cell:26s}" for cell in cells) + f" gaps {gaps}")
    return rows


def rivals_part(rounds: int, sizes: tuple[int, ...] = (2, 4, 8, 16)) -> dict[str, dict[str, float]]:
    """Median milliseconds of processor time of one call of every combiner, by the number of objectives."""
    times: dict[str, dict[int, list[float]]] = {name: {m: [] for m in sizes} for name in COMBINERS}
    for m in sizes:
        cases = [
            (torch.from_numpy(g @ g.T), torch.from_numpy(w))
            for g, w in made("conflicting", CASES, sizes=range(m, m + 1))
        ]
        for _ in range(rounds):
            for name, combiner in COMBINERS.items():
                facts = facts_for(name, m)
                for gram, weights in cases:
                    start = time.thread_time_ns()
                    combiner(gram, weights, **facts)
                    times[name][m].append((time.thread_time_ns() - start) / 1e6)
    rows = {name: {str(m): float(np.median(ms)) for m, ms in row.items()} for name, row in times.items()}
    print(f"{'combiner, ms':20s}" + "".join(f"{f'm = {m}':>9s}" for m in sizes))
    for name, row in rows.items():
        print(f"{name:20s}" + "".join(f"{ms:9.2f}" for ms in row.values()))
    return rows


def certificate_part(count: int) -> dict[str, Any]:
    rng, kinds = np.random.default_rng(0), {}
    for kind in MAKERS:
        worst, worst_short, short, shifted, iterations = 0.0, 0.0, 0, 0, 0
        for g, w in made(kind, count):
            gram, weights, c = torch.tensor(g @ g.T), torch.tensor(w), float(rng.choice([0.1, 0.4, 0.9]))
            info = raco(gram, weights, c).info
            H, wl, _ = checked(gram, weights)
            s = c * norm(H, wl)
            p = minimise(H, wl, s).p if s > 0.0 else wl
            resolved = norm(H, p) >= 1e-6 * trace(H) ** 0.5
            if resolved:
                worst = max(worst, info["gap_relative"])
            else:
                short, worst_short = short + 1, max(worst_short, info["gap_relative"])
            shifted += info["shift"] > 0.0
            iterations = max(iterations, info["iterations"])
        kinds[kind] = {
            "count": count,
            "worst_gap": worst,
            "short": short,
            "worst_gap_short": worst_short,
            "not_unique": shifted,
            "most_programs": iterations,
        }
        print(f"{kind:18s} gap {worst:.0e}; {short:3d} with ||G_p|| < 1e-6: {worst_short:.0e}; {shifted} not unique")
    return kinds


def provenance() -> dict[str, Any]:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "src/paretune/combine"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "command": "python benchmarks/combine.py " + " ".join(sys.argv[1:]),
        "commit": commit + (" with changes" if changed else ""),
        "machine": {"processor": model, "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=910, help="Grams of each of the zoo's 11 kinds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "combine.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("  m " + " ".join(f"{name + ' us [quartiles]':26s}" for name in WAYS))
    results = provenance() | {"rounds": options.rounds, "cases": CASES, "c": C, "time": time_part(options.rounds)}
    results["every_combiner_ms"] = rivals_part(max(1, options.rounds // 3))
    results["certificate"] = certificate_part(options.count)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
