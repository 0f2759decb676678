"""The page as a document: complete, self-contained, escaped, with every figure labelled."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.evaluation.report import write_report
from tests.evaluation.report.demo_made import (
    HOSTILE,
    LONG_UNIT,
    METHODS,
    WORLDS,
    made_demo,
    made_run,
    made_world,
    weightings,
)
from tests.evaluation.report.dom import Node, read
from tests.runs_made import made_text_rows, small_trainer


@pytest.fixture(scope="module")
def tree(demo_page: Path) -> Node:
    return read(demo_page.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(demo_page: Path, tree: Node) -> None:
    page = demo_page.read_text(encoding="utf-8")
    assert demo_page.stat().st_size < 6e6
    outside = set(re.findall(r"[a-z]+://[^\"' )]+", page))
    assert outside == {"http://www.w3.org/2000/svg"}, "a namespace, which nothing fetches"
    for node in tree.walk():
        assert node.tag not in {"link", "img", "iframe", "object", "base"}
        assert "src" not in node.attributes
        for key in ("href", "xlink:href"):
            assert node.attributes.get(key, "#").startswith("#")
    assert "@import" not in page
    assert "default-src 'none'" in page, "and a browser is told so"
    assert not list(demo_page.parent.glob("*.part"))


def test_links_and_references_lead_somewhere(tree: Node, demo_page: Path) -> None:
    ids = {node.attributes["id"] for node in tree.walk() if "id" in node.attributes}
    asked = {node.attributes["href"][1:] for node in tree.walk() if "href" in node.attributes}
    asked |= set(re.findall(r"url\(#([^)]+)\)", demo_page.read_text(encoding="utf-8")))
    assert len(asked) > 50
    assert asked <= ids


def test_every_figure_has_axes_units_and_a_caption(tree: Node) -> None:
    figures = tree.all("figure", "plots")
    assert len(figures) >= 6 * len(WORLDS)
    for i, figure in enumerate(figures, start=1):
        (caption,) = figure.all("figcaption")
        assert caption.text.startswith(f"Figure {i}.")
        assert len(caption.text) > 60
        assert figure.all("ul", "legend")
        for plot in figure.all("svg", "plot"):
            assert plot.attributes["aria-label"]
            words = [t.text for t in plot.all("text") if re.search("[a-z]{2}", t.text)]
            assert len(words) >= 2, "both axes are named"
            assert len([t for t in plot.all("text") if re.search(r"\d", t.text)]) >= 4, "and have figures"
    units = " ".join(t.text for t in tree.all("text"))
    for unit in (
        "share of facts",
        "conciseness (-1.2 to 0)",
        "gain (-1.2 to 0)",
        "nats",
        "degrees",
        "%",
        "optimizer step",
        "(no unit)",
    ):
        assert unit in units


def test_every_point_says_its_weights_scores_and_runs(tree: Node) -> None:
    fronts = [plot for plot in tree.all("svg", "plot") if plot.attributes["aria-label"].startswith("Front: ")]
    marks = [n for plot in fronts for n in plot.walk() if "tip" in n.classes]
    for world, units in WORLDS.items():
        tips = {n.attributes["data-tip"] for n in marks if world in n.attributes["data-tip"]}
        for method, shown in zip(METHODS, ("linear", "CAGrad", "MGDA", "RACO"), strict=True):
            for weights in weightings(len(units)):
                if method == "mgda" and max(weights) > 0.51:
                    continue  # takes no weights: one point
                run = f"run runs/{world}/{method}-{'-'.join(f'{w:g}' for w in weights)}-seed"
                asked = ", ".join(f"{name} {w:.3g}" for name, w in zip(units, weights, strict=True))
                means = [
                    tip for tip in tips if tip.startswith(f"{shown}, mean of 2 runs") and f"weights: {asked}\n" in tip
                ]
                assert means and all(f"{run}0" in tip and f"{run}1" in tip for tip in means), run
                assert all(re.search(f"{name}: −?[01]\\.", tip) for tip in means for name in units)
                assert any(tip.startswith(f"{shown}, one run, seed 1") and f"{run}1" in tip for tip in tips), run
    for seeds in ("mean of 2 runs (seed 0, 1)", "one run, seed 1"):
        assert any(n.attributes["data-tip"].startswith(f"trained on helpful alone, {seeds}") for n in marks)
    for mark in ("base, before training", "oracle"):
        assert any(n.attributes["data-tip"].startswith(mark) for n in marks)
    for node in tree.walk():
        if "tip" in node.classes:  # without the script: the browser's own
            (title,) = node.all("title")
            assert title.text == node.attributes["data-tip"]


def test_the_sections_of_a_demo_are_there(tree: Node) -> None:
    assert [node.text for node in tree.all("h2")] == [*WORLDS, "Warnings and fallbacks", "How to reproduce"]
    parts = ["The front", "Gain and distance", "Volume under the front", "Conflict and combination", "Side by side"]
    assert [node.text for node in tree.all("h3")] == [*parts, "What to try", "Single runs"] * 2
    text = tree.text
    assert f"conciseness: {LONG_UNIT}." in text, "an axis has room for its range only"
    assert "one backward pass per objective, because of a made reason" in text
    assert "paretune demo --seeds 3" in text
    assert "0123456789abcdef+" in text
    assert "torch 2.13.0" in text
    assert "hack: always empty" in text
    assert "over-refusal" in text
    assert len(tree.all("article", "example")) == 10 * len(WORLDS)


def test_what_models_write_stays_text(tree: Node) -> None:
    assert len(tree.all("script")) == 1
    assert not tree.all("img")
    assert "hacked" not in tree.all("script")[0].text
    shown = HOSTILE.replace("\x07", "\ufffd")
    assert [node.text for node in tree.all("p", "prompt")][0] == f"prompt 0 {shown}"
    answers = [p.text for node in tree.all("div", "answer") for p in node.all("p", "text")]
    assert answers.count(shown) == 2 * len([i for i in range(10) for k in range(3) if (i + k) % 4 == 0])
    assert "49" not in tree.all("p", "prompt")[0].text


def test_hostile_names_stay_text_everywhere(tmp_path: Path) -> None:
    evil = '<script>window.hacked = 1<script> & "q" <img src=x onerror=alert(1)> {{ 7 * 7 }} $x'
    names = {evil: HOSTILE, "_b $y^2$": "<b>unit</b>"}
    (tmp_path / "runs").mkdir()
    world = made_world(tmp_path, "plain", names, (0,), 3) | {"name": HOSTILE, "description": HOSTILE}
    for point in world["points"]:
        point["run"] = ""
    run = made_run(tmp_path / "runs" / "one", list(names), (0.5, 0.5), "raco", 0, 3)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(
        json.dumps(record | {"notices": [HOSTILE], "commit": HOSTILE, "versions": {HOSTILE: "1"}})
    )
    world["points"][0]["run"] = "runs/one"
    demo = made_demo(tmp_path / "made", seeds=(0,), steps=2, command=HOSTILE, worlds=[world])
    shutil.copytree(run, demo / "runs" / "one")
    tree = read(write_report([demo, run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(tree.all("script")) == 1
    assert not tree.all("img")
    assert "hacked" not in tree.all("script")[0].text
    assert not [t for t in tree.walk() if t.tag == "b" and t.text == "unit"]
    assert any("_b $y^2$" in t.text for t in tree.all("text")), "no formula is made of it"
    assert tree.text.count("window.hacked") > 10


def test_an_ordinary_run(tmp_path: Path) -> None:
    trainer = small_trainer(
        tmp_path, max_steps=4, eval_dataset=made_text_rows(8, seed=3), eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    trainer.record.say("a made notice")
    trainer.record.end(trainer.args, "finished", {})
    tree = read(write_report([tmp_path / "run"], tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    text = tree.text
    assert len(tree.all("figure", "plots")) == 3
    labels = {plot.attributes["aria-label"] for plot in tree.all("svg", "plot")}
    for shown in (
        "Loss per objective",
        "Margins",
        "Accuracies",
        "Cosines of the gradients",
        "Lengths of the gradients",
    ):
        assert f"{shown} over time" in labels
    for shown in ("Coefficients", "Effective weights", "Angle to the linear update", "Clipping"):
        assert f"{shown} over time" in labels
    assert "on held-out rows" in text
    assert "One seed (42)" in text
    assert "a made notice" in text
    assert "combiner: raco" in text
    assert "stationary points" in text


def test_several_runs_are_compared_by_held_out_accuracy(tmp_path: Path) -> None:
    paths = [
        made_run(tmp_path / f"{method}{w:g}", ["x", "y"], (w, 1 - w), method, 0, 8)
        for method, w in (("linear", 0.3), ("raco", 0.7))
    ]
    tree = read(write_report(paths, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "held-out accuracy" in tree.text
    assert len([n for n in tree.walk() if n.attributes.get("data-tip", "").startswith("RACO, one seed")]) == 1
    assert len(tree.all("h2")) == 1 + 2 + 2
    (tmp_path / "other").mkdir()
    other = made_run(tmp_path / "other", ["x", "z"], (0.5, 0.5), "raco", 0, 4)
    tree = read(write_report([paths[0], other], tmp_path / "two.html").read_text(encoding="utf-8"))
    assert "No front is drawn: these runs have different objectives." in tree.text


def test_real_runs_are_drawn_together_only_over_the_same_held_out_rows(tmp_path: Path) -> None:
    paths = []
    for name, changes in (("a", {"seed": 1}), ("b", {"seed": 2}), ("c", {"eval_fraction": 0.5})):
        options = {"eval_fraction": 0.25, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, **changes}
        small_trainer(tmp_path / name, **options).train()
        paths.append(tmp_path / name / "run")
    same = read(write_report(paths[:2], tmp_path / "same.html").read_text(encoding="utf-8"))
    assert "All held out the same rows" in same.text
    assert [plot for plot in same.all("svg", "plot") if plot.attributes["aria-label"].startswith("Front: ")]
    other = read(write_report([paths[0], paths[2]], tmp_path / "other.html").read_text(encoding="utf-8"))
    assert "No front is drawn: these runs held out different rows" in other.text
    assert not [plot for plot in other.all("svg", "plot") if plot.attributes["aria-label"].startswith("Front: ")]
    listed = [re.search(r"\d+ \([0-9a-f]{8}\)", row.text) for row in other.all("tr")]
    assert len({found[0] for found in listed if found}) == 2, "and each run's rows are told apart"


def test_a_demo_whose_runs_are_gone_keeps_its_front(tmp_path: Path) -> None:
    demo = made_demo(tmp_path / "demo", seeds=(0,), steps=2)
    shutil.rmtree(demo / "runs")
    tree = read(write_report([demo], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "so only its scores are shown" in tree.text
    assert "How much the objectives conflict is not known" in tree.text
    assert [n for n in tree.walk() if n.attributes.get("data-tip", "").startswith("RACO, one seed")]


def test_a_run_that_failed_or_logged_nothing_says_so(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", ["x", "y"], (0.5, 0.5), "raco", 0, 4)
    record = json.loads((run / "run.json").read_text())
    record |= {"status": "failed", "final": {"error": "OSError: full"}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "history.jsonl").write_text('{"step": 1, "loss": 0.6, "loss/x": 0.5, "loss/y": 0.4}\n{"step": 2, "lo')
    text = read(write_report([run], tmp_path / "a.html").read_text(encoding="utf-8")).text
    assert "the run did not finish (status: failed; OSError: full)" in text
    (run / "history.jsonl").unlink()
    text = read(write_report([run], tmp_path / "b.html").read_text(encoding="utf-8")).text
    assert "there is nothing to draw" in text


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", ["x", "y"], (0.5, 0.5), "raco", 0, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "page.html")


def test_methods_whose_runs_train_something_else_are_no_effective_weights(tmp_path: Path) -> None:
    """A conditioned model is trained on one objective of another name, a soup read at other weights; some have none."""
    world = made_world(tmp_path / "made", "safety", WORLDS["safety"], (0,), 3)
    template = next(point for point in world["points"] if point["method"] == "linear")
    conditioned = made_run(tmp_path / "made" / "runs" / "conditioned", ["conditioned"], (1.0,), "linear", 0, 3)
    others = {"cpo": {"run": f"runs/{conditioned.name}"}, "soup": {"weights": {"helpful": 0.9, "harmless": 0.1}}}
    world["points"] += [{**template, "method": name, **changes} for name, changes in others.items()]
    world["points"].append({**template, "method": "famo", "weights": {}, "run": ""})
    demo = made_demo(tmp_path / "made", seeds=(0,), steps=2, worlds=[world])
    tree = read(write_report([demo], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert (
        "what they trained with is not the weights that they stand for, or is not logged: cpo, soup, famo." in tree.text
    )
    by_label = {plot.attributes["aria-label"]: plot for plot in tree.all("svg", "plot")}
    tips = [n.attributes["data-tip"] for n in by_label["Effective weight of helpful"].walk() if "tip" in n.classes]
    assert len(tips) == 5 * 3 + 1 and not [tip for tip in tips if tip.startswith(("cpo", "soup", "famo"))]
    assert [n for n in tree.walk() if n.attributes.get("data-tip", "").startswith("cpo, one seed")], "the front has it"
