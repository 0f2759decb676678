"""Methods that choose rows or give them margins, against their formulas written out."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.comparisons.formats import read_comparisons
from paretune.errors import InputError
from paretune.losses import LogProbs, batch_losses
from paretune.objectives import Objective
from paretune.pipelines.methods import METHODS, check_method, load_outcome, run_method
from paretune.pipelines.methods.contract import single_run
from paretune.pipelines.methods.filters import agreeing, front_pairs
from paretune.pipelines.methods.modpo import implicit_gaps, scores_of
from tests.cli.made import save_model, write_jsonl
from tests.pipelines.methods_made import OBJECTIVES, asked
from tests.runs_made import made_text_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base")))


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


# ---- weighted-loss DPO ----


def test_weighted_dpo_on_opposed_labels_is_soft_label_dpo() -> None:
    """sum_i w_i L_i with labels 1 and 0 on one pair: the gradient of -p log s(z) - (1-p) log s(-z), p = sum of the
    weights of those that prefer a; for any number of objectives."""
    rng = random.Random(0)
    for m in (2, 3, 5):
        weights = torch.tensor([rng.random() for _ in range(m)], dtype=torch.float64)
        weights /= weights.sum()
        labels = torch.tensor([[float(rng.random() < 0.5) for _ in range(m)]], dtype=torch.float64)
        a, b, beta = torch.tensor([-3.0], dtype=torch.float64), torch.tensor([-5.5], dtype=torch.float64), 0.3
        ref_a, ref_b = a + 0.7, b - 0.2
        one = torch.ones(1, dtype=torch.float64)
        losses = batch_losses(
            [Objective(f"o{i}") for i in range(m)], beta, LogProbs(a, b, ref_a, ref_b, one, one), labels
        )
        z = ((a - ref_a) - (b - ref_b)).requires_grad_()
        p = float(weights @ labels[0])
        soft = -p * torch.nn.functional.logsigmoid(beta * z) - (1 - p) * torch.nn.functional.logsigmoid(-beta * z)
        (slope,) = torch.autograd.grad(soft.sum(), z)
        torch.testing.assert_close(weights @ losses.slopes_a, slope)
        torch.testing.assert_close(weights @ losses.values, soft.detach())
    assert METHODS["dpo-lw"].settings == {"combiner": "linear"}


# ---- rows ----


def test_rows_agree_where_all_that_have_an_opinion_prefer_one_side() -> None:
    nan = math.nan
    table = {(1, 1): True, (1, 0): False, (0, 0): True, (1, nan): True, (nan, nan): False, (0.5, 1): False,
             (0.5, 0.5): False, (0.8, 1): True, (0.8, 0.4): False}  # fmt: skip
    assert agreeing(np.array(list(table), dtype=float)).tolist() == list(table.values())


def test_front_pairs_are_those_of_a_front_found_by_brute_force() -> None:
    rng, found_any = random.Random(1), 0
    for trial in range(30):
        count, m = rng.randint(2, 5), rng.choice([2, 3])
        scores = [[rng.randint(0, 3) for _ in range(m)] for _ in range(count)]

        def beats(x: list[int], y: list[int]) -> bool:
            return x != y and all(p >= q for p, q in zip(x, y, strict=True))

        front = {i for i in range(count) if not any(beats(other, scores[i]) for other in scores)}
        pairs = list(itertools.combinations(range(count), 2))
        label = [[0.5 if p == q else float(p > q) for p, q in zip(scores[i], scores[j], strict=True)] for i, j in pairs]
        wanted = [(i in front and j not in front) - (j in front and i not in front) for i, j in pairs]
        assert front_pairs(np.array(label), [i for i, _ in pairs], [j for _, j in pairs]).tolist() == wanted, trial
        found_any += any(wanted)
    assert found_any > 10


def test_filters_train_on_fewer_rows_and_say_how_many(model: str, tmp_path: Path) -> None:
    rows, _ = read_comparisons(made_text_rows(24), objectives=OBJECTIVES)
    labels = [[row["preferences"][o.name] for o in OBJECTIVES] for row in rows]
    kept = int(agreeing(np.array(labels, dtype=float)).sum())
    assert 0 < kept < len(rows)
    run_method(asked(model, tmp_path / "a", "agree-only", config={"eval_fraction": 0.25}))
    there = record(tmp_path / "a" / "run")
    assert there["data"]["train"]["rows"]["kept"] < kept + 1
    assert there["data"]["eval"]["rows"]["kept"] >= 4, "held-out rows are filtered too"
    run_method(asked(model, tmp_path / "b", "pareto-pairs"))
    there = record(tmp_path / "b" / "run")
    count = there["data"]["train"]["rows"]["kept"]
    assert f"train data: the method makes {count} rows of 24" in there["notices"]
    assert there["data"]["train"]["rows"]["labels"] == {"helpful": count, "concise": count}


def test_filters_refuse_data_on_which_nothing_is_left(model: str, tmp_path: Path) -> None:
    opposed = [{**row, "preferences": {"helpful": 1, "concise": 0}} for row in made_text_rows(6)]
    for method in ("agree-only", "pareto-pairs"):
        with pytest.raises(InputError, match="leaves no row of 6"):
            run_method(asked(model, tmp_path, method, train_dataset=opposed))
    with pytest.raises(InputError, match="from all its pairs"):
        check_method(asked(model, tmp_path, "pareto-pairs", data_options={"pairs": "best-worst"}))


# ---- MODPO ----


def test_offsets_make_the_loss_of_modpo() -> None:
    """-log sigma((1/w_k)[beta Delta_w - sum_j w_j (r_j(y_w) - r_j(y_l))]) with y_w the side that k prefers; m = 3."""
    rng = torch.Generator().manual_seed(0)
    n, beta, w = 6, 0.25, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    a, b, ref_a, ref_b = (-5 * torch.rand(n, generator=rng, dtype=torch.float64) for _ in range(4))
    reward_a, reward_b = (torch.randn(2, n, generator=rng, dtype=torch.float64) for _ in range(2))
    prefers_a = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    expected = []
    for i in range(n):
        first = prefers_a[i] == 1
        margin = (a[i] - ref_a[i]) - (b[i] - ref_b[i])
        gap = sum(w[j + 1] * (reward_a[j, i] - reward_b[j, i]) for j in range(2))
        inside = (beta * margin - gap if first else -beta * margin + gap) / w[0]
        expected.append(-torch.log(torch.sigmoid(inside)))
    offsets = torch.zeros(n, 3, dtype=torch.float64)
    offsets[:, 0] = (w[1:] @ (reward_a - reward_b)) / beta
    objectives = [Objective("k", beta=beta / float(w[0])), Objective("x", weight=0.0), Objective("y", weight=0.0)]
    labels = torch.full((n, 3), math.nan, dtype=torch.float64)
    labels[:, 0] = prefers_a
    one = torch.ones(n, dtype=torch.float64)
    losses = batch_losses(objectives, 0.1, LogProbs(a, b, ref_a, ref_b, one, one, offsets), labels)
    torch.testing.assert_close(losses.values[0], torch.stack(expected))


def test_modpo_trains_the_missing_rewards_once_and_starts_at_their_margins(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "modpo", config={"learning_rate": 1e-2})
    said = check_method(request)
    assert any("concise: a training on it alone" in line for line in said)
    run_method(request)
    there = record(tmp_path / "run")
    assert there["method"]["name"] == "modpo"
    part = tmp_path / "run" / "parts" / "single-concise"
    assert not (tmp_path / "run" / "parts" / "single-helpful").exists()
    before = (part / "run.json").read_text()
    assert [o["beta"] for o in there["objectives"]] == [pytest.approx(0.2 / 0.6), None]
    # another run, with the reward given, does the same without the part
    given = asked(model, tmp_path / "b", "modpo", config={"learning_rate": 1e-2}, singles={"concise": str(part)})
    run_method(given)
    assert not (tmp_path / "b" / "run" / "parts").exists()
    losses = [json.loads(line)["loss/helpful"] for line in first_lines(tmp_path / "run", tmp_path / "b" / "run")]
    assert losses[0] == losses[1]
    run_method(replace(request, overwrite=False, resume=True))
    assert (part / "run.json").read_text() == before, "a finished part was trained again"


def first_lines(*folders: Path) -> list[str]:
    return [(folder / "history.jsonl").read_text().splitlines()[0] for folder in folders]


@pytest.mark.parametrize("lora", [False, True])
def test_implicit_rewards_are_beta_times_the_log_ratio(lora: bool, model: str, tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    request = asked(model, tmp_path, "modpo", config={"learning_rate": 1e-2}, peft_config=adapter)
    directory = single_run(request, "concise")
    rows, _ = read_comparisons(made_text_rows(5), objectives=OBJECTIVES)
    gaps = implicit_gaps(request, OBJECTIVES[1], directory)(rows)
    tokenizer = AutoTokenizer.from_pretrained(model)
    start, trained = AutoModelForCausalLM.from_pretrained(model).eval(), load_outcome(directory).model

    def logp(policy: Any, prompt: str, response: str) -> float:
        head = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logits[t - 1, ids[t]]) for t in range(len(head), len(ids)))

    for row, gap in zip(rows, gaps, strict=True):
        ratios = [logp(trained, row["prompt"], row[s]) - logp(start, row["prompt"], row[s])
                  for s in ("response_a", "response_b")]  # fmt: skip
        assert gap == pytest.approx(0.2 * (ratios[0] - ratios[1]), rel=1e-3, abs=1e-4)
    assert np.abs(gaps).max() > 1e-2, "the run has learnt nothing to tell"


def minus_length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def test_frozen_rewards_come_from_functions_and_files(model: str, tmp_path: Path) -> None:
    rows = made_text_rows(24)
    scored = [
        {"prompt": r["prompt"], "responses": [r["response_a"], r["response_b"]],
         "scores": {"concise": [-0.1 * len(r["response_a"]), -0.1 * len(r["response_b"])]}}
        for r in rows
    ]  # fmt: skip
    file = write_jsonl(tmp_path / "scored.jsonl", scored)
    assert scores_of(file, "concise")[rows[0]["prompt"], rows[0]["response_a"]] == -0.1 * len(rows[0]["response_a"])
    function = {"function": f"{__name__}:minus_length", "scale": 0.1}
    for name, spec in (("function", function), ("file", {"scores": file})):
        run_method(asked(model, tmp_path / name, "modpo", method_options={"rewards": {"concise": spec}}))
        assert not (tmp_path / name / "run" / "parts").exists()
    lines = [json.loads(line) for line in first_lines(tmp_path / "function" / "run", tmp_path / "file" / "run")]
    assert lines[0]["loss/helpful"] == pytest.approx(lines[1]["loss/helpful"], rel=1e-9)
    assert abs(lines[0]["loss/helpful"] - math.log(2)) > 1e-3, "at the start only the margins move it from log 2"


@pytest.mark.parametrize(
    ("options", "objectives", "message"),
    [
        ({"objective": "kind"}, OBJECTIVES, "no such objective"),
        ({"objective": "concise"}, [Objective("helpful"), Objective("concise", weight=0.0)], "has weight 0"),
        ({"rewards": {"helpful": {"function": "x:y"}}}, OBJECTIVES, "a reward that is not used"),
        ({"rewards": {"concise": {"function": "no_module:f"}}}, OBJECTIVES, "no such module"),
        ({"rewards": {"concise": "length"}}, OBJECTIVES, "bad rewards"),
        ({"rewards": {"concise": {"scores": "nowhere.jsonl"}}}, OBJECTIVES, "nowhere.jsonl"),
        ({}, [Objective("helpful", loss="ipo"), Objective("concise", weight=0.1)], "no such loss"),
    ],
)
def test_modpo_says_what_it_lacks(options: Any, objectives: list[Objective], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        check_method(asked("m", tmp_path, "modpo", method_options=options, objectives=objectives))


def test_singles_that_are_not_are_refused(model: str, tmp_path: Path) -> None:
    request = asked(model, tmp_path, "modpo")
    with pytest.raises(InputError, match="not a finished run"):
        check_method(replace(request, singles={"concise": str(tmp_path / "nowhere")}))
    run_method(asked(model, tmp_path / "both", "linear"))
    with pytest.raises(InputError, match="not trained on that objective alone"):
        check_method(replace(request, singles={"concise": str(tmp_path / "both" / "run")}))
