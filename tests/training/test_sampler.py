"""Steps are a function of (seed, epoch); labels of every objective reach each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from paretune.training.sampler import StepDataset, StepSampler, count_labels, stratified_order, unlabelled


def kinds(counts: dict[tuple[bool, ...], int], seed: int = 0) -> np.ndarray:
    rows = np.array([kind for kind, count in counts.items() for _ in range(count)])
    return np.random.default_rng(seed).permutation(rows)


def steps(labelled: np.ndarray, *, micro: int, accumulation: int, world: int, epoch: int = 0) -> list[list[int]]:
    """The rows of each step, in micro-batch and rank order, put together from what every rank yields."""
    ranks = []
    lengths = np.random.default_rng(1).integers(1, 100, (len(labelled), 3))
    for rank in range(world):
        sampler = StepSampler(
            labelled, lengths, micro_batch=micro, accumulation=accumulation, rank=rank, world=world, seed=3
        )
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    joined = [sum((ranks[r][k] for r in range(world)), []) for k in range(len(ranks[0]))]
    return [sum(joined[i : i + accumulation], []) for i in range(0, len(joined), accumulation)]


@pytest.mark.parametrize(("micro", "accumulation", "world"), [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4)])
def test_ranks_and_micro_batches_do_not_change_the_steps(micro: int, accumulation: int, world: int) -> None:
    labelled = np.ones((29, 2), dtype=bool)
    found = steps(labelled, micro=micro, accumulation=accumulation, world=world)
    order = stratified_order(labelled, 3, 0)
    assert [sorted(i for i in step if i >= 0) for step in found] == [sorted(order[i : i + 8]) for i in (0, 8, 16, 24)]


def test_every_row_once_and_a_micro_batch_without_one_gets_a_copy_without_labels() -> None:
    lengths = np.array([[5, 5, 5]] * 20 + [[1, 1, 1]] + [[9, 9, 9]] * 8)
    sampler = StepSampler(np.ones((29, 2), dtype=bool), lengths, micro_batch=2, accumulation=4, rank=0, world=1, seed=0)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch if i >= 0) == list(range(29))
    assert batches[-1] == [unlabelled(20)], "the shortest row of all stands in"
    assert [len(batch) for batch in batches[12:]] == [2, 2, 1, 1]
    rows = Dataset.from_list([{"preferences": [1.0, 0.0], "x": i, "count_only": [True, True]} for i in range(29)])
    blank, whole = StepDataset(rows).__getitems__([unlabelled(20), 20])
    assert np.isnan(blank["preferences"]).all() and blank["count_only"] == [False, False] and blank["x"] == 20
    assert whole == StepDataset(rows)[20] == rows[20]


@pytest.mark.parametrize(("rows", "world", "sizes"), [(3, 2, [[2, 1], [1, 1]]), (1, 2, [[1, 1], [1, 1]])])
def test_fewer_rows_than_a_step(rows: int, world: int, sizes: list[list[int]]) -> None:
    labelled, found = np.ones((rows, 1), dtype=bool), []
    for rank in range(world):
        sampler = StepSampler(
            labelled, np.ones((rows, 3), dtype=int), micro_batch=4, accumulation=2, rank=rank, world=world, seed=0
        )
        found.append(list(sampler))
    assert [[len(batch) for batch in share] for share in found] == sizes, "ranks share what there is"
    assert sorted(i for share in found for batch in share for i in batch if i >= 0) == list(range(rows))


def test_a_step_begins_with_its_longest_rows() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, (64, 1))
    sampler = StepSampler(np.ones((64, 1), dtype=bool), lengths, micro_batch=4, accumulation=4, rank=0, world=1, seed=0)
    batches = list(sampler)
    for step in range(4):
        longest = [lengths[batch].max() for batch in batches[4 * step : 4 * step + 4]]
        assert longest == sorted(longest, reverse=True)
        assert lengths[batches[4 * step]].min() >= lengths[batches[4 * step + 1]].max()


def test_epochs_and_seeds_differ() -> None:
    labelled = np.ones((50, 1), dtype=bool)
    orders = [tuple(stratified_order(labelled, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(stratified_order(labelled, 0, 0))


def test_one_kind_is_a_uniform_shuffle() -> None:
    labelled = np.ones((4, 1), dtype=bool)
    firsts = np.bincount([stratified_order(labelled, seed, 0)[0] for seed in range(2000)], minlength=4)
    assert (abs(firsts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_labels_of_every_objective_in_each_step() -> None:
    """80 rows of one objective, 10 of another, 10 of a third: every step of 20 gets its two of the rare ones."""
    labelled = kinds({(True, False, False): 80, (False, True, False): 10, (False, False, True): 10})
    for epoch in range(20):
        order = stratified_order(labelled, 0, epoch)
        for start in range(0, 100, 20):
            held = labelled[order[start : start + 20]].sum(0)
            assert (held >= [14, 1, 1]).all() and held.sum() == 20


def test_a_plain_shuffle_would_miss_them() -> None:
    labelled = kinds({(True, False): 95, (False, True): 5})
    rng = np.random.default_rng(0)
    misses = [labelled[rng.permutation(100)[:20], 1].sum() == 0 for _ in range(200)]
    stratified = [labelled[stratified_order(labelled, s, 0)[:20], 1].sum() == 0 for s in range(200)]
    # 5 labels in 5 steps of 20: exactly one each would need no randomness within strata; rarely none
    assert np.mean(misses) > 0.25 and np.mean(stratified) < 0.05


def test_counting_labels() -> None:
    nan = float("nan")
    first = {"preferences": torch.tensor([[1.0, nan], [0.5, 0.0]])}
    second = {"preferences": torch.tensor([[nan, nan]]), "count_only": torch.tensor([[True, False]])}
    assert count_labels([first]).tolist() == [2.0, 1.0]
    assert count_labels([first, second]).tolist() == [3.0, 1.0]
