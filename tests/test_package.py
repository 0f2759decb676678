"""The package as it is installed: its version, its types, its dependencies and their pins, what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import paretune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("paretune") == paretune.__version__


def test_types_are_shipped() -> None:
    assert files("paretune").joinpath("py.typed").is_file()


def test_importing_the_package_loads_no_framework() -> None:
    assert not _modules_after("import paretune") & {"torch", "transformers", "datasets", "numpy"}


def test_the_mathematics_load_without_transformers() -> None:
    loaded = _modules_after("import paretune.losses, paretune.gradients, paretune.combine")
    assert "torch" in loaded
    assert not loaded & {"transformers", "peft", "datasets"}


@pytest.mark.parametrize("name", paretune.__all__)
def test_public_names_resolve(name: str) -> None:
    assert name in dir(paretune)
    assert getattr(paretune, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'RACO'"):
        _ = paretune.RACO


def test_constraints_are_exact_and_name_no_place() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line


@pytest.mark.parametrize("requirement", [*CORE, *(r for lines in EXTRAS.values() for r in lines)], ids=str)
def test_every_requirement_is_open_upwards_and_pinned_within_its_range(requirement: Requirement) -> None:
    assert [clause.operator for clause in requirement.specifier] == [">="]
    assert requirement.specifier.contains(_pins()[canonicalize_name(requirement.name)])


def test_every_lower_bound_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    stubs = "types-"  # their versions follow the library's
    bounds = [i for i, line in enumerate(lines) if re.match(r'\s+"[^"]+>=', line) and stubs not in line]
    assert len(bounds) > 10
    assert not [lines[i] for i in bounds if not lines[i - 1].lstrip().startswith("#")]


def test_every_import_is_a_declared_dependency() -> None:
    """At module level of what users need; inside a function also of what an extra brings."""
    of_import = {"yaml": "pyyaml", "lm_eval": "lm-eval", "math_verify": "math-verify"}
    core = {canonicalize_name(r.name) for r in CORE}
    extra = core | {canonicalize_name(r.name) for name in EXTRAS if name != "dev" for r in EXTRAS[name]}
    undeclared = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in (name.split(".")[0] for name in names):
                known = core if node in tree.body else extra
                if name not in sys.stdlib_module_names | {"paretune"} and of_import.get(name, name) not in known:
                    undeclared.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not undeclared
