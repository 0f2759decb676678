"""The rules of the house, read from the sources: who may import whom, and how long a file and a function may be.

The rooms stand in the order of one sentence (comparisons, policy, losses, gradients, combine, training, evaluation),
and imports run to the left along it. `CONTRIBUTING.md` says what belongs in which room.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "paretune"

# A room (or a module beside the rooms) -> what of ours it may import, itself aside. A new room gets a line here.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "objectives": {"errors"},
    # rules label rows while they are read; `preferences.rules` in turn is held to plain functions of text below
    "comparisons": {"errors", "files", "objectives", "preferences.rules"},
    "policy": {"errors", "files", "objectives", "comparisons"},
    # torch in, torch out, for users of any training loop: policy, which knows transformers, is therefore not among them
    "losses": {"errors", "objectives"},
    "gradients": {"errors", "objectives", "losses"},
    "combine": {"errors"},
    "training": {"errors", "files", "objectives", "comparisons", "policy", "losses", "gradients", "combine"},
    "preferences": {"errors", "files", "objectives", "comparisons", "policy"},
    "evaluation": {
        *{"errors", "files", "objectives", "comparisons", "policy", "losses", "gradients", "combine", "preferences"},
    },
}
# These sequence the rooms: anything but the command line, which nothing imports (`python -m paretune` is one).
ANYTHING = {"sandbox", "pipelines", "cli", "__main__"}
NO_TRANSFORMERS = {"errors", "files", "objectives", "losses", "gradients", "combine"}


def _sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def _parts(path: Path) -> tuple[str, ...]:
    """src/paretune/combine/raco.py -> ("combine", "raco")"""
    return path.relative_to(SRC).with_suffix("").parts


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Full names of imported modules (of `from a import b` both a and a.b) and lines; those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides which room it reaches into"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def violations(path_parts: tuple[str, ...], tree: ast.AST) -> list[str]:
    """What the module's imports break, each as "line: what"."""
    room, found = path_parts[0], []
    for name, line in _imports(tree):
        target = name.split(".")
        if target[0] == "transformers" and room in NO_TRANSFORMERS:
            found.append(f"{line}: {room} imports {name}; it is torch in, torch out")
        if target[0] != "paretune" or len(target) < 2 or target[1] in (room, "__version__"):
            continue
        if target[1] == "cli" and room != "__main__":
            found.append(f"{line}: {name}; nothing imports the command line")
        elif room not in ANYTHING:
            allowed = MAY_IMPORT.get(room)
            if allowed is None:
                found.append(f"{line}: the room {room} has no line in MAY_IMPORT")
            elif not {target[1], ".".join(target[1:3])} & allowed:
                found.append(f"{line}: {room} imports {name}; it may import {', '.join(sorted(allowed))}")
        if room == "preferences" and path_parts[-1] == "rules" and target[1] not in ("errors", "objectives"):
            found.append(f"{line}: rules are plain functions of text; comparisons import them, so they import no room")
    return found


def test_imports_run_to_the_left() -> None:
    # the package's own __init__ is the facade that names things of every room
    found = {
        str(path.relative_to(ROOT)): broken
        for path in _sources(SRC)
        if path != SRC / "__init__.py" and (broken := violations(_parts(path), _parsed(path)))
    }
    assert not found


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("combine.raco", "from paretune.objectives import Objective", True),
        ("combine.raco", "from paretune.errors import InputError", False),
        ("combine.raco", "from paretune.combine.rivals import linear", False),
        ("gradients.stack", "def f():\n    import transformers.trainer", True),
        ("losses", "from paretune import policy", True),
        ("policy.margins", "from paretune.losses import margin", True),
        ("comparisons.rows", "from paretune.preferences.rules import RULES", False),
        ("comparisons.rows", "from paretune.preferences.judges import pointwise", True),
        ("preferences.rules", "from paretune.comparisons.rows import BadRow", True),
        ("preferences.pairing", "from paretune.training.config import RACOConfig", True),
        ("evaluation.sample", "import paretune.training", True),
        ("training.trainer", "from paretune.cli.main import main", True),
        ("pipelines.front", "from paretune import cli", True),
        ("__main__", "from paretune.cli.main import main", False),
        ("cli.train", "from paretune.training.trainer import RACOTrainer", False),
        ("attic.old", "from paretune.losses import margin", True),
    ],
)
def test_the_import_rule_sees_what_it_should(module: str, line: str, broken: bool) -> None:
    assert bool(violations(tuple(module.split(".")), ast.parse(line))) is broken


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in _sources(*(ROOT / name for name in ("src", "tests", "examples", "benchmarks", "studies"))):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines; does it hold one thing?")
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                size = node.end_lineno - node.lineno + 1
                long.append(
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {size} lines; does it do one thing?"
                )
    assert not long


def test_the_library_does_not_print() -> None:
    """A library logs or returns; only commands speak."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _sources(SRC)
        if _parts(path)[0] != "cli"
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found


# Not results: a cell's trial data in a temporary folder; a base that is renamed as a whole, and whose digest is that of
# its maker's source; tokens and scores with a digest that are made anew where it fails; a lock's word.
_WRITES = {"sandbox.language", "pipelines.front.cells", "comparisons.token_store", "policy.reference_cache"}
_WRITES |= {"files", "pipelines.front.engine_ray"}


def test_results_are_written_whole() -> None:
    """`files.py` writes to a neighbour, flushes and renames; a plain write can be cut in half."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _sources(SRC)
        if ".".join(_parts(path)) not in _WRITES
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("write_bytes", "write_text", "dump") and ast.unparse(node.func) != "files.write_text"
    ]
    assert not found
