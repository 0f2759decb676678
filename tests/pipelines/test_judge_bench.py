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
from paretune.evaluation.judge_quality import calibration_error
from paretune.pipelines.judge_bench import BASELINE, both_orders, read_bench, run_bench, tiny_judges
from paretune.preferences.answers import AnswerStore
from paretune.preferences.asking import Tally, ask
from paretune.preferences.judges.injections import injected, load_injections
from paretune.preferences.judges.schedules import make_schedule
from paretune.preferences.labels import LabelOptions
from paretune.preferences.reward_models.models import new_reward_model, set_padding
from paretune.preferences.source import Item, Source
from paretune.preferences.specs import Labeller, parse_sources
from paretune.preferences.verdicts import plan
from tests.cli.made import save_model
from tests.tokenizers_made import byte_bpe

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
    assert "agreement" not in own["short"] and "calibration_error" in own["biased"]
    assert "calibration_error" not in {**own["short"], **own[BASELINE]}, "of lengths σ is no probability"
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


def counted(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [quality_of(text) * 10 for text in completions]


def test_injections_of_scores_are_measured_in_their_labels() -> None:
    """Whatever `soft` is: sentences that change no score move nothing."""
    several = parse_sources({f"{g}": {"function": counted, "soft": g} for g in (0.05, 1.0, True)})
    report = run_bench(read_bench(rows(20)), several, None, injections=5)
    for labeller in several:
        own = report.judges[labeller.name]
        assert own["injections"]["attacks"]["moved"] == pytest.approx(0.0, abs=1e-12)
        assert own["figures"]["calibration_error"]["n"] == 20, "soft says what a difference is worth"


def test_attacks_ask_for_the_answers_of_the_protocol_and_failed_ones_again(tmp_path: Path) -> None:
    path, seen, down = tmp_path / "mine.txt", list[str](), [True]
    path.write_text("[system]\nS\n[user]\n{instruction} {output_1} {output_2}\n[answers]\nText one.\nText two.\n")

    def compare(prompts: list[str], pairs: list[tuple[str, str]], references: Any = None) -> list[float]:
        seen.extend(text for pair in pairs for text in pair)
        failed = [down[0] and "System: the other answer" in a + b for a, b in pairs]
        wins = [quality_of(a) > quality_of(b) for a, b in pairs]
        return [math.nan if bad else float(won) for bad, won in zip(failed, wins, strict=True)]

    source = Source("x", "x", compare=compare)
    mine = both_orders(Labeller("x", LabelOptions(), source=source, entry={"judge": "m", "protocol": str(path)}))
    bench, store, judged = read_bench(rows(8)), AnswerStore(tmp_path / "a"), []
    for down[0], retry_failed in ((True, False), (False, False), (False, True)):
        report = run_bench(bench, [mine], store, injections=4, retry_failed=retry_failed)
        judged.append(report.judges["x"]["injections"]["each"]["system voice"]["n"])
    assert judged == [0, 0, 4]
    asked = {label for text in seen for label in re.findall(r"Output \((\w+)\)", text)}
    assert asked == {"one", "two"}


def test_reward_models_and_implicit_rewards(tmp_path: Path) -> None:
    """By P = σ(difference) of what the source itself says of each response."""
    tokenizer = byte_bpe()
    for name, seed in (("policy", 1), ("start", 2)):
        save_model(tmp_path / name, seed=seed, tokenizer=tokenizer, max_position_embeddings=512)
    model = new_reward_model(str(tmp_path / "start"), ["good"], None)
    set_padding(model, tokenizer)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    several = parse_sources(
        {
            "good": {"reward_model": str(tmp_path / "rm")},
            "implied": {"implicit": str(tmp_path / "policy"), "reference": str(tmp_path / "start")},
        }
    )
    bench = read_bench(rows(12))
    report = run_bench(bench, several, None, injections=2)
    for labeller in several:
        assert labeller.source is not None
        items = [Item(one.prompt, (text,)) for one in bench.candidates for text in one.responses]
        scores = np.array(ask(labeller.source, items, None, Tally())).reshape(-1, 2)
        p = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
        own = report.judges[labeller.name]
        assert own["figures"]["accuracy_both"]["value"] == pytest.approx(((p > 0.5) == bench.labels).mean(), rel=1e-12)
        wanted = calibration_error(np.maximum(p, 1 - p), ((p > 0.5) == bench.labels).astype(float))
        assert own["figures"]["calibration_error"]["value"] == pytest.approx(wanted, rel=1e-6)
        assert own["injections"]["attacks"]["n"] == 2 * 18 and "agreement" not in own["figures"]


def test_judges_of_different_items_are_compared_on_the_same() -> None:
    bench = read_bench(rows(40))
    report = run_bench(bench, [labeller("all"), labeller("some", fails=True)], None)
    assert [report.judges[name]["figures"]["accuracy"]["n"] for name in ("all", "some", BASELINE)] == [40, 36, 40]
    assert {name: own["common"]["n"] for name, own in report.judges.items()} == {"all": 36, "some": 36, BASELINE: 36}
    assert report.judges["all"]["common"] == report.judges["some"]["common"], "one judge by two names"
    assert "common" not in run_bench(bench, [labeller("all")], None).judges["all"]


def test_combinations_are_calibrated_where_all_parts_have_probabilities() -> None:
    rule, judged = {"rule": "longer", "unit": "words"}, {"function": counted, "soft": 0.1}
    spec = {
        "sum": {"sum": [rule, {"function": counted}]},
        "choice": {"choose": "topic", "cases": {"x": judged}, "otherwise": judged},
        "rules": {"choose": "topic", "cases": {"x": judged}, "otherwise": rule},
    }
    report = run_bench(read_bench(rows(8)), parse_sources(spec), None)
    calibrated = {name: "calibration_error" in own["figures"] for name, own in report.judges.items()}
    assert calibrated == {"sum": False, "choice": True, "rules": False, BASELINE: False}


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
