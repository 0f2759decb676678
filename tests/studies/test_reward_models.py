"""The study's world and figures by hand, its command in small, and its page against its data."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.sandbox.labels import Labelling, ceiling
from paretune.sandbox.language import make_items
from paretune.sandbox.safety import SAFETY
from studies.reward_models import run
from studies.reward_models.settings import KINDS, SETTINGS, demonstrated, sampled
from studies.reward_models.words import KIND, OPPOSITE, WORDS, WORDS_WORLD, WORTH
from tests.sandbox.bases_made import base_of

STUDY = Path(run.__file__).parent


def test_the_world_is_exact() -> None:
    item = WORDS_WORLD.make_item(random.Random(0))
    asked = [word for word in WORDS if KIND[word] == item.facts][:2]
    against = [word for word in WORDS if KIND[word] == OPPOSITE[item.facts]][:1]
    words = [*asked, *against]
    assert WORDS_WORLD.score(item, " ".join(words)) == {"worth": sum(WORTH[w] for w in words), "fitting": 1.0}
    assert {list(KIND.values()).count(kind) for kind in OPPOSITE} == {len(WORDS) // 4}


def test_who_knows_the_rewards_lacks_nothing_and_a_coin_lacks_the_rest() -> None:
    texts = demonstrated(WORDS_WORLD, Path(), 60, 4, 3, True, "cpu")
    held = run.scored_responses(WORDS_WORLD, texts)
    for i in range(2):
        best = run.judged(held, [one["rewards"][:, i] for one in held], i, 2.0)
        pairs = [(a, b) for one in held for k, a in enumerate(one["rewards"]) for b in one["rewards"][k + 1 :]]
        a, b = (np.array(side) for side in zip(*pairs, strict=True))
        ties = (a == b)[:, i].mean()  # a coin's label, 1/2 for everybody
        wanted = 0.5 * ties + (1 - ties) * ceiling(a, b, Labelling(kappa=2.0))[i]
        assert best["accuracy"] == pytest.approx(best["ceiling"]) == pytest.approx(wanted)
        assert best["shortfall"] == pytest.approx(0, abs=1e-12) and best["reached"] and best["pairs"] == len(pairs)
        coin = run.judged(held, [np.zeros(len(one["rewards"])) for one in held], i, 2.0)
        assert coin["accuracy"] == pytest.approx(0.5) and not coin["reached"]
        assert coin["shortfall"] == pytest.approx(best["ceiling"] - 0.5)


def test_utilities_have_the_noise_that_the_ceiling_is_of() -> None:
    one = {"prompt": "p", "responses": ["a", "b"], "group": "g", "rewards": np.array([[0.3, 0.0], [0.0, 1.0]])}
    rows = run.scored_rows(WORDS_WORLD, [one] * 20_000, 2.0, 0)
    u = np.array([[row["scores"][name] for name in WORDS_WORLD.objectives] for row in rows])
    wins = (u[:, :, 0] > u[:, :, 1]).mean(0)
    assert wins == pytest.approx(1 / (1 + np.exp([-0.6, 2.0])), abs=0.015)


def test_a_listwise_model_comes_near_in_small() -> None:
    found = run.study(replace(SETTINGS["words"], items=(250, 100)), ["listwise"])["kinds"]["listwise"]
    assert found["worth"]["shortfall"] < 0.06 and found["worth"]["accuracy"] > 0.6


def test_the_base_is_asked_each_prompt_once() -> None:
    texts = sampled(SAFETY, base_of("safety"), 12, 5, 7, True, "cpu")
    held_out = {item.group for item in make_items(SAFETY, 5000, seed=0, held_out=True)}
    assert len({item.prompt for item, _ in texts}) == len(texts) > 6
    assert {item.group for item, _ in texts} <= held_out
    assert all(2 <= len(responses) == len(set(responses)) <= 5 for _, responses in texts)


RESULTS = ("words", "safety", "safety-all-pairs", "safety-first")


def test_every_kind_is_on_the_page() -> None:
    shown = {
        name: json.loads((STUDY / f"results-{name}.json").read_text(encoding="utf-8"))["kinds"] for name in RESULTS
    }
    assert set(KINDS) <= set(shown["words"])
    assert set(KINDS) == set(shown["safety"]) | set(shown["safety-all-pairs"])
    for name in ("safety", "safety-all-pairs"):
        for kind, figures in shown[name].items():
            assert figures["settings"] == SETTINGS["safety"].kinds[kind], "the settings are those of the figures"


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_says_what_the_data_say(name: str) -> None:
    results = json.loads((STUDY / f"results-{name}.json").read_text(encoding="utf-8"))
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    setting = SETTINGS[results.get("world", name)]
    assert results["bound"] == run.BOUND and results["kappa"] == setting.kappa
    for kind, figures in results["kinds"].items():
        own = [figures[objective] for objective in setting.world.objectives]
        cells = [
            f"{100 * one['accuracy']:.2f} of {100 * one['ceiling']:.2f} | "
            f"{100 * one['interval'][0]:.2f} to {100 * one['interval'][1]:.2f}"
            for one in own
        ]
        reached = "yes" if all(one["reached"] for one in own) else "no"
        assert f"| {kind} | {' | '.join(cells)} | {reached} |" in page, kind
