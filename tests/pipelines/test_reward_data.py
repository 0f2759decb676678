"""What reward models learn from: every form of row, missing scores, batches that mean what the rows said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.pipelines.rewards.data import read_pairs, read_scored, split_places
from paretune.pipelines.rewards.training import (
    KINDS,
    RewardConfig,
    RewardRows,
    batch_loss,
    collate_examples,
    set_ridge_heads,
    weights_of,
)
from paretune.preferences.reward_models.losses import pairwise
from paretune.preferences.reward_models.models import new_reward_model, response_rewards, set_padding
from tests.cli.made import save_model
from tests.tokenizers_made import byte_bpe

SCORED: list[dict[str, Any]] = [
    {"prompt": "p?", "responses": [" x", " yy", " zzz"], "scores": {"good": [1, 2.5, None], "short": [3, 2, 1]}},
    {"prompt": "q?", "responses": [" x", " w"], "scores": {"good": [0, -1]}, "group": "g"},
]


def test_scored_responses_are_gathered_by_prompt() -> None:
    examples, found = read_scored(SCORED, None, {})
    assert examples.names == ("good", "short") and examples.responses == [[" x", " yy", " zzz"], [" x", " w"]]
    nan = math.nan
    wanted = [[[1, 3], [2.5, 2], [nan, 1]], [[0, nan], [-1, nan], [nan, nan]]]
    np.testing.assert_array_equal(examples.scores, wanted)
    assert found["labels"] == {"good": 4, "short": 3} and examples.groups == ["prompt:p?", "group:g"]
    singles = [
        {"prompt": row["prompt"], "response": response, "group": row.get("group"),
         "scores": {name: values[k] for name, values in row["scores"].items()}}
        for row in SCORED for k, response in enumerate(row["responses"])
    ]  # fmt: skip
    again, _ = read_scored(singles, None, {})
    np.testing.assert_array_equal(again.scores, wanted)
    assert again.fingerprint() == examples.fingerprint()
    (only, _) = read_scored(SCORED, [Objective("mine", labels="short")], {})
    assert only.names == ("mine",) and only.scores[0, :, 0].tolist() == [3, 2, 1]


def test_comparisons_with_preferences_and_with_ratings() -> None:
    rows = [
        {"prompt": "p", "response_a": " x", "response_b": " y", "preferences": {"good": 1, "short": None}},
        {"prompt": "q", "response_a": " x", "response_b": " y", "preferences": {"good": 0.25, "short": "b"}},
    ]
    examples, _ = read_pairs(rows, None, {})
    assert examples.preferences is not None and examples.labelled().tolist() == [[1, 0], [1, 1]]
    np.testing.assert_array_equal(examples.preferences, [[1, math.nan], [0.25, 0]])
    rated, _ = read_pairs(SCORED, None, {}, ratings=True)
    assert rated.preferences is not None and len(rated) == 4
    np.testing.assert_array_equal(rated.preferences[:, 0], [0, math.nan, math.nan, 1])
    np.testing.assert_array_equal(rated.scores[0], [[1, 3], [2.5, 2]])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p", "response": "x", "scores": {"good": "high"}}], "bad score"),
        ([{"prompt": "p", "response": "", "scores": {"good": 1}}], "empty response"),
        ([{"prompt": "p", "response": "x", "scores": {"good": 1}}, {"prompt": "p", "response": "y"}], "scores"),
        ([{"prompt": "p", "response": "x", "scores": {"good": None}}], "nothing scores 'good'"),
        ([{"prompt": "p", "chosen": "x", "rejected": "y"}], "no ratings"),
    ],
)
def test_rows_without_usable_scores_are_errors(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_scored(rows, None, {})


def test_no_group_is_divided() -> None:
    groups = [f"g{i % 7}" for i in range(50)]
    train, held = split_places(groups, 0.3, 2)
    assert sorted([*train, *held]) == list(range(50))
    assert not {groups[i] for i in train} & {groups[i] for i in held}


def test_responses_that_do_not_fit_are_left_out() -> None:
    long = [{**SCORED[0], "responses": [" x", " y" * 60, " zzz"]}, SCORED[1]]
    tokenizer = byte_bpe()
    lists = RewardRows(read_scored(long, None, {})[0], tokenizer, "joined", 30)
    assert lists.dropped == 1 and [len(row["encoded"]) for row in lists.rows] == [2, 2]
    assert lists.rows[0]["scores"][:, 1].tolist() == [3, 1], "the scores of those that are left"
    pairs = RewardRows(read_pairs(long, None, {})[0], tokenizer, "joined", 30)
    assert len(pairs) == 2 and pairs.places == [1, 3]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_loss_is_the_mean_over_labels_of_each_objective(kind: str) -> None:
    """And a pad in a short list, or an objective that an example lacks, is in none of them."""
    rows = [{**row, "prompt": f"{row['prompt']} {i}", "group": None} for i in range(3) for row in SCORED]
    examples = read_pairs(rows, None, {})[0] if kind == "pairwise" else read_scored(rows, None, {})[0]
    table = RewardRows(examples, byte_bpe(), "joined", None)
    args = RewardConfig(output_dir="unused", kind=kind, use_cpu=True, report_to="none")
    weights = weights_of(table, kind)
    batch = collate_examples(table.rows, 0)
    rewards = torch.randn(int(batch["members"].max()) + 1, 2)
    by_hand: list[list[float]] = [[], []]
    taken = 0
    for row in table.rows:
        count = len(row["encoded"])
        own, taken = rewards[taken : taken + count].double(), taken + count
        for i in range(2):
            s = torch.tensor(row["scores"][:, i])
            if kind == "pointwise":
                by_hand[i] += [float((own[k, i] - s[k]) ** 2) for k in range(count) if not s[k].isnan()]
            elif kind == "pairwise":
                p = row["preferences"][i]
                if not math.isnan(p):
                    by_hand[i].append(float(pairwise(own[:1, i], own[1:, i], torch.tensor([p]).double())))
            elif int((~s.isnan()).sum()) > 1:
                order = [int(k) for k in s.argsort(descending=True) if not s[k].isnan()]
                order.sort(key=lambda k: -float(s[k]))
                left = own[order, i]
                by_hand[i].append(float(sum(left[j:].logsumexp(0) - left[j] for j in range(len(left)))))
    wanted = sum(sum(losses) / len(losses) for losses in by_hand) / 2
    assert batch_loss(args, rewards, batch, weights).item() == pytest.approx(wanted, rel=1e-5)


def test_ridge_heads_change_nothing_but_the_heads(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    rows = [
        {"prompt": f"{i}", "responses": [f" a{i}", f" b {i}"], "scores": {"good": [i % 5, 1], "rare": [None, i % 3]}}
        for i in range(40)
    ]
    examples, _ = read_scored(rows, None, {})
    model = new_reward_model(str(save_model(tmp_path, tokenizer=tokenizer)), examples.names, None)
    pad = set_padding(model, tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = RewardRows(examples, tokenizer, "joined", None)
    ridge = set_ridge_heads(model, table, examples, pad, batch_size=16)
    after = model.state_dict()
    assert [name for name in after if not after[name].equal(before[name])] == ["score.weight"]
    assert after["score.weight"].double().allclose(ridge.weights, rtol=1e-6)
    batch = collate_examples(table.rows, pad)
    features: list[torch.Tensor] = []
    model.score.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        rewards = response_rewards(model, batch, None)
    last = batch["attention_mask"].sum(1) - 1
    x = features[0][torch.arange(len(last)), last].double()
    assert rewards.double().allclose(x @ ridge.weights.T, atol=1e-4)
    s = torch.cat([torch.tensor(row["scores"]) for row in table.rows])
    known = ~s[:, 1].isnan()
    gram = x[known].T @ x[known] + ridge.strengths[1] * torch.eye(x.shape[1])
    assert torch.linalg.solve(gram, x[known].T @ s[known, 1]).allclose(ridge.weights[1], rtol=1e-3, atol=1e-4)
