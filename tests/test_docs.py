"""The documents hold: their examples run, their links lead somewhere, every metric is explained, no file is forgotten.

In a document, the words after a fence's language say what is done with the block, in order, in one empty folder:
`json file=NAME` writes it (`layout=L rows=N`: and reads it), `python run` runs it, `sh run` runs its paretune commands,
`text output` is what the block before printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from paretune import Objective, RACOConfig, RACOTrainer
from paretune.cli.main import main
from paretune.comparisons.formats import read_comparisons
from paretune.comparisons.layouts import LAYOUTS
from paretune.preferences.rule_source import TEXT_RULES
from tests.models_made import make_model
from tests.tokenizers_made import chatml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


class Block(NamedTuple):
    line: int
    language: str
    words: dict[str, str]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks of a page."""
    fence = re.compile(r"^```(\w+)([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    content = page.read_text(encoding="utf-8")
    for match in fence.finditer(content):
        words = dict(word.partition("=")[::2] for word in match[2].split())
        yield Block(content[: match.start()].count("\n") + 1, match[1], words, match[3])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder in which the model that the documents name is a tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    tokenizer = chatml()
    name = "Qwen/Qwen3-0.6B"
    make_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(name)
    tokenizer.save_pretrained(name)
    return tmp_path


def run_page(page: Path, folder: Path) -> int:
    """Runs a page's blocks in order and returns how many of them did or said something."""
    names: dict[str, Any] = {}
    said, done = "", 0
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if "file" in block.words:
            (folder / block.words["file"]).write_text(block.text, encoding="utf-8")
            if "layout" in block.words:
                rows, report = read_comparisons(block.words["file"])
                assert report.sources[0]["format"] == block.words["layout"], where
                assert len(rows) == int(block.words["rows"]), where
        elif "run" in block.words:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                if block.language == "python":
                    exec(compile("\n" * block.line + block.text, page.name, "exec"), names)
                else:
                    run_commands(block.text, where)
            said = out.getvalue()
        elif "output" in block.words:
            assert said.strip() == block.text.strip(), where
        else:
            continue
        done += 1
    return done


def run_commands(text: str, where: str) -> None:
    """Each `paretune ...` line, continued by backslashes, as the shell would start it; others are a mistake."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "paretune", where
            assert main(words[1:]) == 0, f"{where}: {line}"


def test_the_examples_of_the_data_page_run(folder: Path) -> None:
    page = ROOT / "docs" / "data.md"
    assert run_page(page, folder) > 20
    shown = {block.words["layout"] for block in blocks(page) if "layout" in block.words}
    assert shown == set(LAYOUTS) - {"truthfulqa"}, "each layout has an example (truthfulqa needs two files)"
    named = page.read_text(encoding="utf-8")
    assert all(f"**`{name}`**" in named for name in set(LAYOUTS) - {"native"})


def test_the_examples_of_the_labelling_page_run(folder: Path) -> None:
    page = ROOT / "docs" / "labelling.md"
    assert run_page(page, folder) > 10
    rules = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)?", page.read_text(encoding="utf-8").split("### Rules")[1], re.M))
    assert set(TEXT_RULES) <= {name for found in rules for name in found}, "each rule has a line"


def test_the_examples_of_the_improve_page_run(folder: Path) -> None:
    assert run_page(ROOT / "docs" / "improve.md", folder) == 5
    assert json.loads((folder / "runs" / "improved" / "improve.json").read_text())["status"] in ("finished", "stopped")


def test_the_examples_of_the_page_on_judges_run(folder: Path) -> None:
    make_model("qwen3", vocab_size=len(chatml()), max_position_embeddings=4096).save_pretrained("Qwen/Qwen3-0.6B")
    assert run_page(ROOT / "docs" / "judges.md", folder) == 5
    assert (folder / "train.jsonl").is_file() and (folder / "bench.json").is_file()


def test_the_examples_of_the_page_on_reward_models_run(folder: Path) -> None:
    assert run_page(ROOT / "docs" / "reward_models.md", folder) == 4


METRICS = ROOT / "docs" / "metrics.md"


def _explained() -> set[str]:
    """The names in the first column of the glossary's tables."""
    lines = METRICS.read_text(encoding="utf-8").splitlines()
    cells = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def _general(key: str, objectives: list[str]) -> str:
    """`eval_loss/x` -> `loss/<objective>`, `grad/cosine/x~y` -> `grad/cosine/<a>~<b>`."""
    bare = key.removeprefix("eval_")
    head, _, tail = bare.rpartition("/")
    if tail in objectives:
        return f"{head}/<objective>"
    if "~" in tail:
        return f"{head}/<a>~<b>"
    return bare if head or bare == "loss" else key  # eval_runtime is transformers' own


def test_every_metric_of_a_run_is_in_the_glossary(folder: Path) -> None:
    names = ["useful", "short", "rare"]
    rows = [
        {"prompt": f"Is {i} even?", "response_a": " Yes" * (1 + i % 3), "response_b": " No", "preferences": labels}
        for i in range(8)
        for labels in [{"useful": i % 2, "short": 0.0 if i % 3 else 0.5, "rare": 1.0 if i == 0 else None}]
    ]
    numbers = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = RACOTrainer(
        model="Qwen/Qwen3-0.6B",
        args=RACOConfig(
            output_dir="run", use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
            eval_strategy="steps", eval_steps=2, **numbers,
        ),
        objectives=[Objective(name) for name in names],
        train_dataset=rows,
        eval_dataset=rows,
    )  # fmt: skip
    trainer.train()
    lines = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    logged = {_general(key, names) for line in lines for key in line}
    assert not logged - _explained()
    assert _explained() - logged == {"steps/skipped", "steps/spiked"}, "logged only where there was such a step"
    for line in lines:  # what the glossary calls "always", and the sum that it says the loss is
        if "loss" in line and "train_runtime" not in line:
            there = [name for name in names if not line[f"combine/left_out/{name}"]]
            assert line["loss"] == pytest.approx(sum(line[f"loss/{name}"] for name in there) / 3, rel=1e-5)
            assert sum(line[f"combine/p/{name}"] for name in there) == pytest.approx(1)
            assert all(line[f"combine/coefficient/{name}"] >= len(there) / 9 for name in there)
            assert line["combine/angle_to_linear"] <= math.asin(0.4) + 1e-9


def test_the_commands_and_programs_of_the_readme_run(folder: Path) -> None:
    assert run_page(ROOT / "README.md", folder) == 5
    for name in ("runs/first", "runs/second"):
        assert (folder / name / "adapter_model.safetensors").is_file()
        assert json.loads((folder / name / "run.json").read_text())["status"] == "finished"


def _tree() -> set[str]:
    """Paths of the annotated tree under src/paretune."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme[readme.index("src/paretune/\n") :].splitlines()[1:]
    folders: list[str] = []
    found = set()
    for line in lines:
        if not line.startswith(" "):
            break
        depth, name = (len(line) - len(line.lstrip())) // 2 - 1, line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        found.add("/".join(folders) + ("/" if name.endswith("/") else ""))
    return found


def test_the_tree_names_every_file_and_no_other() -> None:
    package, named = ROOT / "src" / "paretune", _tree()
    assert not [name for name in named if not (package / name).exists()]
    there = {str(path.relative_to(package)) for path in package.rglob("*.py") if not path.name.startswith("__")}
    whole = [name for name in named if name.endswith("/") and not any(o != name and o.startswith(name) for o in named)]
    missing = {name for name in there - named if not name.startswith(tuple(whole))}
    assert not missing, "give each a phrase in the README's tree"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", content):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
