"""Conflict before training: figures against plain gradients, what the sentence says, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from paretune.combine import raco
from paretune.combine.combination import angle
from paretune.comparisons.batches import collate
from paretune.errors import InputError
from paretune.objectives import Objective
from paretune.pipelines.conflict import Conflict, Figure, ModelConflict, judge, measure_conflict, sentence
from paretune.policy.logprobs import prepare_scorer, response_logprobs
from tests.comparisons_made import NAN, made_comparisons
from tests.models_made import make_model
from tests.tokenizers_made import word_level

TWO = [Objective("kind", weight=0.7), Objective("short", weight=0.3)]


def measured(rows: list[dict], objectives: list[Objective], **options) -> ModelConflict:  # type: ignore[no-untyped-def]
    tokenizer = word_level()
    model = make_model("llama", vocab_size=max(97, len(tokenizer)), std=0.15)
    return measure_conflict(model, tokenizer, Dataset.from_list(rows), objectives, **options)


def labelled(rows: list[dict], *preferences) -> list[dict]:  # type: ignore[no-untyped-def]
    return [{**row, "preferences": [f(i) for f in preferences]} for i, row in enumerate(rows)]


# ---- the figures ----


def test_figures_are_those_of_plain_gradients() -> None:
    """All weights: norms and cosine of the two mean DPO losses by autograd, on the flat layout, in one batch."""
    rows = [row for row in made_comparisons(50, 2, seed=1) if any(p == p for p in row["preferences"])][:32]
    tokenizer = word_level()
    model = make_model("llama", vocab_size=max(97, len(tokenizer)), std=0.15)
    plain = copy.deepcopy(model).train()
    found = measure_conflict(model, tokenizer, Dataset.from_list(rows), TWO, beta=0.3, full=True)
    gradients = plain_gradients(plain, rows, beta=0.3)
    gram = gradients @ gradients.T
    conflict = found.conflict
    assert [conflict.norms[o.name].value for o in TWO] == pytest.approx(gram.diagonal().sqrt().tolist(), rel=1e-3)
    cosine = float(gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt())
    assert conflict.cosines["kind~short"].value == pytest.approx(cosine, abs=1e-3)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    coefficients = raco(gram, weights, c=0.4).coefficients
    turned = math.degrees(angle(gram, coefficients, weights))
    assert conflict.angle.value == pytest.approx(turned, abs=0.05) and turned > 1
    assert conflict.effective_weights == pytest.approx((coefficients / coefficients.sum()).tolist(), abs=1e-3)
    assert conflict.labels == {name: sum(r["preferences"][i] == r["preferences"][i] for r in rows)
                               for i, name in enumerate(("kind", "short"))}  # fmt: skip
    assert found.trained == "all weights" and found.parameters == sum(p.numel() for p in plain.parameters())
    assert found.seconds_per_step > 0 and found.rows_per_second == pytest.approx(32 / found.seconds_per_step)


def plain_gradients(model: nn.Module, rows: list[dict], beta: float) -> Tensor:
    """(2, P) float64: by one autograd call per objective; at the reference, log-ratios are those to the detached."""
    scorer = prepare_scorer(model, "flat")
    batch = collate(rows, layout="flat", pad_id=0)
    scores = response_logprobs(model, batch, scorer)
    delta = scores.logp_a - scores.logp_a.detach() - scores.logp_b + scores.logp_b.detach()
    gradients = []
    for i in range(2):
        p = batch["preferences"][:, i].float()
        has = ~p.isnan()
        p = p.nan_to_num()
        loss = -(p * nn.functional.logsigmoid(beta * delta) + (1 - p) * nn.functional.logsigmoid(-beta * delta))[has]
        parts = torch.autograd.grad(loss.mean(), list(model.parameters()), retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    return torch.stack(gradients)


def vectors(k: int, m: int, size: int = 40, seed: int = 0, common: float = 1.0) -> Tensor:
    """(K, M, size): each objective's own direction, and noise of each batch."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(m, size, generator=generator, dtype=torch.float64)
    return common * own + 0.3 * torch.randn(k, m, size, generator=generator, dtype=torch.float64)


def judged(gradients: Tensor, objectives: list[Objective], labels: Tensor | None = None, c: float = 0.4) -> Conflict:
    labels = torch.full(gradients.shape[:2], 8.0, dtype=torch.float64) if labels is None else labels
    return judge(torch.einsum("kis,ljs->kilj", gradients, gradients), labels, objectives, c=c, rows=64)


def test_the_interval_is_the_jackknifes() -> None:
    gradients = vectors(8, 2, seed=3)
    labels = torch.tensor([[8.0, 3.0]] * 4 + [[5.0, 8.0]] * 4, dtype=torch.float64)

    def cosine(keep: list[int]) -> float:
        mean = gradients[keep].sum(0) / labels[keep].sum(0)[:, None]
        return float(mean[0] @ mean[1] / (mean[0].norm() * mean[1].norm()))

    without = torch.tensor([cosine([k for k in range(8) if k != i]) for i in range(8)], dtype=torch.float64)
    error = float((7 / 8 * (without - without.mean()).square().sum()).sqrt())
    figure = judged(gradients, TWO, labels).cosines["kind~short"]
    value = cosine(list(range(8)))
    assert figure.value == pytest.approx(value)
    assert (figure.low, figure.high) == pytest.approx((value - 2.365 * error, value + 2.365 * error))


