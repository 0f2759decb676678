"""`examples/raco_minimal.py` is the library's method: the same combination, the same weights after several steps."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from examples import raco_minimal as minimal
from paretune import Objective, RACOConfig, RACOTrainer
from paretune.combine import raco

ROOT = Path(__file__).resolve().parents[1]

# gradients, weights, c, RACO's update: the vectors that were worked out beside the paper's algorithm
VECTORS = [
    ([[1, -4], [-1, 1]], [0.2, 0.8], 0.5, [-0.882999, -0.099557]),
    ([[1, 0], [0, 2]], [0.8, 0.2], 0.4, [1.12, 0.56]),
    ([[2, 0], [-1, 1]], [0.5, 0.5], 0.4, [0.3, 0.7]),
    ([[1, 0], [-3, 1]], [0.8, 0.2], 0.4, [0.092669, 0.235777]),
    ([[1, 2], [1, 2]], [0.7, 0.3], 0.4, [1.4, 2.8]),
    ([[1, 2], [-1, -2]], [0.8, 0.2], 0.4, [0.36, 0.72]),
    ([[1, 2], [-1, -2]], [0.5, 0.5], 0.4, [0.0, 0.0]),
    ([[0, 0], [1, 1]], [0.8, 0.2], 0.4, [0.2, 0.2]),
    ([[3, 0, 0], [-1, 2, 0], [-1, -1, 2]], [0.5, 0.3, 0.2], 0.4, [0.695646, 0.643483, 0.643483]),
]


@pytest.mark.parametrize(("gradients", "weights", "c", "update"), VECTORS)
def test_the_solver_gives_the_known_updates(
    gradients: list[list[float]], weights: list[float], c: float, update: list[float]
) -> None:
    g, w = torch.tensor(gradients).double(), torch.tensor(weights).double()
    torch.testing.assert_close(minimal.raco(g @ g.T, w, c)[0] @ g, torch.tensor(update).double(), atol=1e-6, rtol=0)


def _awkward(kind: int, m: int, d: int) -> Tensor:
    """m gradients of d numbers: plain, twins, far apart in length, opposed, nearly twins, one of them 0."""
    g = torch.randn(m, d, dtype=torch.float64)
    if kind == 1:
        g[-1] = g[0]
    if kind == 2:
        g *= 10 ** (4 * torch.rand(m, 1) - 2)
    if kind == 3:
        g[-1] = -1.3 * g[0]
    if kind == 4:
        g[-1] = g[0] + 1e-3 * torch.randn(d)
    if kind == 5:
        g[0] = 0.0
    return g


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("clip", [True, False])
def test_the_solver_is_the_library_s(kind: int, clip: bool) -> None:
    for trial in range(25):
        m, d = 2 + trial % 4, 1 + int(torch.randint(7, ()))
        g, w = _awkward(kind, m, d), torch.rand(m).double() + 0.02
        w /= w.sum()
        ours, theirs = minimal.raco(g @ g.T, w, 0.4, clip), raco(g @ g.T, w, 0.4, clip)
        difference = (ours[0] - theirs.coefficients) @ g
        # 1e-6: where many mixtures are as good, the nearest one is known to about 1e-16 / TAU^2
        assert difference.norm() <= 1e-6 * (theirs.coefficients @ g).norm(), (kind, trial, ours, theirs)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with the example's numbers."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(minimal.WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def _rows(data: list[minimal.Row], preferences_NM: Tensor) -> list[dict[str, object]]:
    def text(ids: list[int]) -> str:
        return "".join(f" {minimal.WORDS[i]}" for i in ids)

    rows = []
    for (prompt, a, b), labels in zip(data, preferences_NM.tolist(), strict=True):
        known = {name: None if math.isnan(x) else x for name, x in zip(minimal.OBJECTIVES, labels, strict=True)}
        # the library appends the end-of-sequence token itself
        rows.append(
            {"prompt": text(prompt), "response_a": text(a[:-1]), "response_b": text(b[:-1]), "preferences": known}
        )
    return rows


@pytest.mark.parametrize(
    ("optimizer", "dtype", "micro_batches", "tolerance"),
    [
        ("sgd", torch.float32, 1, 1e-5),
        ("sgd", torch.float32, 3, 1e-5),
        ("adamw_torch", torch.float32, 1, 3e-5),
        # float64 weights; Llama's norms and rotations stay float32, so 1e-7 is what is left
        ("adamw_torch", torch.float64, 3, 1e-6),
    ],
)
def test_the_same_weights_as_the_trainer(
    tmp_path: Path, optimizer: str, dtype: torch.dtype, micro_batches: int, tolerance: float
) -> None:
    """Each optimizer step is over the whole data set, so the order of the rows does not matter."""
    rows, steps, rate = 24, 6, 0.1 if optimizer == "sgd" else 1e-3
    start = minimal.make_model().to(dtype)
    data, preferences_NM = minimal.make_data(rows)
    assert preferences_NM.isnan().any(), "missing labels are part of what is compared"
    by_hand, by_trainer = copy.deepcopy(start), copy.deepcopy(start)

    maker = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optimizer]
    figures = list(
        minimal.train(by_hand, data, preferences_NM, maker(by_hand.parameters(), lr=rate, weight_decay=0.0), steps)
    )

    trainer = RACOTrainer(
        model=by_trainer,
        args=RACOConfig(
            output_dir=str(tmp_path),
            **{"max_steps": steps, "learning_rate": rate, "optim": optimizer, "c": minimal.C, "beta": minimal.BETA},
            **{"per_device_train_batch_size": rows // micro_batches, "gradient_accumulation_steps": micro_batches},
            **{"lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "weight_decay": 0.0},
            **{"use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1},
        ),
        objectives=[Objective(name, weight=weight) for name, (weight, _) in minimal.OBJECTIVES.items()],
        train_dataset=_rows(data, preferences_NM),
        processing_class=_tokenizer(),
    )
    trainer.train()

    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == steps
    for (losses, margins, p, _), entry in zip(figures, history, strict=True):
        for i, name in enumerate(minimal.OBJECTIVES):
            assert entry[f"loss/{name}"] == pytest.approx(losses[i], rel=1e-5)
            assert entry[f"rewards/margins/{name}"] == pytest.approx(minimal.BETA * margins[i], rel=1e-4, abs=1e-6)
            assert entry[f"combine/p/{name}"] == pytest.approx(p[i], abs=1e-3 if dtype == torch.float32 else 1e-6)

    moved = difference = 0.0
    for key, first in start.state_dict().items():
        difference += float((by_hand.state_dict()[key] - by_trainer.state_dict()[key]).double().square().sum())
        moved += float((by_hand.state_dict()[key] - first).double().square().sum())
    assert moved > 0
    assert difference <= tolerance**2 * moved


def test_it_runs_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "raco_minimal.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(name in lines[-1] for name in minimal.OBJECTIVES)
    assert "margin -" not in lines[-1], "every objective's margin has grown from 0"


def test_it_stays_one_short_file_of_its_own() -> None:
    source = (ROOT / "examples" / "raco_minimal.py").read_text(encoding="utf-8")
    assert "import paretune" not in source and "from paretune" not in source
    assert len(source.splitlines()) <= 160
