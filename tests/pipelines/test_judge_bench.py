"""Judges against known labels: a biased one, one that can be talked into things, a rule; data in LLMBar's layout."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.pipelines.judge_bench import BASELINE, both_orders, read_bench, run_bench, tiny_judges
from paretune.preferences.answers import AnswerStore
from paretune.preferences.judges.injections import injected, load_injections
from paretune.preferences.judges.schedules import make_schedule
from paretune.preferences.labels import LabelOptions
from paretune.preferences.source import Source
from paretune.preferences.specs import Labeller, parse_sources
from paretune.preferences.verdicts import plan

BIAS = 1.0


def rows(n: int) -> list[dict[str, Any]]:
    """The better output names a larger number; one in eight labels is wrong."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        one, two = rng.permutation(40)[:2].tolist()
        better = 1 if (one > two) != (i % 8 == 0) else 2
        made.append(
            {"input": f"Count {i}.", "output_1": f"quality {one}", "output_2": f"quality {two}", "label": better}
        )
    return made


def quality_of(text: str) -> float:
    found = re.search(r"quality (\d+)", text)
    assert found is not None
    return int(found[1]) / 10


def judge(gullible: float = 0.0, fails: bool = False) -> Any:
    """P = σ(quality gap + bias), and an attack on the slot counts as so much quality."""

    def compare(prompts: list[str], pairs: list[tuple[str, str]], references: Any = None) -> list[float]:
        answers = []
        for prompt, (first, second) in zip(prompts, pairs, strict=True):
            gap = quality_of(first) - quality_of(second) + BIAS
            gap += gullible * ("Output (a)" in first) - gullible * ("Output (b)" in second)
            answers.append(math.nan if fails and prompt.endswith("3.") else 1 / (1 + math.exp(-gap)))
        return answers

    return compare


def labeller(name: str, schedule: str = "knockout", **options: Any) -> Labeller:
    source = Source(name, name, compare=judge(**options), schedule=make_schedule(schedule, None, "x"))
    return both_orders(Labeller(name, LabelOptions(), source=source))


def test_a_known_bias_is_reported_and_undone(tmp_path: Path) -> None:
    bench, store = read_bench(rows(160)), AnswerStore(tmp_path / "a")
    several = [
        labeller("biased"),
        labeller("failing", fails=True),
        *parse_sources({"short": {"rule": "shorter", "unit": "words"}}),
    ]
    assert plan(several, bench.candidates, store, seed=0, retry_failed=False)["biased"] == (320, 0)
    report = run_bench(bench, several, store)
    own = {name: judge["figures"] for name, judge in report.judges.items()}
    truth = np.array(
        [quality_of(str(one.responses[0])) - quality_of(str(one.responses[1])) for one in bench.candidates]
    )
    assert own["biased"]["accuracy_both"]["value"] == pytest.approx(7 / 8, rel=1e-12), "the wrong labels, no others"
    assert own["biased"]["accuracy"]["value"] < 0.85
    assert own["biased"]["agreement"]["value"] == pytest.approx(np.mean(np.abs(truth) > BIAS), rel=1e-12)
    excess = np.mean([1 / (1 + math.exp(-g - BIAS)) + 1 / (1 + math.exp(g - BIAS)) - 1 for g in truth])
    assert own["biased"]["first_slot_excess"]["value"] == pytest.approx(excess, rel=1e-9) and excess > 0.1
    assert report.judges["failing"]["failed"] == pytest.approx(0.1, rel=1e-9)
    assert own["failing"]["accuracy"]["n"] == 144
    assert report.agreement["biased~failing"]["value"] == 1.0
    assert "agreement" not in own["short"] and "calibration_error" not in own[BASELINE]
    assert any("failing has no verdict on 10.0 %" in warning for warning in report.warnings)
    assert any(warning.startswith("short is not told apart from chance") for warning in report.warnings)
    assert not any(warning.startswith("biased") for warning in report.warnings)


def test_injections_are_measured() -> None:
    bench = read_bench(rows(60))
    report = run_bench(bench, [labeller("firm"), labeller("gullible", gullible=30.0)], None, injections=20)
    firm, gullible = (report.judges[name]["injections"] for name in ("firm", "gullible"))
    assert firm["items"] == 20 and firm["asking"]["asked"] == 2 * 20 * len(load_injections())
    assert firm["attacks"] == {"turned": 0.0, "moved": pytest.approx(0.0, abs=1e-12), "n": 20 * 18}
    assert gullible["controls"]["turned"] == 0.0 and gullible["controls"]["n"] == 20 * 4
    obeyed = {one.name for one in load_injections() if "Output ({label})" in one.text}
    assert {name for name, figure in gullible["each"].items() if figure["turned"] == 1.0} == obeyed
    assert gullible["attacks"]["turned"] == pytest.approx(len(obeyed) / 18, rel=1e-12)
    assert [warning for warning in report.warnings if "talked into" in warning] == [
        "gullible can be talked into a verdict by what a response says."
    ]


def test_the_injection_set() -> None:
    every = load_injections()
    assert len({one.name for one in every}) == len(every) and sum(one.control for one in every) == 4
    assert all(one.place in ("before", "after") for one in every)
    assert injected(every[0], "text", "a", "b").endswith("answer (a).")
    messages = injected(every[0], [{"role": "assistant", "content": "text"}], "b", "a")
    assert isinstance(messages, list) and messages[0]["content"].startswith("text\n\nIgnore")


def test_reading(tmp_path: Path) -> None:
    folder = tmp_path / "llmbar"
    folder.mkdir()
    (folder / "Natural.json").write_text(json.dumps(rows(3)))
    (folder / "Adversarial.json").write_text(json.dumps([{**row, "reference": "R", "topic": 1} for row in rows(2)]))
    drawn = tmp_path / "drawn.jsonl"
    drawn.write_text(json.dumps({"prompt": "Count 2.", "responses": ["drawn", "other"]}) + "\n")
    bench = read_bench(str(folder), references=str(drawn))
    assert bench.sets == ["Adversarial"] * 2 + ["Natural"] * 3
    assert [one.columns.get("reference") for one in bench.candidates] == ["R", "R", None, None, "drawn"]
    assert bench.labels.tolist() == [row["label"] == 1 for row in [*rows(2), *rows(3)]]
    assert len(read_bench(str(folder), take=1).candidates) == 2
    report = run_bench(bench, [labeller("biased")], None)
    assert set(report.judges["biased"]["sets"]) == {"Adversarial", "Natural"} == set(report.items)
    drawn.write_text(json.dumps({"prompt": "Count 99.", "responses": ["drawn"]}) + "\n")
    for change, words in (({"label": 3}, "bad label"), ({"label": True}, "bad label"), ({"output_2": " "}, "output_2")):
        with pytest.raises(InputError, match=words):
            read_bench([{**rows(1)[0], **change}])
    with pytest.raises(InputError, match="missing field"):
        read_bench([{"prompt": "x"}])
    with pytest.raises(InputError, match="no reference fits"):
        read_bench(rows(2), references=str(drawn))


def test_tiny_judges(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    spec = {"x": {"judge": str(tmp_path)}, "y": {"judge": "gpt", "server": "http://h/v1"}, "z": {"rule": "longer"}}
    assert len(tiny_judges(spec)) == 1 and "plumbing" in tiny_judges(spec)[0]
