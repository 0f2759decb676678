"""One model for all weights: the loss of COS-DPO written out, CDPO's labels, prompts that ask, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.comparisons.conditions import drawn_weights
from paretune.comparisons.formats import read_comparisons
from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.objectives import Objective
from paretune.pipelines.methods import METHODS, Request, check_method, load_outcome, run_method
from paretune.pipelines.methods.conditioned import cos_rows
from paretune.pipelines.methods.cpo import conditioned_rows, rated_data, ratings_prefix, scale_of
from tests.cli.made import records, save_model, saved_weights
from tests.pipelines.methods_made import OBJECTIVES
from tests.pipelines.methods_made import asked as any_request
from tests.runs_made import made_text_rows
from tests.tokenizers_made import chatml, word_level

NAMES = ["helpful", "concise"]
SCORED = [Objective("helpful", weight=0.6), Objective("short", weight=0.4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def asked(model: str, folder: Path, method: str, **changes: Any) -> Request:
    data = {"objectives": SCORED, "train_dataset": records("scores", 24)} if method == "cpo" else {}
    return any_request(model, folder, method, **{**data, **changes})


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


# ---- COS-DPO ----


def _logp(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    ids, own = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id], len(tokenizer(prompt)["input_ids"])
    logps = model(input_ids=torch.tensor([ids])).logits[0, own - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[own:])[:, None]).sum()


def test_a_step_follows_the_gradient_of_the_weighted_losses_written_out(model: str, tmp_path: Path) -> None:
    """theta - lr grad of (1/n_j) sum_n w_nj -log sigma(+-beta margin), w_n read from the prompt that row n gets."""
    rows = [row for row in made_text_rows(60) if set(row["preferences"].values()) <= {0.0, 1.0}][:8]
    assert len(rows) == 8
    plain = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 1}
    config = {**plain, "max_grad_norm": 0.0, "weight_decay": 0.0, "beta": 0.3, "seed": 3}
    request = asked(model, tmp_path, "cos-dpo", train_dataset=rows, config=config)
    run_method(request)
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    shown = cos_rows(request)(read_comparisons(rows, objectives=OBJECTIVES)[0], "train")
    weights = drawn_weights(8, 2, 1.0, 10, [3, 0])
    assert len({tuple(w) for w in weights.tolist()}) > 3
    total = torch.zeros(())
    for row, prompt, (first, second) in zip(rows, shown["prompt"], weights.tolist(), strict=True):
        assert prompt == f"Weights: helpful {first:.1f}, concise {second:.1f}.\n" + row["prompt"]
        a, b = (_logp(policy, tokenizer, prompt, row[side]) for side in ("response_a", "response_b"))
        margin = (a - b) - (a - b).detach()  # the reference is the model at its start
        for name, w in zip(NAMES, (first, second), strict=True):
            sign = 1 if row["preferences"][name] == 1 else -1
            total = total - w * torch.nn.functional.logsigmoid(0.3 * sign * margin) / 8
    total.backward()
    after = saved_weights(tmp_path / "run")
    moved = 0.0
    for name, parameter in policy.named_parameters():
        expected = parameter.detach() - 0.5 * parameter.grad
        if name in after:
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
            moved = max(moved, float((after[name] - parameter.detach()).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("method", ["cos-dpo", "cos-raco"])
def test_one_training_answers_at_every_weighting(model: str, tmp_path: Path, method: str) -> None:
    request = asked(model, tmp_path, method, method_options={"alpha": 0.5}, config={"eval_fraction": 0.25})
    (said,) = check_method(request)
    assert "Dirichlet(0.5)" in said and "helpful 0.5, concise 0.5" in said
    run_method(request)
    there = record(tmp_path / "run")
    assert there["method"]["weights"] == {"helpful": 0.6, "concise": 0.4}
    assert [o["weight"] for o in there["objectives"]] == [0.5, 0.5]
    assert there["config"]["combiner"] == ("linear" if method == "cos-dpo" else "raco")
    assert any(key.startswith("grad/cosine") for key in there["final"])
    outcome = load_outcome(tmp_path / "run", {"helpful": 3, "concise": 1})
    assert outcome.prepare("once a") == "Weights: helpful 0.8, concise 0.2.\nonce a"
    assert load_outcome(tmp_path / "run").prepare("x") == "Weights: helpful 0.6, concise 0.4.\nx"
    found = sample(outcome.model, outcome.tokenizer, [outcome.prepare("once a")], 2, max_new_tokens=3, seed=0)
    assert len(found.texts[0]) == 2
    with pytest.raises(InputError, match="bad weights"):
        load_outcome(tmp_path / "run", {"helpful": -1, "concise": 2})


def test_messages_carry_the_weights_in_the_first_user_turn(tmp_path: Path) -> None:
    model = str(save_model(tmp_path / "base", tokenizer=chatml()))
    objective = [Objective("helpful", labels="chosen"), Objective("concise", rule="shorter")]
    request = asked(model, tmp_path, "cos-dpo", objectives=objective, train_dataset=records("chat", 12))
    run_method(request)
    outcome = load_outcome(tmp_path / "run", {"helpful": 1, "concise": 0})
    prompt: Any = [{"role": "user", "content": "Name a bird."}]
    assert outcome.prepare(prompt)[0]["content"] == "Weights: helpful 1.0, concise 0.0.\nName a bird."


def test_conditions_that_cannot_be_read_are_refused_before_training(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "cos-dpo")
    for options, problem in (
        ({"levels": 7}, "bad levels"),
        ({"alpha": 0}, "bad alpha"),
        ({"prefix": "weights"}, "bad prefix"),
        ({"words": {"helpful": "cat"}}, "bad words"),
    ):
        with pytest.raises(InputError, match=problem):
            check_method(replace(request, method_options=options))
    with pytest.raises(InputError, match="at least two objectives"):
        check_method(replace(request, objectives=OBJECTIVES[:1]))
    words = str(save_model(tmp_path / "words", tokenizer=word_level()))
    with pytest.raises(InputError, match="does not know all words of the prefix"):
        check_method(replace(request, model=words))
    options = {"words": {"helpful": "cat", "concise": "moon"}, "levels": 4}
    (said,) = check_method(replace(request, model=words, method_options=options))
    assert "'cat cat moon moon '" in said


# ---- CPO ----


def test_labels_are_those_of_the_nearer_response_written_out(model: str, tmp_path: Path) -> None:
    """The requirement is read back from the prompt that a person would see."""
    request = asked(model, tmp_path, "cpo", method_options={"levels": 3})
    rated = rated_data(request, request.train_dataset)
    scale = scale_of(rated, 3)
    rows = conditioned_rows(rated, ["helpful", "short"], ratings_prefix(request), scale, [0, 0])
    asked_for = {"free": 0, "required": 0}
    lengths = [len(r) for record in request.train_dataset for r in record["responses"]]
    assert 10 < len(rows) <= len(rated.rows)
    by_text = {(row["prompt"], row["response_a"]): table for row, table in zip(rated.rows, rated.ratings, strict=True)}
    for row in rows:
        head, _, prompt = row["prompt"].partition("\n")
        wanted = dict(part.rsplit(" ", 1) for part in head.removeprefix("Required ratings: ").rstrip(".").split(", "))
        table = by_text[(prompt, row["response_a"])]
        rewards = []
        for side in (0, 1):
            helpful = float(table[side, 0])  # -1, 0, 1: whole numbers, ratings as they are
            low, high = scale.cuts[1]
            short = 1 + round(2 * min(1.0, max(0.0, (float(table[side, 1]) - low) / (high - low))))
            reward = 0.0
            for name, rating in (("helpful", helpful), ("short", short)):
                reward += -abs(rating - float(wanted[name])) if name in wanted else rating
                asked_for["required" if name in wanted else "free"] += 1
            rewards.append(reward)
        assert row["preferences"] == {"conditioned": float(rewards[0] > rewards[1])} and rewards[0] != rewards[1]
        assert row["group"] == prompt
    assert min(asked_for.values()) > 10 and -max(lengths) <= scale.cuts[1][0]


def test_a_run_is_asked_for_ratings(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "cpo", config={"eval_fraction": 0.25})
    (said,) = check_method(request)
    assert "24 rated pairs" in said and "helpful 1, short 5" in said
    run_method(request)
    there = record(tmp_path / "run")
    assert [o["name"] for o in there["objectives"]] == ["conditioned"] and there["method"]["name"] == "cpo"
    assert set(there["method"]["weights"]) == {"helpful", "short"}
    outcome = load_outcome(tmp_path / "run", {"helpful": 0.0, "short": 1.0})
    assert outcome.prepare("x") == "Required ratings: helpful -1, short 5.\nx"
    even = load_outcome(tmp_path / "run", {"helpful": 0.5, "short": 0.5})
    assert even.prepare("x") == "Required ratings: helpful 1, short 5.\nx"


def test_preferences_stand_for_ratings_only_where_asked(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "cpo", objectives=OBJECTIVES, train_dataset=made_text_rows(24))
    with pytest.raises(InputError, match="the responses have no ratings"):
        check_method(request)
    hard = [{**row, "preferences": {k: v for k, v in row["preferences"].items() if v in (0, 1)}}
            for row in made_text_rows(40)]  # fmt: skip
    hard = [row for row in hard if row["preferences"]]
    request = replace(request, train_dataset=hard, method_options={"from_preferences": True})
    run_method(request)
    required = load_outcome(tmp_path / "run").prepare("x")
    assert required == "Required ratings: helpful 1, concise 1.\nx"  # 0.4 of the least and best of two is nearly even
    assert math.isclose(sum(o.weight for o in OBJECTIVES), 1.0)


def test_objectives_and_options_of_cpo_are_checked(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "cpo")
    with pytest.raises(InputError, match="different losses"):
        check_method(replace(request, objectives=[Objective("helpful", beta=0.1), Objective("short")]))
    with pytest.raises(InputError, match="bad levels"):
        check_method(replace(request, method_options={"levels": 1}))
    flat = [{**r, "scores": {"helpful": [1, 1], "short": r["scores"]["short"]}} for r in records("scores", 6)]
    with pytest.raises(InputError, match="all ratings of 'helpful' are equal"):
        check_method(replace(request, train_dataset=flat))
    assert METHODS["cpo"].steerable
