"""The world by hand, one tiny seed through parts of the study, its figures by hand, and its page against its data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.preferences.judges.protocols import load_protocol, question
from studies.exact import finished
from studies.self_improvement import analysis, judges, run
from studies.self_improvement.world import COUNT, PROPERTIES, Creature, make_creatures, make_tokenizer, refer, score

STUDY = Path(run.__file__).parent
CREATURE = Creature("dalo", (0, 1, 2, 3, 4), (True,) * COUNT)


def test_rewards_by_hand() -> None:
    assert score(CREATURE, "red tree - - -") == {"told": 0.4, "careful": 0.0, "overall": 0.4}
    assert score(CREATURE, "crimson cave - - -") == {"told": 0.2, "careful": -0.2, "overall": 0.0}
    assert score(CREATURE, "tree red")["overall"] == pytest.approx(-0.4), "in the other's place"
    assert score(CREATURE, "- - - - - red")["careful"] == -0.2, "beyond the five places"


def test_references_have_the_quality_that_is_asked_for() -> None:
    rng = random.Random(0)
    own = [refer(CREATURE, rng, wrong=0.25).split() for _ in range(2000)]
    said = [(k, word) for words in own for k, word in enumerate(words) if word != "-"]
    wrong = [word not in PROPERTIES[k][CREATURE.facts[k]] for k, word in said]
    assert np.mean(wrong) == pytest.approx(0.25, abs=0.02) and len(said) / 10_000 == pytest.approx(0.75, abs=0.02)
    other = [score(CREATURE, refer(CREATURE, rng, paraphrased=0.5)) for _ in range(50)]
    assert all(one["careful"] == 0 for one in other)


def test_sets_of_creatures_are_disjoint() -> None:
    found = make_creatures(3, {"judge": 50, "train": 30, "held out": 20})
    names = [one.name for some in found.values() for one in some]
    assert len(set(names)) == 100


def test_the_judges_heads_start_at_the_same_place_of_the_other_texts() -> None:
    model, tokenizer = judges.start_looking(judges.small_model(0)), make_tokenizer()
    protocol = load_protocol(judges.PROTOCOLS["guided"], "test")
    asked = question(
        protocol, CREATURE.prompt, "red tree - loud dawn", "blue - fish mute noon", reference="red - fish loud -"
    )
    ids = tokenizer(f"{asked.system}\n\n{asked.user}\n\nverdict", return_tensors="pt")["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids[0])
    assert tokenizer.unk_token in words and words[-1] == "verdict"
    model.set_attn_implementation("eager")
    first, second = (layer[0].detach() for layer in model(input_ids=ids, output_attentions=True).attentions)
    place = words.index("noon")  # the last word of the second answer
    assert [words[int(first[head, place].argmax())] for head in (0, 1)] == ["dawn", "-"]
    for head, start in ((0, words.index("blue")), (1, words.index("-", words.index("first")) - 2)):
        assert float(second[head, -1, start : start + COUNT].sum()) > 0.6, "of the end's attention"


@pytest.fixture
def tiny() -> Iterator[run.Plan]:
    own = run.Policies(
        demonstrations=4,
        base_epochs=1,
        sft_steps=2,
        steps=2,
        more_rates=(2.5e-4,),
        eval_draws={"held out": 2, "train": 1},
    )
    judge = {"rows": 64, "epochs": 1, "batch": 32, "rate": 2e-3}
    yield run.Plan(judge=judge, policies=own, sizes={"judge": 10, "train": 6, "held out": 4}, bench=4)


def test_one_seed_in_small(tiny: run.Plan, tmp_path: Path) -> None:
    cells = {part: run.compute(tiny, f"7 {part}", tmp_path) for part in ("judge", "paraphrased")}
    found = cells["judge"]["accuracy"]["overall, true"]
    assert set(found) == {"guided overall", "free overall", "rouge", "embeddings", "form"}
    assert all(0 <= one["accuracy"] <= 1 for one in found.values())
    arms = cells["paraphrased"]["arms"]
    assert set(arms) == {"sft", "sft more 0.00025", "guided", "rouge"} and arms["guided"]["rows"] > 0
    assert arms["sft"]["held out"]["kl"] == pytest.approx(0, abs=1e-5) != arms["guided"]["held out"]["kl"]
    assert {path.name for path in (tmp_path / "7").iterdir()} == {"judge", "base", "sft paraphrased", "draws"}


def made_seed(points: dict[str, tuple[float, float]]) -> Any:
    arms = {name: {"held out": {"told": a, "careful": b, "overall": a + b}} for name, (a, b) in points.items()}
    return {"front": {"arms": arms}}


def test_volumes_by_hand() -> None:
    one = made_seed({"sft": (0.2, -0.5), "raco 0.2": (0.4, -0.5), "raco 0.8": (0.6, -0.75), "overall 0.1": (0.5, -0.6)})
    assert analysis.volume("raco")(one) == pytest.approx(0.4 * 0.5 + 0.2 * 0.25)
    assert analysis.volume("overall", "start")(one) == 0.0
    assert analysis.volume("overall", "nadir")(one) == pytest.approx(0.1 * 0.15)
    weights = np.linspace(0, 1, 41)
    wanted = np.mean([max(w * 0.4 - (1 - w) * 0.5, w * 0.6 - (1 - w) * 0.75) for w in weights])
    assert analysis.best_weighted("raco")(one) == pytest.approx(wanted)


def test_the_kept_results_are_those_of_the_cells_and_the_page_says_them() -> None:
    kept = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    again = json.loads(json.dumps(analysis.results(finished(STUDY / "cells.jsonl"))))
    page = (STUDY / "README.md").read_text(encoding="utf-8").replace("−", "-")
    assert again["seeds"] == kept["seeds"]
    for family in ("primary", "secondary"):
        for claim, row in kept[family].items():
            assert again[family][claim] == pytest.approx(row)
            shown = "{mean:.3f} ({low:.3f}, {high:.3f})".format(
                **{k: np.round(row[k], 3) + 0.0 for k in ("mean", "low", "high")}
            )
            assert shown in page, (claim, shown)
    both = analysis.afterwards(finished(STUDY / "cells-both-words.jsonl"))
    for name, one in both["means"]["paraphrased"]["arms"].items():
        overall = both["means"]["true"]["arms"][name]["held out"]["overall"]
        assert f"| {overall:.3f} | {one['held out']['overall']:.3f} |" in page, name


def test_the_page_s_tables_are_the_results() -> None:
    kept = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    page = (STUDY / "README.md").read_text(encoding="utf-8").replace("−", "-")
    means, rows = kept["means"], []
    for rubric in ("overall", "told", "careful"):
        own, found = f"guided {rubric}", means["judge"]["accuracy"]
        true, paraphrased, quarter, half = (
            {name: one["accuracy"] for name, one in found[f"{rubric}, {quality}"].items()}
            for quality in ("true", "paraphrased", "wrong-25", "wrong-50")
        )
        shown = [true[f"free {rubric}"], true["form"], *(one[own] for one in (true, paraphrased, quarter, half))]
        shown += [*(one["rouge"] for one in (true, paraphrased, quarter, half)), true["embeddings"]]
        rows.append(f"| {rubric} | {' | '.join(f'{x:.3f}' for x in shown)} |")
    for part in ("true", "paraphrased", "wrong-25", "wrong-50"):
        for arm in means[part]["arms"].values():
            out, own = arm["held out"], arm["train"]["overall"]
            right = out["told"] / (out["told"] - out["careful"])
            cells = f"| {out['told']:.3f} | {out['careful']:.3f} | **{out['overall']:.3f}** | {right:.2f} |"
            rows.append(f"{cells} {abs(out['kl']):.2f} | {own:.3f} |")  # the start's, from itself, is rounding
    for name, arm in means["front"]["arms"].items():
        out = arm["held out"]
        cells = " | ".join(f"{out[objective]:.3f}" for objective in ("told", "careful", "overall"))
        rows.append(f"| {name} | {cells} | {abs(out['kl']):.2f} |")
    for name, one in kept["volumes"].items():
        rows.append(f"| {name} | {one['worst']:.3f} | {one['start']:.4f} | {one['nadir']:.4f} |")
    assert len(rows) > 30 and [row for row in rows if row not in page] == []
