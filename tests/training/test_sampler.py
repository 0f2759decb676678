"""Steps are a function of (seed, epoch); labels of every objective reach each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paretune.training.sampler import StepDataset, StepSampler, count_labels, stratified_order


def kinds(counts: dict[tuple[bool, ...], int], seed: int = 0) -> np.ndarray:
    rows = np.array([kind for kind, count in counts.items() for _ in range(count)])
    return np.random.default_rng(seed).permutation(rows)


def steps(labelled: np.ndarray, *, micro: int, accumulation: int, world: int, epoch: int = 0) -> list[list[int]]:
    """The rows of each step, in micro-batch and rank order, put together from what every rank yields."""
    ranks = []
    for rank in range(world):
        sampler = StepSampler(labelled, micro_batch=micro, accumulation=accumulation, rank=rank, world=world, seed=3)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    joined = [sum((ranks[r][k] for r in range(world)), []) for k in range(len(ranks[0]))]
    return [sum(joined[i : i + accumulation], []) for i in range(0, len(joined), accumulation)]


@pytest.mark.parametrize(("micro", "accumulation", "world"), [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4)])
def test_ranks_and_micro_batches_do_not_change_the_steps(micro: int, accumulation: int, world: int) -> None:
    labelled = np.ones((29, 2), dtype=bool)
    expected = [sorted(step) for step in steps(labelled, micro=8, accumulation=1, world=1)]
    found = [sorted(step) for step in steps(labelled, micro=micro, accumulation=accumulation, world=world)]
    assert found == expected


def test_every_row_once_and_the_rest_unlabelled() -> None:
    seen = sum(steps(np.ones((29, 2), dtype=bool), micro=4, accumulation=2, world=1), [])
    assert len(seen) == 32
    assert sorted(i for i in seen if i >= 0) == list(range(29))
    dataset = StepDataset([{"preferences": [1.0, 0.0], "x": i} for i in range(29)])
    padding = [dataset[i] for i in seen if i < 0]
    assert len(padding) == 3 and all(np.isnan(row["preferences"]).all() for row in padding)


def test_fewer_rows_than_a_step() -> None:
    (step,) = steps(np.ones((3, 1), dtype=bool), micro=4, accumulation=2, world=1)
    assert len(step) == 8 and sorted(i for i in step if i >= 0) == [0, 1, 2]


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
