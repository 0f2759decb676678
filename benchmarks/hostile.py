"""Fuzzes every reader of files and replies with many new inputs, and keeps what became of them.

    python benchmarks/hostile.py                   # 2,000 inputs of each target; writes benchmarks/results/hostile.json
    python benchmarks/hostile.py --inputs 100 --targets "kept tokens,judges' replies" --out /tmp/hostile.json

The targets are those of `tests/hostile`, which the tests feed with a few inputs, always the same ones. An input is
taken, or refused with an InputError; anything else (another error, more than a minute, more than a GiB) is a failure:
it is printed with the input that shows it, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # a text may look like the name of a data set

from paretune.training.record import commit, versions, write_json  # noqa: E402
from tests.hostile.fuzz import fuzz  # noqa: E402
from tests.hostile.targets import TARGETS  # noqa: E402


def tried(name: str, inputs: int) -> dict[str, Any]:
    """Counts of one target, and the failure that was found, if any."""
    begun, failure, counts = time.process_time(), None, {}
    with tempfile.TemporaryDirectory(prefix="paretune-hostile-") as folder:
        os.environ["PARETUNE_CACHE"] = folder
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                counts = fuzz(TARGETS[name], Path(folder), inputs)
        except BaseException as error:  # hypothesis raises what the input raised, with the input in a note
            if isinstance(error, KeyboardInterrupt):
                raise
            failure = "".join(traceback.format_exception(error))
    seconds = round(time.process_time() - begun, 1)
    return {"inputs": sum(counts.values()), **counts, "failure": failure, "cpu_seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2_000)
    parser.add_argument("--targets", help="names, by commas; all where left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "hostile.json")
    args = parser.parse_args()
    names = args.targets.split(",") if args.targets else list(TARGETS)
    command = " ".join(["python benchmarks/hostile.py", *sys.argv[1:]])
    found: dict[str, Any] = {"command": command, "commit": commit(), "versions": versions(), "targets": {}}
    for name in names:
        # a page takes a second to draw
        inputs = max(1, args.inputs // 40) if name == "a report's run" else args.inputs
        found["targets"][name] = result = tried(name, inputs)
        print(f"{name}: {result}" if result["failure"] is None else f"{name}:\n{result['failure']}", flush=True)
        totals = found["targets"].values()
        found["inputs"] = sum(one["inputs"] for one in totals)
        found["failures"] = sum(one["failure"] is not None for one in totals)
        write_json(args.out, found)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