def test_intervals_cover() -> None:
    """Of 200 draws of the batches, the cosine's 95 % interval holds the true one in about 95 %."""
    generator = torch.Generator().manual_seed(0)
    own = torch.tensor([[1.0, 0.0, 0.5], [-0.4, 1.0, 0.0]], dtype=torch.float64)
    truth = float(own[0] @ own[1] / (own[0].norm() * own[1].norm()))
    inside = 0
    for _ in range(200):
        noise = torch.randn(8, 2, 3, generator=generator, dtype=torch.float64)
        figure = judged(own + 0.4 * noise, TWO).cosines["kind~short"]
        assert figure.low is not None and figure.high is not None
        inside += figure.low <= truth <= figure.high
    assert 180 <= inside <= 198


def test_any_number_of_objectives() -> None:
    three = [Objective(name, weight=w) for name, w in (("a", 0.5), ("b", 0.25), ("c", 0.25))]
    found = judged(vectors(8, 3), three)
    assert list(found.cosines) == ["a~b", "a~c", "b~c"] and len(found.elsewhere) == 4
    assert all(sum(weights) == pytest.approx(1) for weights, _ in found.elsewhere)
    one = judged(vectors(8, 1), [Objective("a")])
    assert one.sentence.startswith("With one objective") and one.angle.value == 0 and not one.elsewhere


# ---- what it says ----


def test_opposed_and_equal_labels() -> None:
    rows = made_comparisons(48, 2, seed=2)
    flip = lambda i: float(i % 3 == 0)  # noqa: E731
    opposed = measured(labelled(rows, flip, lambda i: 1 - flip(i)), TWO).conflict
    assert opposed.cosines["kind~short"].value == pytest.approx(-1, abs=1e-5) and "on one line" in opposed.sentence
    equal = measured(labelled(rows, flip, flip), TWO).conflict
    assert equal.cosines["kind~short"].value == pytest.approx(1, abs=1e-5)
    assert equal.angle.value == pytest.approx(0, abs=1e-3)
    assert equal.sentence.startswith("RACO will hardly differ") and "little conflict" in equal.sentence


def test_the_model_is_measured_as_it_is_and_repeatably() -> None:
    rows = made_comparisons(40, 2, seed=4, missing=0.0)
    before = torch.get_rng_state()
    first, second = measured(rows, TWO, seed=3), measured(rows, TWO, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert first.conflict == second.conflict and first.trained == "LoRA"
    other = measured(rows, TWO, seed=3, size=16)
    assert other.conflict.rows == 16 and first.conflict.rows == 40
    assert first.parameters < 20_000
    assert first.to_dict()["conflict"]["norms"]["kind"]["value"] == first.conflict.norms["kind"].value


@pytest.mark.parametrize(
    ("cosine", "angle_", "options", "parts"),
    [
        (0.6, (0.5, 0.0, 1.0), {}, ["hardly differ", "because there is little conflict", "+0.60."]),
        (
            -0.4,
            (0.5, 0.0, 1.0),
            {},
            ["hardly differ", "-0.40", "correction points where", "1 / 0 it would turn 20 deg"],
        ),
        (-0.4, (5.0, 4.0, 6.0), {}, ["differ a little", "turns 5 degrees away."]),
        (-0.4, (15.0, 12.0, 18.0), {}, ["differ clearly", "turns 15 degrees away."]),
        (-0.4, (15.0, 2.0, 20.0), {}, ["differ clearly", "between 2 and 20 degrees, so this may change"]),
        (
            0.3,
            (10.0, 9.0, 11.0),
            {},
            ["differ clearly", "less by conflict", "short is 2.7 times as long as that of kind"],
        ),
        (-0.4, (15.0, None, None), {}, ["too few labels to say"]),
        (-1.0, (0.0, 0.0, 0.0), {"why_zero": "the mixture is 0"}, ["hardly differ", "because the mixture is 0."]),
        (-0.4, (0.0, 0.0, 0.0), {"c": 0.0}, ["With c = 0"]),
        (math.nan, (0.0, 0.0, 0.0), {}, ["No two objectives have a gradient"]),
    ],
)
def test_sentences(cosine: float, angle_: tuple, options: dict, parts: list[str]) -> None:
    norms = {"kind": Figure(0.5, 0.4, 0.6), "short": Figure(2.0, 1.9, 2.1)}
    text = sentence(
        norms,
        [0.6, 0.4],
        {"kind~short": Figure(cosine, -1.0, 1.0)},
        Figure(*angle_),
        [([0.5, 0.5], 1.0), ([1.0, 0.0], 20.0)],
        rows=64,
        **{"c": 0.4, **options},
    )
    assert all(part in text for part in parts), text


# ---- which rows, and what is refused ----


def test_rows_without_a_label_are_not_drawn() -> None:
    rows = made_comparisons(40, 2, seed=5, missing=0.0)
    blank = [{**row, "preferences": [NAN, NAN]} for row in made_comparisons(200, 2, seed=6)]
    found = measured(blank[:100] + rows + blank[100:], TWO)
    assert found.conflict.rows == 40 and found.conflict.labels == {"kind": 40, "short": 40}


def test_a_rare_label_has_no_interval() -> None:
    """The batch that holds all labels of an objective cannot be left out."""
    rows = labelled(made_comparisons(40, 2, seed=5), lambda i: float(i % 2), lambda i: 1.0 if i == 7 else NAN)
    found = measured(rows, TWO).conflict
    assert found.labels["short"] == 1 and found.norms["short"].low is None and found.norms["kind"].low is not None


@pytest.mark.parametrize(
    ("rows", "objectives", "said"),
    [
        (made_comparisons(7, 2), TWO, "too few rows"),
        (labelled(made_comparisons(20, 2), lambda i: 1.0, lambda i: NAN), TWO, "no label of 'short' among the 16"),
        (made_comparisons(20, 2), [Objective("kind", loss="other"), Objective("short")], "unknown loss"),
    ],
)
def test_refusals(rows: list[dict], objectives: list[Objective], said: str) -> None:
    with pytest.raises(InputError, match=said):
        measured(rows, objectives)
