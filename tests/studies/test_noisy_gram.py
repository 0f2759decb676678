"""The study's estimates against enumeration, its loop against the sandbox's, its page against its data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paretune.combine import raco
from paretune.sandbox.bandit import low_rank
from paretune.sandbox.bandit_runs import Comparisons, Run, losses_and_gradients, make_batch
from paretune.sandbox.bandit_runs import train as sandbox_train
from studies.noisy_gram import figure, loop, run
from studies.noisy_gram.along import full_gradients, row_gradients
from studies.noisy_gram.arms import LINEAR, RACO, Arm, Memory, Step, decide
from studies.noisy_gram.duals import RULES, coefficients, mixture
from studies.noisy_gram.grams import across_halves, across_rows, projected, self_products, shrunk
from studies.noisy_gram.measure import draws, truth_of
from studies.noisy_gram.score import DECLARED, ceiling, front_scores, read_at

STUDY = Path(run.__file__).parent


def made(rows: int, *, seed: int = 0, size: int = 9) -> tuple[Tensor, Tensor]:
    """J (N, P) and slopes (2, N) of rows whose labels are often opposed."""
    generator = torch.Generator().manual_seed(seed)
    j = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return j, torch.randn(2, rows, generator=generator, dtype=torch.float64)


def worlds(seeds: tuple[int, ...] = (0, 3), rows: int = 200) -> loop.Worlds:
    return loop.make_worlds("noisy-one", seeds, rows)


def moved(made_worlds: loop.Worlds, runs: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    start = loop.starts(made_worlds, runs)
    return start + 0.3 * torch.randn(start.shape, generator=generator, dtype=torch.float64)


# ---- what a batch's Gram measures ----


def test_over_all_batches_the_gram_is_biased_as_derived_and_the_estimates_are_not() -> None:
    """Every batch of 4 out of 5 rows, with replacement, once each: means are expectations."""
    j, slopes = made(5)
    truth = truth_of(j, slopes)
    per_row = slopes[:, :, None] * j
    n, sums = 4, {name: torch.zeros(2, 2, dtype=torch.float64) for name in ("batch", "rows", "halves")}
    for chosen in itertools.product(range(5), repeat=n):
        rows = per_row[:, list(chosen)]
        gram = rows.mean(1) @ rows.mean(1).T
        own = self_products(
            slopes[:, list(chosen)].T[None, :, None] / n, j[list(chosen)].square().sum(1)[None, :, None]
        )
        sums["batch"] += gram
        sums["rows"] += across_rows(gram, own[0, 0], n)
        sums["halves"] += across_halves(rows[:, :2].mean(1), rows[:, 2:].mean(1))
    means = {name: total / 5**n for name, total in sums.items()}
    assert torch.allclose(means["batch"], truth.gram + truth.sigma / n, rtol=1e-10)
    for name in ("rows", "halves"):
        assert torch.allclose(means[name], truth.gram, rtol=1e-10, atol=1e-10 * float(truth.gram.trace()))
    assert not torch.allclose(means["batch"], truth.gram, rtol=0.1)


def test_opposed_labels_make_negatively_correlated_noise() -> None:
    j, slopes = made(400)
    opposed = torch.stack((slopes[0], -slopes[0]))
    sigma = truth_of(j, opposed).sigma
    assert float(sigma[0, 1]) == pytest.approx(-float(sigma[0, 0]), rel=1e-12)


def test_drawn_batches_carry_their_own_products() -> None:
    j, slopes = made(6)
    batch, own = draws(j, slopes, 3, 5, seed=2)
    chosen = torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(2))
    for k in range(5):
        rows = slopes[:, chosen[k], None] * j[chosen[k]]
        assert torch.allclose(batch[k], rows.mean(1), rtol=1e-12)
        assert torch.allclose(own[k], torch.einsum("irp,jrp->ij", rows, rows) / 9, rtol=1e-12)


def test_projections_are_semidefinite_and_leave_good_estimates_alone() -> None:
    j, slopes = made(40)
    batch, own = draws(j, slopes, 3, 200, seed=0)
    gram = batch @ batch.mT
    raw = across_rows(gram, own, 3)
    assert float(torch.linalg.eigvalsh(raw)[:, 0].min()) < 0  # so there is something to project
    for estimate in (projected(raw, gram), shrunk(gram, own)):
        values = torch.linalg.eigvalsh(estimate)
        assert bool((values[:, 0] > 0).all())
    good = torch.tensor([[2.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(projected(good, good), good, rtol=1e-12)
    assert torch.allclose(shrunk(good, 0.01 * good), 0.99 * good, rtol=1e-12)


# ---- the dual ----


def test_many_duals_are_the_librarys() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(300, 2, 5, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [3.0]])
    g[:20, 1] = -g[:20, 0] * torch.linspace(0.1, 2, 20)[:, None]  # opposed
    g[20:40, 1] = g[20:40, 0]  # equal: p is open
    g[40:45, 0] = 0.0
    first = torch.rand(300, generator=generator, dtype=torch.float64)
    w, gram = torch.stack((first, 1 - first), -1), g @ g.mT
    p = mixture(gram, w, 0.4)
    for rule, clip in (("clip", True), ("none", False)):
        a = coefficients(gram, w, RULES[rule](p, w), 0.4)
        for i in range(len(g)):
            one = raco(gram[i], w[i], clip=clip)
            assert torch.allclose(p[i], one.p, atol=1e-9)
            assert torch.allclose(a[i], one.coefficients, rtol=1e-7, atol=1e-9)


# ---- the loop ----


def test_gradients_are_the_sandboxs() -> None:
    of = worlds()
    theta = moved(of, 3)
    rows = loop.batch_rows(of, 7, 16)
    parts = loop.forward(rows, theta, of.betas)
    found = loop.gradients(rows, parts)
    for s, seed in enumerate(of.seeds):
        index = torch.from_numpy(np.random.default_rng((seed, 7)).integers(200, size=16))
        cells = [of.x[s, index] * of.reference.shape[-1] + side[s, index] for side in (of.a, of.b)]
        batch = make_batch(cells[0][None], cells[1][None], of.labels[s, :, index].mT[None])
        losses, gradients = losses_and_gradients(of.bandits[s], low_rank(loop.RANK), theta[s], batch, of.betas)
        assert torch.allclose(found[s], gradients, rtol=1e-10, atol=1e-14)
        assert torch.allclose(parts.losses[s], losses, rtol=1e-12)


@pytest.mark.parametrize("metric", [False, True])
def test_row_norms_are_those_of_rows_alone(metric: bool) -> None:
    of = worlds()
    theta = moved(of, 2)
    inverse = torch.rand(theta.shape, dtype=torch.float64) + 0.5 if metric else None
    rows = loop.batch_rows(of, 0, 5)
    nu = loop.squared_norms(rows, loop.forward(rows, theta, of.betas), inverse)
    for r in range(5):
        one = loop.Rows(rows.features[:, r : r + 1], rows.signs[..., r : r + 1], rows.labels[..., r : r + 1])
        parts = loop.forward(one, theta, of.betas)
        g = loop.gradients(one, parts)[:, :, 0] / parts.slopes[:, 0, :, :1]
        assert torch.allclose(nu[:, r], (g.square() * (1.0 if inverse is None else inverse)).sum(-1), rtol=1e-10)


def test_rows_and_halves_make_up_the_gradients() -> None:
    of = worlds()
    theta = moved(of, 2)
    rows = loop.batch_rows(of, 0, 6)
    parts = loop.forward(rows, theta, of.betas)
    first, second = loop.halves(rows, parts)
    assert torch.allclose((first + second) / 2, loop.gradients(rows, parts), rtol=1e-10, atol=1e-14)
    full = full_gradients(of, theta, at_once=64)
    j, slopes = row_gradients(of, 1, theta[1, 0])
    assert torch.allclose(full[1, 0], slopes @ j / len(j), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_raco_as_published_walks_the_sandboxs_path(optimizer: str) -> None:
    of = worlds()
    weights = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
    kept: list[Tensor] = []
    lr = {"sgd": 5.0, "adam": 0.05}[optimizer]
    groups = [
        loop.Group(replace(arm, published=True), weights, torch.tensor(lr, dtype=torch.float64))
        for arm in (RACO, LINEAR)
    ]
    loop.train(
        of, groups, steps=5, size=16, optimizer=optimizer, record=[5],
        watch=lambda step, rows, parts, g, theta, chosen, inverse: kept.append(theta.clone()),
    )  # fmt: skip
    for s, seed in enumerate(of.seeds):
        y = of.reference.shape[-1]
        data = {seed: Comparisons(of.x[s] * y + of.a[s], of.x[s] * y + of.b[s], of.labels[s].T)}
        runs = [Run(name, tuple(w.tolist()), lr, seed) for name in ("raco", "linear") for w in weights]
        paths = sandbox_train(
            of.bandits[s], low_rank(loop.RANK), data, runs,
            steps=5, betas=of.betas.tolist(), batch_size=16, optimizer=optimizer,
        )  # fmt: skip
        for step in range(5):
            assert torch.allclose(kept[step][s], paths.theta[step], rtol=1e-7, atol=1e-10)


def test_averages_are_bias_corrected() -> None:
    memory = Memory()
    for step in range(1, 4):
        memory.steps = step
        found = memory.average("gram", torch.tensor([2.0]), 0.9)
        assert float(found) == pytest.approx(2.0)


@pytest.mark.parametrize("arm", [*run.CANDIDATES, *run.TRIED, *run.ADAM_METRIC], ids=lambda arm: arm.name)
def test_every_arm_decides_something_finite(arm: Arm) -> None:
    of = worlds()
    theta = moved(of, 2)
    rows = loop.batch_rows(of, 0, 8)
    parts = loop.forward(rows, theta, of.betas)
    g = loop.gradients(rows, parts)
    inverse = torch.rand(theta.shape, dtype=torch.float64) + 0.5 if arm.metric == "adam" else None
    own = self_products(parts.slopes, loop.squared_norms(rows, parts, inverse))
    step = Step(g, loop.halves(rows, parts), own, 8, inverse, g + 0.1)
    weights = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    a, p = decide(arm, step, weights, Memory())
    assert bool(a.isfinite().all()) and bool((a >= weights - 1e-12).all())
    assert torch.allclose(p.sum(-1), torch.ones(2, 2, dtype=torch.float64))


# ---- the score ----


def test_a_path_is_read_where_it_first_reaches_the_level() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.4], [3.0, 3.0, 0.8], [5.0, 5.0, 0.6]]).double()
    path = points[:, None, None]
    assert read_at(path, 0.6)[0][0, 0].tolist() == pytest.approx([2.0, 2.5, 0.6])
    assert read_at(path, 2.0)[0][0, 0].tolist() == pytest.approx([5.0, 5.0, 0.6])  # not reached: its end


def test_no_policy_of_that_kl_passes_the_ceiling() -> None:
    of = worlds()
    best = ceiling(of, 0.5)
    base = torch.einsum(
        "sxy,smxy->sm", of.reference[:, of.n_train :].exp(), of.rewards[:, :, of.n_train :]
    ) / len(of.reference[0, of.n_train :])  # fmt: skip
    own = front_scores(best, best[:, [-1, 0]], base, best)
    assert all(torch.allclose(value, torch.ones(2, dtype=torch.float64)) for value in own.values())
    lower = front_scores(best - 0.2 * (best - base[:, None]), best[:, [-1, 0]], base, best)
    assert bool((lower[DECLARED] < 0.95).all())


# ---- the command and its page ----


def test_the_command_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.json"
    assert run.main(["--quick", "--only", "measure", "along", "develop", "confirm", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["arm"] for row in found["confirm"]["found"]["claims"][::2]] == [arm.name for arm in run.CANDIDATES]
    assert all(0 < row["p, Holm"] <= 1 for row in found["confirm"]["found"]["claims"])
    assert "confirm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mean", "adjusted", "equivalent", "word"),
    [(0.02, 0.01, 0.9, "better"), (-0.003, 0.01, 0.01, "worse and equivalent"), (0.02, 0.3, 0.2, "undecided")],
)
def test_verdicts_are_the_protocols_words(mean: float, adjusted: float, equivalent: float, word: str) -> None:
    assert run.verdict(mean, adjusted, equivalent) == word


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    return kept


def test_the_protocols_rules_were_followed(results: dict[str, Any]) -> None:
    claims = results["confirm"]["found"]["claims"]
    assert not results["confirm"]["commit"].endswith("+")
    assert len(claims) == 36 and all(row["n"] == 30 for row in claims)
    assert [row["p, Holm"] for row in claims] == pytest.approx(run.holm([row["p"] for row in claims]), rel=1e-4)
    for row in claims:
        assert row["verdict"] == run.verdict(row["mean"], row["p, Holm"], row["p equivalent"])


def test_the_page_quotes_the_kept_results(results: dict[str, Any]) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    claims = results["confirm"]["found"]["claims"]
    quoted = [f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in claims]
    words = [row["verdict"] for row in claims if row["against"] == "matched"]
    assert (words.count("equivalent"), words.count("worse"), words.count("undecided")) == (13, 4, 1)
    gains = [row["mean"] for row in claims if row["against"] == "raco" and "noisy" in row["cell"]]
    quoted += [f"by {min(gains):.3f} to {max(gains):.3f}"]
    assert [text for text in quoted if text not in page] == []


def test_the_figure_is_drawn_from_the_kept_results(results: dict[str, Any]) -> None:
    drawn = figure.draw(results)
    assert len({axes.get_title() for axes in drawn.axes}) == 4
    figure.pyplot.close(drawn)
