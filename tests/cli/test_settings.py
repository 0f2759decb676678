"""Settings: YAML first, flags over it, known keys, right types."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from paretune.cli.settings import convert, make_config, resolve
from paretune.cli.yaml_values import read_yaml
from paretune.errors import InputError


class When(Enum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Own:
    data: str | list | dict | None = None
    objectives: str | list | dict | None = None
    lora: bool | dict | None = None
    resume: bool | str = False
    dry_run: bool = False
    take: int | None = None


@dataclass
class Config:
    rate: float = 0.1
    name: str = "x"
    save: When | str = "steps"
    steps: int = 1
    limit: int | None = 5
    labels: list[str] | None = None
    report: None | str | list[str] = "none"
    inner: int = field(default=0, init=False)


def read(*argv: str, yaml: str | None = None, tmp_path: Path | None = None) -> dict[str, Any]:
    words = list(argv)
    if yaml is not None:
        path = (tmp_path or Path()) / "config.yaml"
        path.write_text(yaml, encoding="utf-8")
        words.append(str(path))
    settings = resolve(words, Own, Config, required=())
    return {**{k: v for k, v in vars(settings.own).items() if v not in (None, False)}, **settings.config}


def test_flags_override_the_file(tmp_path: Path) -> None:
    found = read("--rate", "0.5", "--data", "b.jsonl", yaml="rate: 0.3\ndata: a.jsonl\nsteps: 4\n", tmp_path=tmp_path)
    assert found == {"rate": 0.5, "data": "b.jsonl", "steps": 4}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--rate", "1e-5"], {"rate": 1e-5}),  # YAML 1.1 reads a string
        (["--rate=3"], {"rate": 3.0}),
        (["--rate", "-2"], {"rate": -2.0}),
        (["--steps", "1e3"], {"steps": 1000}),
        (["--name", "007"], {"name": "007"}),
        (["--name", "no"], {"name": "no"}),
        (["--save", "no"], {"save": "no"}),
        (["--limit", "null"], {"limit": None}),
        (["--dry-run"], {"dry_run": True}),
        (["--dry_run", "false"], {}),
        (["--resume"], {"resume": True}),
        (["--resume", "runs/x/checkpoint-4"], {"resume": "runs/x/checkpoint-4"}),
        (["--lora", "true"], {"lora": True}),
        (["--lora", "{r: 4}"], {"lora": {"r": 4}}),
        (["--lora.r", "8", "--lora.target_modules", "[q, v]"], {"lora": {"r": 8, "target_modules": ["q", "v"]}}),
        (["--data", "a", "--data", "b"], {"data": ["a", "b"]}),
        (["--data", "a: b#c.jsonl"], {"data": "a: b#c.jsonl"}),
        (["--data", "2024"], {"data": "2024"}),
        (["--labels", "x"], {"labels": ["x"]}),
        (["--labels", "x", "--labels", "[y"], {"labels": ["x", "[y"]}),
        (["--report", "[a, b]"], {"report": ["a", "b"]}),
        (["--report", "none"], {"report": "none"}),
        (["--objectives", '{"h": 0.6, "s": 4e-1}'], {"objectives": {"h": 0.6, "s": 0.4}}),
        (["--objectives", "h,s"], {"objectives": "h,s"}),
        (["--objectives.h", "0.6"], {"objectives": {"h": {"weight": 0.6}}}),
        (["--objectives.s.weight", "1"], {"objectives": {"s": {"weight": 1}}}),
    ],
)  # fmt: skip
def test_flags(argv: list[str], expected: dict[str, Any]) -> None:
    assert read(*argv) == expected


@pytest.mark.parametrize(
    "objectives",
    ["{h: 0.6, s: 0.4}", "[{name: h, weight: 0.6}, {name: s, weight: 0.4}]", "{h: {weight: 0.6}, s: {weight: 0.4}}"],
)
def test_one_option_of_an_objective_changes_in_any_form(tmp_path: Path, objectives: str) -> None:
    changed = read(
        "--objectives.h", "0.5", "--objectives.s.loss", "ipo", yaml=f"objectives: {objectives}", tmp_path=tmp_path
    )
    assert changed["objectives"] == {"h": {"weight": 0.5}, "s": {"weight": 0.4, "loss": "ipo"}}


def test_a_switch_leaves_the_file_that_follows_alone(tmp_path: Path) -> None:
    found = read("--dry_run", yaml="steps: 2", tmp_path=tmp_path)
    assert found == {"dry_run": True, "steps": 2}
    assert read("--resume", yaml="steps: 2", tmp_path=tmp_path) == {"resume": True, "steps": 2}


def test_yaml_says_no_where_no_is_a_choice(tmp_path: Path) -> None:
    assert read(yaml="save: no\nrate: 1e-5\n", tmp_path=tmp_path) == {"save": "no", "rate": 1e-5}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rat", "1"], ["unknown key --rat", "Did you mean 'rate'?"]),
        (["--rate"], ["--rate needs a value"]),
        (["--rate", "abc"], ["--rate: bad rate", "a number", "found abc"]),
        (["--rate", "true"], ["bad rate", "a number"]),
        (["--steps", "1.5"], ["bad steps", "a whole number"]),
        (["--save", "stesp"], ["bad save", "no, steps", "Did you mean 'steps'?"]),
        (["--rate", "1", "--rate", "2"], ["--rate is given 2 times"]),
        (["--objectives", "h", "--objectives", "s"], ["--objectives is given 2 times", "one value"]),
        (["--data", "a", "--data", "{path: b}"], ["--data is given 2 times"]),
        (["--lora", "{r: 4"], ["unreadable YAML", "--lora"]),
        (["a.yaml", "b.yaml"], ["unexpected argument 'b.yaml'"]),
        (["-x"], ["unexpected argument '-x'"]),
        (["absent.yaml"], ["no such configuration file", "absent.yaml"]),
        (["--inner", "3"], ["unknown key --inner"]),
    ],
)
def test_bad_flags(argv: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(*argv)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("learning: 1\nstep: 2", ["unknown key 'learning'"]),
        ("step: 2", ["unknown key 'step'", "Did you mean 'steps'?", "config.yaml"]),
        ("rate: [1]", ["bad rate", "a number"]),
        ("rate: 1\nrate: 2", ["'rate' is given twice", "line 2"]),
        ("objectives: {h: 1, h: 2}", ["'h' is given twice"]),
        ("rate: [1\nsteps: 2", ["unreadable YAML", "line 2"]),
        ("- 1\n- 2", ["not a configuration", "a mapping"]),
        ("lora: seven", ["bad lora", "true or false or a mapping"]),
    ],
)
def test_bad_files(tmp_path: Path, yaml: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(yaml=yaml, tmp_path=tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(InputError, match=r"config\.yaml: invalid UTF-8"):
        resolve([str(path)], Own, Config, required=())


def test_a_required_key_is_named() -> None:
    with pytest.raises(InputError, match=r"data is missing.*--data VALUE"):
        resolve([], Own, Config, required=("data",))


def test_what_the_configuration_refuses_becomes_an_input_error() -> None:
    def refuse(**values: Any) -> None:
        raise ValueError("one and two\ndo not go together")

    with pytest.raises(InputError, match="settings: one and two do not go together$"):
        make_config(refuse, {})  # type: ignore[arg-type]


def test_convert_keeps_what_any_type_allows() -> None:
    value = {"a": [1]}
    assert convert("k", value, Any, "") is value
    assert read_yaml("[1e-5, .5E2, 1e5x]", "") == [1e-5, 50.0, "1e5x"]
